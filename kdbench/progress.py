"""Progress of long work: a live bar in a terminal, plain log lines everywhere else.

generate tinystories ━━━━━━━━━━━━━  37/100  2.1/s  0:00:30  acceptance 24 %, 1,204 tokens/s, $0.0000
"""

from __future__ import annotations

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

log = logging.getLogger("kdbench")
LINE_EVERY = 10.0  # seconds between two log lines where there is no terminal
DRAW_EVERY = 0.1


class Meter:
    """Shows how far a piece of work has come; `update` is cheap enough for every item."""

    def __init__(self, what: str, total: int, console: Console | None = None) -> None:
        self._what = what
        self._total = total
        self._console = console or Console(stderr=True)
        self._began = self._shown = time.monotonic()
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", style="dim"),
                console=self._console,
            )
            self._task = self._bar.add_task(what, total=total, rate="", note="")

    def __enter__(self) -> Meter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def due(self) -> bool:
        """Whether the next `update` will show anything; spares the caller the making of a note."""
        return time.monotonic() - self._shown >= (DRAW_EVERY if self._bar else LINE_EVERY)

    def update(self, done: int, note: str = "", *, last: bool = False) -> None:
        """`done` of the total are finished; `note` is shown beside it. `last` always shows."""
        if not (last or self.due()):
            return
        self._shown = now = time.monotonic()
        rate = f"{done / (now - self._began):,.1f}/s" if now > self._began else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, rate=rate, note=note)
        else:
            log.info("%s: %d of %d, %s, %s", self._what, done, self._total, rate, note)
