"""What a teacher said about a data set's tokens, on disk: one file per column, read through memory maps.

    runs/signals/
      run.json          teacher, tokenizer, kind, vocabulary, bytes per token, what was lost against dense
      index.jsonl       one line per text: {"text": "9f2c...", "group": "ab12-0-0", "tokens": 141}
      tokens.i32        [T]     the completion tokens, as the teacher read them
      hidden.f16        [T, H]  its final hidden states at the positions that predict them ...
      head.safetensors          ... and the head that makes logits of these: exact, full vocabulary
      ids.i32 log_probs.f32       [T, k] in place of the two above: the k likeliest tokens, raw, temperature 1

    store = SignalStore.open(Path("runs/signals"))
    store.signal(["9f2c...", "77ab..."])    # -> HiddenStates or TopK over the rows of these texts, in order

A text is named by the hash of what the teacher read (kdbench.models.sequences.text_key): its own prompt
where a sample has one, the completion, and whether that was cut off. The index is written after the columns,
so whatever a kill leaves beyond it is cut off on resumption.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdbench.config import canonical_hash
from kdbench.errors import DataError, StorageError
from kdbench.jsonl import read_records
from kdbench.losses.heads import Head
from kdbench.losses.signals import HiddenStates, Signal, TopK
from kdbench.records import Record
from kdbench.rundir import require

RUN_KIND = "signals"
Kind = Literal["hidden", "top_k"]
_COLUMNS: dict[Kind, dict[str, type[np.generic]]] = {
    "hidden": {"tokens.i32": np.int32, "hidden.f16": np.float16},
    "top_k": {"tokens.i32": np.int32, "ids.i32": np.int32, "log_probs.f32": np.float32},
}


class StoreInfo(Record):
    """What a store holds, as run.json says it under "signals"."""

    format: Literal[1] = 1
    kind: Kind
    width: int  # numbers per token: the hidden size, or k
    vocabulary: int
    teacher_sha256: str
    tokenizer_sha256: str
    end_of_turn: int  # the token that ends the completions
    scale: float = 1.0  # of the teacher's logits
    cap: float | None = None

    def bytes_per_token(self) -> int:
        """On disk, the head apart."""
        widths = {name: 1 if name == "tokens.i32" else self.width for name in _COLUMNS[self.kind]}
        return sum(np.dtype(kind).itemsize * widths[name] for name, kind in _COLUMNS[self.kind].items())


class IndexLine(Record):
    """One line of index.jsonl."""

    text: str
    group: str
    tokens: int


_LINE = TypeAdapter(IndexLine)


def tokenizer_sha256(tokenizer: Any) -> str:
    """The hash that names a vocabulary: every token with its id."""
    return canonical_hash(tokenizer.get_vocab())


@dataclass(frozen=True, slots=True)
class Entry:
    """What is written of one text: its completion `tokens` [N], and the columns [N, width] of its kind."""

    text: str
    group: str
    tokens: tuple[int, ...]
    columns: tuple[Tensor, ...]


class StoreWriter:
    """Appends texts to a store. Goes on where an earlier one was cut off, after `done` texts."""

    def __init__(self, folder: Path, kind: Kind, width: int) -> None:
        self._folder = folder
        self._kind = kind
        self._width = width
        self._files: list[IO[bytes]] = []
        self._lines = list(_whole_lines(folder / "index.jsonl"))

    @property
    def done(self) -> int:
        """Texts that are safely there."""
        return len(self._lines)

    def keep(self, count: int) -> None:
        """Forget what comes after the first `count` texts. Call before entering."""
        self._lines = self._lines[:count]

    def __enter__(self) -> StoreWriter:
        tokens = sum(line.tokens for line in self._lines)
        try:
            for name, dtype in _COLUMNS[self._kind].items():
                file = open(self._folder / name, "ab")
                width = 1 if name == "tokens.i32" else self._width
                file.truncate(tokens * width * np.dtype(dtype).itemsize)
                self._files.append(file)
            kept = self._folder / ".index.jsonl"  # a kill here must lose no line
            kept.write_bytes(b"".join(map(_as_line, self._lines)))
            kept.replace(self._folder / "index.jsonl")
            self._files.append(open(self._folder / "index.jsonl", "ab"))
        except OSError as exc:
            raise self._full(exc) from exc
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()

    def add(self, entries: Sequence[Entry]) -> None:
        """Append texts, columns first. Raises StorageError."""
        *columns, index = self._files
        dtypes = list(_COLUMNS[self._kind].values())
        try:
            for entry in entries:
                parts = (torch.tensor(entry.tokens), *entry.columns)
                for file, part, dtype in zip(columns, parts, dtypes, strict=True):
                    file.write(part.cpu().numpy().astype(dtype).tobytes())
            for file in columns:
                file.flush()
            lines = [IndexLine(text=e.text, group=e.group, tokens=len(e.tokens)) for e in entries]
            index.write(b"".join(map(_as_line, lines)))
            index.flush()
        except OSError as exc:
            raise self._full(exc) from exc

    def _full(self, exc: OSError) -> StorageError:
        return StorageError(
            f"Cannot write into {self._folder}: {exc.strerror or exc}; free some room and go on with --resume"
        )


def write_head(folder: Path, head: Head) -> None:
    """Keep the teacher's head beside its hidden states. Raises StorageError."""
    try:
        save_file({"weight": head.weight.detach().cpu().contiguous()}, folder / "head.safetensors")
    except OSError as exc:
        raise StorageError(f"Cannot write {folder / 'head.safetensors'}: {exc.strerror or exc}") from exc


class SignalStore:
    """A finished store, memory-mapped: what is not asked for is not read."""

    def __init__(self, folder: Path, info: StoreInfo) -> None:
        self.folder = folder
        self.info = info
        self._places: dict[str, slice] = {}
        begin = 0
        for line in read_records(folder / "index.jsonl", _LINE, "text"):
            self._places[line.text] = slice(begin, begin + line.tokens)
            begin += line.tokens
        self._columns = [self._map(name, dtype, begin) for name, dtype in _COLUMNS[info.kind].items()]
        self._head: Head | None = None

    @classmethod
    def open(cls, folder: Path) -> SignalStore:
        """The store in a finished run directory. Raises RunDirError, DataError."""
        found = require(folder, RUN_KIND).get("signals")
        try:
            info = StoreInfo.model_validate(found)
        except ValueError as exc:
            raise DataError(
                f"{folder} holds no signals of format 1; make them anew with kdbench signals"
            ) from exc
        return cls(folder, info)

    def __contains__(self, text: str) -> bool:
        return text in self._places

    def __len__(self) -> int:
        return len(self._places)

    def tokens(self, text: str) -> tuple[int, ...] | None:
        """The completion's tokens as the teacher read them; None for a text that is not here."""
        place = self._places.get(text)
        return None if place is None else tuple(self._columns[0][place, 0].tolist())

    def signal(self, texts: Sequence[str], device: str = "cpu") -> Signal:
        """What the teacher said about the completions of these texts, one after the other."""
        parts = [
            torch.from_numpy(np.concatenate([column[self._places[text]] for text in texts])).to(device)
            for column in self._columns[1:]
        ]
        if self.info.kind == "top_k":
            return TopK(parts[0].long(), parts[1], self.info.vocabulary)
        head = self._load_head(device)
        return HiddenStates(parts[0].to(head.weight.dtype), head)

    def _load_head(self, device: str) -> Head:
        if self._head is None:
            weight = load_file(self.folder / "head.safetensors")["weight"].to(device)
            self._head = Head(weight, self.info.scale, self.info.cap)
        return self._head

    def _map(self, name: str, dtype: type[np.generic], tokens: int) -> np.ndarray[Any, Any]:
        width = 1 if name == "tokens.i32" else self.info.width
        path = self.folder / name
        wanted = tokens * width * np.dtype(dtype).itemsize
        if not path.is_file() or path.stat().st_size != wanted:
            raise DataError(
                f"{path} is not the {wanted:,} bytes that index.jsonl speaks of; make the signals anew with "
                "kdbench signals ... --overwrite"
            )
        # Copy on write: torch takes no array that cannot be written, and nothing is ever written.
        return (
            np.memmap(path, dtype=dtype, mode="c", shape=(tokens, width)) if tokens else np.zeros((0, width))
        )


def _as_line(line: IndexLine) -> bytes:
    return line.model_dump_json().encode() + b"\n"


def _whole_lines(path: Path) -> list[IndexLine]:
    """The lines of an index; one that a kill has torn ends them."""
    lines = []
    for text in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            lines.append(IndexLine(**json.loads(text)))
        except ValueError:
            break
    return lines
