"""TinyStories: short stories in words that a small child knows (Eldan & Li 2023, arXiv 2305.07759).

    seed 0 -> noun "chipmunk", verb "admire", adjective "little"; features dialogue and moral value
    teacher asked: Please write a short story of 3 to 5 paragraphs for a very small child. ...
    sample: prompt = that request, completion = the story,
            fields = {"words": ["chipmunk", "admire", "little"], "features": ["dialogue", "moral value"]}

Each seed draws one noun, one verb and one adjective from 1,500 basic words and a random subset of six
features. A reply becomes a sample if it passes the filters, else a rejection with its reason; with
`draws` above 1 the teacher gets more tries, each of which is one sample or one rejection.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import chain
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field, model_validator

from kdbench.config import StrictConfig
from kdbench.errors import Rejected
from kdbench.prompts import Prompts
from kdbench.records import Completion, Message, Rejection
from kdbench.teacher import Reply, Sampling
from kdbench.textstats import (
    Part,
    echoes_prompt,
    ends_properly,
    has_loop,
    inflections,
    is_refusal,
    missing_words,
    proper_names,
    words,
)

if TYPE_CHECKING:
    from kdbench.asking import Teachers
    from kdbench.engine import Seed

FACTS = {
    "paper": "Eldan & Li 2023, TinyStories: How Small Can Language Models Be ...?",
    "arxiv": "2305.07759",
    "from the paper": "noun, verb and adjective of about 1,500 words, a random subset of six features, "
    "3 to 5 paragraphs, the plea for simple words said twice",
    "ours": "word lists, wording, how the subset is drawn, filters, stories of N sentences, best of n draws",
}
ROLES = {"teacher": {"chat"}}
PARTS: tuple[Part, ...] = ("noun", "verb", "adjective")
FEATURES = ("dialogue", "plot twist", "bad ending", "moral value", "foreshadowing", "conflict")
EXAMPLE_WORDS = ("frog", "hop", "wet")  # what example_story.j2 and example_short.j2 are made of


class Filters(StrictConfig):
    """What a story must be to be kept; a change here costs no new call and renames no sample."""

    require_words: bool = Field(True, description="all three words, in any inflection")
    min_words: int = Field(40, ge=1)
    max_words: int = Field(600, ge=1)
    max_repeated: float = Field(
        0.3, ge=0, le=1, description="share of four-word runs that stood there before"
    )
    max_hard_share: float = Field(
        0.08, ge=0, le=1, description="share of words outside a young child's reach; names do not count"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Filters:
        if self.min_words > self.max_words:
            raise ValueError("min_words must not be above max_words")
        return self


class Config(StrictConfig):
    """What the teacher is asked for."""

    paragraphs: tuple[int, int] = Field((3, 5), description="fewest and most")
    sentences: int | None = Field(None, ge=1, le=50, description="ask for so many sentences, not paragraphs")
    feature_chance: float = Field(0.5, ge=0, le=1, description="of each feature; 0.5 makes all subsets alike")
    max_features: int = Field(6, ge=0, le=6)
    common_words: int | None = Field(
        None, ge=1, description="draw from so many most frequent words of each part of speech; null: from all"
    )
    example: bool = Field(False, description="show the teacher an example first; the student never sees it")
    draws: int = Field(1, ge=1, le=100, description="tries at a story before the seed is given up")
    sampling: Sampling = Sampling(temperature=1.0, max_tokens=768)
    filters: Filters = Filters()

    @model_validator(mode="after")
    def _ordered(self) -> Config:
        fewest, most = self.paragraphs
        if not 1 <= fewest <= most <= 20:
            raise ValueError("paragraphs must be two numbers, 1 <= fewest <= most <= 20")
        return self


class Fields(BaseModel):
    """What a TinyStories sample knows besides its text: its noun, verb and adjective, in this order."""

    words: tuple[str, str, str]
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one story is to be about."""

    words: tuple[str, str, str]
    features: tuple[str, ...]


async def generate(
    seed: Seed, teachers: Teachers, config: Config, prompts: Prompts
) -> list[Completion | Rejection]:
    """One seed's outcomes, one per draw; the last is the sample unless every draw was turned down."""
    plan = draw_plan(seed.rng, config)
    prompt = ask_for(plan, config, prompts)
    asked = (*example(config, prompts), prompt) if config.example else (prompt,)
    outcomes: list[Completion | Rejection] = []
    for _ in range(config.draws):
        try:
            reply = await teachers["teacher"].chat(asked, config.sampling)
        except Rejected as exc:
            if exc.reason != "truncated":
                raise
            outcomes.append(Rejection(reason=exc.reason, detail=exc.detail))
            continue
        outcomes.append(judge(reply, prompt, asked, plan, config.filters))
        if isinstance(outcomes[-1], Completion):
            break
    return outcomes


def draw_plan(rng: random.Random, config: Config) -> Plan:
    """Words and features of one story."""
    chosen = [feature for feature in FEATURES if rng.random() < config.feature_chance]
    if len(chosen) > config.max_features:
        chosen = sorted(rng.sample(chosen, config.max_features), key=FEATURES.index)
    noun, verb, adjective = (rng.choice(vocabulary()[part][: config.common_words]) for part in PARTS)
    return Plan((noun, verb, adjective), tuple(chosen))


def ask_for(plan: Plan, config: Config, prompts: Prompts) -> Message:
    """The request for one story, without example: what the student sees."""
    template = "story" if config.sentences is None else "short"
    return prompts.user(
        template,
        **dict(zip(PARTS, plan.words, strict=True)),
        features=plan.features,
        paragraphs=config.paragraphs,
        sentences=config.sentences,
    )


def example(config: Config, prompts: Prompts) -> tuple[Message, Message]:
    """A request and the story that answers it, as two turns before the real request."""
    story = prompts.render("example_story" if config.sentences is None else "example_short")
    plan = Plan(EXAMPLE_WORDS, ())
    return ask_for(plan, config, prompts), Message(role="assistant", content=story)


def judge(
    reply: Reply, prompt: Message, asked: Sequence[Message], plan: Plan, filters: Filters
) -> Completion | Rejection:
    """The reply as a sample, or as a rejection that carries it."""
    story = story_of(reply.text)
    if not story:
        return Rejection(reason="too_short", detail="no story in the reply")
    sample = Completion(
        prompt=(prompt,),
        completion=(Message(role="assistant", content=story, reasoning=reply.reasoning),),
        teacher_prompt=tuple(asked) if len(asked) > 1 else None,
        fields=Fields(words=plan.words, features=plan.features).model_dump_json(),
    )
    if reply.finish_reason == "length":
        fault: tuple[str, str] | None = ("cut_off", "stopped at max_tokens")
    else:
        fault = find_fault(story, prompt.content, plan, filters)
    return sample if fault is None else Rejection(reason=fault[0], detail=fault[1], sample=sample)


_PREAMBLE = re.compile(r"(?:sure|certainly|of course|okay|ok|here)\b[^\n]*[:!.]\s*\n+", re.IGNORECASE)
_TITLE = re.compile(r"(?:#+ |\*\*|title:|story:)[^\n]*\n+|[^\n.!?\"]{1,60}\n\s*\n", re.IGNORECASE)

_MARKUP = re.compile(r"\n[ \t]*(?:#|\||```|[-*•+] |\d+[.)] )")  # headings, tables, code, lists


def story_of(text: str) -> str:
    """The story alone: without a preamble ("Sure! Here is a story:") and without a title line."""
    text = text.strip()
    text = _PREAMBLE.sub("", text, count=1) if _PREAMBLE.match(text) else text
    text = text[match.end() :] if (match := _TITLE.match(text)) else text
    return text.strip()


def find_fault(story: str, prompt: str, plan: Plan, filters: Filters) -> tuple[str, str] | None:
    """(reason, detail) of the first filter that the story fails, None if it passes them all."""
    tokens = words(story)
    if is_refusal(story):
        return "refusal", story[:80]
    if echoes_prompt(story, prompt):
        return "prompt_echoed", ""
    if _MARKUP.search(f"\n{story}"):
        return "markup", ""
    if len(tokens) < filters.min_words:
        return "too_short", f"{len(tokens)} words"
    if len(tokens) > filters.max_words:
        return "too_long", f"{len(tokens)} words"
    if not ends_properly(story):
        return "cut_off", f"ends with {story[-30:]!r}"
    if has_loop(story, filters.max_repeated):
        return "loop", ""
    if filters.require_words and (missing := missing_words(story, plan.words, PARTS)):
        return "missing_words", ", ".join(missing)
    hard = hard_words(story)
    if len(hard) > filters.max_hard_share * len(tokens):
        return "hard_words", ", ".join(sorted(set(hard))[:10])
    return None


def hard_words(story: str) -> list[str]:
    """The words of a story, in order, that are outside a young child's reach; names are not."""
    tokens = words(story)
    hard = set(tokens) - within_reach()
    if hard:
        hard -= proper_names(story)
    return [token for token in tokens if token in hard] if hard else []


@lru_cache(maxsize=1)
def vocabulary() -> dict[Part, tuple[str, ...]]:
    """The 1,500 words by part of speech, most frequent first; their sources stand in _data/NOTICE.md."""
    rows = sorted((line.split("\t") for line in _data("words.tsv")), key=lambda row: -float(row[2]))
    return {part: tuple(word for word, p, _ in rows if p == part) for part in PARTS}


@lru_cache(maxsize=1)
def within_reach() -> frozenset[str]:
    """What a young child knows: the reach list with all inflections and the adverbs in -ly."""
    reach = _data("reach.txt")
    adverbs = (f"{word[:-1]}ily" if word.endswith("y") else f"{word.removesuffix('le')}ly" for word in reach)
    return frozenset(chain(adverbs, *(inflections(word) for word in reach)))


def _data(name: str) -> list[str]:
    return (files("kdbench_generators") / "_data" / name).read_text(encoding="utf-8").splitlines()
