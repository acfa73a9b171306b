"""distillm: skew divergence, the student's own text only as far as it helps, and that text several times.

    r in [0, 1) drawn for each step, phi from validation, lambda = phi (1 - step / steps)
    r < lambda             the student writes; what it wrote goes into the buffer
    r < phi                a batch out of the buffer (while it fills: the student writes)
    else                   the data's batch

Ko et al. 2024, arXiv 2402.03898: skew KL, alpha 0.1, whose gradient is bounded where the student gives a
token nothing. phi starts at 0 and grows by 0.1 each time that a validation is worse by `tolerance`: a
student that learns well from the data pays for no generation. phi and the buffer are in every checkpoint;
of several processes each keeps a buffer of its own. The paper adds a language-modelling loss on plain text,
and begins with a student trained on the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

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
    """Settings of distillm: how the distributions are compared, and what is kept for replay."""

    divergence: DivergenceName = "skew_kl"
    buffer_size: int = Field(1000, ge=1, description="completions kept for replay; the oldest leave first")
    tolerance: float = Field(
        0.1, ge=0, description="how much worse a validation must be, in nats per token, to count"
    )

    @model_validator(mode="after")
    def _room(self) -> Config:
        if self.validation_share == 0:
            raise ValueError(
                "distillm writes and replays as validation demands, and validation_share 0 leaves none; "
                "raise it, or use gkd or white_box"
            )
        if self.buffer_size < self.batch_size:
            raise ValueError(
                f"buffer_size {self.buffer_size} holds no batch of {self.batch_size}; make it larger"
            )
        return self


def train(
    samples: Sequence[Material],
    *,
    teacher: str | None,
    student: str,
    out: Path,
    config: Config,
    resume: bool,
) -> None:
    """Train `student` towards the distribution of `teacher`, on the samples' text and replayed own text.

    Raises ConfigError without a teacher or with one of another vocabulary, MissingExtra, NothingLeft,
    UsageError.
    """

    def source(writer: Writer) -> Source:
        from kdbench_trainers._sources import Replay

        return Replay(
            writer, steps=config.steps, seed=config.seed, capacity=config.buffer_size,
            tolerance=config.tolerance,
        )  # fmt: skip

    distil(
        "distillm", samples, teacher=teacher, student=student, out=out, config=config, resume=resume,
        source=source,
    )  # fmt: skip


def rehearse(
    samples: Sequence[Completion], *, teacher: str | None, student: str, config: Config
) -> Rehearsal:
    """What `kdbench doctor` looks at: a step on the student's own text. Raises what `train` raises first."""
    require_train("the trainer distillm")
    from kdbench_trainers._rehearsal import rehearse_distribution
    from kdbench_trainers._sources import Mixed

    # Of a step on the data's text or the buffer's the count is the data's; this is the one that differs.
    return rehearse_distribution(
        "distillm", teacher=teacher, student=student, config=config,
        source=lambda writer: Mixed(writer, 1.0, config.seed),
    )  # fmt: skip
