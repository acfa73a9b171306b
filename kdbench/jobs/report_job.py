"""`kdbench report`: one self-contained page about a job or about single runs.

    report("runs/tinystories")                     # -> runs/tinystories/report.html
    report(["runs/black_box", "runs/evaluation"])  # -> runs/black_box/report.html

The page is made from files alone: run.json, scores, metrics and samples.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kdbench.errors import StorageError, UsageError
from kdbench.reporting._page import render
from kdbench.reporting._runs import find_runs

FILE_NAME = "report.html"


def report(dirs: str | Path | Sequence[str | Path], *, out: str | Path | None = None) -> Path:
    """Write report.html about every run in `dirs` and return its path.

    `dirs` is a job's directory, or run directories. The page goes to `out`, else into the first of
    them. Raises RunDirError where there is no run, StorageError.
    """
    folders = [Path(dirs)] if isinstance(dirs, str | Path) else [Path(d) for d in dirs]
    if not folders:
        raise UsageError("report needs at least one directory")
    page = render(find_runs(folders))
    target = Path(out) if out is not None else folders[0] / FILE_NAME
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(target)
    except OSError as exc:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"Cannot write {target}: {exc.strerror or exc}; free some room") from exc
    return target
