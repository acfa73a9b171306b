"""minillm: lower the reverse KL of whole texts, from text that student and teacher write together.

    p~ = teacher_mix * teacher + (1 - teacher_mix) * student           draws every token
    loss of a token:   KL(student || teacher) at its place             the reward of this step, exactly
                     - w min(rho R, clip(rho) R)                       the rewards of the steps after it
    R    the mean of log teacher - log student over the tokens after it, as they were when drawn
    w    student / p~ of the token when it was drawn;     rho    student now / student when it was drawn

Gu et al. 2024, arXiv 2306.08543: single-step decomposition, teacher-mixed sampling, length-normalised
returns; `inner_epochs` steps in a row learn from the same text, bounded by PPO's clip. gkd with reverse_kl
has the first term alone: it does not learn that a token leads into text the teacher would not write. With
`ce_weight` the data's own completions are learnt by their tokens beside it; the authors take plain text. The
paper begins with a student that was trained on such data before: train `black_box` first, and take a learning
rate far below its. The loss of a validation is the cross-entropy on held-out text; the reverse KL stands
beside it as divergence.

The authors' code begins R with the token's own reward, which the first term has counted; scales, clips,
discounts (0.95) and whitens rewards; and clips rho w. Here R is the paper's, from the next token on, and
nothing is rescaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from kdbench.models.weights import require_train
from kdbench.records import Completion
from kdbench_trainers._config import Material, TeacherConfig
from kdbench_trainers._presets import no_teacher

if TYPE_CHECKING:
    from kdbench.checks.rehearsing import Rehearsal

TAKES = ("completion", "text")
NEEDS_TEACHER = True


class Config(TeacherConfig):
    """Settings of minillm: how text is drawn, and how long it is learnt."""

    max_new_tokens: int = Field(128, ge=1, description="longest completion that is drawn")
    teacher_mix: float = Field(
        0.2, ge=0, lt=1, description="the teacher's part of each draw; 0: the student writes alone"
    )
    inner_epochs: int = Field(2, ge=1, description="steps in a row that learn from the same drawn text")
    clip: float = Field(
        0.2, gt=0, lt=1, description="how far a token's probability may move by its returns in these steps"
    )
    ce_weight: float = Field(
        0.0, ge=0, lt=1, description="share of the cross-entropy on the samples' own completions"
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
    """Train `student` to write what `teacher` finds likely; `out/model` holds the result.

    Raises ConfigError without a teacher or with one of another vocabulary, MissingExtra, NothingLeft,
    UsageError.
    """
    if teacher is None:
        raise no_teacher("minillm")
    require_train("the trainer minillm")
    from kdbench_trainers._fit import fit
    from kdbench_trainers._policy import plan_of

    reader, teacher_reader, model, plan = plan_of(teacher, student, config)
    fit(
        samples, student=reader, teacher=teacher_reader, model=model, plan=plan, out=out, config=config,
        resume=resume,
    )  # fmt: skip


def rehearse(
    samples: Sequence[Completion], *, teacher: str | None, student: str, config: Config
) -> Rehearsal:
    """What `kdbench doctor` looks at: a step on drawn text. Raises what `train` raises first."""
    if teacher is None:
        raise no_teacher("minillm")
    require_train("the trainer minillm")
    from kdbench_trainers._policy import plan_of
    from kdbench_trainers._rehearsal import NEW_TOKENS, Rehearsal

    # The data's own completions beside it would be counted like white_box's: this is the part that differs.
    brief = config.model_copy(
        update={"max_new_tokens": min(config.max_new_tokens, NEW_TOKENS), "ce_weight": 0.0}
    )
    reader, _, model, plan = plan_of(teacher, student, brief)
    return Rehearsal(reader, model, plan, brief)
