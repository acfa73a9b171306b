"""Reasoning asked for and read: worked questions shown first, and a reply cut into reasoning and answer.

shown = choose(ARITHMETIC, question, 4)             # demonstrations, never the question itself
asked = (*turns(shown, ask, say), ask(question))    # user, assistant, user, assistant, ..., user
read_solution(reply, question, asked=asked[-1].content, marker="The answer is")
# -> Solution(reasoning="12 * 5 = 60.", answer="60"), or Rejected: no_answer, two_answers, truncated, ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import Field

from kdbench.config import StrictConfig
from kdbench.errors import Rejected
from kdbench.extraction import Solution
from kdbench.questions import Question
from kdbench.records import Message
from kdbench.replies import find_fault
from kdbench.teacher import Reply


class Demonstration(StrictConfig):
    """A question with its reasoning and its answer."""

    question: str = Field(min_length=1)
    reasoning: str = Field(min_length=1, description="the steps, without the sentence that says the answer")
    answer: str = Field(min_length=1)
    choices: tuple[str, ...] = ()
    context: str = ""

    def as_question(self) -> Question:
        """The question, to be asked like any other."""
        return Question(self.question, self.answer, self.choices, self.context)


Demonstrations = Annotated[
    tuple[Demonstration, ...] | None,
    Field(
        min_length=1,
        description="worked questions, each with question, reasoning, answer; null: our own, of arithmetic",
    ),
]
ARITHMETIC = (
    Demonstration(
        question="A tray holds 6 eggs. A cook fills 4 trays and then breaks 3 eggs. How many are whole?",
        reasoning="Four trays of 6 eggs are 4 * 6 = 24 eggs. Without the 3 broken ones 24 - 3 = 21 are left.",
        answer="21",
    ),
    Demonstration(
        question="Nora reads 15 pages a day. Her book has 120 pages. After how many days is she halfway?",
        reasoning="Half of the book is 120 / 2 = 60 pages. At 15 pages a day that takes 60 / 15 = 4 days.",
        answer="4",
    ),
    Demonstration(
        question="A ticket costs 7 euros, for children 3 euros less. What do 2 adults and 3 children pay?",
        reasoning="A child pays 7 - 3 = 4 euros. The adults pay 2 * 7 = 14 euros and the children "
        "3 * 4 = 12 euros, together 14 + 12 = 26 euros.",
        answer="26",
    ),
    Demonstration(
        question="What is 18 - 5 + 2 - 9?",
        reasoning="From left to right: 18 - 5 = 13. Then 13 + 2 = 15. Then 15 - 9 = 6.",
        answer="6",
    ),
    Demonstration(
        question="A tank loses 8 litres an hour. At noon it held 50 litres. How many are left at 4 o'clock?",
        reasoning="In the 4 hours from noon it loses 4 * 8 = 32 litres. So 50 - 32 = 18 litres are left.",
        answer="18",
    ),
    Demonstration(
        question="Three friends share 42 marbles equally, and Ivo then loses 6 of his. How many has Ivo now?",
        reasoning="Each of the three gets 42 / 3 = 14 marbles. Ivo keeps 14 - 6 = 8 of them.",
        answer="8",
    ),
)


def available(demonstrations: Demonstrations) -> tuple[Demonstration, ...]:
    """The demonstrations of a config: our own where it gives none."""
    return demonstrations or ARITHMETIC


def choose(demonstrations: Demonstrations, question: Question, count: int) -> list[Demonstration]:
    """The first `count` of them, fewer if there are no more, that do not ask the question itself."""
    others = [one for one in available(demonstrations) if one.as_question().group != question.group]
    return others[:count]


def turns(
    shown: Sequence[Demonstration], ask: Callable[[Question], Message], say: Callable[[Demonstration], str]
) -> tuple[Message, ...]:
    """The demonstrations as turns of a dialogue: each is asked and then answered."""
    return tuple(
        message
        for one in shown
        for message in (ask(one.as_question()), Message(role="assistant", content=say(one)))
    )


def read_solution(reply: Reply, question: Question, *, asked: str, marker: str) -> Solution:
    """The reasoning and the answer of a reply to the message `asked`; it may quote what it was asked.

    Raises kdbench.errors.Rejected: "truncated", "no_answer", "two_answers" where it marks two that the
    verifier does not take for one, and the reasons of kdbench.replies.find_fault.
    """
    text = reply.text.strip()
    if (fault := find_fault(text, asked, quotes=True)) is not None:
        raise Rejected(*fault)
    if reply.finish_reason == "length":
        raise Rejected("truncated", f"ends with {text[-30:]!r}")
    return question.solution(text, marker)
