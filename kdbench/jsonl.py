"""JSON lines: samples and rejections on disk, one record a line, read back strictly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from kdbench.errors import DataError, StorageError
from kdbench.records import SAMPLE, Completion, Preference, Rejection, Text

RecordT = TypeVar("RecordT")
REJECTION: TypeAdapter[Rejection] = TypeAdapter(Rejection)


class JsonlWriter:
    """Writes records to a file that is begun anew. Raises StorageError where the disk refuses."""

    def __init__(self, path: Path, append: bool = False) -> None:
        self.path = path
        self._file: BinaryIO = open(path, "ab" if append else "wb")  # noqa: SIM115 - closed in close()

    def write(self, record: BaseModel) -> None:
        """Append one record as a line."""
        self.write_line(record.model_dump_json().encode())

    def write_line(self, line: bytes) -> None:
        """Append one line that is JSON already."""
        try:
            self._file.write(line + b"\n")
        except OSError as exc:
            raise _storage_error(self.path, exc) from exc

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        try:
            self._file.flush()
        except OSError as exc:
            raise _storage_error(self.path, exc) from exc

    def close(self) -> None:
        """Flush and close; a second call does nothing."""
        try:
            self._file.close()
        except OSError as exc:
            raise _storage_error(self.path, exc) from exc

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def _storage_error(path: Path, exc: OSError) -> StorageError:
    return StorageError(
        f"Cannot write {path}: {exc.strerror or exc}; what was answered so far is in the call log: "
        "free some room and go on with --resume"
    )


def read_records(path: Path, adapter: TypeAdapter[RecordT], what: str) -> Iterator[RecordT]:
    """Every record of a JSONL file, in order.

    Raises DataError, naming file and line, for a line that is torn or is no such record.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    yield adapter.validate_json(line)
                except ValidationError as exc:
                    raise DataError(_bad_line(path, number, line, what, exc)) from exc
    except OSError as exc:
        raise DataError(f"Cannot read {path}: {exc.strerror or exc}") from exc


def _bad_line(path: Path, number: int, line: bytes, what: str, exc: ValidationError) -> str:
    first: Any = exc.errors()[0]
    if first["type"] == "json_invalid":
        torn = not line.endswith(b"\n")
        cause = "is cut off, as by an interrupted write" if torn else "is not valid JSON"
        return (
            f"{path}:{number} {cause}; rebuild the file (a run made by kdbench: --resume), or remove the line"
        )
    where = ".".join(str(part) for part in first["loc"])
    return f"{path}:{number} is not a {what}: {where}: {first['msg']}; fix or remove the line"


def read_samples(path: Path) -> Iterator[Completion | Text | Preference]:
    """Every sample of a JSONL file, in order. Raises DataError."""
    return read_records(path, SAMPLE, "sample")


def read_rejections(path: Path) -> Iterator[Rejection]:
    """Every rejection of a JSONL file, in order. Raises DataError."""
    return read_records(path, REJECTION, "rejection")
