"""Chain of thought: what each filter keeps, the vote, the formats, several teachers, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kdbench
from kdbench.config import build
from kdbench.equations import equations, path_key
from kdbench.errors import ConfigError, NothingLeft, UsageError
from kdbench.jsonl import read_rejections, read_samples
from kdbench.records import Completion
from kdbench.teacher import Request
from kdbench.teachers.oracle import Config as OracleConfig
from kdbench.teachers.oracle import OracleTeacher
from kdbench_generators.chain_of_thought import Config
from tests.generators.cases._sums import TASK, solve
from tests.support.teachers import ScriptTeacher, share


def run(out: Path, *, teacher: Any, n: int = 500, seeds: int = 6, **config: Any) -> list[Completion]:
    kdbench.generate(
        "chain_of_thought", teacher=teacher, n=n, max_candidates=seeds, out=out, resume=True,
        config={"questions": TASK, **config},
    )  # fmt: skip
    return [s for s in read_samples(out / "samples.jsonl") if isinstance(s, Completion)]


def reasons(out: Path) -> set[str]:
    return {rejection.reason for rejection in read_rejections(out / "rejected.jsonl")}


def gold_of(sample: Completion) -> str:
    return str(json.loads(json.loads(sample.fields)["entry"])["answer"])


def said(sample: Completion) -> str:
    return sample.text.rpartition("answer is ")[2].rstrip(".")


def right_or(wrong: str, rate: float) -> ScriptTeacher:
    """Right but for a share of the replies, which give `wrong`."""

    def tell(request: Request) -> str:
        text = request.messages[-1].content
        return wrong if share(request) < rate else solve(text, backwards=share(request, "way") < 0.5)

    return ScriptTeacher(tell)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rate=st.floats(0, 0.9))
def test_gold_keeps_right_answers_alone_at_any_error_rate(
    rate: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("run") / "r"
    samples = run(out, teacher=OracleTeacher(OracleConfig(error_rate=rate)), samples=6)
    assert samples
    for sample in samples:
        assert said(sample) == sample.answer == gold_of(sample)
        assert all(one.is_valid for one in equations(sample.text))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rate=st.floats(0, 0.9))
def test_majority_never_keeps_a_path_against_the_vote(
    rate: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("run") / "r"
    keep = {"keep": "majority", "distinct": False, "valid_equations": False}
    teacher = OracleTeacher(OracleConfig(error_rate=rate, no_marker=0.1))
    for sample in run(out, teacher=teacher, samples=6, filters=keep):
        fields = json.loads(sample.fields)
        assert said(sample) == sample.answer
        assert fields["voted_right"] == (sample.answer == gold_of(sample))
        assert 1 / 6 <= fields["vote_share"] <= 1


def test_one_path_is_kept_for_each_list_of_equations(tmp_path: Path) -> None:
    samples = run(tmp_path / "r", teacher=right_or("", 0), samples=8)
    keys = [(s.group, path_key(s.text)) for s in samples]
    assert len(keys) == len(set(keys))
    assert reasons(tmp_path / "r") == {"same_path"}
    assert len(run(tmp_path / "all", teacher=right_or("", 0), samples=8, filters={"distinct": False})) == 48


def test_filters_are_changed_for_nothing_and_rename_no_sample(tmp_path: Path) -> None:
    everything = {"keep": "all", "distinct": False, "valid_equations": False}
    teacher = right_or("1 + 1 = 3. The answer is 3.", 0.4)
    before = {s.id: s.text for s in run(tmp_path / "r", teacher=teacher, filters=everything)}
    asked = teacher.asked
    kdbench.generate(
        "chain_of_thought", teacher=teacher, n=500, max_candidates=6, out=tmp_path / "r", reparse=True,
        config={"questions": TASK, "filters": {"keep": "gold"}},
    )  # fmt: skip
    after = {
        s.id: s.text for s in read_samples(tmp_path / "r" / "samples.jsonl") if isinstance(s, Completion)
    }
    assert teacher.asked == asked
    assert after.items() < before.items()
    assert {"wrong_answer", "same_path"} <= reasons(tmp_path / "r")


def test_min_share_turns_down_what_few_agree_on(tmp_path: Path) -> None:
    keep = {"keep": "majority", "min_share": 1.0, "distinct": False}
    samples = run(tmp_path / "r", teacher=right_or("The answer is 77.", 0.3), seeds=12, filters=keep)
    assert all(json.loads(s.fields)["vote_share"] == 1.0 for s in samples)
    assert "low_share" in reasons(tmp_path / "r")


def test_an_equation_that_is_off_turns_a_right_path_down(tmp_path: Path) -> None:
    def tell(request: Request) -> str:
        right = solve(request.messages[-1].content)
        return "2 + 2 = 5. " + right if share(request) < 0.5 else right

    run(tmp_path / "r", teacher=ScriptTeacher(tell))
    assert "invalid_equation" in reasons(tmp_path / "r")


def test_the_student_s_formats_and_what_the_teacher_saw(tmp_path: Path) -> None:
    formats = ["few_shot_cot", "few_shot_direct", "zero_shot_cot", "zero_shot_direct"]
    samples = run(
        tmp_path / "r", teacher=right_or("", 0), seeds=1, samples=1, shots=2, student_shots=1,
        student_formats=formats,
    )  # fmt: skip
    found = {json.loads(s.fields)["format"]: s for s in samples}
    assert set(found) == set(formats)
    assert {name: len(s.prompt) for name, s in found.items()} == {
        "few_shot_cot": 3, "few_shot_direct": 3, "zero_shot_cot": 1, "zero_shot_direct": 1,
    }  # fmt: skip
    assert found["zero_shot_direct"].text == found["zero_shot_cot"].answer
    seen = found["zero_shot_cot"].teacher_prompt
    assert seen is not None
    assert len(seen) == 5
    assert len({s.group for s in samples}) == 1


def test_several_teachers_vote_together(tmp_path: Path) -> None:
    keep = {"keep": "majority", "distinct": False, "valid_equations": False}
    good, bad = right_or("", 0), ScriptTeacher(lambda request: "The answer is 99.", identity="bad")
    samples = run(
        tmp_path / "r",
        teacher={"teacher": good, "teacher_2": bad, "teacher_3": good},
        teachers=3,
        filters=keep,
    )
    assert {json.loads(s.fields)["teacher"] for s in samples} == {"teacher", "teacher_3"}
    assert {json.loads(s.fields)["vote_share"] for s in samples} == {2 / 3}
    with pytest.raises(UsageError, match="teacher_2"):
        run(tmp_path / "x", teacher=good, teachers=2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("7 it must be, I think.", "no_answer"),
        ("The answer is 7. No, it is not. The answer is 8.", "two_answers"),
        (
            "Die Antwort ergibt sich, wenn man alle Zahlen der Reihe nach zusammenzählt: The answer is 7.",
            "other_language",
        ),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("State the final answer to the following arithmetic problem. " * 8, "loop"),
        ("", "empty_reply"),
        ("First we add the num" + ScriptTeacher.CUT, "truncated"),
    ],
)
def test_a_reply_that_is_no_path_is_turned_down_with_its_reason(
    tmp_path: Path, text: str, reason: str
) -> None:
    with pytest.raises(NothingLeft):
        run(tmp_path / "r", teacher=ScriptTeacher(lambda request: text), seeds=2)
    assert reasons(tmp_path / "r") == {reason}


def test_gold_without_gold_answers_asks_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "What is 2 + 2 ="}\n')
    teacher = right_or("", 0)
    with pytest.raises(NothingLeft):
        run(
            tmp_path / "r",
            teacher=teacher,
            questions={"file": str(tmp_path / "q.jsonl"), "verifier": "numeric"},
        )
    assert reasons(tmp_path / "r") == {"no_gold"}
    assert teacher.asked == 0


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"samples": 2, "sampling": {"temperature": 0}}, "samples above 1 need sampling.temperature above 0"),
        ({"student_formats": ["few_shot"]}, "student_formats"),
        ({"shots": 500}, "shots is 500, but there are only"),
        ({"filters": {"min_share": 0.5}}, "set keep to majority"),
        ({"demonstrations": [{"question": "a", "answer": "b"}]}, "reasoning' is missing"),
    ],
)
def test_a_config_that_makes_no_sense_is_a_sentence(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(Config, {"questions": TASK, **config}, "recipe chain_of_thought")
