"""What made a run: versions, git state, source hashes and inputs, gathered for `run.json`."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from kdbench.errors import DataError

# Packages whose version can change what a run gives.
PACKAGES = (
    "kdbench", "openai", "jinja2", "datasets", "pyarrow", "pydantic",
    "torch", "transformers", "tokenizers", "trl", "accelerate", "peft", "vllm",
)  # fmt: skip


def now() -> str:
    """The time, UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def package_versions() -> dict[str, str]:
    """The installed version of each package that can change a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state(folder: Path | None = None) -> dict[str, Any]:
    """Commit and dirty flag of the checkout that holds kdbench's code; {} where it is no checkout."""
    folder = folder or Path(__file__).resolve().parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        dirty = bool(_git(folder, "status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return {}
    return {"commit": commit, "dirty": dirty}


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes. Raises DataError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise DataError(f"Cannot read {path}: {exc.strerror or exc}") from exc


def folder_sha256(folder: Path, patterns: Iterable[str] = ("*",)) -> str:
    """One sha256 over the names and bytes of the files of a folder that match, in name order."""
    digest = hashlib.sha256()
    paths = sorted({p for pattern in patterns for p in folder.glob(pattern) if p.is_file()})
    if not paths:
        raise DataError(f"{folder} holds no {' or '.join(patterns)}")
    for path in paths:
        digest.update(f"{path.relative_to(folder)}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def source_sha256(module: ModuleType) -> str | None:
    """sha256 of a plug-in's source file; None for a function typed into a notebook."""
    file = getattr(module, "__file__", None)
    return file_sha256(Path(file)) if file and Path(file).is_file() else None


def machine() -> dict[str, Any]:
    """The machine, as far as a timing or a result may depend on it. No host name, no paths."""
    import os

    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "implementation": sys.implementation.name,
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
