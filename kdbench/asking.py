"""One call done right: answered from the log if it was paid for, else asked, retried, stored, parsed.

    asker = Asker("teacher", teacher, log, ledger, AskPolicy(retries=8, on_truncated="reject"))
    ask = SeedTeacher(asker, job_seed=0, seed=12, trace=Trace())
    reply = await ask.chat([Message(role="user", content="...")], Sampling())

A recipe sees only `SeedTeacher`: the teacher as one seed knows it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from kdbench.calls import CallLog, Draw, call_key, request_digest
from kdbench.config import StrictConfig
from kdbench.errors import (
    RateLimited,
    Rejected,
    Retryable,
    TeacherError,
    TeacherUnavailable,
    TeacherUnusable,
)
from kdbench.ledger import Ledger
from kdbench.records import Message, Origin
from kdbench.teacher import Reply, Request, Sampling, Teacher, Usage, read_reply

log = logging.getLogger("kdbench")
OnTruncated = Literal["reject", "keep", "retry"]


class AskPolicy(StrictConfig):
    """How one call is seen through."""

    retries: int = Field(8, ge=0, description="further tries of a call that may yet work")
    first_wait: float = Field(1.0, ge=0, description="seconds before the first retry; doubles each time")
    longest_wait: float = Field(60.0, ge=0, description="seconds between retries, at most")
    on_truncated: OnTruncated = Field(
        "reject",
        description="a reply cut off at max_tokens: reject it, keep it, or retry once with twice the tokens",
    )


@dataclass(slots=True)
class Trace:
    """What one seed asked, for the origin of its samples."""

    calls: list[str] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    finish_reason: str = ""

    def origin(self, seed: int) -> Origin:
        """The origin of what this seed made so far."""
        return Origin(
            seed=seed,
            calls=tuple(self.calls),
            prompt_tokens=self.usage.prompt_tokens,
            completion_tokens=self.usage.completion_tokens,
            finish_reason=self.finish_reason,
        )


class NotInLog(Rejected):
    """A replay met a call that was never paid for."""


class Asker:
    """A teacher in a role, shared by all seeds: the log before it, retries and the ledger around it.

    `replay_only` answers from the log alone and raises NotInLog for the rest (--reparse).
    """

    def __init__(
        self,
        role: str,
        teacher: Teacher,
        call_log: CallLog,
        ledger: Ledger,
        policy: AskPolicy,
        *,
        replay_only: bool = False,
    ) -> None:
        self.role = role
        self.teacher = teacher
        self.policy = policy
        self._log = call_log
        self._ledger = ledger
        self._replay_only = replay_only
        self._ever_answered = False
        self._resume_at = 0.0  # loop time before which a rate-limited teacher is left alone
        self._stopping = False
        # Waits are spread at random so that calls that failed together do not come back together.
        self._jitter = random.Random()  # noqa: S311

    def stop(self) -> None:
        """Make no further calls; those in flight may finish."""
        self._stopping = True

    def count_truncated(self) -> None:
        """Note a reply that was cut off at max_tokens."""
        self._ledger.truncated += 1

    async def answer(self, key: bytes, seed: int, request: Request, *, greedy: bool) -> Reply:
        """The reply to one request. Raises TeacherError, TeacherUnusable, LimitReached, StorageError."""
        raw = self._log.get(key, drawn_by=None if greedy else seed)
        if raw is not None:
            return _read(raw, self._ledger.replayed)
        raw = self._log.get_cached(key)
        if raw is not None:
            await self._log.put(key, seed, raw)
            return _read(raw, self._ledger.cached)
        if self._replay_only:
            raise NotInLog("not_in_log", "this seed needs a call that was never made")
        raw = await self._ask(request)
        await self._log.put(key, seed, raw)
        return _read(raw, self._ledger.paid)

    async def _ask(self, request: Request) -> bytes:
        attempt = 0
        while True:
            await self._wait_for_turn()
            self._ledger.check()
            try:
                raw = await self.teacher.ask(request)
            except Retryable as exc:
                attempt += 1
                if not self._ever_answered and attempt > 2 and isinstance(exc, TeacherUnavailable):
                    raise TeacherUnusable(
                        f"The {self.role} never answered ({attempt} tries): {exc}; "
                        "check that it runs and that its address is right"
                    ) from exc
                if attempt > self.policy.retries:
                    raise
                await self._back_off(exc, attempt)
            else:
                self._ever_answered = True
                return raw

    async def _wait_for_turn(self) -> None:
        while not self._stopping:
            pause = self._resume_at - asyncio.get_running_loop().time()
            if pause <= 0:
                return
            # The random part keeps all waiting calls from leaving in the same instant.
            await asyncio.sleep(pause + self._jitter.uniform(0, 0.1 * pause))
        raise asyncio.CancelledError

    async def _back_off(self, exc: Retryable, attempt: int) -> None:
        self._ledger.retries += 1
        wait = min(self.policy.first_wait * 2 ** (attempt - 1), self.policy.longest_wait)
        wait *= self._jitter.uniform(0.5, 1.0)
        if isinstance(exc, RateLimited) and exc.retry_after is not None:
            # The server's word goes for every call, and above our own cap.
            wait = max(wait, exc.retry_after)
            self._resume_at = max(self._resume_at, asyncio.get_running_loop().time() + exc.retry_after)
        log.warning(
            "%s: %s; trying again in %.1f s (%d of %d)", self.role, exc, wait, attempt, self.policy.retries
        )
        await asyncio.sleep(wait)


def _read(raw: bytes, count: Callable[[Usage], None]) -> Reply:
    """Parse a reply and count it; one that cannot be used counts as a call all the same."""
    try:
        reply = read_reply(raw)
    except TeacherError:
        count(Usage())
        raise
    count(reply.usage)
    return reply


class SeedTeacher:
    """A teacher as one seed sees it: equal requests of the same seed get draws of their own."""

    def __init__(self, asker: Asker, job_seed: int, seed: int, trace: Trace) -> None:
        self._asker = asker
        self._job_seed = job_seed
        self._seed = seed
        self._trace = trace
        self._asked: Counter[bytes] = Counter()

    @property
    def identity(self) -> str:
        """Which model answers."""
        return self._asker.teacher.identity

    async def chat(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """Ask for one reply.

        Raises kdbench.errors.TeacherError if the teacher cannot answer and Rejected("truncated") if
        the reply is cut off and the policy rejects that. A recipe lets both pass.
        """
        reply = await self._one(messages, sampling)
        if reply.finish_reason != "length":
            return reply
        self._asker.count_truncated()
        if self._asker.policy.on_truncated == "keep":
            return reply
        if self._asker.policy.on_truncated == "retry":
            longer = sampling.model_copy(update={"max_tokens": 2 * sampling.max_tokens})
            reply = await self._one(messages, longer)
            if reply.finish_reason != "length":
                return reply
        raise Rejected("truncated", f"cut off after {reply.usage.completion_tokens} tokens")

    async def _one(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        digest = request_digest(self._asker.teacher.identity, messages, sampling)
        draw: Draw = 0  # greedy: there is but one answer
        if sampling.temperature > 0:
            draw = (self._job_seed, self._seed, self._asked[digest])
            self._asked[digest] += 1
        key = call_key(digest, draw)
        request = Request(tuple(messages), sampling, seed=int.from_bytes(key[:4], "big") >> 1)
        self._trace.calls.append(key.hex())
        reply = await self._asker.answer(key, self._seed, request, greedy=draw == 0)
        self._trace.usage += reply.usage
        self._trace.finish_reason = reply.finish_reason
        return reply


class Teachers(dict[str, SeedTeacher]):
    """The teachers of one seed, by role: `teachers["teacher"].chat(...)`."""
