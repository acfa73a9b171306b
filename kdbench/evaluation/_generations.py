"""generations.jsonl: what each model wrote, generated once and read by every metric and the report.

{"model": "white_box", "id": "5c1f09d2e7ab-12-0", "text": "Once ...", "tokens": 143,
 "finish_reason": "stop", "seconds": 0.41}
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from kdbench.errors import StorageError
from kdbench.evaluation import Generation
from kdbench.jsonl import read_records
from kdbench.records import Record

FILE_NAME = "generations.jsonl"
ByModel = dict[str, tuple[Generation, ...]]


class GenerationLine(Record):
    """One line of the file; see kdbench.evaluation.Generation."""

    model: str
    id: str
    text: str
    tokens: int
    finish_reason: str
    seconds: float


_LINE = TypeAdapter(GenerationLine)


def read(folder: Path) -> ByModel:
    """Model -> its generations, in the file's order; empty without a file. Raises DataError."""
    path = folder / FILE_NAME
    found: dict[str, list[Generation]] = {}
    for line in read_records(path, _LINE, "generation") if path.is_file() else ():
        made = Generation(line.id, line.text, line.tokens, line.finish_reason, line.seconds)
        found.setdefault(line.model, []).append(made)
    return {model: tuple(made) for model, made in found.items()}


def write(folder: Path, by_model: Mapping[str, Sequence[Generation]]) -> None:
    """Write the file whole, or leave the old one as it was. Raises StorageError."""
    path = folder / FILE_NAME
    temporary = path.with_name(f".{FILE_NAME}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            for model, generations in by_model.items():
                for made in generations:
                    line = GenerationLine(model=model, **dataclasses.asdict(made))
                    file.write(line.model_dump_json() + "\n")
        temporary.replace(path)
    except OSError as exc:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"Cannot write {path}: {exc.strerror or exc}; free some room and go on with --resume"
        ) from exc
