"""Reflection: solve, look for the error and solve again, at last with the answer (SciGLM, arXiv 2401.07950).

    seed 0 -> "A crate holds 12 bottles. How many bottles are in 5 crates?", gold answer "60"
    teacher asked: that question. Solve this step by step ...       "5 + 12 = 17. The answer is 17."     wrong
    and then: That solution is not right. Look for the first step that goes wrong ...
        "Reflection: I added. Correct solution: 5 * 12 = 50. The answer is 50."                          wrong
    and then: That solution is not right. The right answer is this: 60. ...
        "Reflection: 5 * 12 is 60. Correct solution: 5 * 12 = 60. The answer is 60."                     right
    sample: prompt = the question alone, completion = "5 * 12 = 60. The answer is 60.",
            fields = {"path": "told", "attempts": 3, "verdicts": [false, false, true], ...}

A solution that is right at once has the path "solved", one that is right after the error was looked for
"reflected", one that took the answer "told"; after that the question is given up: never_right. What the
teacher was shown on the way stands in `teacher_prompt`; no word of it is in prompt or completion, nor is the
thinking of a teacher that was shown anything. Told paths that speak of an answer they were given are turned
down (leaks_answer).

`judge: verifier` compares the marked answer with gold, which is exact and costs nothing: the choice where
answers are numbers, letters or a reasoning-gym task's. `judge: model` asks the teacher in the role `judge`
for right or wrong: for answers in free form, or without gold, when no path is told. A judge that cannot be
read ends the question (unjudged).

As in the paper a failure goes on to the next step, and so does a second or third reply that cannot be used:
refused, cut off, or without its two parts. A first reply that is no solution at all leaves nothing to
reflect on and ends the question.

Unlike the paper: a verifier may take the judge's place, and the last filter is left out, a classifier of
instruction quality that the authors train on labels of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import BaseModel, Field

from kdbench.config import StrictConfig
from kdbench.errors import EmptyReply, Rejected
from kdbench.prompts import Prompts
from kdbench.questions import Question, QuestionFields, Questions, QuestionSource
from kdbench.records import Completion, Message, Rejection
from kdbench.replies import find_fault
from kdbench.structured import ask_structured
from kdbench.teacher import Sampling

if TYPE_CHECKING:
    from kdbench.asking import Teachers
    from kdbench.engine import Seed

FACTS = {
    "paper": "Zhang et al. 2024, SciInstruct: a Self-Reflective Instruction Annotated Dataset for Training "
    "Scientific Language Models (SciGLM)",
    "arxiv": "2401.07950",
    "from the paper": "three prompts: solve step by step; reflect on the error and solve again; reflect with "
    "the real answer shown; a model judges 0 or 1 against gold; of a reply's two blocks the second is kept",
    "ours": "wording, the verifier as judge, the filter of leaked answers, paths in the fields",
    "trap": "a told path is right by its answer, not by its steps: keep it apart with filters.keep_paths",
}
REPLIES = {
    "teacher": [
        "There are 5 crates with 12 bottles, so 5 + 12 = 17. The answer is 17.",
        "Reflection: I added the bottles to the crates, but every crate has 12.\n"
        "Correct solution: Every crate has 12 bottles, so 5 * 12 = 50. The answer is 50.",
        "Reflection: I multiplied wrongly: 5 * 10 is 50, and 5 * 2 comes on top.\n"
        "Correct solution: Every crate has 12 bottles, so 5 crates have 5 * 12 = 60. The answer is 60.",
    ],
    "judge": ['{"correct": false}', '{"correct": false}', '{"correct": true}'],
}
PathName = Literal["solved", "reflected", "told"]
PATHS: tuple[PathName, ...] = get_args(PathName)
_TEMPLATES = {"solved": "solve", "reflected": "reflect", "told": "told"}

_HEADING = re.compile(
    r"^[ \t>#*_\d.)]*(?P<name>reflection|correct(?:ed)? solution)[ \t*_]*(?::[ \t*_]*|$)",
    re.IGNORECASE | re.MULTILINE,
)
# Talk of an answer that was given, but not "the answer given by adding ..." or "the given answer choices".
_LEAK = re.compile(
    r"""
      \b(?:given|provided|supplied|stated|real|actual|true|known|expected|official|reference)\s
        (?:(?:correct|right|final)\s)?answer\b(?!\s(?:choice|option))
    | \banswer\s(?:(?:that|which|as)\s)?(?:(?:i|we|you)\s)?(?:(?:was|were|had|have)\s)?(?:been\s)?
        (?:given|provided|supplied|stated|told|gave)\b(?!\sby\b)
    | \b(?:told|informed|given|shown|knowing|know)\s(?:(?:me|us|that)\s)*
        the\s(?:(?:correct|right|final)\s)?answer\b
    | \b(?:match(?:es|ing)?|agree(?:s|ing)?\swith|according\sto|consistent\swith|confirms?)\s
        the\s(?:correct|right|known)\sanswer\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


class Filters(StrictConfig):
    """Which paths are kept; a change here costs no new call and renames no sample."""

    keep_paths: tuple[PathName, ...] = Field(
        PATHS, min_length=1, description="the ways to a right solution that make a sample"
    )
    no_leaks: bool = Field(
        True, description="turn down a told solution that speaks of an answer it was given"
    )


class Config(StrictConfig):
    """Which questions are asked, and who judges the solutions."""

    questions: QuestionSource
    judge: Literal["verifier", "model"] = Field(
        "verifier", description="the question's verifier, by gold; or a model, which needs no gold"
    )
    marker: str = Field(
        "The answer is", min_length=1, description="what stands before the answer, in prompts and replies"
    )
    sampling: Sampling = Sampling(temperature=0.7, max_tokens=1024)
    judge_sampling: Sampling = Field(
        Sampling(temperature=0.0, max_tokens=128), description="how the judge is asked"
    )
    filters: Filters = Filters()


class Fields(QuestionFields):
    """What a sample knows of its question and of the way to it.

    `verdicts` has one for each attempt, in order; null where there was no solution to judge.
    """

    path: PathName
    attempts: int
    verdicts: tuple[bool | None, ...]


class Verdict(BaseModel):
    """What the judge says."""

    correct: bool


@dataclass(slots=True)
class Attempt:
    """One step of the way: what was asked, what came of it and what is wrong with that.

    `solution` is "" where the reply has none; `verdict` is None where there was none to judge.
    """

    path: PathName
    asked: tuple[Message, ...]
    reply: str = ""
    solution: str = ""
    reasoning: str | None = None
    verdict: bool | None = None
    fault: tuple[str, str] = ("", "")


def roles(config: Config) -> dict[str, set[str]]:
    """The judge is needed only where it is a model."""
    return {"teacher": {"chat"}, **({"judge": {"chat"}} if config.judge == "model" else {})}


def rows(config: Config) -> Questions:
    """One question a seed."""
    return Questions(config.questions)


async def generate(
    seed: Seed, teachers: Teachers, config: Config, prompts: Prompts
) -> list[Completion | Rejection]:
    """The one outcome of a question."""
    question: Question = seed.row
    question.check_gold()
    if config.judge == "verifier" and question.answer is None:
        raise Rejected("no_gold", "judge verifier needs the right answer; judge model does without")
    attempts = await Way(question, teachers, config, prompts).go()
    return [outcome(attempts, question, config.filters, prompts)]


@dataclass(frozen=True, slots=True)
class Way:
    """The steps of one question."""

    question: Question
    teachers: Teachers
    config: Config
    prompts: Prompts

    async def go(self) -> list[Attempt]:
        """Every attempt, up to the first that is right or that leaves nothing to go on from."""
        attempts: list[Attempt] = []
        dialogue: tuple[Message, ...] = ()
        for path in PATHS if self.question.answer is not None else PATHS[:2]:
            one = await self._attempt(path, dialogue)
            attempts.append(one)
            if one.verdict or one.fault[0] == "unjudged":
                break
            if one.verdict is False:
                dialogue = (*one.asked, Message(role="assistant", content=one.reply))
            elif path == "solved":
                break
        return attempts

    async def _attempt(self, path: PathName, dialogue: tuple[Message, ...]) -> Attempt:
        ask = self.prompts.user(_TEMPLATES[path], question=self.question, marker=self.config.marker)
        one = Attempt(path, (*dialogue, ask))
        [reply] = await self.teachers["teacher"].draws(one.asked, self.config.sampling, 1)
        if isinstance(reply, Rejected):
            if reply.reason == "not_in_log":
                raise reply
            one.fault = reply.reason, reply.detail
            return one
        one.reply = reply.text.strip()
        try:
            one.solution = one.reply if path == "solved" else solution_of(one.reply)
        except Rejected as exc:
            one.fault = find_fault(one.reply, "") or (exc.reason, exc.detail)
            return one
        # Thinking about an earlier solution, or about the answer, is not for the student.
        one.reasoning = reply.reasoning if path == "solved" else None
        if (fault := find_fault(one.solution, one.asked[0].content, quotes=True)) is not None:
            one.fault = fault
        elif reply.finish_reason == "length":
            one.fault = "truncated", f"ends with {one.solution[-30:]!r}"
        else:
            await self._judge(one)
        return one

    async def _judge(self, one: Attempt) -> None:
        """Note the verdict on a solution, and why it is not right."""
        if self.config.judge == "verifier":
            one.verdict, one.fault = by_verifier(one.solution, self.question, self.config.marker)
            return
        ask = self.prompts.user("judge", question=self.question, solution=one.solution)
        try:
            verdict = await ask_structured(
                self.teachers["judge"], [ask], Verdict, self.config.judge_sampling, self.prompts
            )
        except (Rejected, EmptyReply) as exc:
            if isinstance(exc, Rejected) and exc.reason == "not_in_log":
                raise
            one.fault = "unjudged", f"the judge: {exc}"
        else:
            one.verdict = verdict.value.correct
            one.fault = ("", "") if one.verdict else ("judged_wrong", "")


def solution_of(text: str) -> str:
    """What stands below "Correct solution:" in a reply of two parts.

    Raises kdbench.errors.Rejected("no_solution_block") unless there are just the two, in their order.
    """
    headings = list(_HEADING.finditer(text))
    names = [heading["name"].lower().split()[0] for heading in headings]
    if names not in (["reflection", "correct"], ["reflection", "corrected"]):
        raise Rejected("no_solution_block", f"headings: {', '.join(names) or 'none'}")
    solution = text[headings[1].end() :].strip()
    if not solution:
        raise Rejected("no_solution_block", "nothing below the heading")
    return solution


def by_verifier(solution: str, question: Question, marker: str) -> tuple[bool, tuple[str, str]]:
    """Whether the marked answer is right, and else what is wrong: a solution without one is."""
    try:
        answer = question.solution(solution, marker).answer
    except Rejected as exc:
        return False, (exc.reason, exc.detail)
    if question.is_correct(answer):
        return True, ("", "")
    return False, ("wrong_answer", answer[:80])


def outcome(
    attempts: Sequence[Attempt], question: Question, filters: Filters, prompts: Prompts
) -> Completion | Rejection:
    """The last attempt as a sample, or a rejection with the last that has a solution."""
    last = attempts[-1]
    shown = next((one for one in reversed(attempts) if one.solution), None)
    sample = None if shown is None else sample_of(shown, attempts, question, prompts)
    if last.verdict:
        assert sample is not None  # it was judged
        reason, detail = find_unwanted(last, filters) or ("", "")
        return Rejection(reason=reason, detail=detail, sample=sample) if reason else sample
    if last.fault[0] == "unjudged" or len(attempts) == 1:
        return Rejection(reason=last.fault[0], detail=last.fault[1], sample=sample)
    said = "; ".join(f"{one.path}: {' '.join(filter(None, one.fault))}" for one in attempts)
    return Rejection(reason="never_right", detail=said, sample=sample)


def find_unwanted(one: Attempt, filters: Filters) -> tuple[str, str] | None:
    """(reason, detail) of the filter that a right solution fails, None if it passes."""
    if one.path not in filters.keep_paths:
        return "path_not_kept", one.path
    if filters.no_leaks and one.path == "told" and (leak := _LEAK.search(one.solution)) is not None:
        return "leaks_answer", leak[0]
    return None


def sample_of(one: Attempt, attempts: Sequence[Attempt], question: Question, prompts: Prompts) -> Completion:
    """A solution as if it had been found at once."""
    fields = Fields(
        **QuestionFields.of(question),
        path=one.path,
        attempts=len(attempts),
        verdicts=tuple(each.verdict for each in attempts),
    )
    return Completion(
        prompt=(prompts.user("question", question=question),),
        completion=(Message(role="assistant", content=one.solution, reasoning=one.reasoning),),
        teacher_prompt=one.asked,
        answer=question.answer,
        group=question.group,
        fields=fields.model_dump_json(),
    )
