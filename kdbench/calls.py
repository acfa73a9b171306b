"""The call log: every reply that was paid for, kept in SQLite, and never asked for twice.

    key = sha256(teacher identity, messages, sampling, draw)  ->  the raw reply, as it came

    log = CallLog(Path("out/calls.sqlite"))
    await log.put(key, seed=12, raw=b'{"choices": ...}')     # returns when it is on disk
    log.get(key)                                             # -> the bytes, or None

It is the only durable truth of a generation: samples and rejections are views, rebuilt by running
the recipe again over the log. A draw tells equal prompts apart: (job seed, seed index, how many equal
requests that seed made before), and 0 for a greedy call, which has but one answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import queue
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from kdbench.errors import KdbenchError, RunDirError, StorageError
from kdbench.records import Message
from kdbench.teacher import Sampling

FORMAT = 1
FILE_NAME = "calls.sqlite"
Draw = tuple[int, int, int] | int

_SCHEMA = """
CREATE TABLE calls (
    key BLOB PRIMARY KEY,      -- sha256 of the whole request
    seed INTEGER NOT NULL,     -- index of the seed that asked
    answered INTEGER NOT NULL, -- unix seconds
    reply BLOB NOT NULL        -- raw reply, zlib
)
"""


# One encoder for all keys: json.dumps with options makes a new one at every call.
_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode


@lru_cache(maxsize=256)
def _sampling_json(sampling: Sampling) -> str:
    return _encode(sampling.model_dump())


def request_digest(identity: str, messages: Sequence[Message], sampling: Sampling) -> bytes:
    """sha256 of a whole request but for its draw: equal requests, and only they, have equal digests."""
    whole = _encode([identity, _sampling_json(sampling), [(m.role, m.content) for m in messages]])
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).digest()


def call_key(digest: bytes, draw: Draw) -> bytes:
    """The 32-byte key of one call: its request's digest and its draw."""
    return hashlib.sha256(digest + _encode(draw).encode()).digest()


@contextmanager
def finished_logs(paths: Iterable[Path]) -> Iterator[Callable[[bytes], bytes | None]]:
    """`get(key)`: the raw reply in the first of these logs that has it, or None; none of them is written to.

    Raises RunDirError for a file that is no call log of this format.
    """
    with ExitStack() as stack:
        logs = [stack.enter_context(closing(_open(path, create=False))) for path in paths]
        yield lambda key: next((raw for log in logs if (raw := _get(log, key)) is not None), None)


@dataclass(slots=True)
class _Put:
    key: bytes
    seed: int
    raw: bytes
    done: asyncio.Future[None]


class CallLog:
    """One run's call log, with one writer thread and group commits.

    `caches` are logs of other runs: what is found there is copied into this one. Raises RunDirError
    for a file that is no call log of this format, StorageError where the disk refuses.
    """

    def __init__(self, path: Path, caches: Iterable[Path] = ()) -> None:
        self.path = path
        self._reader = _open(path, create=True)
        self._last_seed_at_open = self.last_seed()
        self._caches = [_open(cache, create=False) for cache in caches]
        self._puts: queue.SimpleQueue[_Put | None] = queue.SimpleQueue()
        self._broken: StorageError | None = None
        self._writer = threading.Thread(target=self._write_all, name="call-log", daemon=True)
        self._writer.start()

    def get(self, key: bytes, drawn_by: int | None = None) -> bytes | None:
        """The raw reply of a call that this run already paid for, or None.

        `drawn_by` is the seed whose draw the key holds, None for a greedy call.
        """
        if drawn_by is not None and drawn_by > self._last_seed_at_open:
            return None  # a seed begins once a sitting: no earlier one can have left this key
        return _get(self._reader, key)

    def get_cached(self, key: bytes) -> bytes | None:
        """The raw reply of a call that another run paid for, or None."""
        for cache in self._caches:
            raw = _get(cache, key)
            if raw is not None:
                return raw
        return None

    async def put(self, key: bytes, seed: int, raw: bytes) -> None:
        """Store a reply; returns once it is committed. Raises StorageError."""
        if self._broken is not None:
            raise self._broken
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._puts.put(_Put(key, seed, raw, done))
        # A cancelled caller must not lose a reply that was paid for: the writer goes on regardless.
        await asyncio.shield(done)

    def last_seed(self) -> int:
        """The highest seed index that has a reply; -1 for an empty log."""
        (found,) = self._reader.execute("SELECT max(seed) FROM calls").fetchone()
        return -1 if found is None else int(found)

    def close(self) -> None:
        """Commit what is queued and close the file."""
        self._puts.put(None)
        self._writer.join()
        for connection in (self._reader, *self._caches):
            connection.close()

    def _write_all(self) -> None:
        connection = _open(self.path, create=False, write=True)
        try:
            open_ended = True
            while open_ended:
                group, open_ended = self._next_group()
                if group:
                    self._commit(connection, group)
        finally:
            connection.close()

    def _next_group(self) -> tuple[list[_Put], bool]:
        """Everything queued while the last commit ran; blocks until there is something."""
        group: list[_Put] = []
        while True:
            try:
                put = self._puts.get(block=not group)
            except queue.Empty:
                return group, True
            if put is None:
                return group, False
            group.append(put)

    def _commit(self, connection: sqlite3.Connection, group: list[_Put]) -> None:
        rows = [(p.key, p.seed, int(time.time()), zlib.compress(p.raw, 1)) for p in group]
        error: StorageError | None = None
        try:
            with connection:
                connection.executemany("INSERT OR REPLACE INTO calls VALUES (?, ?, ?, ?)", rows)
        except sqlite3.Error as exc:
            error = self._broken = StorageError(
                f"Cannot write the call log {self.path}: {exc}; what was answered before is kept: "
                "free some room and go on with --resume"
            )
        _settle(group, error)


def _settle(group: list[_Put], error: StorageError | None) -> None:
    def settle() -> None:
        for put in group:
            if put.done.done():
                continue
            if error is None:
                put.done.set_result(None)
            else:
                put.done.set_exception(error)
                put.done.exception()  # marks it as seen: its caller may be gone by now

    with suppress(RuntimeError):  # a closed loop: nobody waits any more, and the rows are on disk
        group[0].done.get_loop().call_soon_threadsafe(settle)


def _open(path: Path, *, create: bool, write: bool = False) -> sqlite3.Connection:
    if not create and not path.is_file():
        raise RunDirError(f"No call log at {path}; give the directory of a run that has a {FILE_NAME}")
    # Readers are used by one thread at a time, but not always the one that opened them.
    connection = sqlite3.connect(path, check_same_thread=False, timeout=30)
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if create and version == 0:
            connection.execute("PRAGMA journal_mode=WAL")
            with connection:
                connection.execute(_SCHEMA)
                connection.execute(f"PRAGMA user_version={FORMAT}")
            version = FORMAT
        if write:
            connection.execute("PRAGMA synchronous=FULL")
    except sqlite3.Error as exc:
        connection.close()
        raise RunDirError(f"{path} cannot be opened as a call log: {exc}") from exc
    if version != FORMAT:
        connection.close()
        raise RunDirError(f"{path} has call-log format {version}; this kdbench reads format {FORMAT}")
    return connection


def _get(connection: sqlite3.Connection, key: bytes) -> bytes | None:
    try:
        row = connection.execute("SELECT reply FROM calls WHERE key = ?", (key,)).fetchone()
        return None if row is None else zlib.decompress(row[0])
    except (sqlite3.Error, zlib.error) as exc:
        raise KdbenchError(f"The call log holds a reply that cannot be read: {exc}") from exc
