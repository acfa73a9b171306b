"""The oracle: right at rate 0 in every order of steps, wrong at the rate it is told, never twice alike."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.config import build
from kdbench.equations import equations, path_key
from kdbench.errors import ConfigError, Rejected, UsageError
from kdbench.extraction import code_block, split_answer
from kdbench.jobs._teachers import connect
from kdbench.prompts import Prompts
from kdbench.questions import Questions, QuestionSource
from kdbench.records import Message
from kdbench.replies import find_fault
from kdbench.sandbox import run_python
from kdbench.teacher import Reply, Request, Sampling, read_reply
from kdbench.teachers._arithmetic import Group, Node, Number, find_problem, solve
from kdbench.teachers.oracle import DONT_KNOW, Config, OracleTeacher

FREE = Sampling(temperature=0.7, max_tokens=2000)
SUM = "State the final answer to the following arithmetic problem: 5 - 9 + 3 ="


def request(text: str = SUM, seed: int = 0, sampling: Sampling = FREE) -> Request:
    return Request((Message(role="user", content=text),), sampling, seed=seed)


def raw(asked: Request, config: Config | None = None) -> bytes:
    answering = OracleTeacher(config).ask(asked)
    with pytest.raises(StopIteration) as answered:  # it has nothing to wait for, so it needs no loop
        answering.send(None)
    reply: bytes = answered.value.value
    return reply


def ask(text: str = SUM, seed: int = 0, **config: float) -> str:
    return read_reply(raw(request(text, seed), Config(**config))).text


def answers(count: int, text: str = SUM, **config: float) -> list[str]:
    return [split_answer(ask(text, seed, **config)).answer for seed in range(count)]


def value(text: str) -> Fraction | None:
    """The result of the problem that is found in a text."""
    problem = find_problem(text)
    return None if problem is None else solve(problem, random.Random(0))[-1].result.value


# An expression and its value as Python's own parser and fractions have it.
NUMBERS = st.one_of(
    st.integers(0, 120).map(str), st.integers(1, 99).map(lambda n: f"-{n}"), st.just("2.5"), st.just("1,200")
)
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.builds(lambda a, s, b: f"{a} {s} {b}", inner, st.sampled_from("+-*/"), inner),
        st.builds(lambda a: f"({a})", inner),
        st.builds(lambda a: f"-( {a} )", inner),
    ),
    max_leaves=7,
)


def by_python(expression: str) -> Fraction | None:
    plain = expression.replace(",", "")
    numbered = "".join(f"Fraction('{part}')" if part[:1].isdigit() else part for part in _number_parts(plain))
    try:
        return Fraction(eval(numbered, {"Fraction": Fraction}))
    except ZeroDivisionError:
        return None


def _number_parts(text: str) -> list[str]:
    return re.split(r"(\d+(?:\.\d+)?)", text)


@settings(deadline=None)
@given(EXPRESSIONS, st.integers(0, 2**31 - 1))
def test_every_order_of_steps_is_true_and_leads_to_the_value(expression: str, seed: int) -> None:
    text = ask(f"Calculate {expression}.", seed)
    expected = by_python(expression)
    if text == DONT_KNOW:
        assert expected is None or not isinstance(find_problem(f"Calculate {expression}."), Group)
        return
    assert expected is not None
    solution = split_answer(text)
    assert Fraction(solution.answer) == expected or abs(Fraction(solution.answer) - expected) < Fraction(
        1, 10**11
    )
    # One equation a step, each of them true as the filter reads it.
    found = equations(text)
    assert len(found) == text.count(" = ")
    assert all(equation.is_valid for equation in found), text
    assert find_fault(text, f"Calculate {expression}.") is None


@settings(deadline=None)
@given(EXPRESSIONS, st.integers(0, 2**31 - 1))
def test_a_reply_that_errs_has_a_wrong_result_and_one_false_equation(expression: str, seed: int) -> None:
    right, wrong = (ask(f"Calculate {expression}.", seed, error_rate=rate) for rate in (0, 1))
    if right == DONT_KNOW:
        assert wrong == DONT_KNOW
        return
    assert Fraction(split_answer(wrong).answer) != Fraction(split_answer(right).answer)
    assert sum(not equation.is_valid for equation in equations(wrong)) == 1


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("chain_sum", {}),
        # With "/" some of this task's gold answers are cut to an integer: 532 for 532.999.
        ("basic_arithmetic", {"operators": ["+", "-", "*"]}),
        ("products", {}),
        ("decimal_chain_sum", {}),
    ],
)
def test_it_solves_the_tasks_of_reasoning_gym(task: str, settings: dict[str, Any]) -> None:
    source = QuestionSource(task={task: settings}, limit=150)
    for question in Questions(source):
        reply = ask(f"{question.text}\nThink step by step and end with: The answer is ...")
        assert question.is_correct(split_answer(reply).answer), (question.text, reply)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Calculate ( 56 + -33 ) - 84.", -61),
        ("Calculate ( ( -9 - 6 ) - -( -3 * 4 ) ) * 2 / 2.", -27),
        ("First 1 + 1, but in the end 7 × (2 − 5) ÷ 3!", -7),
        ("What is 2+2*3?", 8),
        ("Take 10 / 4 / 5 and tell me.", Fraction(1, 2)),
        ("Problem: 5 - 9 + 3 =\nYour attempt: 5 - 9 = -5. -5 + 3 = -2.", -1),
        ("1. 20 - 5 * 2\n2 apples", 10),
        ("(see 4 + 4)", 8),
        ("3 + 4 -", 7),
    ],
)
def test_it_finds_the_last_problem_that_is_not_solved_yet(text: str, expected: Fraction) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello!",
        "Give me 5 apples.",
        "1 / 0",
        "3x + 4x",
        "2 + 2 = 4",
        "(" * 500 + "1 + 1",
        "-7",
        "(A) 12 (B) 13",
    ],
)
def test_without_a_problem_it_does_not_know(text: str) -> None:
    if text.endswith("1 + 1"):
        assert value(text) == 2
        return
    assert ask(text, error_rate=1) == DONT_KNOW
    with pytest.raises(Rejected, match="no_answer"):
        split_answer(DONT_KNOW)


def test_only_the_last_message_is_a_problem() -> None:
    turns = [("user", "1 + 1 ="), ("assistant", "2"), ("user", "20 + 3 =")]
    messages = tuple(Message(role=role, content=text) for role, text in turns)
    assert "The answer is 23" in read_reply(raw(Request(messages, FREE))).text.replace(
        "So the", "The"
    ).replace("Therefore, the", "The")


def test_a_request_has_one_reply_and_every_part_of_it_counts() -> None:
    assert raw(request()) == raw(request())
    long = SUM.replace("5", "7 + 8 - 2 + 11 + 30")
    others = [request(long, seed=i) for i in range(12)]
    assert len({raw(r) for r in others}) > 6
    greedy = Sampling(temperature=0.0)
    assert raw(request(long, 1, greedy)) == raw(request(long, 2, greedy))


def test_a_problem_has_several_paths() -> None:
    paths = Counter(path_key(ask(seed=seed)) for seed in range(300))
    assert set(paths) == {"5-9=-4|-4+3=-1", "5+3=8|8-9=-1", "3-9=-6|5-6=-1"}
    assert min(paths.values()) > 20
    assert len({ask(seed=seed) for seed in range(300)}) > 12


def test_errors_come_at_their_rate_and_do_not_agree() -> None:
    found = Counter(answers(2000, error_rate=0.3))
    wrong = 2000 - found.pop("-1")
    assert 500 < wrong < 700
    assert len(found) == 18
    assert max(found.values()) < wrong / 8


def test_a_reply_stays_as_it_is_at_any_rate_at_which_it_is_right() -> None:
    perfect = [ask(seed=seed) for seed in range(200)]
    some, more = ([ask(seed=seed, error_rate=rate) for seed in range(200)] for rate in (0.2, 0.6))
    right = [[a == b for a, b in zip(perfect, texts, strict=True)] for texts in (some, more)]
    assert sum(right[0]) > sum(right[1]) > 40
    assert all(a or not b for a, b in zip(*right, strict=True)), "what is right at 0.6 is right at 0.2"


def test_a_slip_that_is_undone_or_divides_by_nothing_is_made_elsewhere() -> None:
    assert "0" not in answers(100, "(3 + 4) * 0 =", error_rate=1)
    assert "20" not in answers(100, "10 / (3 - 2) * 2 =", error_rate=1)


def test_it_forgets_the_marker_at_its_rate() -> None:
    forgot = [ask(seed=seed, no_marker=0.25) for seed in range(1000)]
    assert 200 < sum("answer is" not in text for text in forgot) < 300
    assert all("= -1" in text for text in forgot)


@pytest.mark.parametrize(
    "instruction",
    [
        "Give only the answer.",
        "Reply with the answer alone, without any steps.",
        "Write just the final number.",
    ],
)
def test_it_gives_the_answer_alone_where_it_is_asked_to(instruction: str) -> None:
    assert ask(f"{SUM}\n{instruction}") == "-1"
    assert ask(f"{SUM}\n{instruction}", error_rate=1) != "-1"
    assert "step" not in instruction.replace("without any steps", "")
    assert "The answer" in ask(f"{SUM}\n{instruction}\nBut first explain.").replace(
        "the answer", "The answer"
    )


def test_it_writes_programs_that_print_the_result() -> None:
    problems = ["5 - 9 + 3 * (2 - 8)", "6 / 3 + 10 / 4", "(0.7 + 0.1) * 10 / 2", "7 / 2 * 2", "1/3 + 1/3"]

    async def printed(text: str, rate: float) -> Fraction:
        ran = await run_python(code_block(ask(f"{text}\nWrite a Python program.", seed=3, error_rate=rate)))
        assert ran.status == "ok", ran
        return Fraction(ran.output.strip())

    async def check() -> None:
        for text in problems:
            expected = by_python(text)
            assert expected is not None
            assert abs(await printed(text, 0) - expected) < 1e-9, text
            assert abs(await printed(text, 1) - expected) > 0.1, text

    asyncio.run(check())
    assert ask("6 / 3 =\nWrite a Python program.") == "```python\nstep_1 = 6 // 3\nprint(step_1)\n```"


def test_max_tokens_cuts_the_reply_and_says_so() -> None:
    reply: Reply = read_reply(raw(request(sampling=Sampling(max_tokens=3))))
    assert reply.finish_reason == "length"
    assert len(reply.text.split(" ")) == 3
    assert reply.usage.completion_tokens == 3


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("direct", "The answer is 12."),
        ("step_by_step", "Step 1: 3 * 4 = 12.\nThe answer is 12."),
        ("recall_then_generate", "Recall: {facts}\nThe answer is 12."),
        ("recall_reason_generate", "Recall: {facts}\nReason: 3 * 4 = 12.\nThe answer is 12."),
    ],
)
def test_it_keeps_to_the_form_that_a_strategy_asks_for(told: str, said: str) -> None:
    source = QuestionSource(task={"products": {}})
    question = next(iter(Questions(source)))
    system = Prompts("prompt_erasing").system(told, question=question, marker="The answer is")
    user = Message(role="user", content="Solve the following multiplication: 3 * 4.")
    asked = Request((system, user), FREE, seed=1)
    recalled = re.search(r"Recall: (.{20,})", read_reply(raw(asked)).text)
    said = said.format(facts=recalled[1] if recalled else "")
    assert read_reply(raw(asked)).text == said
    assert read_reply(raw(asked, Config(no_marker=1))).text == said.replace("The answer is 12.", "12.")
    assert "12" not in read_reply(raw(asked, Config(error_rate=1))).text.splitlines()[-1]


def test_other_mistakes_are_another_identity() -> None:
    assert OracleTeacher().identity == OracleTeacher(Config(latency=1)).identity
    rates = (Config(), Config(error_rate=0.1), Config(error_rate=0.2), Config(no_marker=0.1))
    assert len({OracleTeacher(config).identity for config in rates}) == 4


def test_it_is_connected_by_name_alone() -> None:
    assert connect("oracle", {"error_rate": 0.5}).identity == OracleTeacher(Config(error_rate=0.5)).identity
    with pytest.raises(UsageError, match="write 'oracle'"):
        connect("oracle:big")
    with pytest.raises(ConfigError, match=r"error_rate = 1\.5"):
        build(Config, {"error_rate": 1.5}, "teacher oracle")


def test_nodes_are_plain_values() -> None:
    problem: Node | None = find_problem("2 + 3")
    assert problem == Group(True, [(False, Number(Fraction(2))), (False, Number(Fraction(3)))])
