"""Sampling from a student and its teacher together, token by token (MiniLLM's teacher-mixed sampling).

    next token of "Once upon"     a      the    ...
    teacher p                     0.9    0.05
    student q                     0.6    0.1
    drawn from p~                 0.66   0.09       share p + (1 - share) q, with share 0.2

Gu et al. 2024, arXiv 2306.08543, section 2.2. Each model reads its own prompt and what was drawn so far, with
a key-value cache of its own. As in `BatchSampler`, a draw depends on the request's own seed, and on its
neighbours only by the rounding of sums.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdbench.errors import RunFailed
from kdbench.losses.divergences import log_probabilities, mixed
from kdbench.models._draws import pick
from kdbench.models.decoding import Decoding, close_gaps
from kdbench.models.rows import no_numbers
from kdbench.models.sequences import TokenSequence
from kdbench.teacher import Sampling

_AS_IT_IS = Sampling(temperature=1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """The prompts of `sequence` to go on from, by at most `most` tokens, and the seed to draw from."""

    sequence: TokenSequence
    most: int
    seed: int


@dataclass(slots=True, eq=False)
class Continuation:
    """Drawn tokens, the end token included, and the log-probability that each model gave to each."""

    ids: list[int] = field(default_factory=list)
    student: list[float] = field(default_factory=list)
    teacher: list[float] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Row:
    request: Request
    rng: random.Random
    drawn: Continuation
    last: tuple[int, int]  # what student and teacher are fed next


class MixedSampler:
    """Draws from two models that share a vocabulary. Not thread-safe."""

    def __init__(
        self, student: Any, teacher: Any, *, name: str, share: float, vocabulary: int, ends: Collection[int]
    ) -> None:
        """`name` is the teacher's, `share` its part of the mixture; tokens are below `vocabulary`.

        Raises UsageError for a model of an unknown kind.
        """
        self._student, self._teacher = Decoding(student), Decoding(teacher)
        self._name = name
        self._share = share
        self._vocabulary = vocabulary
        self._ends = ends

    def run(self, requests: Sequence[Request]) -> list[Continuation]:
        """What was drawn for each, all at once. Raises RunFailed where a model gives no numbers."""
        found = [Continuation() for _ in requests]
        rows = [self._row(one, drawn) for one, drawn in zip(requests, found, strict=True)]
        with self._student.begin(), self._teacher.begin():
            self._student.join([one.sequence.prompt for one in requests])
            self._teacher.join([one.sequence.teacher_prompt for one in requests])
            while rows:
                self._step(rows)
                gone = [i for i, row in enumerate(rows) if self._has_ended(row)]
                for of_model in (self._student, self._teacher):
                    of_model.leave(gone)
                close_gaps(rows, gone)
        return found

    def _row(self, request: Request, drawn: Continuation) -> _Row:
        last = request.sequence.prompt[-1], request.sequence.teacher_prompt[-1]
        return _Row(request, random.Random(request.seed), drawn, last)  # noqa: S311

    def _step(self, rows: Sequence[_Row]) -> None:
        student = self._log_probs(self._student, [row.last[0] for row in rows])
        teacher = self._log_probs(self._teacher, [row.last[1] for row in rows]).to(student)
        if bool(teacher.isnan().any()):
            raise no_numbers(self._name, [row.request.sequence for row in rows])
        if bool(student.isnan().any()):
            raise RunFailed(
                "The student answers with numbers that are none (NaN or infinity); lower learning_rate"
            )
        chances = mixed(teacher, student, self._share)
        tokens = pick(chances, [_AS_IT_IS] * len(rows), [row.rng.random() for row in rows])
        at = torch.tensor(tokens, device=student.device).unsqueeze(-1)
        given = (of_model.gather(-1, at).squeeze(-1).tolist() for of_model in (student, teacher))
        for row, token, by_student, by_teacher in zip(rows, tokens, *given, strict=True):
            row.last = (token, token)
            row.drawn.ids.append(token)
            row.drawn.student.append(by_student)
            row.drawn.teacher.append(by_teacher)

    def _log_probs(self, of_model: Decoding, last: Sequence[int]) -> Tensor:
        # Rows that pad a head beyond the vocabulary are no tokens.
        return log_probabilities(of_model.next(last)[:, : self._vocabulary])

    def _has_ended(self, row: _Row) -> bool:
        return row.drawn.ids[-1] in self._ends or len(row.drawn.ids) == row.request.most
