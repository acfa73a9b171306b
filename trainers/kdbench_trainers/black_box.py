"""black_box: learn the teacher's text (SFT; sequence-level distillation where a teacher wrote it).

    samples: prompt -> completion, as a generate run leaves them
    loss:    -log p_student(token), over the completion's tokens and its end marker

Needs no teacher: its sequences are the signal (Kim & Rush 2016, section 3.2). The student may have any
tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.models.weights import require_train
from kdbench.records import Completion
from kdbench_trainers._config import Material, TrainConfig

if TYPE_CHECKING:
    from kdbench.checks.rehearsing import Rehearsal

TAKES = ("completion", "text")  # plain text: the pre-training goes on


class Config(TrainConfig):
    """Settings of black_box: those of every trainer."""


def train(
    samples: Sequence[Material],
    *,
    teacher: str | None,
    student: str,
    out: Path,
    config: Config,
    resume: bool,
) -> None:
    """Train `student` on the samples' completions; `out/model` holds the result.

    `teacher` is recorded by the job and not loaded. Raises MissingExtra, NothingLeft, UsageError.
    """
    require_train("the trainer black_box")
    from kdbench_trainers._fit import fit
    from kdbench_trainers._models import load_student
    from kdbench_trainers._trainer import Plan

    reader, model = load_student(student, config)
    fit(samples, student=reader, model=model, plan=Plan(), out=out, config=config, resume=resume)


def rehearse(
    samples: Sequence[Completion], *, teacher: str | None, student: str, config: Config
) -> Rehearsal:
    """What `kdbench doctor` looks at. Raises ConfigError, UsageError, MissingExtra."""
    require_train("the trainer black_box")
    from kdbench_trainers._rehearsal import rehearse_text

    return rehearse_text(student, config)
