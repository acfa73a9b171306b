"""Program of thought: programs that compute the answer, kept if it is right (Phogat 2024, arXiv 2408.12337).

    seed 0 -> "A crate holds 12 bottles. How many bottles are in 5 crates?", gold answer "60"
    teacher asked four times: that question. Answer with a Python program that works this out and prints ...
    draws:  bottles_per_crate = 12; crates = 5; print(bottles_per_crate * crates)
                prints 60: a sample, prompt = question + "Write a Python program that prints the answer.",
                completion = the program in a ```python block, fields = {"printed": "60", ...}
            the same with other comments               turned down: same_program
            print(12 + 5)                              turned down: wrong_answer
            print(open("bottles.txt").read())          turned down: forbidden

Mixed Distillation (arXiv 2312.10730) trains one student on both reasoning and programs. Its data are a run
of this recipe and one of chain_of_thought over the same questions (whose direct formats are its labels):
`kdbench train METHOD --data PROGRAMS --data CHAINS`. The prompts differ in what they ask for, as the paper's
do in a prefix; in place of its loss weights stands how many samples each run gives. Its inference, a vote
over answers of both kinds, is not here.

A program runs in kdbench.sandbox, and all that it prints is its answer. Verdicts are not stored: whenever
samples are made from replies, by --resume or --reparse too, the programs run again. A verdict follows from
program, limits and version of Python, so `limits` are filters, and a change of them is no new call.
It may differ from run to run where a program draws random numbers, reads the clock or takes nearly all of
its seconds.

Unlike the papers: any questions in place of financial ones, any chat model; several draws a question, where
programs with one and the same syntax tree count once; without gold answers the majority of outputs decides.
The grading of concept and values by a second model, with which Phogat et al. study students, is left out.
"""

from __future__ import annotations

import ast
import io
import tokenize
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from kdbench.asking import origin_of
from kdbench.config import StrictConfig
from kdbench.errors import Rejected
from kdbench.extraction import code_block
from kdbench.prompts import Prompts
from kdbench.questions import Question, QuestionFields, Questions, QuestionSource
from kdbench.records import Completion, Message, Rejection
from kdbench.replies import find_fault, other_language
from kdbench.sandbox import Limits, Ran, Status, run_python
from kdbench.teacher import Reply, Sampling
from kdbench.voting import Vote, majority

if TYPE_CHECKING:
    from kdbench.asking import Teachers
    from kdbench.engine import Seed

FACTS = {
    "papers": "Phogat et al. 2024, Fine-tuning Smaller Language Models for Question Answering over Financial "
    "Documents; Li et al. 2023, Mixed Distillation Helps Smaller Language Model Better Reasoning",
    "arxiv": "2408.12337, 2312.10730",
    "from the papers": "Phogat: a program whose comments and variables follow concept, formula, values, "
    "calculation; few-shot teacher; run, and kept only if its result is the gold answer; Mixed Distillation: "
    "one student on reasoning and on programs, told apart by a prefix",
    "ours": "wording and demonstrations, no demonstrations unless asked for, several draws, one sample per "
    "syntax tree, the vote, the sandbox and its limits",
    "trap": "a program may print the right answer without computing it: look at programs of one line",
}
_PROGRAM = """# {}
# Formula: bottles = bottles in a crate * crates
bottles_per_crate = 12
crates = 5
print(bottles_per_crate {} crates)"""
REPLIES = {
    "teacher": [
        f"```python\n{_PROGRAM.format('Asked: the bottles in all crates', '*')}\n```",
        f"Here it is:\n```python\n{_PROGRAM.format('How many bottles are there?', '*')}\n```",
        f"```python\n{_PROGRAM.format('Asked: the bottles', '+')}\n```",
        '```python\nprint(open("bottles.txt").read())\n```',
    ]
}
_REASONS: dict[Status, str] = {
    "syntax": "syntax_error",
    "error": "program_error",
    "timeout": "timed_out",
    "memory": "too_much_memory",
    "output": "too_much_output",
    "forbidden": "forbidden",
}
_MOST_PRINTED = 1000  # characters of the output that a sample keeps


class Demonstration(StrictConfig):
    """A question and a program that prints its answer."""

    question: str = Field(min_length=1)
    program: str = Field(min_length=1)
    choices: tuple[str, ...] = ()
    context: str = ""

    def as_question(self) -> Question:
        """The question, to be asked like any other."""
        return Question(self.question, None, self.choices, self.context)


OWN_DEMONSTRATIONS = (
    Demonstration(
        question="A farmer packs 96 apples into boxes of 8 and sells each for 5 euros. What does he earn?",
        program="""# Asked: the money for all boxes together
# Formula: boxes = apples / apples in a box, money = boxes * price of a box
# Values of the question
apples = 96
apples_per_box = 8
price_of_a_box = 5
# Calculation
boxes = apples // apples_per_box
money = boxes * price_of_a_box
print(money)""",
    ),
    Demonstration(
        question="What is 18 - 5 + 2 - 9?",
        program="""# Asked: the value of an expression
# Rule: additions and subtractions are done from left to right
# Values of the question, with their signs
terms = [18, -5, 2, -9]
# Calculation
print(sum(terms))""",
    ),
    Demonstration(
        question="Sales grew from 250 million to 290 million dollars in a year. By how many percent is that?",
        program="""# Asked: the growth, as a share of the sales before it
# Formula: growth in percent = (sales after - sales before) / sales before * 100
# Values of the question, in millions of dollars
sales_before = 250
sales_after = 290
# Calculation
growth = (sales_after - sales_before) * 100 / sales_before
print(growth)""",
    ),
    Demonstration(
        question="A train leaves at 14:35 and arrives at 17:20. How many minutes does the journey take?",
        program="""# Asked: the time between two times of the same day, in minutes
# Formula: minutes since midnight = hours * 60 + minutes, journey = arrival - departure
# Values of the question
departure_hours, departure_minutes = 14, 35
arrival_hours, arrival_minutes = 17, 20
# Calculation
departure = departure_hours * 60 + departure_minutes
arrival = arrival_hours * 60 + arrival_minutes
print(arrival - departure)""",
    ),
)


class Filters(StrictConfig):
    """Which programs are kept; a change here costs no new call and renames no sample.

    Save for questions without a gold answer: those that need one are turned down before they are asked.
    """

    keep: Literal["gold", "majority", "all"] = Field(
        "gold",
        description="programs that print the gold answer, the answer most draws print, or anything at all",
    )
    distinct: bool = Field(True, description="of programs that differ in comments and spacing only keep one")
    max_per_question: int | None = Field(
        None, ge=1, description="programs kept at most, in the order of draws"
    )
    limits: Limits = Field(Limits(), description="of each program; it runs anew whenever samples are made")


class Config(StrictConfig):
    """Which questions are asked, how often, and what the teacher is shown first."""

    questions: QuestionSource
    samples: int = Field(4, ge=1, le=1000, description="draws for each question")
    shots: int = Field(0, ge=0, description="demonstrations that the teacher sees; 0: only the question")
    demonstrations: tuple[Demonstration, ...] | None = Field(
        None,
        min_length=1,
        description="questions with programs, each with question, program; null: our own, of arithmetic",
    )
    sampling: Sampling = Sampling(temperature=0.7, max_tokens=512)
    filters: Filters = Filters()

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError("samples above 1 need sampling.temperature above 0: greedy draws are all alike")
        if self.shots > (there := len(self.demonstrations or OWN_DEMONSTRATIONS)):
            raise ValueError(f"shots is {self.shots}, but there are only {there} demonstrations")
        return self


class Fields(QuestionFields):
    """What a sample knows of its question, of what its program printed and of the vote.

    `vote_share` is the share of all draws that printed the winning answer, null if none could be read;
    `voted_right` is null where there is no gold answer.
    """

    printed: str
    draw: int
    vote_share: float | None
    voted_right: bool | None


@dataclass(slots=True)
class Draw:
    """One reply, the program in it ("" if there is none), what it printed and why it is turned down.

    `counted` is the form of the output in which equal answers are equal; None for one that cannot be read.
    """

    number: int
    reply: Reply | None = None
    program: str = ""
    printed: str = ""
    counted: str | None = None
    fault: tuple[str, str] | None = None


def rows(config: Config) -> Questions:
    """One question a seed."""
    return Questions(config.questions)


async def generate(
    seed: Seed, teachers: Teachers, config: Config, prompts: Prompts
) -> list[Completion | Rejection]:
    """The outcomes of one question, one per draw."""
    question: Question = seed.row
    question.check_gold()
    if config.filters.keep == "gold" and question.answer is None:
        raise Rejected("no_gold", "filters.keep = gold needs the right answer; majority does without")
    asked = conversation(question, config, prompts)
    replies = await teachers["teacher"].draws(asked, config.sampling, config.samples)
    draws = [read(reply, number, question, asked[-1].content) for number, reply in enumerate(replies)]
    await run(draws, question, config.filters.limits)
    vote = majority([draw.counted for draw in draws])
    sift(draws, question, vote, config.filters)
    prompt = prompts.user("student", question=question)
    return [outcome(draw, seed.index, question, asked, prompt, vote, config.filters) for draw in draws]


def conversation(question: Question, config: Config, prompts: Prompts) -> tuple[Message, ...]:
    """The request for a program, after demonstrations that do not ask the question itself."""
    given = config.demonstrations or OWN_DEMONSTRATIONS
    shown = [one for one in given if one.as_question().group != question.group][: config.shots]
    turns = [
        turn
        for one in shown
        for turn in (
            prompts.user("program", question=one.as_question()),
            Message(role="assistant", content=fenced(one.program)),
        )
    ]
    return (*turns, prompts.user("program", question=question))


def fenced(program: str) -> str:
    """A program as a block of Markdown; the fence is longer than any inside the program."""
    fence = "```"
    while fence in program:
        fence += "`"
    return f"{fence}python\n{program.strip()}\n{fence}"


def read(reply: Reply | Rejected, number: int, question: Question, asked: str) -> Draw:
    """A draw with its program, or with the fault for which it has none that may run."""
    if isinstance(reply, Rejected):
        return Draw(number, fault=(reply.reason, reply.detail))
    draw = Draw(number, reply)
    try:
        draw.program = code_block(reply.text)
    except Rejected as exc:
        # Code repeats words where prose would loop, so only a reply without code is judged as prose.
        draw.fault = find_fault(reply.text, asked, quotes=True) or (exc.reason, exc.detail)
        return draw
    if reply.finish_reason == "length":
        draw.fault = "truncated", f"ends with {reply.text[-30:]!r}"
    elif (language := other_language(comments(draw.program), question.text)) is not None:
        draw.fault = "other_language", language
    return draw


def comments(program: str) -> str:
    """The comments of a program, one a line; those before the place where it can no longer be read."""
    found = []
    with suppress(tokenize.TokenError, SyntaxError):
        for token in tokenize.generate_tokens(io.StringIO(program).readline):
            if token.type == tokenize.COMMENT:
                found.append(token.string.lstrip("#! "))
    return "\n".join(found)


async def run(draws: Sequence[Draw], question: Question, limits: Limits) -> None:
    """Run every program once, however often it was drawn, and note what came of it."""
    ran: dict[str, Ran] = {}
    for draw in draws:  # one after the other: other questions keep the other cores busy
        if draw.fault is not None:
            continue
        if draw.program not in ran:
            ran[draw.program] = await run_python(draw.program, limits)
        end = ran[draw.program]
        if end.status != "ok":
            draw.fault = _REASONS[end.status], end.detail
        elif not end.output.strip():
            draw.fault = "no_output", "it neither prints nor sets an answer"
        else:
            draw.printed = end.output.strip()
            draw.counted = question.canonical(draw.printed)


def sift(draws: Sequence[Draw], question: Question, vote: Vote | None, filters: Filters) -> None:
    """Note of each draw that ran the filter that it fails."""
    kept: dict[str, int] = {}
    left = 0
    for draw in draws:
        if draw.fault is not None:
            continue
        draw.fault = find_unwanted(draw, question, vote, filters)
        if draw.fault is None and filters.distinct:
            first = kept.setdefault(tree_of(draw.program), draw.number)
            if first != draw.number:
                draw.fault = "same_program", f"as draw {first}"
        if draw.fault is None:
            left += 1
            if filters.max_per_question is not None and left > filters.max_per_question:
                draw.fault = "surplus", f"more than {filters.max_per_question} programs"


def find_unwanted(
    draw: Draw, question: Question, vote: Vote | None, filters: Filters
) -> tuple[str, str] | None:
    """(reason, detail) of the filter that a program's output fails, None if it passes."""
    if filters.keep == "gold" and not question.is_correct(draw.printed):
        return "wrong_answer", draw.printed[:80]
    if filters.keep == "majority" and (vote is None or draw.counted != vote.answer):
        return "outvoted", f"{draw.printed[:80]}; the vote: {vote.answer[:80] if vote else 'none'}"
    return None


def tree_of(program: str) -> str:
    """The same for programs that differ in comments and spacing only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a teacher's odd escapes are no business of the user's terminal
        try:
            return ast.dump(ast.parse(program))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return program  # nested too deeply for this process, though it ran in its own


def outcome(
    draw: Draw,
    seed: int,
    question: Question,
    asked: tuple[Message, ...],
    prompt: Message,
    vote: Vote | None,
    filters: Filters,
) -> Completion | Rejection:
    """A draw as a sample, or as a rejection that carries it where it has a program."""
    reason, detail = draw.fault or ("", "")
    if draw.reply is None:
        return Rejection(reason=reason, detail=detail)
    origin = origin_of(seed, draw.reply)
    if not draw.program:
        return Rejection(reason=reason, detail=detail, origin=origin)
    fields = Fields(
        **QuestionFields.of(question),
        printed=draw.printed[:_MOST_PRINTED],
        draw=draw.number,
        vote_share=vote and vote.share,
        voted_right=None if vote is None or question.answer is None else question.is_correct(vote.answer),
    )
    sample = Completion(
        prompt=(prompt,),
        completion=(Message(role="assistant", content=fenced(draw.program), reasoning=draw.reply.reasoning),),
        teacher_prompt=asked,
        answer=vote.answer if vote and filters.keep == "majority" else question.answer,
        group=question.group,
        fields=fields.model_dump_json(),
        origin=origin,
    )
    if draw.fault is None:
        return sample
    return Rejection(reason=reason, detail=detail, sample=sample, origin=origin)
