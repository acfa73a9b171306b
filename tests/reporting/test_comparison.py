"""scores.json and the table made from it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from kdbench.errors import DataError
from kdbench.evaluation import Score
from kdbench.reporting.comparison import comparison_table, number, rows, significant
from kdbench.reporting.scores_file import ModelEntry, ModelScore, Scores


def entry(name, role):
    return ModelEntry(name=name, ref=name, role=role, weights_sha256="0" * 64, parameters=10, bytes=40)


def scores_of(**by_metric):
    """metric=(higher_is_better, {model: (value, low, high)})"""
    roles = {"teacher": "teacher", "pruned": "baseline", "a": "student", "b": "student"}
    found = [
        ModelScore.of(model, Score(metric, *values, n=20, higher_is_better=better))
        for metric, (better, models) in by_metric.items()
        for model, values in models.items()
    ]
    return Scores(
        models=tuple(entry(n, r) for n, r in roles.items()), scores=tuple(found), settings={"n": 20}
    )


PERPLEXITY = {
    "teacher": (4.9, 4.7, 5.1),
    "pruned": (48_210.0, 4e4, 5e4),
    "a": (14.1, 13.0, 15.0),
    "b": (12.3, 11.0, 13.0),
}


def test_the_best_is_the_lowest_or_highest_and_never_the_teacher():
    assert scores_of(perplexity=(False, PERPLEXITY)).best("perplexity") == {"b"}
    assert scores_of(perplexity=(True, PERPLEXITY)).best("perplexity") == {"pruned"}


def test_equals_are_both_best_and_what_does_not_judge_has_no_best():
    tied = {"a": (1.0, 0.5, 1.5), "b": (1.0, 0.6, 1.4), "pruned": (0.0, 0.0, 0.1)}
    assert scores_of(x=(True, tied)).best("x") == {"a", "b"}
    assert scores_of(x=(None, tied)).best("x") == frozenset()
    assert scores_of(x=(True, {"teacher": (1.0, 0, 2), "a": (1.0, 0, 2)})).best("x") == frozenset()
    # A number measured once, without an interval, may be best by chance.
    assert scores_of(x=(True, {"a": (1.0,), "b": (2.0,)})).best("x") == frozenset()


def test_round_trip_and_refusal_of_another_format(tmp_path):
    scores = scores_of(perplexity=(False, PERPLEXITY))
    scores.write(tmp_path)
    assert Scores.read(tmp_path) == scores
    text = (tmp_path / "scores.json").read_text()
    (tmp_path / "scores.json").write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(DataError, match=r"not a scores file of format 1 \(format"):
        Scores.read(tmp_path)
    with pytest.raises(DataError, match="Cannot read"):
        Scores.read(tmp_path / "none")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.4123, "fraction", "41.2 %"),
        (48_210.4, "", "48,210"),
        (12.345, "", "12.3"),
        (0.01234, "nats", "0.0123 nats"),
        (134_515_008, "parameters", "135 M"),
        (999, "bytes", "999 B"),
        (5.4e8, "bytes", "540 MB"),
        (0, "", "0"),
        (3e12, "", "3.00e+12"),
    ],
)
def test_numbers_for_reading(value, unit, text):
    assert number(value, unit).replace("\u00a0", " ") == text


def test_significant_keeps_three_digits():
    assert [significant(x) for x in (1, 9.996, 99.96, 0.5, -2.345)] == [
        "1.00",
        "10.00",
        "100.0",
        "0.500",
        "-2.35",
    ]


def test_rows_come_in_a_fixed_order_with_unknown_metrics_last():
    both = scores_of(mine=(None, PERPLEXITY), rouge_l=(True, PERPLEXITY), perplexity=(False, PERPLEXITY))
    found = rows(both)
    assert [row.metric for row in found] == ["perplexity", "rouge_l", "mine"]
    assert [row.label for row in found][-1] == "Mine"
    assert [cell.best for cell in found[0].cells] == [False, False, False, True]
    assert found[0].cells[3].interval == "[11.0, 13.0]"


def test_the_terminal_table_shows_values_intervals_and_notes():
    scores = scores_of(perplexity=(False, PERPLEXITY))
    missing = ModelScore(model="a", metric="agreement_kl", value=None, note="another tokenizer")
    scores = scores.model_copy(update={"scores": (*scores.scores, missing)})
    console = Console(file=io.StringIO(), width=140, force_terminal=True)
    console.print(comparison_table(scores))
    text = console.file.getvalue().replace("\u00a0", " ")
    assert "20 held-out samples" in text
    assert "48,210" in text
    assert "[40,000, 50,000]" in text
    assert "another tokenizer" in text
    assert "\x1b[1;32m12.3" in text
    assert "\x1b[1;32m14.1" not in text
