"""Teachers for tests of the engine: they implement the real interface and misbehave on demand."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ClassVar

from kdbench.teacher import Capability, Request, Usage, chat_completion

Answer = Callable[[Request, int], Awaitable[bytes] | bytes]


def reply(text: str, finish_reason: str = "stop") -> bytes:
    """A raw reply with ten prompt and twenty completion tokens."""
    return chat_completion(text, model="echo", finish_reason=finish_reason, usage=Usage(10, 20))


class EchoTeacher:
    """Answers with its prompt and the request's seed, after a wait that depends on the seed alone.

    `answer(request, number)` takes over where given: it may return bytes or raise. `asked_file` gets a
    line per request, written before the answer, so that it outlives a kill.
    """

    capabilities: frozenset[Capability] = frozenset({"chat"})
    preferred_concurrency = 16

    def __init__(
        self,
        answer: Answer | None = None,
        *,
        longest_wait: float = 0.0,
        asked_file: Path | None = None,
        identity: str = "echo",
    ) -> None:
        self.identity = identity
        self.requests: list[Request] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.closed = False
        self._answer = answer
        self._longest_wait = longest_wait
        self._asked_file = asked_file

    async def ask(self, request: Request) -> bytes:
        self.requests.append(request)
        number = len(self.requests)
        if self._asked_file is not None:
            with open(self._asked_file, "a") as file:
                file.write(f"{request.messages[-1].content}|{request.seed}\n")
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self._longest_wait:
                await asyncio.sleep(random.Random(request.seed).uniform(0, self._longest_wait))
            else:
                await asyncio.sleep(0)
            if self._answer is None:
                return reply(f"{request.messages[-1].content} -> {request.seed}")
            answer = self._answer(request, number)
            return answer if isinstance(answer, bytes) else await answer
        finally:
            self.in_flight -= 1

    async def close(self) -> None:
        self.closed = True


class ScriptTeacher:
    """Answers by a pure function of the request, "" meaning an empty reply; `CUT` ends a reply early.

    What a text costs is counted in words. After `calls_to_live` calls, over all teachers, the process
    kills itself as kill -9 would.
    """

    calls_to_live: ClassVar[float] = math.inf

    CUT = "\x00cut"
    capabilities: frozenset[Capability] = frozenset({"chat"})
    preferred_concurrency = 4

    def __init__(self, script: Callable[[Request], str], *, identity: str = "script") -> None:
        self.identity = identity
        self.asked = 0
        self._script = script

    async def ask(self, request: Request) -> bytes:
        self.asked += 1
        ScriptTeacher.calls_to_live -= 1
        if ScriptTeacher.calls_to_live < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        # Replies come home in another order than they were asked for.
        await asyncio.sleep(random.Random(request.seed).uniform(0, 0.002))
        text = self._script(request)
        finish_reason = "length" if text.endswith(self.CUT) else "stop"
        text = text.removesuffix(self.CUT)
        asked = sum(len(message.content.split()) for message in request.messages)
        usage = Usage(prompt_tokens=asked, completion_tokens=len(text.split()))
        return chat_completion(text, model=self.identity, finish_reason=finish_reason, usage=usage)

    async def close(self) -> None:
        pass


def share(request: Request, salt: str = "") -> float:
    """A number in [0, 1) that depends on the whole request and on nothing else."""
    whole = "\x1f".join([salt, str(request.seed), *(m.content for m in request.messages)])
    return int.from_bytes(hashlib.sha256(whole.encode()).digest()[:6], "big") / 2**48
