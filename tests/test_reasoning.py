"""Demonstrations and how a worked reply is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.equations import equations
from kdbench.errors import Rejected
from kdbench.prompts import Prompts
from kdbench.questions import Question
from kdbench.reasoning import ARITHMETIC, Demonstration, available, choose, read_solution, turns
from kdbench.records import Message
from kdbench.teacher import Reply, Usage

CRATES = Question("A crate holds 12 bottles. How many are in 5 crates?", answer="60", verifier="numeric")


def read(text: str, question: Question = CRATES, finish_reason: str = "stop") -> tuple[str, str]:
    reply = Reply(text, finish_reason, Usage())
    solution = read_solution(reply, question, asked=question.text, marker="The answer is")
    return solution.reasoning, solution.answer


def reason(text: str, question: Question = CRATES, finish_reason: str = "stop") -> str:
    with pytest.raises(Rejected) as rejected:
        read(text, question, finish_reason)
    return rejected.value.reason


@pytest.mark.parametrize("one", ARITHMETIC, ids=lambda one: one.question[:20])
def test_our_own_demonstrations_are_right(one: Demonstration) -> None:
    found = equations(one.reasoning)
    assert all(equation.is_valid for equation in found)
    assert found[-1].result == one.answer
    said = Prompts("chain_of_thought").render("demonstration", demonstration=one, marker="The answer is")
    assert read(said, one.as_question()) == (one.reasoning, one.answer)


@given(st.integers(0, len(ARITHMETIC) - 1), st.integers(0, 10))
def test_a_question_is_never_its_own_demonstration(place: int, count: int) -> None:
    asked = Question(ARITHMETIC[place].question.replace(" ", "  "))
    shown = choose(None, asked, count)
    assert ARITHMETIC[place] not in shown
    assert len(shown) == min(count, len(ARITHMETIC) - 1)
    assert shown == [one for one in ARITHMETIC if one in shown], "in the order given"


def test_choices_are_part_of_what_a_question_asks() -> None:
    one = Demonstration(
        question="Which floats?", reasoning="Cork is light.", answer="A", choices=("cork", "lead")
    )
    assert choose((one,), Question("Which floats?", choices=("iron", "wood")), 1) == [one]
    assert choose((one,), Question("Which floats?", choices=("cork", "lead")), 1) == []


def test_demonstrations_of_a_config_take_the_place_of_ours() -> None:
    one = Demonstration(question="1 + 1?", reasoning="1 + 1 = 2.", answer="2")
    assert available((one,)) == (one,)
    assert available(None) == ARITHMETIC


def test_demonstrations_become_turns() -> None:
    made = turns(
        ARITHMETIC[:2],
        ask=lambda question: Message(role="user", content=f"Q: {question.text}"),
        say=lambda one: f"A: {one.answer}",
    )
    assert [message.role for message in made] == ["user", "assistant"] * 2
    assert [message.content[:9] for message in made] == ["Q: A tray", "A: 21", "Q: Nora r", "A: 4"]


def test_a_reply_is_cut_into_reasoning_and_answer() -> None:
    assert read(" 12 * 5 = 60.\nThe answer is 60. \n") == ("12 * 5 = 60.", "60")


def test_two_answers_are_one_if_the_verifier_takes_them_for_one() -> None:
    text = "The answer is 60. Checked: 60 / 5 = 12. The answer is 60.0 bottles."
    assert read(text)[1] == "60.0 bottles"
    assert reason(text, Question("q", verifier="exact")) == "two_answers"
    assert reason("The answer is 60. Or rather: The answer is 61.") == "two_answers"
    assert reason("The answer is many. No: The answer is few.") == "two_answers"


@pytest.mark.parametrize(
    ("expected", "text", "finish_reason"),
    [
        ("no_answer", "12 * 5 = 60.", "stop"),
        ("truncated", "12 * 5 = 60. The answer is 6", "length"),
        ("refusal", "I'm sorry, but I can't help with that.", "stop"),
        ("loop", "We count the bottles one by one. " * 5 + "The answer is 60.", "stop"),
        ("empty", "  ", "stop"),
    ],
)
def test_what_is_no_solution_says_why(expected: str, text: str, finish_reason: str) -> None:
    assert reason(text, finish_reason=finish_reason) == expected


def test_a_solution_may_quote_its_question() -> None:
    long = Question(
        "A gardener plants 4 rows of roses with 7 roses in each row, and then gives 3 of them to a neighbour "
        "who lives across the street. How many roses does the gardener have now?",
        verifier="numeric",
    )
    worked = (
        "So there are 4 * 7 = 28 roses in all, as every row has the same number of them. "
        "Of these he keeps whatever he does not give to anybody: 28 - 3 = 25 are his now."
    )
    assert read(f"{long.text[:110]} {worked} The answer is 25.", long)[1] == "25"
    assert reason(f"{long.text} The answer is 25.", long) == "prompt_echoed"
