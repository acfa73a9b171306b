"""gkd: learn from the teacher's judgement of the student's own text (generalised knowledge distillation).

    step with probability lmbda:  the student completes the batch's prompts, and the teacher's distribution
                                  is learnt at every token of what it wrote
    else:                         the same on the data's completions

Agarwal et al. 2024, arXiv 2306.13649, algorithm 1, with JSD(beta) by default; no gradient goes through the
sampling. The student writes once per optimiser step, for all its micro-batches, and the loss is divided by
the tokens that it wrote. The paper begins with a student that was trained on such data before: train
`black_box` first, and gains grew with lmbda above 0.25.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from kdbench.records import Completion
from kdbench_trainers._config import DivergenceName, OnPolicyConfig
from kdbench_trainers._presets import distil

if TYPE_CHECKING:
    from kdbench_trainers._sources import Source, Writer

NEEDS_TEACHER = True


class Config(OnPolicyConfig):
    """Settings of gkd: how the distributions are compared, and how often the student writes."""

    divergence: DivergenceName = "jsd"
    lmbda: float = Field(0.5, ge=0, le=1, description="share of the steps on the student's own text")


def train(
    samples: Sequence[Completion],
    *,
    teacher: str | None,
    student: str,
    out: Path,
    config: Config,
    resume: bool,
) -> None:
    """Train `student` towards the distribution of `teacher`, on its own text and the samples'.

    Raises ConfigError without a teacher or with one of another vocabulary, MissingExtra, NothingLeft,
    UsageError.
    """

    def source(writer: Writer) -> Source:
        from kdbench_trainers._sources import Mixed

        return Mixed(writer, config.lmbda, config.seed)

    distil(
        "gkd", samples, teacher=teacher, student=student, out=out, config=config, resume=resume, source=source
    )
