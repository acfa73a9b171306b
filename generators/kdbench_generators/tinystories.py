"""TinyStories: short stories in words that a small child knows (Eldan & Li 2023, arXiv 2305.07759).

    seed 0 -> noun "chipmunk", verb "admire", adjective "little"; features dialogue and moral value
    teacher asked: Please write a short story of 3 to 5 paragraphs for a very small child. ...
    sample: prompt = that request, completion = the story,
            fields = {"words": ["chipmunk", "admire", "little"], "features": ["dialogue", "moral value"]}

Each seed draws one noun, one verb and one adjective from 1,500 basic words and a random subset of six
features. A reply becomes a sample if it passes the filters, else a rejection with its reason; with
`draws` above 1 the teacher gets more tries, each of which is one sample or one rejection.

`instruct: true` makes TinyStories-Instruct. The story is asked for as above, but the student's prompt is a
block that says what the story must have, a random subset in random order:

    Words: chipmunk, admire, little
    Summary: A chipmunk learns to share the nuts that everybody admires.
    Story:

The summary is a second call, made only where the block has one. The paper is silent on bad summaries; here
one that is refused, cut off, copied from the story or too long turns the story down. To leave out that part
alone would let a filter change prompts, and would make summaries rarer than the draw says.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import chain
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, field_validator, model_validator

from kdbench import replies
from kdbench.config import StrictConfig
from kdbench.errors import EmptyReply, Rejected
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
    ngrams,
    proper_names,
    words,
)

if TYPE_CHECKING:
    from kdbench.asking import SeedTeacher, Teachers
    from kdbench.engine import Seed

FACTS = {
    "paper": "Eldan & Li 2023, TinyStories: How Small Can Language Models Be ...?",
    "arxiv": "2305.07759",
    "from the paper": "noun, verb and adjective of about 1,500 words, a random subset of six features, "
    "3 to 5 paragraphs, the plea for simple words said twice; Instruct: a random non-empty subset of "
    "summary, features, words and one sentence of the story, in random order",
    "ours": "word lists, wording, how the subset is drawn, filters, stories of N sentences, best of n draws; "
    "Instruct: all subsets alike, features only where the story has some, a bad summary turns the story down",
}
ROLES = {"teacher": {"chat"}}
REPLIES = {
    "teacher": [
        'A chipmunk had a little house under a tree. "Your nuts are so round!" said the mouse, and stopped '
        "to admire them.\n\nThe chipmunk did not want to share. He shut his door and ate one nut after the "
        "other, until his tummy hurt.\n\nThen the mouse came back with some warm tea. The chipmunk felt "
        "better, and he gave her half of his nuts. It was much nicer to eat together.",
        "A greedy chipmunk gets ill from eating alone and learns to share with a kind mouse.",
    ]
}
PARTS: tuple[Part, ...] = ("noun", "verb", "adjective")
FEATURES = ("dialogue", "plot twist", "bad ending", "moral value", "foreshadowing", "conflict")
BLOCK_PARTS = ("Summary", "Features", "Words", "Random sentence")
EXAMPLE_WORDS = ("frog", "hop", "wet")  # what example_story.j2 and example_short.j2 are made of


class Filters(StrictConfig):
    """What a story must be to be kept; a change here costs no new call and renames no sample.

    Save with `draws` above 1 and with `instruct`: a further try, or a summary, is asked for as they decide.
    """

    require_words: bool = Field(True, description="all three words, in any inflection")
    min_words: int = Field(40, ge=1, description="words in a story at least")
    max_words: int = Field(600, ge=1, description="and at most")
    max_repeated: float = Field(
        0.3, ge=0, le=1, description="share of four-word runs that stood there before"
    )
    max_hard_share: float = Field(
        0.08, ge=0, le=1, description="share of words outside a young child's reach; names do not count"
    )
    min_summary_words: int = Field(5, ge=1, description="instruct: words in a summary at least")
    max_summary_words: int = Field(40, ge=1, description="instruct: and at most")
    max_copied: float = Field(
        0.5, ge=0, le=1, description="instruct: share of a summary's four-word runs that stand in the story"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Filters:
        if self.min_words > self.max_words:
            raise ValueError("min_words must not be above max_words")
        if self.min_summary_words > self.max_summary_words:
            raise ValueError("min_summary_words must not be above max_summary_words")
        return self


class Instruct(StrictConfig):
    """The Instruct variant: the student is told what the story must have, not how to write."""

    sampling: Sampling = Sampling(temperature=0.0, max_tokens=96)


class Config(StrictConfig):
    """What the teacher is asked for."""

    paragraphs: tuple[int, int] = Field((3, 5), description="fewest and most asked for")
    sentences: int | None = Field(None, ge=1, le=50, description="ask for so many sentences, not paragraphs")
    features: tuple[str, ...] = Field(
        FEATURES,
        # Left out where it is as it always was: such stories keep the ids they had before there was a choice.
        exclude_if=lambda value: value == FEATURES,
        description="the features that a story may be asked for",
    )
    feature_chance: float = Field(0.5, ge=0, le=1, description="of each feature; 0.5 makes all subsets alike")
    max_features: int = Field(6, ge=0, le=6, description="features in one story at most")
    common_words: int | None = Field(
        None, ge=1, description="draw from so many most frequent words of each part of speech; null: from all"
    )
    example: bool = Field(False, description="show the teacher an example first; the student never sees it")
    draws: int = Field(1, ge=1, le=100, description="tries at a story before the seed is given up")
    instruct: Instruct | None = Field(
        None,
        # Left out where it is off, so that plain stories keep the ids they had before there was a choice.
        exclude_if=lambda value: value is None,
        description="true, or how summaries are asked for; the student's prompt says what the story has",
    )
    sampling: Sampling = Sampling(temperature=1.0, max_tokens=768)
    filters: Filters = Filters()

    @field_validator("instruct", mode="before")
    @classmethod
    def _yes_or_no(cls, value: Any) -> Any:
        return {True: {}, False: None}[value] if isinstance(value, bool) else value

    @field_validator("features")
    @classmethod
    def _known(cls, features: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [feature for feature in features if feature not in FEATURES]:
            raise ValueError(f"there is no feature {unknown[0]!r}; there are {', '.join(FEATURES)}")
        # One order whatever order they were named in, each once.
        return tuple(feature for feature in FEATURES if feature in features)

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


class InstructFields(BaseModel):
    """What an Instruct sample knows: what its prompt asks for, and what its story was made of.

    `words`, `features`, `summary` and `random_sentence` are empty where the prompt does not name them, so
    that a metric holds nothing against a student that it was not told.
    """

    parts: tuple[str, ...]
    words: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    summary: str | None = None
    random_sentence: str | None = None
    story_words: tuple[str, str, str]
    story_features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one story is to be about."""

    words: tuple[str, str, str]
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """What an Instruct prompt says, in order; `sentence` says which one it names, 0 to 1."""

    parts: tuple[str, ...]
    sentence: float


async def generate(
    seed: Seed, teachers: Teachers, config: Config, prompts: Prompts
) -> list[Completion | Rejection]:
    """One seed's outcomes, one per draw; the last is the sample unless every draw was turned down."""
    plan = draw_plan(seed.rng, config)
    block = draw_block(seed.rng, plan)
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
        outcome = judge(reply, prompt, asked, plan, config.filters)
        if isinstance(outcome, Completion) and config.instruct is not None:
            outcome = await instruct(outcome, plan, block, teachers["teacher"], config, prompts)
        outcomes.append(outcome)
        if isinstance(outcome, Completion):
            break
    return outcomes


def draw_plan(rng: random.Random, config: Config) -> Plan:
    """Words and features of one story."""
    chosen = [feature for feature in config.features if rng.random() < config.feature_chance]
    if len(chosen) > config.max_features:
        chosen = sorted(rng.sample(chosen, config.max_features), key=FEATURES.index)
    noun, verb, adjective = (rng.choice(vocabulary()[part][: config.common_words]) for part in PARTS)
    return Plan((noun, verb, adjective), tuple(chosen))


def draw_block(rng: random.Random, plan: Plan) -> Block:
    """A random non-empty subset of what an Instruct prompt may say, all subsets alike, in random order."""
    possible = [part for part in BLOCK_PARTS if part != "Features" or plan.features]
    subset = rng.randrange(1, 2 ** len(possible))
    parts = [part for i, part in enumerate(possible) if subset >> i & 1]
    rng.shuffle(parts)
    return Block(tuple(parts), rng.random())


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


async def instruct(
    story: Completion, plan: Plan, block: Block, teacher: SeedTeacher, config: Config, prompts: Prompts
) -> Completion | Rejection:
    """An accepted story behind an Instruct prompt, or the story turned down for its summary."""
    said: dict[str, Any] = {"Features": plan.features, "Words": plan.words}
    if "Summary" in block.parts:
        assert config.instruct is not None
        try:
            reply = await teacher.chat([prompts.user("summary", story=story.text)], config.instruct.sampling)
        except (Rejected, EmptyReply) as exc:
            # A story that only changed filters let in has no summary in the log that --reparse reads.
            replayed = isinstance(exc, Rejected) and exc.reason == "not_in_log"
            reason = "not_in_log" if replayed else "no_summary"
            return Rejection(reason=reason, detail=str(exc), sample=story)
        if (fault := find_summary_fault(reply.text, story.text, config.filters)) is not None:
            return Rejection(reason=fault[0], detail=fault[1], sample=story)
        said["Summary"] = summary_of(reply.text)
    if "Random sentence" in block.parts:
        if not (found := sentences_of(story.text)):
            return Rejection(reason="no_sentence", detail="of three words or more", sample=story)
        said["Random sentence"] = found[int(block.sentence * len(found))]
    said = {part: said[part] for part in block.parts}
    lines = {part: what if isinstance(what, str) else ", ".join(what) for part, what in said.items()}
    fields = InstructFields(
        parts=block.parts,
        **{part.lower().replace(" ", "_"): what for part, what in said.items()},
        story_words=plan.words,
        story_features=plan.features,
    )
    return story.model_copy(
        update={
            "prompt": (prompts.user("block", lines=lines),),
            "teacher_prompt": story.teacher_prompt or story.prompt,
            "fields": fields.model_dump_json(),
        }
    )


_LABEL = re.compile(r"\W*(?:short |brief )?summary\W+", re.IGNORECASE)


def summary_of(text: str) -> str:
    """The summary alone, in one line: without a preamble and without the word "Summary:"."""
    text = text.strip()
    text = _PREAMBLE.sub("", text, count=1) if _PREAMBLE.match(text) else text
    return " ".join(_LABEL.sub("", text, count=1).split())


def find_summary_fault(text: str, story: str, filters: Filters) -> tuple[str, str] | None:
    """(reason, detail) of what makes a summary useless, None if it can be used."""
    summary = summary_of(text)
    tokens = words(summary)
    if is_refusal(summary):
        return "no_summary", summary[:80]
    if len(tokens) < filters.min_summary_words:
        return "summary_too_short", summary
    if len(tokens) > filters.max_summary_words:
        return "summary_too_long", f"{len(tokens)} words"
    grams, told = ngrams(tokens, 4), set(ngrams(words(story), 4))
    if sum(gram in told for gram in grams) > filters.max_copied * len(grams):
        return "summary_copied", summary
    if (fault := replies.find_fault(summary, story)) is not None:
        return f"summary_{fault[0]}".replace("prompt_echoed", "copied"), summary
    return None


_SPOKEN = (
    r"\s+(?:[\w']+\s+){1,3}?(?:said|asked|replied|answered|called|cried|shouted|whispered|told|yelled)\b"
)
# Up to an end mark that is no title's, unless the sentence goes on behind it: "Come!" she called.
_SENTENCE = re.compile(
    r"\S[^\n]*?(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)[.!?…]+"
    rf"(?:[\"'”’)*]+(?!{_SPOKEN})|(?![\"'”’)*]))(?=\s+[^\sa-z]|\s*\Z)"
)


def sentences_of(story: str) -> list[str]:
    """The story's sentences of three words or more, letter for letter as they stand in it."""
    return [found for found in _SENTENCE.findall(story) if len(words(found)) >= 3]


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
