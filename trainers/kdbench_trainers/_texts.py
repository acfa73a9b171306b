"""Domain text from where it lies: runs of kdbench, .jsonl files, .txt files and folders of them.

read_texts(["runs/abstracts", "notes.jsonl", "manuals/"])    -> [Text(id="manuals/a.txt", text="..."), ...]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, TypeAdapter

from kdbench.errors import DataError
from kdbench.jsonl import read_records, read_samples
from kdbench.provenance import file_sha256, folder_sha256
from kdbench.records import Text
from kdbench.rundir import require


class _Line(BaseModel):
    """A line of somebody's JSONL; what else stands there is of no consequence."""

    text: str


_LINE = TypeAdapter(_Line)


def read_texts(paths: Sequence[str]) -> list[Text]:
    """Every text, in order; a file, a line or a sample is one document.

    Raises DataError for a path that leads to no text, RunDirError for a run that is not finished.
    """
    found: list[Text] = []
    for name in paths:
        texts = [one for one in _read(Path(name).expanduser(), name) if one.text.strip()]
        if not texts:
            raise DataError(f"{name} holds no text; leave it out of texts, or put some there")
        found += texts
    return found


def texts_sha256(paths: Sequence[str]) -> dict[str, str]:
    """The hash of what lies at each path. Raises DataError, RunDirError."""
    return {name: _sha256(Path(name).expanduser(), name) for name in paths}


def _sha256(path: Path, name: str) -> str:
    if (path / "run.json").is_file():
        require(path, "generate")
        return file_sha256(path / "samples.jsonl")
    if path.is_dir():
        return folder_sha256(path, ["**/*.txt"])
    if path.is_file():
        return file_sha256(path)
    raise _no_text(name)


def _read(path: Path, name: str) -> Iterator[Text]:
    if (path / "run.json").is_file():
        require(path, "generate")
        yield from (one for one in read_samples(path / "samples.jsonl") if isinstance(one, Text))
    elif path.is_dir():
        for file in sorted(path.rglob("*.txt")):
            yield _whole(file)
    elif path.is_file() and path.suffix == ".jsonl":
        for number, line in enumerate(read_records(path, _LINE, 'line {"text": ...}'), start=1):
            yield Text(id=f"{path}:{number}", text=line.text)
    elif path.is_file() and path.suffix == ".txt":
        yield _whole(path)
    else:
        raise _no_text(name)


def _no_text(name: str) -> DataError:
    return DataError(
        f"No text at '{name}'; give the directory of a generate run that made text, a .jsonl file of "
        '{"text": ...}, a .txt file, or a folder of .txt files'
    )


def _whole(path: Path) -> Text:
    try:
        return Text(id=str(path), text=path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"Cannot read {path}: {exc}; it must be a text in UTF-8") from exc
