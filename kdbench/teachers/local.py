"""Weights on this machine, run by transformers: `smollm2`, `hf:PATH` or `hf:ID` from the local cache.

    teacher = connect("smollm2", Config(batch=64))
    await teacher.ask(Request(messages=(Message(role="user", content="Hi"),), sampling=Sampling()))
    -> b'{"object":"chat.completion", ... "finish_reason":"stop","token_ids":[19556,17,...]}'

Requests that wait at the same time are sampled together in one thread. A reply is handed out as soon as it
ends, and the next request takes its place in the batch. The weights are loaded at the first question: a
run that is answered from its call log needs none. With `top_logprobs` each reply says what `kdbench signals`
would otherwise read the data for.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from kdbench.config import StrictConfig
from kdbench.errors import CallRefused, KdbenchError, TeacherUnavailable, TeacherUnusable
from kdbench.models.weights import local_weights, require_train, weights_sha256
from kdbench.teacher import Capability, HandedOver, Request, Teacher, Usage, chat_completion

if TYPE_CHECKING:
    from kdbench.models.sampling import BatchSampler, Job, Sampled

SCHEMES = ("hf", "smollm2")


class Config(StrictConfig):
    """How a model on this machine is run."""

    device: str | None = Field(None, description="cpu, cuda or cuda:N; default: cuda where there is one")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="default: bfloat16 on cuda, float32 elsewhere"
    )
    batch: int = Field(64, ge=1, le=4096, description="replies sampled at once")
    gather_ms: float = Field(20, ge=0, le=10_000, description="how long an idle model waits for company")
    top_logprobs: int | None = Field(
        None,
        ge=1,
        description="hand over the log-probabilities of so many likeliest tokens for each token it writes",
    )


def connect(spec: str, config: Config) -> Teacher:
    """The teacher a spec names. Raises MissingExtra without torch, UsageError where there are no weights."""
    require_train(f"the teacher {spec}")
    return LocalTeacher(spec, local_weights(spec), config)


@dataclass(slots=True, eq=False)
class _Ask:
    """A request that waits for its reply; `reply` belongs to `loop`."""

    request: Request
    loop: asyncio.AbstractEventLoop
    reply: asyncio.Future[bytes]
    prompt: tuple[int, ...] = field(default=())

    def settle(self, outcome: bytes | KdbenchError) -> None:
        """Hand over the outcome, from any thread; a caller that has gone away gets none."""
        try:
            self.loop.call_soon_threadsafe(self._settle, outcome)
        except RuntimeError:
            return  # its event loop is closed

    def _settle(self, outcome: bytes | KdbenchError) -> None:
        if self.reply.done():
            return
        if isinstance(outcome, bytes):
            self.reply.set_result(outcome)
        else:
            self.reply.set_exception(outcome)


class LocalTeacher:
    """A teacher that samples in one worker thread; see `kdbench.teacher.Teacher`."""

    capabilities: frozenset[Capability] = frozenset({"chat"})

    def __init__(self, spec: str, folder: Path, config: Config) -> None:
        self.identity = weights_sha256(folder)
        if config.top_logprobs is not None:
            # A reply that was cached without them does not answer this teacher's calls.
            self.identity += f" with top_logprobs {config.top_logprobs}"
        self.preferred_concurrency = 2 * config.batch
        self._spec = spec
        self._folder = folder
        self._config = config
        self._waiting: deque[_Ask] = deque()
        self._live: dict[Job, _Ask] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    async def ask(self, request: Request) -> bytes:
        """Sample one reply. Raises CallRefused for a prompt that does not fit, TeacherUnusable."""
        loop = asyncio.get_running_loop()
        ask = _Ask(request, loop, loop.create_future())
        with self._changed:
            if self._closed:
                raise TeacherUnavailable(f"Teacher {self._spec} is closed")
            self._waiting.append(ask)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name=f"teacher {self._spec}", daemon=True)
                self._thread.start()
            self._changed.notify()
        return await ask.reply

    async def close(self) -> None:
        """Stop sampling and end the thread; replies that were under way are given up."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        outcome: KdbenchError = TeacherUnavailable(f"Teacher {self._spec} was closed before it answered")
        try:
            sampler = self._load()
            while self._gathered():
                for job, reply in sampler.stream(lambda room: self._take(sampler, room), self._wanted):
                    self._answer(self._live.pop(job), reply)
                # What is left was cancelled, or cut short by close() and is owed an answer.
                self._live = {job: ask for job, ask in self._live.items() if not ask.reply.cancelled()}
        except KdbenchError as exc:
            outcome = exc
        except (RuntimeError, MemoryError) as exc:
            outcome = TeacherUnusable(
                f"Teacher {self._spec} broke down ({str(exc).strip()[:160]}); if memory ran out, lower its "
                f"batch (now {self._config.batch})"
            )
            outcome.__cause__ = exc
        finally:
            self._give_up(outcome)

    def _load(self) -> BatchSampler:
        from kdbench.models.loading import load_model, load_tokenizer
        from kdbench.models.sampling import BatchSampler

        ref = str(self._folder)
        model = load_model(ref, device=self._config.device, dtype=self._config.dtype)
        return BatchSampler(
            model, load_tokenizer(ref), batch=self._config.batch, top_logprobs=self._config.top_logprobs or 0
        )

    def _gathered(self) -> bool:
        """Wait for requests, and a moment longer for more of them; False when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            until = time.monotonic() + self._config.gather_ms / 1000
            while not self._closed and len(self._waiting) < self._config.batch:
                if not self._changed.wait(timeout=max(0.0, until - time.monotonic())):
                    break
            return not self._closed

    def _take(self, sampler: BatchSampler, room: int) -> Sequence[Job]:
        """Jobs for the free rows of the batch, from the requests that wait."""
        jobs: list[Job] = []
        while len(jobs) < room:
            with self._changed:
                if self._closed or not self._waiting:
                    break
                ask = self._waiting.popleft()
            if ask.reply.cancelled():
                continue
            try:
                job = self._job(sampler, ask)
            except CallRefused as exc:
                ask.settle(exc)
                continue
            self._live[job] = ask
            jobs.append(job)
        return jobs

    def _job(self, sampler: BatchSampler, ask: _Ask) -> Job:
        from kdbench.models.chat import prompt_ids
        from kdbench.models.sampling import Job

        ask.prompt = tuple(prompt_ids(sampler.tokenizer, ask.request.messages))
        if len(ask.prompt) >= sampler.context:
            raise CallRefused(
                f"The prompt has {len(ask.prompt)} tokens and the model {self._spec} takes {sampler.context}"
            )
        return Job(ask.prompt, ask.request.sampling, ask.request.seed)

    def _wanted(self, job: Job) -> bool:
        return not self._closed and not self._live[job].reply.cancelled()

    def _answer(self, ask: _Ask, reply: Sampled) -> None:
        usage = Usage(len(ask.prompt), len(reply.ids))
        ask.settle(
            chat_completion(
                reply.text,
                model=self._spec,
                finish_reason=reply.finish_reason,
                usage=usage,
                token_ids=reply.ids,
                handed_over=HandedOver(ask.prompt, reply.drawn) if self._config.top_logprobs else None,
            )
        )

    def _give_up(self, outcome: KdbenchError) -> None:
        """Nobody waits for ever: every open request gets the reason why it has no reply."""
        with self._changed:
            left: list[Any] = [*self._live.values(), *self._waiting]
            self._live.clear()
            self._waiting.clear()
        for ask in left:
            ask.settle(outcome)
