"""cross_tokenizer: learn from the distribution of a teacher that has another tokenizer.

    text       Once upon a time
    student    Once| upon| a| time| <end>
    teacher    On|ce| up|on| a time| <eos>        is heard where both have read the same:
                                                  at the beginning, behind "Once" and "Once upon", at the end
    loss       ce_weight * -log p_student(token) + (1 - ce_weight) * ULD(teacher, student)
               where the teacher is not heard: the first part alone

The universal logit distance compares how probability is spread, from the likeliest token to the unlikeliest,
not which token has it (ULD, Boizard et al. 2024, arXiv 2402.12030, eq. 4). A step's loss is the sum over all
tokens that are learnt, divided by the sum of their weights: those at which the teacher is not heard included,
in the divergence as well. Each model reads the prompt in its own chat template and has its own end of turn.

The authors' code compares the two models' n-th tokens with one another, whatever they have read until then,
and takes a mean over each answer; its example adds 1.5 times that to the cross-entropy, the proportion of
ce_weight 0.4. Rows that have not read the same text would teach the student at the wrong place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdbench.models.weights import require_train
from kdbench.records import Completion
from kdbench_trainers._config import TeacherConfig
from kdbench_trainers._presets import no_teacher

if TYPE_CHECKING:
    from kdbench.models.sequences import Reader
    from kdbench_trainers._aligned import AlignedTeacher
    from kdbench_trainers._rehearsal import Rehearsal

NEEDS_TEACHER = True
TWO_TOKENIZERS = True


class Config(TeacherConfig):
    """Settings of cross_tokenizer: those of every trainer, and how much the teacher counts."""

    ce_weight: float = Field(
        0.4, ge=0, lt=1, description="share of the cross-entropy on the samples' tokens; the rest is ULD's"
    )


def train(
    samples: Sequence[Completion],
    *,
    teacher: str | None,
    student: str,
    out: Path,
    config: Config,
    resume: bool,
) -> None:
    """Train `student` towards `teacher`, which has another tokenizer; `out/model` holds the result.

    Raises ConfigError without a teacher, with one of the same tokenizer, or where a tokenizer gives no
    offsets; MissingExtra, NothingLeft, UsageError.
    """
    student_reader, model, teacher_reader, lesson = _load(teacher, student, config)
    from kdbench.checks.case import Case
    from kdbench.checks.running import VETTED, vet
    from kdbench.models.alignment import encode_aligned
    from kdbench.models.sequences import split
    from kdbench_trainers._fit import learn
    from kdbench_trainers._options import in_order
    from kdbench_trainers._trainer import Plan

    samples = [one for one in config.prepared(samples) if isinstance(one, Completion)]
    sequences = encode_aligned(samples, student_reader, teacher_reader, config.max_length)
    learnt, held_out = split(sequences, config.validation_share, config.seed, config.held_out)
    learnt = in_order(learnt, samples, config)
    case = Case(
        samples, student_reader, teacher_reader, config.max_length, learnt, held_out,
        two_tokenizers=True, most=VETTED,
    )  # fmt: skip
    vet(case)
    learn(
        learnt, held_out, student=student_reader, model=model, plan=Plan(lesson), out=out, config=config,
        resume=resume,
    )  # fmt: skip


def rehearse(
    samples: Sequence[Completion], *, teacher: str | None, student: str, config: Config
) -> Rehearsal:
    """What `kdbench doctor` looks at. Raises what `train` raises first."""
    reader, model, _, lesson = _load(teacher, student, config)
    from kdbench_trainers._rehearsal import Rehearsal
    from kdbench_trainers._trainer import Plan

    return Rehearsal(reader, model, Plan(lesson), config)


def _load(teacher: str | None, student: str, config: Config) -> tuple[Reader, Any, Reader, AlignedTeacher]:
    """Student and teacher, each with its reader."""
    if teacher is None:
        raise no_teacher("cross_tokenizer")
    require_train("the trainer cross_tokenizer")
    from kdbench_trainers._aligned import load_aligned_teacher
    from kdbench_trainers._models import load_student

    reader, model = load_student(student, config)
    found = load_aligned_teacher(teacher, student, reader, model, config, ce_weight=config.ce_weight)
    return reader, model, *found
