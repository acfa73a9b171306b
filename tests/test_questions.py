"""Question sources: files, odd columns, reasoning-gym tasks, groups, and parts that never meet."""

from __future__ import annotations

import csv
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdbench.config import build
from kdbench.errors import ConfigError, DataError, Rejected
from kdbench.questions import Question, QuestionFields, Questions, QuestionSource

SUMS = {"chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}
ROWS = [
    {"question": "1 + 1?", "answer": "2", "kind": "sum"},
    {"question": "Which is red?", "answer": "B", "kind": "choice"},
]


def questions(n: int | None = None, **source: Any) -> list[Question]:
    return list(islice(Questions(build(QuestionSource, source, "questions")), n))


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_same_rows_from_every_kind_of_file(tmp_path: Path) -> None:
    with open(tmp_path / "q.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer", "kind"])
        writer.writeheader()
        writer.writerows(ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "q.parquet")
    read = [
        questions(file=jsonl(tmp_path / "q.jsonl", ROWS)),
        questions(file=tmp_path / "q.parquet"),
        questions(file=tmp_path / "q.csv"),
    ]
    assert read[0] == read[1]
    assert [q.text for q in read[2]] == [q.text for q in read[0]]
    assert [(q.text, q.answer, q.kind) for q in read[0]] == [
        ("1 + 1?", "2", "sum"),
        ("Which is red?", "B", "choice"),
    ]


def test_columns_are_mapped_and_a_missing_one_is_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", [{"problem": "1 + 1?", "solution": 2}])
    (found,) = questions(file=path, columns={"question": "problem", "answer": "solution"})
    assert (found.text, found.answer) == ("1 + 1?", "2")
    with pytest.raises(
        DataError, match=r"no column 'question'.*Available: problem, solution.*columns.question"
    ):
        questions(file=path)
    with pytest.raises(DataError, match=r"no column 'soluton' for answer. Did you mean 'solution'"):
        questions(file=path, columns={"question": "problem", "answer": "soluton"})


def test_odd_columns_are_read_or_named(tmp_path: Path) -> None:
    rows = [{"question": "Which?", "answer": "A", "choices": {"label": ["A", "B"], "text": ["red", "blue"]}}]
    (found,) = questions(file=jsonl(tmp_path / "q.jsonl", rows), verifier="choice")
    assert found.choices == ("red", "blue")
    (none,) = questions(file=jsonl(tmp_path / "n.jsonl", [{"question": "Who?", "answer": None}]))
    assert none.answer is None
    (listed,) = questions(file=jsonl(tmp_path / "l.jsonl", [{"question": ["a", "b"], "answer": "x"}]))
    assert listed.text == '["a", "b"]'
    with pytest.raises(DataError, match="must hold lists of options"):
        questions(file=jsonl(tmp_path / "t.jsonl", [{"question": "q", "choices": "red or blue"}]))


def test_files_that_cannot_be_read_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No file of questions"):
        questions(file=tmp_path / "absent.jsonl")
    with pytest.raises(ConfigError, match=r"must end in \.csv"):
        questions(file=tmp_path / "q.xlsx")
    (tmp_path / "torn.jsonl").write_text('{"question": "a"}\n{"quest')
    with pytest.raises(DataError, match=r"torn\.jsonl cannot be read"):
        questions(file=tmp_path / "torn.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl"):
        questions(file=tmp_path / "empty.jsonl")


def test_exactly_one_source_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="exactly one of task, file and dataset; has none"):
        build(QuestionSource, {}, "questions")
    with pytest.raises(ConfigError, match="has task, dataset"):
        build(QuestionSource, {"task": SUMS, "dataset": "x"}, "questions")


def test_tasks_are_taken_in_turn_without_end_and_alike_every_time() -> None:
    tasks = {**SUMS, "gcd": {"max_value": 20}}
    some = questions(6, task=tasks)
    assert [q.kind for q in some] == ["chain_sum", "gcd"] * 3
    assert some == questions(6, task=tasks)
    assert some != questions(6, task=tasks, seed=1)
    assert all(q.is_correct(q.answer or "") and not q.is_correct("1000000") for q in some)


def test_an_unknown_task_or_setting_is_named_before_anything_is_asked() -> None:
    with pytest.raises(ConfigError, match=r"no task 'chainsum'\. Did you mean 'chain_sum'"):
        questions(task={"chainsum": {}})
    with pytest.raises(ConfigError, match=r"questions\.task\.chain_sum.*min_term"):
        questions(task={"chain_sum": {"min_term": 2}})
    with pytest.raises(ConfigError, match=r"questions\.task\.chain_sum"):
        questions(task={"chain_sum": {"min_terms": 5, "max_terms": 2}})


def test_a_task_that_names_no_gold_answer_has_none() -> None:
    (found,) = questions(1, task={"rush_hour": {}})
    assert found.answer is None


def test_equal_questions_share_a_group_and_parts_never_meet() -> None:
    train = {q.group: q.text for q in questions(300, task=SUMS, part="train", seed=1)}
    held = {q.group: q.text for q in questions(300, task=SUMS, part="heldout", seed=2)}
    assert not train.keys() & held.keys()
    assert not set(train.values()) & set(held.values())
    assert len(train) < 300  # a small task repeats itself: the groups see it
    assert Question("a  b").group == Question("a b").group != Question("a c").group
    assert Question("a", context="x").group != Question("a").group


def test_a_part_that_a_small_task_does_not_have_is_a_sentence() -> None:
    one = {"chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}
    with pytest.raises(DataError, match="outside the part 'heldout'"):
        questions(1, task=one, part="heldout", heldout_share=1e-9)


def test_a_limit_is_kept(tmp_path: Path) -> None:
    assert len(questions(task=SUMS, limit=3)) == 3
    assert len(questions(file=jsonl(tmp_path / "q.jsonl", ROWS), limit=1)) == 1


def test_the_fingerprint_is_the_content_not_the_place(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    here = Questions(QuestionSource(file=jsonl(tmp_path / "q.jsonl", ROWS)))
    there = Questions(QuestionSource(file=jsonl(tmp_path / "sub" / "q.jsonl", ROWS)))
    other = Questions(QuestionSource(file=jsonl(tmp_path / "o.jsonl", ROWS[:1])))
    assert here.fingerprint == there.fingerprint
    assert here.fingerprint["sha256"] != other.fingerprint["sha256"]


def test_a_gold_answer_that_cannot_be_read_is_a_rejection() -> None:
    with pytest.raises(Rejected) as caught:
        Question("how many?", answer="a few", verifier="numeric").check_gold()
    assert caught.value.reason == "gold_unreadable"
    Question("how many?", answer="$1,200", verifier="numeric").check_gold()
    Question("how many?").check_gold()


def test_fields_carry_all_that_a_verifier_needs() -> None:
    (question,) = questions(1, task=SUMS)
    fields = QuestionFields(**QuestionFields.of(question))
    assert QuestionFields.model_validate_json(fields.model_dump_json()) == fields
    assert fields.entry == question.entry
