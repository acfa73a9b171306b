"""A teacher with another tokenizer: heard where it and the student have read the same text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.losses.chunked import LossSums
from kdbench.losses.heads import Head
from kdbench.losses.signals import HiddenStates
from kdbench.losses.universal import universal_loss
from kdbench.models.loading import load_tokenizer
from kdbench.models.sequences import Reader, TokenSequence
from kdbench_trainers._config import TeacherConfig
from kdbench_trainers._teacher import TeacherModel, loaded, written


def load_aligned_teacher(
    teacher: str,
    student: str,
    student_reader: Reader,
    student_model: Any,
    config: TeacherConfig,
    *,
    ce_weight: float,
) -> tuple[Reader, AlignedTeacher]:
    """A teacher with another tokenizer, as `load_teacher`. Raises ConfigError for one with the same."""
    tokenizer = load_tokenizer(teacher)
    if tokenizer.get_vocab() == student_reader.tokenizer.get_vocab():
        raise ConfigError(
            f"The student '{student}' and the teacher '{teacher}' have the same tokenizer, and "
            "cross_tokenizer does not look at which token has which probability; use white_box, which does"
        )
    reader, model = loaded(teacher, tokenizer, config)
    lesson = AlignedTeacher(
        teacher, model, config, written(tokenizer, model), ce_weight=ce_weight,
        students=written(student_reader.tokenizer, student_model),
    )  # fmt: skip
    return reader, lesson


class AlignedTeacher(TeacherModel):
    """The universal logit distance from what the teacher's model says at the aligned rows."""

    def __init__(
        self,
        name: str,
        model: Any,
        config: TeacherConfig,
        vocabulary: int,
        *,
        ce_weight: float,
        students: int,
    ) -> None:
        """`vocabulary` and `students` are the rows that count of the teacher's head and the student's."""
        super().__init__(name, model, config, vocabulary)
        self._ce_weight = ce_weight
        self._students = students

    def loss(self, batch: dict[str, Any], hidden: Tensor, head: Head, said: HiddenStates) -> LossSums:
        """Sums over the batch's rows, of which some are compared with what the teacher said there."""
        return universal_loss(
            hidden,
            head.cut(self._students),
            said,
            batch["targets"],
            aligned(batch["sequences"]),
            ce_weight=self._ce_weight,
            weights=batch["weights"],
        )


def aligned(sequences: Sequence[TokenSequence]) -> list[int]:
    """Those of a batch's rows, counted over its sequences, at which the teacher is heard."""
    rows: list[int] = []
    begin = 0
    for one in sequences:
        assert one.alignment is not None, "made by encode_aligned"
        rows += [begin + row for row in one.alignment.student_rows]
        begin += len(one.completion)
    return rows
