"""Accuracy: how many of a model's own answers are right, by each question's own verifier.

    sample.answer "713", "... 484 + 229 = 713. The answer is 713."   -> right
    "It is 713."                                                     -> no answer marked: wrong

Samples keep what their verifier needs (kdbench.questions.QuestionFields). Decode greedily
(temperature 0) for the usual figure; where the samples are of several kinds, each kind has its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, ValidationError

from kdbench.config import StrictConfig
from kdbench.errors import DataError, Rejected
from kdbench.evaluation import Score, Subject
from kdbench.evaluation._bootstrap import estimate
from kdbench.extraction import code_block
from kdbench.loops import run_async
from kdbench.questions import Question, QuestionFields
from kdbench.records import Completion
from kdbench.sandbox import Limits, run_python

log = logging.getLogger("kdbench")
NEEDS = frozenset({"generations"})
MARKER = "The answer is"


class Config(StrictConfig):
    """Where a model's answer stands in its text."""

    read: Literal["marker", "program", "text"] = Field(
        "marker",
        description="after the marker, as the output of the program in the text, or the whole text",
    )
    marker: str = MARKER
    limits: Limits = Field(Limits(), description="of each program")


def measure(subject: Subject, config: Config) -> list[Score]:
    """Scores "answered" and "accuracy", and "accuracy_KIND" where there are several kinds of question.

    Samples without a gold answer are left out; where none has one there is no score, and the log says so.
    """
    asked = [
        (question, made.text)
        for sample, made in zip(subject.samples, subject.generations, strict=True)
        if (question := question_of(sample)) is not None
    ]
    if not asked:
        log.info("Metric accuracy is left out: no held-out sample has a gold answer")
        return []
    answers = run_async(_read_all(asked, config))
    right: dict[str, list[float]] = defaultdict(list)
    for (question, _), answer in zip(asked, answers, strict=True):
        right[question.kind].append(float(answer is not None and question.is_correct(answer)))
    answered = [float(answer is not None) for answer in answers]
    every = [one for found in right.values() for one in found]
    by_kind = {f"accuracy_{kind}": found for kind, found in sorted(right.items()) if len(right) > 1}
    return [
        estimate(metric, values, seed=subject.seed, unit="fraction", higher_is_better=True)
        for metric, values in {"answered": answered, "accuracy": every, **by_kind}.items()
    ]


def question_of(sample: Completion) -> Question | None:
    """The question a sample's answer is judged by; None where it has no gold answer. Raises DataError."""
    if sample.answer is None:
        return None
    try:
        fields = QuestionFields.model_validate_json(sample.fields)
    except ValidationError as exc:
        where = ".".join(map(str, exc.errors()[0]["loc"]))
        raise DataError(
            f"Sample '{sample.id}' has an unreadable '{where}' in its fields; mend or remove it"
        ) from exc
    return Question(
        text=sample.prompt[-1].content,
        answer=sample.answer,
        choices=fields.choices,
        kind=fields.kind,
        verifier=fields.verifier,
        entry=fields.entry,
    )


def is_right(sample: Completion, text: str, marker: str = MARKER) -> bool | None:
    """Whether the answer marked in a text is the sample's; None where the sample has no gold answer."""
    question = question_of(sample)
    if question is None:
        return None
    try:
        return question.is_correct(question.solution(text, marker).answer)
    except Rejected:
        return False


async def _read_all(asked: Sequence[tuple[Question, str]], config: Config) -> list[str | None]:
    return list(await asyncio.gather(*(_read(question, text, config) for question, text in asked)))


async def _read(question: Question, text: str, config: Config) -> str | None:
    try:
        if config.read == "marker":
            return question.solution(text, config.marker).answer
        if config.read == "program":
            ran = await run_python(code_block(text), config.limits)
            return ran.output.strip() or None if ran.status == "ok" else None
    except Rejected:
        return None
    return text.strip() or None
