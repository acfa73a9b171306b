"""The program_of_thought recipe: its prompts, its filters, and programs that must not be able to do harm."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdbench
from kdbench.config import build
from kdbench.engine import Seed
from kdbench.errors import ConfigError, NothingLeft
from kdbench.extraction import code_block
from kdbench.jobs._playing import Scripted, play
from kdbench.jobs._recipes import load_recipe
from kdbench.jsonl import read_rejections, read_samples
from kdbench.prompts import Prompts
from kdbench.questions import Question
from kdbench.records import Completion, Rejection
from kdbench.sandbox import run_python
from kdbench.teacher import Request
from kdbench_generators.program_of_thought import OWN_DEMONSTRATIONS, Config, conversation, fenced, tree_of
from tests.generators.cases.program_of_thought import expression
from tests.support.teachers import ScriptTeacher

TASK = {"task": {"chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}}}
SUM = Question(
    "State the final answer to the following arithmetic problem: 5 - 9 =", "-4", verifier="numeric"
)
PROMPTS = Prompts("program_of_thought")
CHINESE = "我们先把问题里的数字写下来，然后从左到右计算这个式子的值，最后打印出结果。"
Outcome = Completion | Rejection


def config(**values: Any) -> Config:
    return build(Config, {"questions": TASK, **values}, "recipe program_of_thought")


def outcomes(*replies: str, question: Question = SUM, **values: Any) -> list[Outcome]:
    """What comes of these draws of one question."""
    values = {"questions": TASK, "samples": len(replies), **values}
    recipe = load_recipe("program_of_thought", values)
    seed = Seed(0, random.Random(0), question)
    [played] = asyncio.run(play(recipe, [seed], {"teacher": Scripted(replies)}))
    assert played.outcomes is not None
    return [one for one in played.outcomes if isinstance(one, Outcome)]


def block(program: str) -> str:
    return f"```python\n{program}\n```"


def run_of(*programs: str, question: Question = SUM, **values: Any) -> list[Outcome]:
    return outcomes(*map(block, programs), question=question, **values)


def reasons(found: list[Outcome]) -> list[str]:
    return [one.reason if isinstance(one, Rejection) else "" for one in found]


def fields(one: Outcome) -> dict[str, Any]:
    sample = one.sample if isinstance(one, Rejection) else one
    assert sample is not None
    found: dict[str, Any] = json.loads(sample.fields)
    return found


def generate(out: Path, teacher: ScriptTeacher, *, n: int = 4, **values: Any) -> Path:
    driven = {key: values.pop(key) for key in ("reparse", "max_candidates") if key in values}
    return kdbench.generate(
        "program_of_thought", teacher=teacher, n=n, out=out, config={"questions": TASK, **values}, **driven
    )


# What is asked, and what is learnt.


def test_the_teacher_is_asked_for_the_four_parts_and_the_student_for_a_program() -> None:
    [one] = run_of("print(5 - 9)")
    assert isinstance(one, Completion)
    assert one.teacher_prompt is not None
    [asked] = one.teacher_prompt
    lines = [line for line in asked.content.splitlines() if line.startswith("- ")]
    assert [
        word in line for word, line in zip(("asked", "formula", "values", "calc"), lines, strict=True)
    ] == [True] * 4
    assert [m.content for m in one.prompt] == [
        f"{SUM.text}\n\nWrite a Python program that prints the answer."
    ]
    assert one.text == "```python\nprint(5 - 9)\n```"
    assert one.answer == "-4"
    assert one.group == SUM.group
    assert fields(one)["printed"] == "-4"


def test_demonstrations_are_turns_before_the_question_and_never_the_question_itself() -> None:
    own = OWN_DEMONSTRATIONS[1]
    asked = conversation(own.as_question(), config(shots=3), PROMPTS)
    assert [m.role for m in asked] == ["user", "assistant"] * 3 + ["user"]
    assert [own.question in m.content for m in asked] == [False] * 6 + [True]
    assert code_block(asked[1].content) == OWN_DEMONSTRATIONS[0].program
    mine = {"question": "What is 1 + 1?", "program": "print(1 + 1)", "context": "Numbers are whole."}
    asked = conversation(SUM, config(shots=1, demonstrations=[mine]), PROMPTS)
    assert asked[0].content.startswith("Numbers are whole.\n\nWhat is 1 + 1?\n")
    assert asked[1].content == "```python\nprint(1 + 1)\n```"


def test_the_demonstrations_of_ours_print_their_answers() -> None:
    async def printed() -> list[str]:
        return [(await run_python(one.program)).output for one in OWN_DEMONSTRATIONS]

    assert asyncio.run(printed()) == ["60\n", "6\n", "16.0\n", "165\n"]
    assert all("# Asked" in one.program and "# Values" in one.program for one in OWN_DEMONSTRATIONS)


def test_a_choice_is_printed_by_its_letter() -> None:
    question = Question("Which is even?", "B", ("7", "8"), verifier="choice")
    one, other = run_of("print('B')", "print('AB'[0])", question=question)
    assert isinstance(one, Completion)
    assert "prints the letter of the right choice" in one.prompt[0].content
    assert one.teacher_prompt is not None
    assert "prints the letter of the right choice" in one.teacher_prompt[0].content
    assert reasons([other]) == ["wrong_answer"]


@pytest.mark.parametrize(
    "program", ["print('''\n```\n''')", "print('```')\nprint('''\n````\n''')", "print(1)"]
)
def test_a_program_comes_whole_out_of_its_fence(program: str) -> None:
    assert code_block(fenced(program)) == program


def test_with_reasoning_on_the_same_questions_it_is_mixed_distillation(tmp_path: Path) -> None:
    def tell(request: Request) -> str:
        if "Python" in request.messages[-1].content:
            return block(f"print({expression(request)})")
        return (
            f"{expression(request)} = {eval(expression(request))}. The answer is {eval(expression(request))}."
        )

    programs = generate(tmp_path / "programs", ScriptTeacher(tell), samples=1)
    chains = kdbench.generate(
        "chain_of_thought", teacher=ScriptTeacher(tell), n=4, out=tmp_path / "chains",
        config={"questions": TASK, "samples": 1},
    )  # fmt: skip
    by_group = [
        {s.group: s for s in read_samples(run / "samples.jsonl") if isinstance(s, Completion)}
        for run in (programs, chains)
    ]
    assert set(by_group[0]) == set(by_group[1])
    for group, sample in by_group[0].items():
        other = by_group[1][group]
        assert sample.prompt != other.prompt
        assert sample.prompt[0].content.splitlines()[0] == other.prompt[0].content.splitlines()[0]
        assert sample.answer == other.answer


# What comes of a reply.


@pytest.mark.parametrize(
    ("reply", "reason", "detail"),
    [
        ("The answer is -4.", "no_program", "The answer is -4."),
        ("I'm sorry, but I can't help with that.", "refusal", "I'm sorry, but I can't help with that."),
        ("", "empty_reply", "without any text"),
        (block("print(-4)") + "\nor\n" + block("print(4)"), "two_programs", "2 different"),
        (block("print(5 - 9"), "syntax_error", "never closed"),
        (block("print(5 - nine)"), "program_error", "nine"),
        (block("value = 5 - 9"), "no_output", ""),
        (block("print()"), "no_output", ""),
        (block("print(9 - 5)"), "wrong_answer", "4"),
        (block("print('between -4 and 4')"), "wrong_answer", "between"),
        (block("print('Step: 14')\nprint(5 - 9)"), "wrong_answer", "Step"),
        (block(f"# {CHINESE}\nprint(5 - 9)"), "other_language", "zh"),
        (block("print(5 - 9)"), "", ""),
        ("print(5 - 9)", "", ""),
        (f"Sure!\n{block('print(5 - 9)')}\nIt prints -4.", "", ""),
        (block("def solution():\n    return 5 - 9"), "", ""),
        (block("answer = 5 - 9"), "", ""),
        (block("total = 0\n" + "total = total + 1\ntotal = total - 2\n" * 4 + "print(total)"), "", ""),
    ],
)  # fmt: skip
def test_what_comes_of_a_reply(reply: str, reason: str, detail: str) -> None:
    [one] = outcomes(reply)
    assert reasons([one]) == [reason]
    if isinstance(one, Rejection):
        assert detail in one.detail


def test_a_rejected_program_is_there_to_be_looked_at() -> None:
    found = run_of("print(4)", "print(nine)", "print(5 - 9)")
    assert [isinstance(one, Completion) for one in found] == [False, False, True]
    for one, program in zip(found, ("print(4)", "print(nine)"), strict=False):
        assert isinstance(one, Rejection)
        assert isinstance(one.sample, Completion)
        assert one.sample.text == block(program)
        assert one.origin is not None
        assert one.sample.group == SUM.group
        assert len(one.origin.calls) == 1
    assert [fields(one)["printed"] for one in found] == ["4", "", "-4"]


def test_a_reply_that_is_kept_though_it_was_cut_off_is_no_program(tmp_path: Path) -> None:
    teacher = ScriptTeacher(lambda request: block(f"print({expression(request)})") + ScriptTeacher.CUT)
    with pytest.raises(NothingLeft, match="truncated 6"):
        kdbench.generate(
            "program_of_thought", teacher=teacher, n=1, out=tmp_path / "r", max_candidates=3,
            on_truncated="keep", config={"questions": TASK, "samples": 2},
        )  # fmt: skip


def test_a_sample_keeps_the_beginning_of_a_long_output() -> None:
    question = Question("Write the letter x 3000 times.", "x" * 3000)
    [one] = run_of("print('x' * 3000)", question=question)
    assert isinstance(one, Completion)
    assert fields(one)["printed"] == "x" * 1000


HOSTILE = {
    "while True: pass": "timed_out",
    "import time\nwhile True: time.sleep(9)": "timed_out",
    "while True: print('more')": "too_much_output",
    "everything = 'x' * 10**10": "too_much_memory",
    "import os\nwhile True: os.fork()": "forbidden",
    "import subprocess\nsubprocess.run(['true'])": "forbidden",
    "import socket\nsocket.create_connection(('127.0.0.1', 9))": "forbidden",
    "print(open('{out}/secret').read())": "forbidden",
    "open('{out}/written', 'w').write('x')": "forbidden",
    "import os\nos.remove('{out}/secret')": "forbidden",
    "import os\nos.kill(os.getppid(), 9)": "forbidden",
    "import sys\nsys.exit(3)": "program_error",
}


def test_hostile_programs_are_turned_down_and_the_run_goes_on(tmp_path: Path) -> None:
    """Each is the first draw of its own question, whose second draw is right."""
    (tmp_path / "secret").write_text("-4")
    asked: dict[str, str] = {}

    def tell(request: Request) -> str:
        question = request.messages[-1].content
        if question in asked:
            return block(f"print({expression(request)})")
        asked[question] = list(HOSTILE)[len(asked)].replace("{out}", str(tmp_path))
        return block(asked[question])

    sums = [f"Solve this problem: {i} + 100 =" for i in range(len(HOSTILE))]
    (tmp_path / "sums.jsonl").write_text(
        "\n".join(json.dumps({"question": text, "answer": str(i + 100)}) for i, text in enumerate(sums))
    )
    questions = {"file": str(tmp_path / "sums.jsonl"), "verifier": "numeric"}
    limits = {"seconds": 1.0, "memory_mb": 256, "output_bytes": 4096}
    run = generate(
        tmp_path / "r", ScriptTeacher(tell), n=len(HOSTILE), samples=2, questions=questions,
        filters={"limits": limits},
    )  # fmt: skip
    assert len(list(read_samples(run / "samples.jsonl"))) == len(HOSTILE)
    found = {}
    for one in read_rejections(run / "rejected.jsonl"):
        assert isinstance(one.sample, Completion)
        found[code_block(one.sample.text).replace(str(tmp_path), "{out}")] = one.reason
        assert fields(one)["printed"] == ""
    assert found == HOSTILE
    assert (tmp_path / "secret").read_text() == "-4"
    assert not (tmp_path / "written").exists()


def test_limits_are_what_the_filters_say() -> None:
    programs = (
        "import time\ntime.sleep(1)\nprint(-4)",
        "print(-4)" + "\nprint()" * 9,
        "'x' * 10**8\nprint(-4)",
    )
    tight = {"limits": {"seconds": 0.5, "output_bytes": 8, "memory_mb": 64}}
    assert reasons(run_of(*programs, filters=tight)) == ["timed_out", "too_much_output", "too_much_memory"]
    assert reasons(run_of(*programs)) == [""] * 3


# What is kept.


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.sampled_from(["5 - 9", "-4", "9 - 5", "5 - 8", "nine", "'-4 or 4'"]), min_size=1, max_size=5)
)
def test_whatever_the_teacher_writes_only_right_programs_are_kept_with_gold(values: list[str]) -> None:
    found = run_of(*(f"print({value})" for value in values))
    kept = [i for i, one in enumerate(found) if isinstance(one, Completion)]
    right = [i for i, value in enumerate(values) if value in ("5 - 9", "-4")]
    assert kept == [i for i in right if values.index(values[i]) == i]
    assert all(fields(found[i])["printed"] == "-4" for i in kept)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.sampled_from(["1", "2", "3 - 2", "nine", "'1 or 2'"]), min_size=1, max_size=5))
def test_without_gold_the_answer_that_most_print_is_kept(values: list[str]) -> None:
    filters = {"keep": "majority", "distinct": False}
    found = run_of(
        *(f"print({value})" for value in values), question=Question("?", verifier="numeric"), filters=filters
    )
    printed = ["1" if value == "3 - 2" else value if value in ("1", "2") else None for value in values]
    kept = [i for i, one in enumerate(found) if isinstance(one, Completion)]
    answers = {one.answer for one in found if isinstance(one, Completion)}
    if not any(printed):
        assert kept == []
        return
    [answer] = answers
    assert kept == [i for i, one in enumerate(printed) if one == answer]
    assert len(kept) == max(printed.count("1"), printed.count("2"))
    assert {fields(found[i])["vote_share"] for i in kept} == {len(kept) / len(values)}
    assert {fields(found[i])["voted_right"] for i in kept} == {None}


def test_the_vote_can_be_checked_where_gold_is_known() -> None:
    found = run_of("print(4)", "print(9 - 5)", "print(5 - 9)", filters={"keep": "majority"})
    assert reasons(found) == ["", "", "outvoted"]
    assert [one.answer for one in found if isinstance(one, Completion)] == ["4", "4"]
    assert [fields(one)["voted_right"] for one in found] == [False] * 3


def test_keep_all_keeps_whatever_runs_and_prints() -> None:
    found = run_of("print(4)", "print(5 - 9)", "print(nine)", "value = 4", filters={"keep": "all"})
    assert reasons(found) == ["", "", "program_error", "no_output"]


def test_programs_that_differ_in_comments_and_spacing_are_one() -> None:
    programs = (
        "print(5 - 9)",
        "# Asked: a value\nprint( 5-9 )  # so",
        "value = 5 - 9\nprint(value)",
        "print(5 - 9)",
    )
    found = run_of(*programs)
    assert reasons(found) == ["", "same_program", "", "same_program"]
    assert isinstance(found[1], Rejection)
    assert found[1].detail == "as draw 0"
    assert reasons(run_of(*programs, filters={"distinct": False})) == [""] * 4
    # One that is turned down for another reason stands in nobody's way.
    assert reasons(run_of("print(4)", "print(4)", filters={"keep": "gold"})) == ["wrong_answer"] * 2


def test_a_program_too_deep_to_be_parsed_here_is_compared_as_text() -> None:
    deep = "print(" + "+".join(["1"] * 5000) + ")"
    assert tree_of(deep) in (deep, tree_of(deep.replace("+", " + ")))
    assert tree_of("print('\\d')") == tree_of("print( '\\d' )")


def test_max_per_question_keeps_the_first() -> None:
    programs = [f"print({i} - {i + 4})" for i in range(4)]
    assert reasons(run_of("print(0)", *programs, filters={"max_per_question": 2})) == [
        "wrong_answer", "", "", "surplus", "surplus",
    ]  # fmt: skip


def test_filters_cost_no_call_and_rename_nothing(tmp_path: Path) -> None:
    def slow_or_wrong(request: Request) -> str:
        wrong = request.seed % 2
        return block(
            f"print({expression(request)} + {wrong})" + "\nwhile True: pass" * (request.seed % 3 == 0)
        )

    teacher = ScriptTeacher(slow_or_wrong)
    quick = {"limits": {"seconds": 0.5}}
    run = generate(tmp_path / "r", teacher, n=3, samples=2, max_candidates=12, filters=quick)
    asked = teacher.asked

    def named() -> dict[str, str]:
        files = [*read_samples(run / "samples.jsonl"), *read_rejections(run / "rejected.jsonl")]
        return {one.id: one.reason if isinstance(one, Rejection) else "" for one in files}

    before = named()
    assert set(before.values()) >= {"", "timed_out"}
    generate(run, teacher, n=50, samples=2, max_candidates=12, filters={"keep": "all", **quick}, reparse=True)
    after = named()
    assert teacher.asked == asked
    assert {name: after[name] for name, reason in before.items() if reason == ""} == dict.fromkeys(
        (name for name, reason in before.items() if reason == ""), ""
    )
    assert not set(after.values()) & {"wrong_answer"}


def test_a_question_that_cannot_be_judged_costs_no_call(tmp_path: Path) -> None:
    rows = [
        {"question": "What is 1 + 1?", "answer": None},
        {"question": "What is 1 + 2?", "answer": "three or four"},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    teacher = ScriptTeacher(lambda request: block("print(2)"))
    questions = {"file": str(tmp_path / "q.jsonl"), "verifier": "numeric"}
    with pytest.raises(NothingLeft):
        generate(tmp_path / "r", teacher, questions=questions)
    assert [one.reason for one in read_rejections(tmp_path / "r" / "rejected.jsonl")] == [
        "no_gold",
        "gold_unreadable",
    ]
    assert teacher.asked == 0


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"samples": 2, "sampling": {"temperature": 0}}, "greedy draws are all alike"),
        ({"shots": 5}, "shots is 5, but there are only 4 demonstrations"),
        ({"shots": 2, "demonstrations": [{"question": "?", "program": "print(1)"}]}, "only 1 demonstrations"),
        ({"filters": {"limits": {"seconds": 0}}}, r"filters\.limits\.seconds = 0"),
        ({"filters": {"keep": "best"}}, r'filters\.keep = "best"'),
        ({"demonstrations": [{"question": "?", "answer": "1"}]}, "program"),
    ],
)
def test_a_config_that_cannot_work_is_one_sentence(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        config(**values)


def test_equal_programs_run_once_and_so_have_one_verdict() -> None:
    chance = "import random\nprint(random.random())"
    found = run_of(chance, chance, filters={"keep": "all", "distinct": False})
    assert reasons(found) == ["", ""]
    assert fields(found[0])["printed"] == fields(found[1])["printed"]
