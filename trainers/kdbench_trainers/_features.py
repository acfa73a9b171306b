"""A live teacher that is also looked into, and a student that learns what is found there.

    teacher_reader, plan = feature_plan("smollm2", "runs/pruned", reader, model, config)

Of a sequence of L tokens with n learnt ones the teacher's cache takes, in place of n * H numbers, n * H for
each of `hidden_layers` more, and L times the numbers of a query, a key and a value over all heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdbench.errors import ConfigError
from kdbench.losses.chunked import LossSums
from kdbench.losses.features import hidden_state_error, relation_divergence
from kdbench.losses.heads import Head, head_of
from kdbench.losses.signals import HiddenStates
from kdbench.models.activations import Inside, Seen, layers_at, projections_at
from kdbench.models.rows import hidden_rows
from kdbench.models.sequences import Reader, TokenSequence
from kdbench_trainers._teacher import LiveTeacher, load_teacher
from kdbench_trainers._trainer import Plan

if TYPE_CHECKING:
    from kdbench_trainers.feature_matching import Config


def feature_plan(
    teacher: str, student: str, student_reader: Reader, student_model: Any, config: Config
) -> tuple[Reader, Plan]:
    """The teacher as a reader of sequences, and the method. Raises ConfigError, UsageError."""
    pairs = config.hidden_layers
    ours = _inside(student, student_model, config, config.student_layer, [one for one, _ in pairs])

    def make(name: str, model: Any, config: Config, vocabulary: int) -> FeatureTeacher:
        theirs = _inside(name, model, config, config.teacher_layer, [one for _, one in pairs])
        _check_heads(config.relation_heads, ours, theirs)
        if pairs:
            _check_hidden_sizes(student_model, model)
        return FeatureTeacher(name, model, config, vocabulary, inside=theirs, student_inside=ours)

    reader, lesson = load_teacher(teacher, student, student_reader, student_model, config, make)
    terms = (*(("hidden_states",) if pairs else ()), *(("relations",) if config.relation_share else ()))
    return reader, Plan(lesson, look=lesson.look, terms=terms, balance=_alpha if pairs else None)


def _inside(name: str, model: Any, config: Config, layer: int, hidden: Sequence[int]) -> Inside:
    projections = projections_at(name, model, layer) if config.relation_share else ()
    return Inside(layers_at(name, model, hidden), projections)


def _check_heads(heads: int, student: Inside, teacher: Inside) -> None:
    if any(width % heads for width in (*student.widths, *teacher.widths)):
        most = math.gcd(*student.widths, *teacher.widths)
        fitting = [str(one) for one in range(1, most + 1) if most % one == 0]
        raise ConfigError(
            f"relation_heads = {heads} does not divide all of the student's queries, keys and values "
            f"({_listed(student.widths)} numbers) and the teacher's ({_listed(teacher.widths)}); these do: "
            f"{_listed(fitting)}"
        )


def _listed(several: Sequence[object]) -> str:
    return ", ".join(map(str, several))


def _check_hidden_sizes(student: Any, teacher: Any) -> None:
    ours, theirs = (head_of(one).weight.shape[1] for one in (student, teacher))
    if ours != theirs:
        raise ConfigError(
            f"hidden_layers compares states of one width, and the student's have {ours} numbers and the "
            f"teacher's {theirs}; leave hidden_layers out, as relations have no width, or take a student "
            "that was pruned by layers alone"
        )


def _alpha(sums: Mapping[str, Tensor]) -> Tensor:
    """Minitron's dynamic weight L_logits / L_hidden; 0 where the states are equal already."""
    divergence, hidden = sums["divergence"].clamp_min(0), sums["hidden_states"]
    return torch.where(hidden > 0, divergence / hidden, 0)


@dataclass(frozen=True, slots=True)
class Heard(HiddenStates):
    """What the teacher says, and what went on inside it, by sequence."""

    seen: Sequence[Seen]


class FeatureTeacher(LiveTeacher):
    """The teacher's distribution, its attention's relations and its hidden states."""

    def __init__(
        self,
        name: str,
        model: Any,
        config: Config,
        vocabulary: int,
        *,
        inside: Inside,
        student_inside: Inside,
    ) -> None:
        super().__init__(name, model, config, vocabulary)
        self._inside = inside
        self._student_inside = student_inside
        self._share = config.relation_share
        self._heads = config.relation_heads

    def look(self, model: Any, batch: dict[str, Any]) -> list[Seen]:
        """The student's forward pass, by sequence."""
        sequences = batch["sequences"]
        with self._student_inside.caught() as found:
            hidden = hidden_rows(model, batch).split([len(one.completion) for one in sequences])
        return self._student_inside.seen(found, hidden, [len(one.prompt) for one in sequences])

    def read(self, batch: dict[str, Any]) -> Heard:
        """What the teacher says and does at the batch's sequences."""
        seen = self._seen(batch["sequences"])
        return Heard(torch.cat([one.hidden for one in seen]), self._head, seen)

    def loss(self, batch: dict[str, Any], hidden: Any, head: Head, said: Any) -> LossSums:
        """As of a plain distillation, with relations and hidden states as `terms`.

        `hidden` is what `look` saw. Without a "balance" in the batch hidden states are counted, not learnt.
        """
        sums = super().loss(batch, torch.cat([one.hidden for one in hidden]), head, said)
        weights, pairs = batch["weights"], list(zip(hidden, said.seen, strict=True))
        loss, terms = sums.loss, dict[str, Tensor]()
        if self._inside.layers:
            error = (weights * torch.cat([_states_apart(*pair) for pair in pairs])).sum()
            loss = loss + batch.get("balance", 0) * error
            terms["hidden_states"] = error.detach()
        if self._share:
            alike = [one.prompt == one.teacher_prompt for one in batch["sequences"]]
            several = [self._relations_apart(*pair, whole) for pair, whole in zip(pairs, alike, strict=True)]
            apart = (weights * torch.cat(several)).sum()
            loss = (1 - self._share) * loss + self._share * apart
            terms["relations"] = apart.detach()
        return replace(sums, loss=loss, terms=terms)

    def _relations_apart(self, student: Seen, teacher: Seen, whole: bool) -> Tensor:
        """The divergences [n] of queries', keys' and values' relations, added up.

        They look back on all that both have read: on the n rows alone where that is not the `whole`, but the
        prompts differ. They are made again in the backward pass: a long sequence's take heads * n * L
        numbers, several times.
        """
        count = len(student.hidden)
        length = len(student.attention[0]) if whole else count
        seen = slice(-length, None)

        def compare(*ours: Tensor) -> Tensor:
            several = [
                relation_divergence(
                    one[seen], other[seen], heads=self._heads, rows=slice(length - count, length)
                )
                for one, other in zip(ours, teacher.attention, strict=True)
            ]
            return torch.stack(several).sum(0)

        found: Tensor = checkpoint(compare, *student.attention, use_reentrant=False)
        return found

    def _numbers(self, sequence: TokenSequence) -> int:
        length = len(sequence.teacher_prompt) + len(sequence.completion)
        return super()._numbers(sequence) * (1 + len(self._inside.layers)) + length * sum(self._inside.widths)

    def _look(self, sequences: Sequence[TokenSequence]) -> Sequence[Seen]:
        with self._inside.caught() as found:
            hidden = [one.hidden for one in super()._look(sequences)]
        return self._inside.seen(found, hidden, [len(one.teacher_prompt) for one in sequences])


def _states_apart(student: Seen, teacher: Seen) -> Tensor:
    """The errors [n] of all compared layers, averaged."""
    several = [hidden_state_error(*pair) for pair in zip(student.states, teacher.states, strict=True)]
    return torch.stack(several).mean(0)
