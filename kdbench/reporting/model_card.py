"""The model card of a trained student: README.md beside its weights.

    write_model_card(Path("runs/black_box"), info)     # -> runs/black_box/model/README.md

What the hub's loader and a reader need to know, taken from run.json alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from kdbench.reporting import _cards


def write_model_card(run_dir: Path, info: dict[str, Any]) -> None:
    """Write model/README.md for the finished training in `run_dir`; `info` is its run.json.

    Lists method, teacher, student, data, licence and what the training came to. Raises StorageError.
    """
    licence = _cards.licence_of(info)
    method = str(info.get("trainer") or info.get("method") or info.get("kind", "unknown"))
    data = ModelCardData(
        license=licence,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["knowledge-distillation", "kdbench", method],
    )
    text = _cards.body(
        "model_card.md.j2",
        name=run_dir.name,
        method=method,
        teachers=_cards.teacher_names(info),
        student=_student(info),
        licence=licence,
        stats={key: value for key, value in info.get("stats", {}).items() if isinstance(value, int | float)},
        inputs=_inputs(info),
        commit=info.get("git", {}).get("commit"),
        config_sha256=info.get("config_sha256"),
        packages=info.get("packages", {}),
    )
    _cards.save(run_dir / "model" / "README.md", data.to_yaml(), text)


def _student(info: dict[str, Any]) -> str | None:
    student = info.get("student")
    if isinstance(student, dict):
        student = student.get("ref") or student.get("spec") or student.get("identity")
    return str(student) if student else None


def _inputs(info: dict[str, Any]) -> dict[str, str]:
    inputs = info.get("inputs")
    return {str(name): str(value) for name, value in inputs.items()} if isinstance(inputs, dict) else {}
