"""What a training reads: the completions of finished generate runs.

read_completions([Path("runs/stories"), Path("runs/sums")])   -> 300 completions, in order
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from kdbench.errors import NothingLeft
from kdbench.jsonl import read_samples
from kdbench.provenance import file_sha256
from kdbench.records import Completion
from kdbench.rundir import require

log = logging.getLogger("kdbench")


def read_completions(runs: Sequence[Path]) -> list[Completion]:
    """The completions of the runs, in order. Raises RunDirError, DataError, NothingLeft."""
    found: list[Completion] = []
    foreign = 0
    for path in runs:
        require(path, "generate")
        for sample in read_samples(path / "samples.jsonl"):
            if isinstance(sample, Completion):
                found.append(sample)
            else:
                foreign += 1
    if foreign:
        log.warning("%d samples are no completions and are left out", foreign)
    if not found:
        raise NothingLeft(f"No completion to train on in {', '.join(map(str, runs))}; generate some first")
    return found


def data_sha256(runs: Sequence[Path]) -> str | dict[str, str]:
    """The hash that names the samples of the runs; several have one each."""
    found = [file_sha256(path / "samples.jsonl") for path in runs]
    return found[0] if len(found) == 1 else {str(number): sha256 for number, sha256 in enumerate(found)}
