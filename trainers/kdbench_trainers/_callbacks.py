"""What watches a training: metrics.jsonl and the progress line, the optimiser's clock, and Ctrl-C.

{"step": 10, "split": "train", "loss": 2.31, "tokens": 1204, "tokens_per_second": 410.2, ...}
{"step": 10, "split": "validation", "loss": 2.40, "tokens": 2210}
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TextIO

from transformers import TrainerCallback

from kdbench.errors import RunFailed, StorageError
from kdbench.processes import this_process
from kdbench.progress import Meter, log
from kdbench_trainers._clock import PHASES, Clock

_KEPT = (
    "loss", "divergence", "cross_entropy", "relations", "hidden_states", "plain_text_cross_entropy",
    "data_cross_entropy", "accuracy", "margin", "reward_chosen", "reward_rejected",
    "tokens", "tokens_per_second", "seconds", *(f"seconds_{phase}" for phase in PHASES),
    "peak_memory_mb", "padding", "generated_tokens", "phi", "buffer", "learning_rate", "grad_norm", "epochs",
)  # fmt: skip


class OptimizerClock(TrainerCallback):
    """Books the optimiser's own seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Gradients are there and clipped."""
        self._clock.begin("optimizer")

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """The weights have changed."""
        self._clock.end()


class Metrics(TrainerCallback):
    """Writes one JSON line per log, and shows it. On resume, lines after the checkpoint are dropped.

    Of several processes the first one writes.
    """

    def __init__(self, path: Path, steps: int, checkpoint: Path | None) -> None:
        self.last_validated = -1
        self._path = path
        self._first = _step_of(checkpoint)
        self._lines = [line for line in _read(path) if line["step"] <= self._first] if checkpoint else []
        self._meter = Meter("train", steps)
        self._validation = ""
        self._file: TextIO | None = None
        self._writes = this_process().is_first

    def __enter__(self) -> Metrics:
        if not self._writes:
            return self
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = self._path.with_name(f".{self._path.name}.{os.getpid()}")  # a kill here must lose no line
        kept.write_text("".join(json.dumps(line) + "\n" for line in self._lines), encoding="utf-8")
        kept.replace(self._path)
        self._file = open(self._path, "a", encoding="utf-8")
        self._meter.__enter__()
        if self._first:
            log.info("Going on from the checkpoint of step %d", self._first)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._meter.__exit__(kind, exc, tb)
            self._file.close()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Keep a train or validation line. Raises RunFailed where the loss is no number any more."""
        if "eval_loss" in logs:
            values = {k.removeprefix("eval_"): v for k, v in logs.items()}
            self._validation = f", validation {values['loss']:.3f}"
            self.last_validated = state.global_step
            self._write({"step": state.global_step, "split": "validation", **_only_kept(values)})
        elif "loss" in logs:
            self._write({"step": state.global_step, "split": "train", **_only_kept(logs)})
            note = f"loss {logs['loss']:.3f}{self._validation}, {logs['tokens_per_second']:,.0f} tokens/s"
            if self._writes:
                self._meter.update(state.global_step, note, last=state.global_step == state.max_steps)
            if not math.isfinite(logs["loss"]):
                raise RunFailed(
                    f"The loss became {logs['loss']} at step {state.global_step}; "
                    f"train with a smaller learning_rate than {args.learning_rate:g}, or more warmup_steps"
                )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """No checkpoint of the last step: the model itself is saved. Each of them comes with a line.

        So a checkpoint never falls between two lines, and no number that is none goes into one unseen.
        """
        if state.global_step >= state.max_steps:
            control.should_save = False
            control.should_log = True
        elif control.should_save:
            control.should_log = True

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as exc:
            raise StorageError(
                f"Cannot write {self._path}: {exc.strerror or exc}; free some room and go on with --resume"
            ) from exc


def _only_kept(logs: dict[str, float]) -> dict[str, float]:
    return {name: logs[name] for name in _KEPT if name in logs}


def _step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of an earlier sitting; one that a kill has torn ends them."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


class Interrupt(TrainerCallback):
    """Ctrl-C ends the training after the step at hand, with a checkpoint; a second one ends it at once."""

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        log.warning("Stopping after this step, with a checkpoint; press Ctrl-C again to stop at once")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint and the end."""
        if self._asked and state.global_step >= state.max_steps:
            log.warning("That was the last step: the training ends as it would have")
            self._asked = False
        elif self._asked:
            control.should_save = control.should_log = control.should_training_stop = True

    def check(self) -> None:
        """Raise KeyboardInterrupt where Ctrl-C was pressed."""
        if self._asked:
            raise KeyboardInterrupt
