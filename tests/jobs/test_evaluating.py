"""`evaluate` with tiny models: one table out of files, resumed model by model."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

from kdbench.errors import DataError, NothingLeft, RunDirError, UnknownPlugin, UsageError
from kdbench.evaluation import _generating
from kdbench.jobs.evaluating import evaluate
from kdbench.jsonl import JsonlWriter
from kdbench.records import Text
from kdbench.reporting.scores_file import Scores
from kdbench.rundir import RunDir, is_done, read_info
from tests.support.tiny_llama import save_model, stories, story

pytestmark = pytest.mark.medium
SETTINGS = {"max_tokens": 8, "n": 5}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "teacher": save_model(folder / "teacher", seed=2, layers=3, hidden=24),
        "pruned": save_model(folder / "pruned", seed=1),
        "white_box": trained_run(folder / "white_box", seed=3),
    }


def trained_run(folder, seed):
    run = RunDir.create(folder, kind="train", config={}, fingerprint={})
    save_model(folder / "model", seed=seed)
    run.finish()
    return str(folder)


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "held.jsonl", stories(12))


def write(path, samples):
    with JsonlWriter(path) as file:
        for sample in samples:
            file.write(sample)
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_teacher_student_and_baseline_side_by_side(models, data, tmp_path, capsys):
    out = evaluate(models, teacher=models["teacher"], data=data, out=tmp_path / "out", **SETTINGS)
    assert is_done(out)
    scores = Scores.read(out)
    assert [(m.name, m.role) for m in scores.models] == [
        ("teacher", "teacher"), ("pruned", "baseline"), ("white_box", "student"),
    ]  # fmt: skip
    expected = {
        "perplexity", "agreement_kl", "agreement_top1", "rouge_l", "rules_words", "rules_ends",
        "rules_no_loop", "rules_all", "distinct_2", "tokens_per_second", "parameters", "bytes",
    }  # fmt: skip
    for model in models:
        assert {s.metric for s in scores.scores if s.model == model} == expected
    assert scores.find("teacher", "agreement_kl").value == 0
    assert scores.find("pruned", "agreement_kl").value > 0
    assert scores.settings["n"] == 5
    # The first five by number, not by text: 10 and 11 come after 9.
    assert [s["id"] for s in lines(out / "samples.jsonl")] == [f"ab12-{i}-0" for i in range(5)]
    made = lines(out / "generations.jsonl")
    assert [(g["model"], g["id"]) for g in made] == [(m, f"ab12-{i}-0") for m in models for i in range(5)]
    assert all(1 <= g["tokens"] <= 8 and g["seconds"] > 0 for g in made)
    shown = capsys.readouterr().out
    assert "white_box" in shown
    assert "Perplexity" in shown


def test_same_seed_same_texts_and_scores(models, data, tmp_path):
    runs = [evaluate(models, data=data, out=tmp_path / name, **SETTINGS) for name in ("a", "b")]
    texts = [[g["text"] for g in lines(run / "generations.jsonl")] for run in runs]
    assert texts[0] == texts[1]
    other = evaluate(models, data=data, out=tmp_path / "c", seed=1, **SETTINGS)
    assert [g["text"] for g in lines(other / "generations.jsonl")] != texts[0]


def test_resume_keeps_the_models_that_were_finished(models, data, tmp_path, monkeypatch):
    real, asked = _generating.generate_texts, []

    def breaks_at_the_second(*args, what, **kwargs):
        asked.append(what)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(*args, what=what, **kwargs)

    monkeypatch.setattr(_generating, "generate_texts", breaks_at_the_second)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluate(models, data=data, out=out, **SETTINGS)
    assert read_info(out)["status"] == "interrupted"
    assert not is_done(out)
    before = (out / "generations.jsonl").read_text()
    with pytest.raises(RunDirError, match="--resume"):
        evaluate(models, data=data, out=out, **SETTINGS)
    evaluate(models, data=data, out=out, resume=True, **SETTINGS)
    assert asked == ["generate teacher", "generate pruned", "generate pruned", "generate white_box"]
    assert (out / "generations.jsonl").read_text().startswith(before)
    # Once more, with one metric alone: nothing is generated again, and nothing is loaded.
    evaluate(models, data=data, out=out, resume=True, metrics=["story_rules"], **SETTINGS)
    assert len(asked) == 4


def test_resume_generates_again_what_other_weights_wrote(models, data, tmp_path):
    out = evaluate({"m": models["pruned"]}, data=data, out=tmp_path / "out", metrics=["speed"], **SETTINGS)
    before = (out / "generations.jsonl").read_text()
    evaluate({"m": models["white_box"]}, data=data, out=out, metrics=["speed"], resume=True, **SETTINGS)
    texts = [
        [json.loads(line)["text"] for line in t.splitlines()]
        for t in (before, (out / "generations.jsonl").read_text())
    ]
    assert len(texts[1]) == 5
    assert texts[0] != texts[1]


def test_resume_refuses_other_settings_and_other_data(models, data, tmp_path):
    out = evaluate([models["pruned"]], data=data, out=tmp_path / "out", metrics=["speed"], **SETTINGS)
    with pytest.raises(RunDirError, match="other settings"):
        evaluate([models["pruned"]], data=data, out=out, resume=True, n=5, max_tokens=9)
    changed = write(tmp_path / "changed.jsonl", stories(6))
    with pytest.raises(RunDirError, match="other data"):
        evaluate([models["pruned"]], data=changed, out=out, resume=True, **SETTINGS)


def test_only_what_a_metric_needs_is_done(models, data, tmp_path, monkeypatch):
    monkeypatch.setattr(_generating, "generate_texts", None)
    out = evaluate([models["pruned"]], data=data, out=tmp_path / "out", metrics=["perplexity"])
    assert not (out / "generations.jsonl").exists()
    assert Scores.read(out).metrics() == ["perplexity"]
    assert Scores.read(out).settings["n"] == 12


def test_a_teacher_that_is_not_among_the_models_comes_first(models, data, tmp_path):
    out = evaluate([models["pruned"]], teacher=models["teacher"], data=data, out=tmp_path / "out",
                   metrics=["agreement"])  # fmt: skip
    assert [m.name for m in Scores.read(out).models] == ["teacher", "pruned"]


def test_a_finished_run_is_data_and_an_unfinished_one_is_not(models, tmp_path):
    run = RunDir.create(tmp_path / "held", kind="generate", config={}, fingerprint={})
    write(run.path / "samples.jsonl", stories(3))
    with pytest.raises(RunDirError, match="not finished"):
        evaluate([models["pruned"]], data=run.path, out=tmp_path / "out", metrics=["perplexity"])
    run.finish()
    out = evaluate([models["pruned"]], data=run.path, out=tmp_path / "out", metrics=["perplexity"])
    assert Scores.read(out).settings["n"] == 3


def test_bad_input_is_one_sentence_and_leaves_no_directory(models, data, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UnknownPlugin, match="Did you mean 'speed'"):
        evaluate([models["pruned"]], data=data, out=out, metrics=["sped"])
    with pytest.raises(UsageError, match="Two models are named 'pruned'"):
        evaluate([models["pruned"], f"hf:{models['pruned']}"], data=data, out=out)
    with pytest.raises(UsageError, match="No model 'nowhere'"):
        evaluate(["nowhere"], data=data, out=out)
    with pytest.raises(DataError, match="Cannot read"):
        evaluate([models["pruned"]], data=tmp_path / "none.jsonl", out=out)
    with pytest.raises(DataError, match="is a text"):
        evaluate([models["pruned"]], data=write(tmp_path / "t.jsonl", [Text(id="a", text="b")]), out=out)
    with pytest.raises(DataError, match="have the id 'ab12-1-0'"):
        evaluate([models["pruned"]], data=write(tmp_path / "d.jsonl", [story(1), story(1)]), out=out)
    with pytest.raises(NothingLeft, match="no sample"):
        evaluate([models["pruned"]], data=write(tmp_path / "e.jsonl", []), out=out)
    assert not out.exists()
