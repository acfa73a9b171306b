"""The recipe of held-out questions: gold answers kept, nobody asked, templates of other recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import kdbench
from kdbench.errors import ConfigError, NothingLeft, TemplateError, UsageError
from kdbench.jsonl import read_rejections, read_samples
from tests.support.teachers import ScriptTeacher

TASK = {"task": {"chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}}


def run(tmp_path: Path, config: dict[str, Any], n: int = 3) -> tuple[list[Any], ScriptTeacher]:
    teacher = ScriptTeacher(lambda request: "never asked")
    out = kdbench.generate(
        "questions", teacher=teacher, n=n, out=tmp_path / "run", config=config, max_candidates=3 * n
    )
    return list(read_samples(out / "samples.jsonl")), teacher


def test_every_question_is_kept_with_what_its_verifier_needs(tmp_path: Path) -> None:
    samples, teacher = run(tmp_path, {"questions": TASK})
    assert teacher.asked == 0
    for sample in samples:
        assert sample.text == f"The answer is {sample.answer}."
        fields = json.loads(sample.fields)
        assert fields["kind"] == "chain_sum"
        assert json.loads(fields["entry"])["answer"] == sample.answer


def test_a_system_message_and_a_prompt_may_come_from_any_recipe(tmp_path: Path) -> None:
    config = {"questions": TASK, "system": "prompt_erasing/cautious"}
    samples, _ = run(tmp_path, config)
    assert [m.role for m in samples[0].prompt] == ["system", "user"]
    assert "careful" in samples[0].prompt[0].content


def test_an_unknown_template_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=r"No template prompt_erasing/cautios. Did you mean"):
        run(tmp_path, {"questions": TASK, "system": "prompt_erasing/cautios"})
    with pytest.raises(ConfigError, match="template"):
        run(tmp_path, {"questions": TASK, "template": "cautious"})


def test_questions_without_a_readable_gold_answer_are_turned_down(tmp_path: Path) -> None:
    rows = [{"question": "1 + 1?", "answer": None}, {"question": "2 + 2?", "answer": "many"}]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(NothingLeft):
        run(tmp_path, {"questions": {"file": str(path), "verifier": "numeric"}})
    reasons = [r.reason for r in read_rejections(tmp_path / "run" / "rejected.jsonl")]
    assert reasons == ["no_gold", "gold_unreadable"]


def test_templates_of_one_s_own_are_refused_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "mine" / "shared").mkdir(parents=True)
    (tmp_path / "mine" / "shared" / "question.j2").write_text("MINE {{ question.text }}")
    teacher = ScriptTeacher(lambda request: "never asked")
    with pytest.raises(UsageError, match="leave out --prompts"):
        kdbench.generate(
            "questions", teacher=teacher, n=1, out=tmp_path / "run", config={"questions": TASK},
            prompts=tmp_path / "mine",
        )  # fmt: skip
