"""The runs a report is about: every run.json in a job's directory, or the directories given.

find_runs([Path("runs/tinystories")])
-> [Run(name="data/train", kind="generate", ...), Run(name="evaluation", kind="evaluate", ...)]
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.config import load_yaml
from kdbench.errors import ConfigError, RunDirError
from kdbench.rundir import is_done, read_info

DEPTH = 3  # folders below the given one in which a run is looked for
STAGES = ("generate", "student", "train", "evaluate")  # the kinds a report has sections for
log = logging.getLogger("kdbench")


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory: its name as shown, and what its run.json and config.yaml say."""

    path: Path
    name: str
    kind: str
    info: dict[str, Any]
    config: dict[str, Any]
    done: bool

    @property
    def stats(self) -> dict[str, Any]:
        """The numbers the run recorded."""
        stats = self.info.get("stats")
        return stats if isinstance(stats, dict) else {}

    @property
    def status(self) -> str:
        """ "done", or how far it came."""
        return "done" if self.done else str(self.info.get("status", "unfinished"))


def find_runs(dirs: Sequence[Path]) -> list[Run]:
    """All runs in these directories, in the order they were started.

    Raises RunDirError where a directory is missing or none of them holds a run.
    """
    found: dict[Path, Run] = {}
    for folder in dirs:
        if not folder.is_dir():
            raise RunDirError(f"No directory {folder}; give a job's directory or run directories")
        for path in _run_folders(folder, DEPTH):
            run = _read(path, _name(path, folder, several=len(dirs) > 1))
            if run is not None:
                found.setdefault(path.resolve(), run)
    if not found:
        raise RunDirError(
            f"No run to report on in {', '.join(map(str, dirs))}; give a directory that kdbench has written"
        )
    return sorted(found.values(), key=_order)


def _order(run: Run) -> tuple[str, int]:
    # Short stages can start within one second; then the usual order of stages decides.
    place = STAGES.index(run.kind) if run.kind in STAGES else len(STAGES)
    return str(run.info.get("started", "")), place


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "run.json").is_file():
        yield folder
    if depth == 0:
        return
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
            yield from _run_folders(child, depth - 1)


def _name(path: Path, root: Path, *, several: bool) -> str:
    inside = path.relative_to(root)
    if several or path == root:
        return str(Path(root.resolve().name) / inside)
    return str(inside)


def _read(path: Path, name: str) -> Run | None:
    try:
        info = read_info(path)
    except RunDirError as exc:
        # One broken directory must not hide the rest.
        log.warning("Left out of the report: %s", exc)
        return None
    try:
        config = load_yaml(path / "config.yaml")
    except ConfigError:
        config = {}
    return Run(path, name, str(info["kind"]), info, config, is_done(path))
