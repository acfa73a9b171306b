"""The held-out samples: those of a finished run or of a file, the first n by id.

held_out(samples_file(Path("runs/heldout")), 64)     # ids ...-0-0, ...-2-0, ...-10-0, ...
"""

from __future__ import annotations

import logging
import re
from itertools import islice
from pathlib import Path

from kdbench.errors import DataError, NothingLeft, RunDirError
from kdbench.jsonl import read_samples
from kdbench.records import Completion
from kdbench.rundir import is_done, read_info

log = logging.getLogger("kdbench")


def samples_file(data: Path) -> Path:
    """The samples of a run directory or a file. Raises RunDirError, DataError."""
    if not data.is_dir():
        return data
    read_info(data)
    if not is_done(data):
        raise RunDirError(f"{data} is not finished; go on with --resume first")
    if not (data / "samples.jsonl").is_file():
        raise DataError(f"{data} holds no samples.jsonl; give a generate run or a samples file")
    return data / "samples.jsonl"


def held_out(source: Path, n: int | None) -> tuple[Completion, ...]:
    """The first `n` samples by id, numbers inside ids counting as numbers. Raises DataError, NothingLeft."""
    samples: dict[str, Completion] = {}
    for sample in read_samples(source):
        if not isinstance(sample, Completion):
            raise DataError(
                f"Sample '{sample.id}' of {source} is a {sample.kind}; evaluate needs completions"
            )
        if sample.id in samples:
            raise DataError(f"Two samples of {source} have the id '{sample.id}'; give each its own")
        samples[sample.id] = sample
    if not samples:
        raise NothingLeft(f"{source} holds no sample to evaluate on")
    if n is not None and len(samples) < n:
        log.warning("%s holds %d samples, fewer than the %d asked for; all are used", source, len(samples), n)
    return tuple(islice((samples[i] for i in sorted(samples, key=_natural)), n))


def _natural(text: str) -> list[int | str]:
    # Text and numbers take turns, so that two keys always compare like with like.
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]
