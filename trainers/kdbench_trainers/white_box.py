"""white_box: learn the teacher's whole next-token distribution, token by token, on the samples' text.

    samples: prompt -> completion, as a generate run leaves them
    loss:    (1 - ce_weight) * divergence(teacher, student) + ce_weight * -log p_student(token)

Word-level distillation (Hinton et al. 2015; Kim & Rush 2016, section 3.1) from a live teacher whose
final hidden states are kept, so that it reads each sample once, or from what `kdbench signals` put down,
without a teacher. The student needs the teacher's tokenizer. The teacher reads `teacher_prompt` where a
sample has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from kdbench.models.weights import require_train
from kdbench.records import Completion
from kdbench_trainers._config import DistillConfig, Material
from kdbench_trainers._presets import distil, distil_stored

if TYPE_CHECKING:
    from kdbench.checks.rehearsing import Rehearsal

TAKES = ("completion", "text")
NEEDS_TEACHER = True  # its weights: a run records their hash; not with `signals`


class Config(DistillConfig):
    """Settings of white_box: those of every trainer, and how the distributions are compared."""

    signals: Path | None = Field(
        None, description="a run of kdbench signals to learn from, in place of a live teacher"
    )


def train(
    samples: Sequence[Material],
    *,
    teacher: str | None,
    student: str,
    out: Path,
    config: Config,
    resume: bool,
) -> None:
    """Train `student` towards the distribution of `teacher`; `out/model` holds the result.

    Raises ConfigError without a teacher or with one of another vocabulary, MissingExtra, NothingLeft,
    UsageError; with `signals` DataError and RunDirError for a store that does not fit.
    """
    if config.signals is not None:
        completions = [one for one in samples if isinstance(one, Completion)]
        distil_stored(
            "white_box", completions, config.signals, teacher=teacher, student=student, out=out,
            config=config, resume=resume,
        )  # fmt: skip
    else:
        distil("white_box", samples, teacher=teacher, student=student, out=out, config=config, resume=resume)


def rehearse(
    samples: Sequence[Completion], *, teacher: str | None, student: str, config: Config
) -> Rehearsal:
    """What `kdbench doctor` looks at. Raises what `train` raises first."""
    require_train("the trainer white_box")
    from kdbench_trainers._rehearsal import rehearse_distribution, rehearse_stored

    if config.signals is not None:
        return rehearse_stored(samples, config.signals, teacher=teacher, student=student, config=config)
    return rehearse_distribution("white_box", teacher=teacher, student=student, config=config)
