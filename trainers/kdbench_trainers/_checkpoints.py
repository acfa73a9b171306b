"""Checkpoints: each process's own state beside transformers', and what is said of broken ones and full disks.

with writable(folder):
    write_state(folder, place, source.state())      # checkpoint-40/kdbench_source-0.json
source.restore(read_state(folder, place))
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError  # what torch's weights-only loader raises; nothing is unpickled
from typing import Any

from safetensors import SafetensorError

from kdbench.errors import RunFailed, StorageError
from kdbench.models.loading import first_line
from kdbench.processes import Place

STATE_FILE = "kdbench_source-{}.json"  # of each process, in a checkpoint


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """What a disk that is full or refuses raises while a checkpoint is written, in a sentence."""
    try:
        yield
    except OSError as exc:
        raise StorageError(
            f"Cannot write into {folder}: {exc.strerror or exc}; free some room and go on with --resume"
        ) from exc
    except RuntimeError as exc:
        if "PytorchStreamWriter" not in str(exc) and "inline_container" not in str(exc):
            raise
        raise StorageError(
            f"Cannot write into {folder}: {first_line(exc)}; free some room and go on with --resume"
        ) from exc


@contextmanager
def readable(checkpoint: str | None) -> Iterator[None]:
    """What a foreign or broken checkpoint raises, in a sentence."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError, EOFError, OSError, UnpicklingError, SafetensorError) as exc:
        raise RunFailed(
            f"The checkpoint {checkpoint} is broken or of another training ({first_line(exc)}); remove it "
            "and go on with --resume from the one before, or begin anew with --overwrite"
        ) from exc


def write_state(checkpoint: Path, place: Place, source: dict[str, Any]) -> None:
    """Put down what the source of sequences has to keep, and how many processes there are."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    state = {"world": place.world, "source": source}
    _state_file(checkpoint, place).write_text(json.dumps(state), encoding="utf-8")


def read_state(checkpoint: Path, place: Place) -> dict[str, Any]:
    """What the source of sequences kept in a checkpoint. Raises RunFailed."""
    path = _state_file(checkpoint, place)
    try:
        state: dict[str, Any] = json.loads(path.read_bytes())
        source: dict[str, Any] = state["source"]
        world = int(state["world"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise RunFailed(
            f"The checkpoint {checkpoint} has no readable {path.name}; go on with as many processes as wrote "
            "it, remove it to go on from the one before, or begin anew with --overwrite"
        ) from exc
    if world != place.world:
        raise RunFailed(
            f"The checkpoint {checkpoint} was written by {world} processes, and there are {place.world}; go "
            "on with as many, or begin anew with --overwrite"
        )
    return source


def _state_file(checkpoint: Path, place: Place) -> Path:
    return checkpoint / STATE_FILE.format(place.rank)
