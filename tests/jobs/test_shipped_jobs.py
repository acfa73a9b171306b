"""The shipped jobs from beginning to end, on a teacher that can do sums and models that know nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kdbench
from kdbench.rundir import is_done
from tests.support import byte_llama

ITSELF = "students.itself.config.model={weights}"
TWO_LAYERS = "students.pruned.config.layers=2"
JOBS = {
    "chain-of-thought": [ITSELF, TWO_LAYERS],
    "explanation": ["generate.heldout.teacher=oracle", TWO_LAYERS],
    "prompt-erasing": ["generate.measured.teacher=oracle", ITSELF],
}


@pytest.mark.medium
@pytest.mark.parametrize("job", JOBS)
def test_a_job_goes_from_teacher_to_report(job: str, tmp_path: Path) -> None:
    weights = byte_llama.save(tmp_path / "weights", max_position_embeddings=4096)
    sets = [f"teacher={weights}", "generate.train.teacher=oracle", "evaluate.max_tokens=8", *JOBS[job]]
    out = kdbench.run_job(
        job, out=tmp_path / "job", profile="quick", sets=[one.format(weights=weights) for one in sets]
    )
    assert all(is_done(run.parent) for run in out.rglob("run.json"))
    scores = json.loads((out / "evaluation" / "scores.json").read_text())["scores"]
    measured = {s["metric"]: s["value"] for s in scores if s["model"] != "teacher"}
    if job == "explanation":  # nothing in it marks a final answer
        assert "accuracy" not in measured
        assert measured["agreement_kl"] > 0
    else:
        assert measured["accuracy"] == 0, "a random model cannot do sums"
        assert "Right answers" in (out / "report.html").read_text()
    samples = (out / "data" / "heldout" / "samples.jsonl").read_text()
    held = {json.loads(line)["group"] for line in samples.splitlines()}
    trained = (out / "data" / "train" / "samples.jsonl").read_text()
    assert held.isdisjoint({json.loads(line)["group"] for line in trained.splitlines()})
