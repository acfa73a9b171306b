"""feature_matching: match the teacher inside, by attention relations or hidden states, and its distribution.

    loss:  (1 - relation_share) * (D + alpha * H) + relation_share * R
    D      white_box's: the divergence of the distributions, mixed with the cross-entropy
    R      MiniLMv2's: which positions a layer's queries, keys and values find alike, teacher against student
    H      Minitron's, with `hidden_layers: [[-1, -1]]`: how far apart the states behind those layers are

R (Wang et al. 2021, arXiv 2012.15828; AdaLM distils with the first MiniLM, arXiv 2002.10957) knows no width:
student and teacher may differ in layers, heads and hidden size, if `relation_heads` divides the numbers of
both models' queries, keys and values. These are taken before rotary positions, and look back only: on the
answer alone where the teacher reads another prompt than the student.

H (Muralidharan et al. 2024, arXiv 2407.14679) is for students cut hard in depth; hidden sizes must be the
same. alpha = divergence / H over the whole optimiser step, so that both count alike: each step is read once
more for it. Validation, which has no step, reports H and leaves it out of the loss.

Of the first MiniLM's relations this has the values' alone: softmax(QK^T) would tie the two models' heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from kdbench.models.weights import require_train
from kdbench.records import Completion
from kdbench_trainers._config import DistillConfig, Material
from kdbench_trainers._presets import no_teacher

if TYPE_CHECKING:
    from kdbench.checks.rehearsing import Rehearsal

TAKES = ("completion", "text")
NEEDS_TEACHER = True


class Config(DistillConfig):
    """Settings of feature_matching: which layers are compared, and how much that counts.

    Layers are counted from 0, or from the end with -1.
    """

    relation_share: float = Field(
        0.5, ge=0, le=1, description="share of the relations in the loss; 0: none, 1: nothing else is learnt"
    )
    relation_heads: int = Field(
        16, ge=1, description="parts that queries, keys and values are split into; more is finer"
    )
    student_layer: int = Field(-1, description="whose relations are learnt")
    teacher_layer: int = Field(
        -1, description="whose they are; of large teachers one above the middle serves better than the last"
    )
    hidden_layers: list[tuple[int, int]] = Field(
        [], description="pairs of a student's and a teacher's layer whose hidden states are to be equal"
    )

    @model_validator(mode="after")
    def _matches_something(self) -> Config:
        if self.relation_share == 0 and not self.hidden_layers:
            raise ValueError(
                "with relation_share 0 and no hidden_layers nothing inside is matched; name hidden_layers, "
                "or use white_box"
            )
        if self.relation_share == 1 and self.hidden_layers:
            raise ValueError("relation_share 1 leaves hidden_layers no part in the loss; leave them out")
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
    """Train `student` towards what goes on in `teacher`; `out/model` holds the result.

    Raises ConfigError without a teacher, with one of another vocabulary, and for layers, heads or hidden
    sizes that cannot be compared; MissingExtra, NothingLeft, UsageError.
    """
    if teacher is None:
        raise no_teacher("feature_matching")
    require_train("the trainer feature_matching")
    from kdbench_trainers._features import feature_plan
    from kdbench_trainers._fit import fit
    from kdbench_trainers._models import load_student

    reader, model = load_student(student, config)
    teacher_reader, plan = feature_plan(teacher, student, reader, model, config)
    fit(
        samples, student=reader, teacher=teacher_reader, model=model, plan=plan, out=out, config=config,
        resume=resume,
    )  # fmt: skip


def rehearse(
    samples: Sequence[Completion], *, teacher: str | None, student: str, config: Config
) -> Rehearsal:
    """What `kdbench doctor` looks at. Raises what `train` raises first."""
    if teacher is None:
        raise no_teacher("feature_matching")
    require_train("the trainer feature_matching")
    from kdbench_trainers._features import feature_plan
    from kdbench_trainers._models import load_student
    from kdbench_trainers._rehearsal import Rehearsal

    reader, model = load_student(student, config)
    _, plan = feature_plan(teacher, student, reader, model, config)
    return Rehearsal(reader, model, plan, config)
