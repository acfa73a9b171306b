"""white_box: learn the teacher's whole next-token distribution, token by token, on the samples' text.

    samples: prompt -> completion, as a generate run leaves them
    loss:    (1 - ce_weight) * divergence(teacher, student) + ce_weight * -log p_student(token)

Word-level distillation (Hinton et al. 2015; Kim & Rush 2016, section 3.1) from a live teacher whose
final hidden states are kept, so that it reads each sample once. The student needs the teacher's
tokenizer. The teacher reads `teacher_prompt` where a sample has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from kdbench.errors import ConfigError
from kdbench.models.weights import require_train
from kdbench.records import Completion
from kdbench_trainers._config import TrainConfig

NEEDS_TEACHER = True  # its weights: a run records their hash


class Config(TrainConfig):
    """Settings of white_box: those of every trainer, and how the distributions are compared."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    beta: float = Field(
        0.5, gt=0, lt=1, description="of jsd: towards 0 like forward_kl, towards 1 like reverse_kl"
    )
    kd_temperature: float = Field(
        1.0, gt=0, le=100, description="softens both sides; the loss is times its square"
    )
    ce_weight: float = Field(0.0, ge=0, le=1, description="share of the cross-entropy on the samples' tokens")
    teacher_cache_mb: int = Field(4096, ge=0, description="memory for the teacher's hidden states, in MB")


def train(
    samples: Sequence[Completion],
    *,
    teacher: str | None,
    student: str,
    out: Path,
    config: Config,
    resume: bool,
) -> None:
    """Train `student` towards the distribution of `teacher`; `out/model` holds the result.

    Raises ConfigError without a teacher or with one of another vocabulary, MissingExtra, NothingLeft,
    UsageError.
    """
    if teacher is None:
        raise ConfigError(
            "The trainer white_box learns a teacher's distribution and no teacher is given; "
            "name one with --teacher, or use black_box"
        )
    require_train("the trainer white_box")
    from kdbench_trainers._fit import fit
    from kdbench_trainers._models import load_student
    from kdbench_trainers._teacher import load_teacher

    reader, model = load_student(student, config)
    teacher_reader, signal = load_teacher(teacher, student, reader, model, config)
    fit(
        samples,
        student=reader,
        teacher=teacher_reader,
        model=model,
        signal=signal,
        out=out,
        config=config,
        resume=resume,
    )
