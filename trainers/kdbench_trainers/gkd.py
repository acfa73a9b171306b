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

from kdbench.models.weights import require_train
from kdbench.records import Completion
from kdbench_trainers._config import DivergenceName, Material, OnPolicyConfig
from kdbench_trainers._presets import distil

if TYPE_CHECKING:
    from kdbench.checks.rehearsing import Rehearsal
    from kdbench_trainers._sources import Source, Writer

TAKES = ("completion", "text")
NEEDS_TEACHER = True


class Config(OnPolicyConfig):
    """Settings of gkd: how the distributions are compared, and how often the student writes."""

    divergence: DivergenceName = "jsd"
    lmbda: float = Field(0.5, ge=0, le=1, description="share of the steps on the student's own text")


def train(
    samples: Sequence[Material],
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


def rehearse(
    samples: Sequence[Completion], *, teacher: str | None, student: str, config: Config
) -> Rehearsal:
    """What `kdbench doctor` looks at: a step on the student's own text. Raises what `train` raises first."""
    require_train("the trainer gkd")
    from kdbench_trainers._rehearsal import rehearse_distribution
    from kdbench_trainers._sources import Mixed

    return rehearse_distribution(
        "gkd", teacher=teacher, student=student, config=config,
        source=lambda writer: Mixed(writer, 1.0, config.seed),
    )  # fmt: skip
