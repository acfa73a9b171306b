"""Answers: prompts to responses, or the best of n: sequence-level KD (Kim & Rush 2016, arXiv 1606.07947).

    question "Name three things that float on water.", samples 4, scorer consensus, keep best
    teacher asked four times for one and the same: Name three things that float on water.
    sample: prompt = that question, completion = the draw most like the other three,
            fields = {"score": 0.61, "draw": 2, "draws": 4, ...}

The student learns from what the teacher says where word-level KD has it learn from what the teacher
would say next. Kim & Rush take the teacher's most likely sequence, found by beam search; a chat server
gives samples, so here it is the greedy reply (`temperature: 0`, one sample) or the best of several draws:
the longest, the one most like all others (minimum Bayes risk, with ROUGE-L for the gain), the correct
ones, or those a judge likes. With `scorer: none` and `keep: all` it is the response step of LaMini-LM
(arXiv 2304.14402) and of any instruction data: refused, empty and looping replies
are dropped, all others kept, if `own_words` is false: as it is, what repeats the prompt or is in another
language goes too, which tasks of translating, rewriting and extracting cannot do without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field, model_validator

from kdbench.asking import NotInLog, origin_of
from kdbench.config import StrictConfig
from kdbench.errors import EmptyReply, Rejected
from kdbench.prompts import Prompts
from kdbench.questions import Question, QuestionFields, Questions, QuestionSource
from kdbench.records import Completion, Message, Rejection
from kdbench.replies import find_fault
from kdbench.similarity import rouge_l
from kdbench.structured import ask_structured
from kdbench.teacher import Reply, Sampling

if TYPE_CHECKING:
    from kdbench.asking import SeedTeacher, Teachers
    from kdbench.engine import Seed

FACTS = {
    "paper": "Kim & Rush 2016, Sequence-Level Knowledge Distillation; Wu et al. 2023, LaMini-LM (responses)",
    "arxiv": "1606.07947, 2304.14402",
    "from the papers": "the student learns the teacher's own sequences; refused and empty responses dropped",
    "ours": "draws in place of beam search, the scorers, the judge's wording and scale, the filters",
}
EXAMPLE = {
    "questions": {
        "rows": [
            {"question": "Name three things that float on water.", "answer": None},
            {"question": "Why do leaves turn red in autumn? Answer in two sentences.", "answer": None},
        ]
    }
}
REPLIES = {
    "teacher": ["A leaf, a cork and an empty bottle.", "A cork, a stone and a bottle."],
    "judge": [
        '{"remark": "Three things, and all of them float.", "score": 5}',
        '{"remark": "A stone does not float.", "score": 3}',
    ],
}
Scorer = Literal["none", "longest", "consensus", "correct", "judge"]


class Filters(StrictConfig):
    """Which responses are kept; a change here costs no new call and renames no sample."""

    keep: Literal["all", "best"] = Field("all", description="all sound draws, or the one of the best score")
    min_score: float | None = Field(
        None,
        description="longest: words; consensus: mean ROUGE-L, 0 to 1; correct: 0 or 1; judge: 1 to 5",
    )
    min_words: int = Field(1, ge=1, description="words in a response at least")
    max_words: int | None = Field(None, ge=1, description="and at most")
    own_words: bool = Field(
        True,
        description="turn down what says the prompt again or is in another language than it; false for "
        "translating, rewriting and extracting",
    )
    marker: str = Field(
        "The answer is", min_length=1, description="correct: what stands before the answer, else all is it"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Filters:
        if self.max_words is not None and self.min_words > self.max_words:
            raise ValueError("min_words must not be above max_words")
        return self


class Config(StrictConfig):
    """What the teacher is asked, how often, and how its draws are compared."""

    questions: QuestionSource
    system: str = Field("", description="a system message for the teacher and the student alike")
    samples: int = Field(1, ge=1, le=100, description="draws for each question")
    scorer: Scorer = Field("none", description="what makes one draw better than another")
    sampling: Sampling = Sampling(temperature=0.7, max_tokens=512)
    judge_sampling: Sampling = Field(
        Sampling(temperature=0.0, max_tokens=256), description="how the judge is asked"
    )
    filters: Filters = Filters()

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError("samples above 1 need sampling.temperature above 0: greedy draws are all alike")
        if self.scorer == "consensus" and self.samples == 1:
            raise ValueError("scorer consensus compares draws; set samples to 2 or more")
        needs = "keep = best" if self.filters.keep == "best" else "min_score"
        if self.scorer == "none" and (needs != "min_score" or self.filters.min_score is not None):
            raise ValueError(
                f"filters.{needs} needs a scorer; set scorer to longest, consensus, correct or judge"
            )
        return self


class Fields(QuestionFields):
    """What a response knows of its question and of how it was chosen."""

    score: float | None = None
    remark: str | None = None
    draw: int
    draws: int


class Verdict(BaseModel):
    """What the judge says of one response."""

    remark: str
    score: int = Field(ge=1, le=5)


@dataclass(slots=True)
class Draw:
    """One reply: its number among the draws, its score and what is wrong with it."""

    number: int
    reply: Reply
    text: str
    score: float | None = None
    remark: str | None = None
    judged: tuple[Reply, ...] = ()
    fault: tuple[str, str] | None = None


def roles(config: Config) -> dict[str, set[str]]:
    """The judge is needed only where it scores."""
    return {"teacher": {"chat"}, **({"judge": {"chat"}} if config.scorer == "judge" else {})}


def rows(config: Config) -> Questions:
    """One question a seed."""
    return Questions(config.questions)


async def generate(
    seed: Seed, teachers: Teachers, config: Config, prompts: Prompts
) -> list[Completion | Rejection]:
    """One outcome per draw, in the order of the draws."""
    question: Question = seed.row
    question.check_gold()
    if config.scorer == "correct" and question.answer is None:
        raise Rejected("no_gold", "scorer correct needs the right answer")
    prompt = prompts.user("question", question=question)
    asked = (*([Message(role="system", content=config.system)] if config.system else []), prompt)
    replies = await teachers["teacher"].draws(asked, config.sampling, config.samples)
    draws = [Draw(i, one, one.text.strip()) for i, one in enumerate(replies) if isinstance(one, Reply)]
    # Scored before any filter is heeded: a changed filter then changes no score and needs no call.
    sound = [draw for draw in draws if find_fault(draw.text, "") is None]
    if config.scorer == "judge":
        await judge(sound, question, prompt, teachers["judge"], config, prompts)
    elif config.scorer != "none":
        for draw, score in zip(sound, scores(sound, question, config), strict=True):
            draw.score = score
    sift(draws, prompt.content, config.filters)
    outcomes: dict[int, Completion | Rejection] = {
        i: Rejection(reason=one.reason, detail=one.detail)
        for i, one in enumerate(replies)
        if isinstance(one, Rejected)
    }
    outcomes |= {draw.number: outcome(draw, question, asked, seed.index, config.samples) for draw in draws}
    return [outcomes[i] for i in sorted(outcomes)]


def scores(draws: Sequence[Draw], question: Question, config: Config) -> list[float]:
    """One score per draw, by a rule that needs no model."""
    texts = [draw.text for draw in draws]
    if config.scorer == "longest":
        return [float(length(text)) for text in texts]
    if config.scorer == "correct":
        return [float(is_right(text, question, config.filters.marker)) for text in texts]
    return consensus(texts)


def length(text: str) -> int:
    """Words as they stand between spaces, so that "60" is one."""
    return len(text.split())


def is_right(text: str, question: Question, marker: str) -> bool:
    """Whether the marked answer of a response is right, or all of it where nothing is marked."""
    try:
        answer = question.solution(text, marker).answer
    except Rejected as exc:
        if exc.reason != "no_answer":
            return False  # it marks two answers that differ
        answer = text
    return question.is_correct(answer)


def consensus(texts: Sequence[str]) -> list[float]:
    """The mean ROUGE-L of each text to all the others; 0 for one that stands alone."""
    alike = [[rouge_l(a, b) for b in texts] for a in texts]
    others = max(len(texts) - 1, 1)
    return [sum(row[j] for j in range(len(texts)) if j != i) / others for i, row in enumerate(alike)]


async def judge(
    draws: Sequence[Draw],
    question: Question,
    prompt: Message,
    teacher: SeedTeacher,
    config: Config,
    prompts: Prompts,
) -> None:
    """Have every draw scored from 1 to 5; one that the judge gives no readable score is at fault."""
    for draw in draws:  # one after the other, so that the calls of a seed have an order
        ask = prompts.user("judge", prompt=prompt.content, response=draw.text, gold=question.answer)
        try:
            verdict = await ask_structured(teacher, [ask], Verdict, config.judge_sampling, prompts)
        except NotInLog:
            raise  # a replay that met a call never made says nothing of the draw
        except (Rejected, EmptyReply) as exc:
            draw.fault = "unscored", f"the judge: {exc}"
            continue
        draw.judged = verdict.replies
        draw.score, draw.remark = float(verdict.value.score), verdict.value.remark


def sift(draws: Sequence[Draw], prompt: str, filters: Filters) -> None:
    """Note of each draw the first filter that it fails, with `keep: best` of all but the best of the rest."""
    for draw in draws:
        draw.fault = draw.fault or find_draw_fault(draw, prompt, filters)
    left = [draw for draw in draws if draw.fault is None]
    if filters.keep == "best" and left:
        best = max(left, key=lambda draw: (draw.score or 0.0, -draw.number))  # of equals, the earliest
        for draw in left:
            if draw is not best:
                draw.fault = "not_best", f"{draw.score:.3g}; draw {best.number} has {best.score:.3g}"


def find_draw_fault(draw: Draw, prompt: str, filters: Filters) -> tuple[str, str] | None:
    """(reason, detail) of the first filter that a draw fails by itself, None if it passes them all."""
    if (fault := find_fault(draw.text, prompt if filters.own_words else "")) is not None:
        return fault
    count = length(draw.text)
    said = f"{count} word{'' if count == 1 else 's'}"
    if count < filters.min_words:
        return "too_short", said
    if filters.max_words is not None and count > filters.max_words:
        return "too_long", said
    if filters.min_score is not None and draw.score is not None and draw.score < filters.min_score:
        return "low_score", f"{draw.score:.3g}"
    return None


def outcome(
    draw: Draw, question: Question, asked: tuple[Message, ...], seed: int, draws: int
) -> Completion | Rejection:
    """A draw as a sample, or as a rejection that carries it."""
    fields = Fields(
        **QuestionFields.of(question), score=draw.score, remark=draw.remark, draw=draw.number, draws=draws
    )
    sample = Completion(
        prompt=asked,
        completion=(Message(role="assistant", content=draw.text, reasoning=draw.reply.reasoning),),
        answer=question.answer,
        group=question.group,
        fields=fields.model_dump_json(),
        origin=origin_of(seed, draw.reply, *draw.judged),
    )
    if draw.fault is None:
        return sample
    return Rejection(reason=draw.fault[0], detail=draw.fault[1], sample=sample, origin=sample.origin)
