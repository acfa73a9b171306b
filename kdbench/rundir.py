"""A run directory: all that passes from one stage to the next, and the proof of where it came from.

out/
  config.yaml     the resolved config
  run.json        format, kind, fingerprint, versions, inputs, statistics
  ...             what the stage makes
  DONE            written last: without it the stage is not finished

run = RunDir.create(Path("out"), kind="generate", config={...}, fingerprint={...}, if_exists="refuse")
... run.update(stats={...}) ...; run.finish()
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal, TextIO

from kdbench import provenance
from kdbench.config import canonical_hash, dump_yaml
from kdbench.errors import RunDirError, StorageError

FORMAT = 1
IfExists = Literal["refuse", "resume", "overwrite"]


class RunDir:
    """An open run directory, locked for this process until `finish` or `abandon`."""

    def __init__(self, path: Path, info: dict[str, Any], lock: TextIO) -> None:
        self.path = path
        self.info = info
        self._lock = lock

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        kind: str,
        config: dict[str, Any],
        fingerprint: dict[str, Any],
        if_exists: IfExists = "refuse",
    ) -> RunDir:
        """Make the directory, or take it up again.

        `fingerprint` is what must be equal for a result to be reused: inputs, plug-in and template
        sources. Raises RunDirError for a directory in use, of another kind or of an unknown format.
        """
        used = path.exists() and (not path.is_dir() or any(path.iterdir()))
        if used:
            _check_reusable(path, kind, if_exists)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _lock(path)
            if used and if_exists == "overwrite":
                _clear(path)
        except OSError as exc:
            raise RunDirError(f"Cannot use {path} as a run directory: {exc.strerror or exc}") from exc
        (path / "DONE").unlink(missing_ok=True)
        info = {
            "format": FORMAT,
            "kind": kind,
            "status": "running",
            "started": provenance.now(),
            "config_sha256": canonical_hash(config),
            "fingerprint": fingerprint,
            "git": provenance.git_state(),
            "packages": provenance.package_versions(),
            "machine": provenance.machine(),
        }
        run = cls(path, info, lock)
        _write_atomically(path / "config.yaml", dump_yaml(config))
        run.update()
        return run

    def update(self, **entries: Any) -> None:
        """Put entries into run.json, at once and whole."""
        self.info.update(entries)
        text = json.dumps(self.info, indent=2, ensure_ascii=False, default=str)
        _write_atomically(self.path / "run.json", text + "\n")

    def finish(self, **entries: Any) -> None:
        """Record the end, write DONE last and let go of the directory."""
        self.update(status="done", finished=provenance.now(), **entries)
        _write_atomically(self.path / "DONE", "")
        self._lock.close()

    @property
    def closed(self) -> bool:
        """Whether this process has let go of the directory."""
        return self._lock.closed

    def abandon(self, status: str, **entries: Any) -> None:
        """Let go without DONE; `status` says why ("failed", "interrupted")."""
        try:
            self.update(status=status, finished=provenance.now(), **entries)
        finally:
            self._lock.close()


def _check_reusable(path: Path, kind: str, if_exists: IfExists) -> None:
    ways = "use --resume to go on, --overwrite to begin anew, or another directory"
    if not (path / "run.json").is_file():
        raise RunDirError(f"{path} is not empty and is no run directory of kdbench; choose another directory")
    if if_exists == "refuse":
        raise RunDirError(f"{path} is in use; {ways}")
    info = read_info(path)
    if info["kind"] != kind:
        raise RunDirError(
            f"{path} holds a '{info['kind']}' run, not a '{kind}' run; choose another directory"
        )


def _lock(path: Path) -> TextIO:
    lock = open(path / ".lock", "w")  # noqa: SIM115 - held until finish() or abandon()
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        lock.close()
        raise RunDirError(
            f"Another process is working in {path}; wait for it, end it, or choose another directory"
        ) from exc
    return lock


def _clear(path: Path) -> None:
    for entry in path.iterdir():
        if entry.name == ".lock":
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as exc:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"Cannot write {path}: {exc.strerror or exc}; free some room and go on with --resume"
        ) from exc


def read_info(path: Path) -> dict[str, Any]:
    """run.json of a run directory. Raises RunDirError for none, a broken one or an unknown format."""
    try:
        info = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise RunDirError(f"{path} is no run directory: it has no run.json") from exc
    except (OSError, ValueError) as exc:
        raise RunDirError(f"{path / 'run.json'} cannot be read: {exc}") from exc
    if not isinstance(info, dict) or info.get("format") != FORMAT or "kind" not in info:
        found = info.get("format") if isinstance(info, dict) else None
        raise RunDirError(
            f"{path} has run format {found!r}; this kdbench reads format {FORMAT}: "
            "use the kdbench that wrote it, or another directory"
        )
    return info


def is_done(path: Path) -> bool:
    """Whether the stage that filled this directory finished."""
    return (path / "DONE").is_file()


def require(path: Path, kind: str) -> dict[str, Any]:
    """run.json of a finished run of this kind. Raises RunDirError."""
    info = read_info(path)
    if info["kind"] != kind:
        raise RunDirError(f"{path} holds a '{info['kind']}' run; a '{kind}' run is needed here")
    if not is_done(path):
        raise RunDirError(f"{path} is not finished; go on with --resume first")
    return info
