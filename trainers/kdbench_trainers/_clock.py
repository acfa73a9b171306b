"""What a training costs: seconds of each phase, and the most memory it held.

with clock("teacher"):
    ...                          # its seconds are the teacher's, and nobody else's: phases do not overlap
clock.take()                     # {"generate": 0.0, "teacher": 1.6, "student": 2.6, "loss": 0.9, ...}
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

Phase = Literal["generate", "teacher", "student", "loss", "optimizer"]
PHASES: tuple[Phase, ...] = get_args(Phase)


class Clock:
    """Adds up seconds by phase. A phase inside another one stops the outer one's time."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._running: list[Phase] = []
        self._since = 0.0
        self._stopped = False

    @contextmanager
    def __call__(self, phase: Phase) -> Iterator[None]:
        """The time of what is done inside is the phase's."""
        self.begin(phase)
        try:
            yield
        finally:
            self.end()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What is done inside counts nowhere."""
        self._book()
        self._stopped = True
        try:
            yield
        finally:
            self._book()
            self._stopped = False

    def begin(self, phase: Phase) -> None:
        """A phase begins, perhaps inside another."""
        self._book()
        self._running.append(phase)

    def end(self) -> None:
        """The innermost phase ends."""
        self._book()
        self._running.pop()

    def take(self) -> dict[Phase, float]:
        """Seconds by phase since the last call."""
        self._book()
        taken, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return taken

    def _book(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()  # what was launched in a phase counts there
        now = time.perf_counter()
        if self._running and not self._stopped:
            self._seconds[self._running[-1]] += now - self._since
        self._since = now


def peak_memory_mb() -> float:
    """The most memory held so far: allocated on the GPU where there is one, else the process's, in MB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
