"""The engine: one async function mapped over a stream of seeds.

    async for settled in run_seeds(generate, seeds, concurrency=64, window=1024, may_start=...):
        settled.seed, settled.samples, settled.rejections      # in seed order, whatever finished first

No batch barrier: one slow reply holds up nobody until the window behind it is full. The window bounds
what waits for its turn, so memory stays flat over any number of seeds. This is the one place that may
catch broadly: whatever goes wrong in one seed becomes that seed's rejection.
"""

from __future__ import annotations

import asyncio
import logging
import random
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdbench.asking import Asker, NotInLog, SeedTeacher, Teachers, Trace
from kdbench.errors import (
    CallRefused,
    EmptyReply,
    RateLimited,
    Rejected,
    RunFailed,
    TeacherError,
    TeacherTimeout,
    TeacherUnavailable,
    TooManyErrors,
    UsageError,
)
from kdbench.records import Completion, Preference, Rejection, Text

log = logging.getLogger("kdbench")

Outcome = Completion | Text | Preference | Rejection
# How long calls in flight may take to come home after a stop, in seconds.
GRACE = 10.0

_ERROR_REASONS: tuple[tuple[type[TeacherError], str], ...] = (
    (RateLimited, "rate_limited"),
    (TeacherTimeout, "teacher_timeout"),
    (TeacherUnavailable, "teacher_unavailable"),
    (EmptyReply, "empty_reply"),
    (CallRefused, "call_refused"),
)


@dataclass(frozen=True, slots=True)
class Seed:
    """What one sample begins from. Draw everything from `rng`: it is made from job seed and index.

    `row` is what the recipe's `rows` gave for this seed (a kdbench.questions.Question where it reads a
    question source), else None.
    """

    index: int
    rng: random.Random
    row: Any = None


@dataclass(frozen=True, slots=True)
class Settled:
    """A finished seed: its samples and rejections, with ids and origins. `error` if the seed failed."""

    seed: int
    samples: tuple[Completion | Text | Preference, ...]
    rejections: tuple[Rejection, ...]
    error: str | None = None


Recipe = Callable[[Seed, Teachers], Awaitable[Iterable[Outcome]]]


class SeedRunner:
    """Runs one seed: gives it its teachers, turns what goes wrong into rejections, names what it made.

    `id_prefix` hashes recipe, seed source, job seed and generation settings: a sample's id is that,
    the seed index and its number within the seed, so a changed filter keeps the names.
    """

    def __init__(
        self, recipe: Recipe, askers: Mapping[str, Asker], *, job_seed: int, id_prefix: str, max_errors: int
    ) -> None:
        self._recipe = recipe
        self._askers = askers
        self._job_seed = job_seed
        self._id_prefix = id_prefix
        self._max_errors = max_errors
        self.errors = 0

    async def __call__(self, seed: Seed) -> Settled:
        """Run the recipe on one seed. Raises RunFailed and UsageError, which end the whole run."""
        trace = Trace()
        teachers = Teachers(
            {
                role: SeedTeacher(asker, self._job_seed, seed.index, trace)
                for role, asker in self._askers.items()
            }
        )
        try:
            outcomes = list(await self._recipe(seed, teachers))
        except NotInLog as exc:
            return self._settled(seed, trace, [Rejection(reason=exc.reason, detail=exc.detail)])
        except Rejected as exc:
            return self._settled(seed, trace, [Rejection(reason=exc.reason, detail=exc.detail)])
        except (RunFailed, UsageError):
            raise
        except TeacherError as exc:
            reason = next((word for kind, word in _ERROR_REASONS if isinstance(exc, kind)), "teacher_error")
            return self._failed(seed, trace, reason, str(exc))
        except Exception as exc:
            log.debug("seed %d failed:\n%s", seed.index, traceback.format_exc())
            return self._failed(seed, trace, "failed", f"{type(exc).__name__}: {exc}")
        return self._settled(seed, trace, outcomes)

    def _settled(self, seed: Seed, trace: Trace, outcomes: list[Outcome]) -> Settled:
        origin = trace.origin(seed.index)
        named = [
            outcome.model_copy(
                # A recipe that asks for several replies says itself which of them made a sample.
                update={"id": f"{self._id_prefix}-{seed.index}-{number}", "origin": outcome.origin or origin}
            )
            for number, outcome in enumerate(outcomes)
        ]
        return Settled(
            seed.index,
            tuple(o for o in named if not isinstance(o, Rejection)),
            tuple(o for o in named if isinstance(o, Rejection)),
        )

    def _failed(self, seed: Seed, trace: Trace, reason: str, detail: str) -> Settled:
        self.errors += 1
        if self.errors > self._max_errors:
            raise TooManyErrors(
                f"Stopped after {self.errors} failing rows (--max-errors {self._max_errors}); "
                f"the last, seed {seed.index}: {detail}; what was answered is kept: mend the cause "
                "and go on with --resume"
            )
        settled = self._settled(seed, trace, [Rejection(reason=reason, detail=detail)])
        return Settled(settled.seed, settled.samples, settled.rejections, error=detail)


async def run_seeds(
    run: Callable[[Seed], Awaitable[Settled]],
    seeds: Iterator[Seed],
    *,
    concurrency: int,
    window: int,
    may_start: Callable[[int], bool] = lambda outstanding: True,
    stop: Callable[[], None] = lambda: None,
) -> AsyncGenerator[Settled, None]:
    """Run seeds concurrently and give them back in order.

    At most `concurrency` run at once, at most `window` are started and not yet given back, and a new
    one is started only while `may_start(started and not yet given back)`. When the run ends early
    (an error, a cancellation, or the consumer leaving) `stop()` is called, and the seeds in flight get
    a grace period to bring home the replies they wait for; then they are cancelled.
    """
    running: set[asyncio.Task[Settled]] = set()
    finished: dict[int, asyncio.Task[Settled]] = {}
    failures: list[asyncio.Task[Settled]] = []
    wake = asyncio.Event()
    started = given = 0
    exhausted = False

    def start(seed: Seed, position: int) -> None:
        task = asyncio.ensure_future(run(seed))
        running.add(task)

        def on_done(task: asyncio.Task[Settled]) -> None:
            running.discard(task)
            finished[position] = task
            if not task.cancelled() and task.exception() is not None:
                failures.append(task)
            wake.set()

        task.add_done_callback(on_done)

    def can_start() -> bool:
        outstanding = started - given
        return (
            not exhausted and len(running) < concurrency and outstanding < window and may_start(outstanding)
        )

    try:
        while True:
            while can_start():
                seed = next(seeds, None)
                if seed is None:
                    exhausted = True
                else:
                    start(seed, started)
                    started += 1
            if failures:
                # It ends the run at once, however far behind the seed that waits for its turn is.
                failures[0].result()
            if given in finished:
                yield finished.pop(given).result()
                given += 1
            elif started == given:
                return
            else:
                wake.clear()
                await wake.wait()
    finally:
        stop()
        await _bring_home(running)


async def _bring_home(running: set[asyncio.Task[Settled]]) -> None:
    if not running:
        return
    _, late = await asyncio.wait(running, timeout=GRACE)
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late)


def make_seeds(job_seed: int, count: int, rows: Iterable[Any] | None = None) -> Iterator[Seed]:
    """The first `count` seeds of a job, one per row where there are rows."""
    source: Iterator[Any] = iter(rows) if rows is not None else iter(lambda: None, 0)
    for index, row in zip(range(count), source, strict=False):
        yield Seed(index, random.Random(f"{job_seed}/{index}"), row)  # noqa: S311 - not for secrets
