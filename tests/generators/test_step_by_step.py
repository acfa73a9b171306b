"""Distilling step-by-step: two tasks of one reply, told apart by a prefix, weighted by alpha."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kdbench
from kdbench.config import build
from kdbench.errors import ConfigError, NothingLeft
from kdbench.jsonl import read_rejections, read_samples
from kdbench.records import Completion
from kdbench_generators.step_by_step import Config
from tests.generators.cases._sums import TASK, solve
from tests.support.teachers import ScriptTeacher


def run(out: Path, tell: Any = None, n: int = 4, **config: Any) -> list[Completion]:
    teacher = ScriptTeacher(tell or (lambda request: solve(request.messages[-1].content)))
    kdbench.generate(
        "step_by_step", teacher=teacher, n=n, max_candidates=4, out=out, config={"questions": TASK, **config}
    )
    return [s for s in read_samples(out / "samples.jsonl") if isinstance(s, Completion)]


def reasons(out: Path) -> list[str]:
    return [rejection.reason for rejection in read_rejections(out / "rejected.jsonl")]


def test_one_reply_makes_a_label_and_a_rationale_of_one_group(tmp_path: Path) -> None:
    label, rationale, *_ = run(tmp_path / "r")
    assert label.group == rationale.group
    assert label.prompt[0].content.startswith("[label] State the final answer")
    assert rationale.prompt[0].content.startswith("[rationale] State the final answer")
    assert label.text == label.answer
    assert " = " in rationale.text
    assert "answer is" not in rationale.text
    assert label.origin == rationale.origin
    assert label.origin is not None
    assert len(label.origin.calls) == 1
    assert (label.weight, rationale.weight) == (1.0, 1.0)


@given(alpha=st.floats(0.01, 0.99))
def test_the_weights_are_alpha_and_what_is_left_of_two(alpha: float) -> None:
    config = build(Config, {"questions": TASK, "alpha": alpha}, "recipe")
    label, rationale = 2 * config.alpha, 2 * (1 - config.alpha)
    assert label + rationale == pytest.approx(2)
    assert label / rationale == pytest.approx(alpha / (1 - alpha))


def test_weights_reach_the_samples(tmp_path: Path) -> None:
    label, rationale, *_ = run(tmp_path / "r", alpha=0.75)
    assert (label.weight, rationale.weight) == (1.5, 0.5)


def test_prefixes_are_the_user_s(tmp_path: Path) -> None:
    label, rationale, *_ = run(tmp_path / "r", label_prefix="predict: ", rationale_prefix="explain: ")
    assert label.prompt[0].content.startswith("predict: ")
    assert rationale.prompt[0].content.startswith("explain: ")


def test_the_label_may_be_the_gold_answer_where_the_teacher_is_wrong(tmp_path: Path) -> None:
    def wrong(request: Any) -> str:
        return solve(request.messages[-1].content, slip=1)

    label, *_ = run(tmp_path / "teacher", wrong)
    assert label.text != label.answer
    assert json.loads(label.fields)["correct"] is False
    label, *_ = run(tmp_path / "gold", wrong, label_from="gold")
    assert label.text == label.answer
    with pytest.raises(NothingLeft):
        run(tmp_path / "kept", wrong, filters={"keep": "gold"})
    assert reasons(tmp_path / "kept") == ["wrong_answer"] * 8


def test_the_teacher_sees_demonstrations_and_the_student_does_not(tmp_path: Path) -> None:
    label, *_ = run(tmp_path / "r", shots=3)
    assert len(label.prompt) == 1
    assert label.teacher_prompt is not None
    assert len(label.teacher_prompt) == 7


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The answer is 4.", "no_rationale"),
        ("It makes 4.", "no_answer"),
        ("2 + 2 = 4" + ScriptTeacher.CUT, "truncated"),
    ],
)
def test_a_reply_that_cannot_be_cut_in_two_is_turned_down(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(NothingLeft):
        run(tmp_path / "r", lambda request: text)
    assert set(reasons(tmp_path / "r")) == {reason}


def test_a_gold_answer_is_asked_for_where_it_is_needed(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "What is 2 + 2 ="}\n')
    questions = {"file": str(tmp_path / "q.jsonl"), "verifier": "numeric"}
    assert run(tmp_path / "r", n=2, questions=questions)[0].text == "4"
    with pytest.raises(NothingLeft):
        run(tmp_path / "g", questions=questions, label_from="gold")
    assert reasons(tmp_path / "g") == ["no_gold"]


def test_equal_prefixes_are_refused() -> None:
    with pytest.raises(ConfigError, match="nothing else tells the tasks apart"):
        build(Config, {"questions": TASK, "label_prefix": "x", "rationale_prefix": "x"}, "recipe")
