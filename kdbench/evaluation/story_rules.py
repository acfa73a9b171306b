"""Do the stories keep the rules: the words used, an ending, no loop; and how varied are they all?

    fields {"words": ["cat", "jump", "happy"]}, "The happy cat jumped over the wall."
    -> rules_words 1, rules_ends 1, rules_no_loop 1, rules_all 1

Samples whose fields name no words are judged by the other rules alone. `distinct_2` is the share of
different word pairs among all pairs of all stories (Li et al. 2016). It judges nothing by itself:
nonsense is the most varied text of all.
"""

from __future__ import annotations

import json

from pydantic import Field

from kdbench.config import StrictConfig
from kdbench.evaluation import Generation, Score, Subject
from kdbench.evaluation._bootstrap import estimate
from kdbench.records import Completion
from kdbench.textstats import Part, distinct_n, ends_properly, has_loop, missing_words

NEEDS = frozenset({"generations"})
CUT_OFF = "length"


class Config(StrictConfig):
    """What is counted."""

    distinct: int = Field(2, ge=1, le=5, description="length in words of what distinct_N counts")
    parts: tuple[Part, ...] = Field(
        ("noun", "verb", "adjective"),
        description="parts of speech of a sample's words, in order; heeded where there are as many words",
    )


def measure(subject: Subject, config: Config) -> list[Score]:
    """Scores "rules_words" (if words are named), "rules_ends", "rules_no_loop", "rules_all", "distinct_N"."""
    words: list[float] = []
    ends, no_loop, everything = [], [], []
    for sample, made in zip(subject.samples, subject.generations, strict=True):
        wanted = words_of(sample)
        parts = config.parts if len(wanted) == len(config.parts) else None
        uses = not missing_words(made.text, wanted, parts)
        if wanted:
            words.append(float(uses))
        ends.append(float(has_end(made)))
        no_loop.append(float(not has_loop(made.text)))
        everything.append(float(uses and ends[-1] and no_loop[-1]))
    rules = {"rules_words": words, "rules_ends": ends, "rules_no_loop": no_loop, "rules_all": everything}
    scores = [
        estimate(metric, values, seed=subject.seed, unit="fraction", higher_is_better=True)
        for metric, values in rules.items()
        if values
    ]
    texts = [made.text for made in subject.generations]
    value = distinct_n(texts, config.distinct)
    # No interval: drawing texts again repeats some, which is the very thing that is counted.
    return [*scores, Score(f"distinct_{config.distinct}", value, n=len(texts), unit="fraction")]


def words_of(sample: Completion) -> tuple[str, ...]:
    """The words a sample's story must use; none where its fields name none."""
    words = json.loads(sample.fields).get("words", ())
    return tuple(str(word) for word in words) if isinstance(words, list) else ()


def has_end(made: Generation) -> bool:
    """Whether the model stopped by itself, after a whole sentence."""
    return made.finish_reason != CUT_OFF and ends_properly(made.text)
