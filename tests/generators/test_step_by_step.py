"""The step_by_step recipe: one reply as a label and a rationale, their prefixes and their weights."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kdbench
from kdbench.config import build
from kdbench.errors import ConfigError, NothingLeft
from kdbench.jsonl import read_rejections, read_samples
from kdbench.records import Completion, Message, Origin
from kdbench.teachers.oracle import Config as Oracle
from kdbench.teachers.oracle import OracleTeacher
from kdbench_generators.step_by_step import Config, Fields, weight_of
from tests.support.teachers import EchoTeacher, ScriptTeacher, reply

TASK = {"task": {"chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}}}
CRATES = {"question": "A crate holds 12 bottles. How many bottles are in 5 crates?", "answer": "60"}
GOOD = "Five crates of 12 bottles hold 5 * 12 = 60. The answer is 60."
WRONG = "Five crates and 12 bottles, that is 5 + 12 = 17. The answer is 17."


def config(**values: Any) -> Config:
    return build(Config, {"questions": TASK, **values}, "recipe step_by_step")


def crates(folder: Path, *texts: str, row: dict[str, Any] = CRATES, **values: Any) -> Path:
    """A run over one question for each reply."""
    (folder / "questions.jsonl").write_text((json.dumps(row) + "\n") * len(texts))
    teacher = EchoTeacher(lambda _, number: reply(texts[number - 1]))
    source = {"file": str(folder / "questions.jsonl"), "verifier": "numeric"}
    # Not greedy: the replies to equal questions would be one and the same call.
    values = {"questions": source, "sampling": {"temperature": 0.7}, **values}
    return kdbench.generate(
        "step_by_step", teacher=teacher, n=2 * len(texts), out=folder / "run", config=values, concurrency=1
    )


def kept(out: Path) -> list[Completion]:
    return [sample for sample in read_samples(out / "samples.jsonl") if isinstance(sample, Completion)]


def fields(sample: Completion) -> Fields:
    return Fields.model_validate_json(sample.fields)


def reasons(out: Path) -> Counter[str]:
    return Counter(rejection.reason for rejection in read_rejections(out / "rejected.jsonl"))


def test_a_reply_becomes_a_label_and_a_rationale_of_one_group(tmp_path: Path) -> None:
    label, rationale = kept(crates(tmp_path, GOOD))
    asked = CRATES["question"]
    assert [m.content for m in label.prompt] == [f"[label] {asked}"]
    assert [m.content for m in rationale.prompt] == [f"[rationale] {asked}"]
    assert (label.text, rationale.text) == ("60", "Five crates of 12 bottles hold 5 * 12 = 60.")
    assert label.group == rationale.group is not None
    assert (fields(label).view, fields(rationale).view) == ("label", "rationale")
    assert label.answer == rationale.answer == "60"
    assert isinstance(label.origin, Origin)
    assert label.origin == rationale.origin
    assert (label.weight, rationale.weight) == (1.0, 1.0)


def test_only_the_teacher_sees_the_demonstrations(tmp_path: Path) -> None:
    for sample in kept(crates(tmp_path, GOOD, shots=3)):
        assert sample.teacher_prompt is not None
        assert [m.role for m in sample.teacher_prompt] == ["user", "assistant"] * 3 + ["user"]
        assert sample.teacher_prompt[-1].content.endswith("then close with: The answer is X.")
        assert len(sample.prompt) == 1
        assert "step by step" not in sample.prompt[0].content


def test_the_prefixes_of_the_authors_code(tmp_path: Path) -> None:
    out = crates(tmp_path, GOOD, label_prefix="predict: ", rationale_prefix="explain: ")
    label, rationale = kept(out)
    assert label.prompt[0].content.startswith("predict: A crate")
    assert rationale.prompt[0].content.startswith("explain: A crate")


@given(st.floats(0.001, 0.999))
def test_the_weights_are_the_mix_of_losses_and_1_on_average(alpha: float) -> None:
    label, rationale = weight_of("label", alpha), weight_of("rationale", alpha)
    assert label + rationale == pytest.approx(2)
    assert label / 2 == pytest.approx(alpha)


def test_alpha_is_in_the_samples(tmp_path: Path) -> None:
    assert [sample.weight for sample in kept(crates(tmp_path, GOOD, alpha=0.75))] == [1.5, 0.5]


def test_a_wrong_pair_is_kept_as_the_paper_does_or_turned_down_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / "gold").mkdir()
    every = kept(crates(tmp_path / "all", WRONG, GOOD))
    assert [sample.text for sample in every][::2] == ["17", "60"]
    assert [fields(sample).correct for sample in every] == [False, False, True, True]
    assert {sample.answer for sample in every} == {"60"}
    out = crates(tmp_path / "gold", WRONG, GOOD, filters={"keep": "gold"})
    assert [sample.text for sample in kept(out)] == [sample.text for sample in every[2:]]
    assert [sample.id for sample in kept(out)] == [sample.id for sample in every[2:]]
    turned_down = list(read_rejections(out / "rejected.jsonl"))
    assert [(one.reason, one.detail) for one in turned_down] == [("wrong_answer", "17")] * 2
    assert [one.id for one in turned_down] == [sample.id for sample in every[:2]]


def test_labels_may_be_the_gold_ones(tmp_path: Path) -> None:
    label, rationale = kept(crates(tmp_path, WRONG, label_from="gold"))
    assert label.text == "60"
    assert "5 + 12 = 17" in rationale.text
    assert fields(label).correct is False


def test_a_question_without_gold_has_the_teachers_label(tmp_path: Path) -> None:
    label, _ = kept(crates(tmp_path, GOOD, row={"question": CRATES["question"]}))
    assert (label.text, label.answer, fields(label).correct) == ("60", None, None)


@pytest.mark.parametrize("values", [{"label_from": "gold"}, {"filters": {"keep": "gold"}}])
def test_without_gold_nothing_is_asked_that_needs_it(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(NothingLeft, match="no_gold 1"):
        crates(tmp_path, GOOD, row={"question": "How many?"}, **values)
    (rejection,) = read_rejections(tmp_path / "run" / "rejected.jsonl")
    assert rejection.origin is not None
    assert rejection.origin.calls == ()


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("no_rationale", "The answer is 60."),
        ("no_answer", "Five crates of 12 bottles hold 5 * 12 = 60."),
        ("two_answers", f"{GOOD} No, wait. The answer is 17."),
        ("refusal", "I'm sorry, but I can't help with that."),
        ("empty_reply", ""),
    ],
)
def test_what_cannot_be_cut_in_two_is_turned_down_once(expected: str, text: str, tmp_path: Path) -> None:
    out = crates(tmp_path, text, GOOD)
    assert reasons(out) == {expected: 1}
    assert len(kept(out)) == 2
    (rejection,) = read_rejections(out / "rejected.jsonl")
    assert (rejection.sample is None) == (expected == "empty_reply")
    if isinstance(rejection.sample, Completion):
        assert rejection.sample.text == text


def test_a_cut_off_reply_is_turned_down_even_where_the_policy_keeps_it(tmp_path: Path) -> None:
    teacher = ScriptTeacher(lambda _: "5 * 12 = 60. The answer is 6" + ScriptTeacher.CUT)
    with pytest.raises(NothingLeft, match="truncated 3"):
        kdbench.generate(
            "step_by_step", teacher=teacher, n=2, out=tmp_path / "r", config={"questions": TASK},
            max_candidates=3, on_truncated="keep",
        )  # fmt: skip


def test_the_teachers_own_thinking_is_in_neither_view(tmp_path: Path) -> None:
    for sample in kept(crates(tmp_path, f"<think>12 + 5? No.</think>\n{GOOD}")):
        assert sample.completion == (Message(role="assistant", content=sample.text),)


def test_an_oracle_that_errs_gives_right_pairs_alone(tmp_path: Path) -> None:
    teacher = OracleTeacher(Oracle(error_rate=0.4))
    values = {"questions": TASK, "filters": {"keep": "gold"}}
    out = kdbench.generate("step_by_step", teacher=teacher, n=80, out=tmp_path / "r", config=values)
    samples = kept(out)
    assert len(samples) == 80
    for label, rationale in zip(samples[::2], samples[1::2], strict=True):
        assert label.text == label.answer
        assert rationale.text.removesuffix(".").endswith(f"= {label.answer}")
        assert label.group == rationale.group
    assert reasons(out)["wrong_answer"] > 20


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": 1}, "alpha = 1: input should be less than 1"),
        ({"alpha": 0}, "alpha = 0: input should be greater than 0"),
        ({"label_prefix": "x ", "rationale_prefix": "x "}, "must differ: nothing else tells the tasks apart"),
        ({"shots": 7}, "shots is 7, but there are only 6 demonstrations"),
        ({"label_from": "both"}, 'label_from = "both"'),
    ],
)
def test_a_config_that_cannot_be_is_refused_in_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**values)
