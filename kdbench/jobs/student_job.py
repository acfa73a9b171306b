"""`kdbench student`: the model a training starts from, as a run directory with `model/`.

make_student({"kind": "pruned", "layers": 15}, teacher="smollm2", data="runs/stories", out="runs/pruned")
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from kdbench.config import build
from kdbench.errors import MissingExtra
from kdbench.jsonl import read_samples
from kdbench.provenance import file_sha256
from kdbench.records import Completion
from kdbench.rundir import IfExists, RunDir, require

KIND = "student"
SAMPLES = "samples.jsonl"
SAMPLE_TEXTS = 32  # enough for Block Influence and width: they are means over thousands of tokens


def make_student(
    config: Mapping[str, Any],
    *,
    teacher: str,
    out: str | Path,
    data: str | Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Make a student from weights, from scratch or pruned from its teacher; `out/model` holds it.

    `data` is a generate run whose first samples show the teacher at work: pruning measures on them. Where the
    vocabulary is trimmed, all of its prompts and completions say which tokens are kept.
    Raises ConfigError, MissingExtra, RunDirError, DataError.
    """
    try:
        from kdbench.models.students import StudentConfig
        from kdbench.models.students import make_student as make
        from kdbench.models.weights import local_weights, weights_sha256
    except ModuleNotFoundError as exc:
        raise MissingExtra("train", "making a student") from exc
    settings = build(StudentConfig, config, "student")
    texts, data_sha256 = _sample_texts(Path(data)) if data is not None else ([], None)
    fingerprint = {
        "student": settings.model_dump(mode="json"),
        "teacher_weights": weights_sha256(local_weights(teacher)),
        "data_sha256": data_sha256,
        "seed": seed,
    }
    how: IfExists = "overwrite" if overwrite else "refuse"
    written = {"student": fingerprint["student"], "teacher": teacher, "seed": seed}
    run = RunDir.create(Path(out), kind=KIND, config=written, fingerprint=fingerprint, if_exists=how)
    try:
        stats = make(
            settings, teacher=teacher, out=run.path / "model", sample_text=texts, seed=seed,
            samples=read_samples(Path(data) / SAMPLES) if data is not None else (),
        )  # fmt: skip
        run.finish(
            teacher={"spec": teacher, "weights_sha256": fingerprint["teacher_weights"]},
            weights_sha256=weights_sha256(run.path / "model"),
            stats=stats,
        )
    finally:
        if not run.closed:
            run.abandon("failed")
    return run.path


def _sample_texts(data: Path) -> tuple[list[str], str]:
    require(data, "generate")
    path = data / SAMPLES
    completions = (s.text for s in read_samples(path) if isinstance(s, Completion))
    return list(islice(completions, SAMPLE_TEXTS)), file_sha256(path)
