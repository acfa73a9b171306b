"""One call done right: answered from the log if it was paid for, else asked, retried, stored, parsed.

    asker = Asker("teacher", teacher, log, ledger, AskPolicy(), in_flight=64)
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
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import Field

from kdbench.calls import CallLog, Draw, call_key, request_digest
from kdbench.config import StrictConfig
from kdbench.errors import (
    EmptyReply,
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
    """What one seed asked, in the order of asking, for the origin of its samples.

    A call's place is its number and 0, or 1 for the longer try of a reply that was cut off: replies come
    home in any order, and origins must not depend on it.
    """

    calls: dict[tuple[int, int], str] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    finish_reasons: dict[tuple[int, int], str] = field(default_factory=dict)
    # How often each request was made, over all roles: one teacher in two roles gives each draws of its own.
    asked: Counter[bytes] = field(default_factory=Counter)
    begun: int = 0

    def origin(self, seed: int) -> Origin:
        """The origin of what this seed made so far."""
        last = max(self.finish_reasons, default=None)
        return Origin(
            seed=seed,
            calls=tuple(key for _, key in sorted(self.calls.items())),
            prompt_tokens=self.usage.prompt_tokens,
            completion_tokens=self.usage.completion_tokens,
            finish_reason="" if last is None else self.finish_reasons[last],
        )


def origin_of(seed: int, *replies: Reply) -> Origin:
    """The origin of a sample that came of these replies alone, where the seed of that index asked more."""
    return Origin(
        seed=seed,
        calls=tuple(reply.call for reply in replies),
        prompt_tokens=sum(reply.usage.prompt_tokens for reply in replies),
        completion_tokens=sum(reply.usage.completion_tokens for reply in replies),
        finish_reason=replies[-1].finish_reason,
    )


class NotInLog(Rejected):
    """A replay met a call that was never paid for."""


class Asker:
    """A teacher in a role, shared by all seeds: the log before it, retries and the ledger around it.

    At most `in_flight` calls are under way at once, however many draws each seed asks for.
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
        in_flight: int,
        replay_only: bool = False,
    ) -> None:
        self.role = role
        self.teacher = teacher
        self.policy = policy
        self._log = call_log
        self._ledger = ledger
        self._slots = asyncio.Semaphore(in_flight)
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
        raw, outcome = await self._ask(request)
        # Kept before anything else is done with it, also where it cannot be used.
        await self._log.put(key, seed, raw)
        if isinstance(outcome, TeacherError):
            raise outcome
        return outcome

    async def _ask(self, request: Request) -> tuple[bytes, Reply | TeacherError]:
        """The raw reply and what it says. It is counted at once, so that the next call sees a limit."""
        attempt = 0
        while True:
            try:
                async with self._slots:
                    # Asked for only now: what waited for its slot must see a stop, a pause or a limit.
                    await self._wait_for_turn()
                    self._ledger.check()
                    raw = await self.teacher.ask(request)
                    outcome = _outcome(raw, self._ledger.paid)
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
                return raw, outcome

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


def _outcome(raw: bytes, count: Callable[[Usage], None]) -> Reply | TeacherError:
    """A raw reply parsed and counted; one that cannot be used counts as a call all the same."""
    try:
        reply = read_reply(raw)
    except TeacherError as exc:
        count(Usage())
        return exc
    count(reply.usage)
    return reply


def _read(raw: bytes, count: Callable[[Usage], None]) -> Reply:
    outcome = _outcome(raw, count)
    if isinstance(outcome, TeacherError):
        raise outcome
    return outcome


class SeedTeacher:
    """A teacher as one seed sees it: equal requests of the same seed get draws of their own."""

    def __init__(self, asker: Asker, job_seed: int, seed: int, trace: Trace) -> None:
        self._asker = asker
        self._job_seed = job_seed
        self._seed = seed
        self._trace = trace

    @property
    def identity(self) -> str:
        """Which model answers."""
        return self._asker.teacher.identity

    async def chat(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """Ask for one reply.

        Raises kdbench.errors.TeacherError if the teacher cannot answer and Rejected("truncated") if
        the reply is cut off and the policy rejects that. A recipe lets both pass.
        """
        digest = request_digest(self._asker.teacher.identity, messages, sampling)
        place, number = self._trace.begun, self._trace.asked[digest]
        self._trace.begun += 1
        self._trace.asked[digest] += 1
        reply = await self._one(messages, sampling, (place, 0), number)
        if reply.finish_reason != "length":
            return reply
        self._asker.count_truncated()
        if self._asker.policy.on_truncated == "keep":
            return reply
        if self._asker.policy.on_truncated == "retry":
            longer = sampling.model_copy(update={"max_tokens": 2 * sampling.max_tokens})
            # The draw keeps its number: which of several was cut off first is a matter of time.
            reply = await self._one(messages, longer, (place, 1), number)
            if reply.finish_reason != "length":
                return reply
        raise Rejected("truncated", f"cut off after {reply.usage.completion_tokens} tokens")

    async def draws(self, messages: Sequence[Message], sampling: Sampling, n: int) -> list[Reply | Rejected]:
        """`n` replies to one request, asked for at once and given back in the order of their draws.

        A draw that was cut off or came back empty is a Rejected in its place and leaves the others
        alone. Raises kdbench.errors.TeacherError like `chat`.
        """
        return await self.each([messages] * n, sampling)

    async def each(self, requests: Sequence[Sequence[Message]], sampling: Sampling) -> list[Reply | Rejected]:
        """One reply to each of several requests, asked for at once like `draws`, in their order."""
        tries = (self._draw(messages, sampling) for messages in requests)
        # All come home before the first failure is raised: none goes on unseen.
        found = await asyncio.gather(*tries, return_exceptions=True)
        for one in found:
            # A call that was never made is no bad draw: what is counted over the draws would be wrong.
            if isinstance(one, NotInLog) or (
                isinstance(one, BaseException) and not isinstance(one, Rejected)
            ):
                raise one
        return [one for one in found if isinstance(one, Reply | Rejected)]

    async def _draw(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        try:
            return await self.chat(messages, sampling)
        except EmptyReply as exc:
            raise Rejected("empty_reply", str(exc)) from exc

    async def _one(
        self, messages: Sequence[Message], sampling: Sampling, place: tuple[int, int], number: int
    ) -> Reply:
        """The reply to the `number`-th equal request of this seed."""
        digest = request_digest(self._asker.teacher.identity, messages, sampling)
        # A greedy request has but one answer.
        draw: Draw = (self._job_seed, self._seed, number) if sampling.temperature > 0 else 0
        key = call_key(digest, draw)
        request = Request(tuple(messages), sampling, seed=int.from_bytes(key[:4], "big") >> 1)
        self._trace.calls[place] = key.hex()
        reply = await self._asker.answer(key, self._seed, request, greedy=draw == 0)
        self._trace.usage += reply.usage
        self._trace.finish_reasons[place] = reply.finish_reason
        return replace(reply, call=key.hex())


class Teachers(dict[str, SeedTeacher]):
    """The teachers of one seed, by role: `teachers["teacher"].chat(...)`."""
