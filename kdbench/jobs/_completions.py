"""What a training reads: the samples of finished generate runs, of the kinds that its trainer takes.

read_completions([Path("runs/stories"), Path("runs/sums")])   -> 300 completions, in order
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from kdbench.errors import NothingLeft
from kdbench.jsonl import read_samples
from kdbench.provenance import file_sha256
from kdbench.records import Completion, Preference, Text
from kdbench.rundir import require

log = logging.getLogger("kdbench")


def read_completions(runs: Sequence[Path]) -> list[Completion]:
    """The completions of the runs, in order. Raises RunDirError, DataError, NothingLeft."""
    return [one for one in read_kinds(runs, {"completion"}) if isinstance(one, Completion)]


def read_kinds(
    runs: Sequence[Path], kinds: Collection[str], trainer: str = ""
) -> list[Completion | Text | Preference]:
    """The samples of these kinds, in order; others are counted and left out.

    Raises RunDirError, DataError, and NothingLeft where there is none, naming the `trainer` that wants them.
    """
    found: list[Completion | Text | Preference] = []
    foreign: Counter[str] = Counter()
    for path in runs:
        require(path, "generate")
        for sample in read_samples(path / "samples.jsonl"):
            if sample.kind in kinds:
                found.append(sample)
            else:
                foreign[sample.kind] += 1
    what = " or ".join(sorted(kinds))
    for kind, count in foreign.items():
        log.warning("%d samples are of the kind %s, no %s, and are left out", count, kind, what)
    if not found and runs:
        others = (
            f"; the trainer {trainer} does not learn from {', '.join(foreign)}" if foreign and trainer else ""
        )
        raise NothingLeft(
            f"No {what} to train on in {', '.join(map(str, runs))}{others or '; generate some first'}"
        )
    return found


def data_sha256(runs: Sequence[Path]) -> str | dict[str, str]:
    """The hash that names the samples of the runs; several have one each."""
    found = [file_sha256(path / "samples.jsonl") for path in runs]
    return found[0] if len(found) == 1 else {str(number): sha256 for number, sha256 in enumerate(found)}
