"""What a trainer shows of itself before it trains: its batches, its hidden states and its first step.

    # in a trainer's module, beside `train`; optional
    def rehearse(samples, *, teacher: str | None, student: str, config: Config) -> Rehearsal: ...

    # in a trainer that is a sequence of trainings, in its place
    def parts(samples, *, teacher: str | None, config: Config) -> list[Part]: ...

The checks on masks, positions and the denominator are of what the trainer does, not of what the core would
do in its place: a loss that the core made of `kdbench.losses` would be right whatever a trainer gets wrong.
So they go through this hook, and a trainer without it is told that it was not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from kdbench.config import StrictConfig
from kdbench.models.sequences import TokenSequence
from kdbench.records import Completion

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """A training inside another one: what it is called there, its trainer, and what it learns from."""

    name: str
    trainer: str
    config: StrictConfig
    samples: Sequence[Completion]
    teacher: str | None


@dataclass(frozen=True, slots=True)
class Step:
    """What an optimiser would get: the step's loss, its gradient by parameter, and what it was divided by."""

    loss: float
    gradient: Mapping[str, Tensor]
    divisor: float
    learnt: float  # weights of all rows that were learnt, as they stand in the micro-batches


class Rehearsal(Protocol):
    """A trainer that can be looked at, with its models loaded. No weight changes."""

    def batch(self, sequences: Sequence[TokenSequence]) -> Mapping[str, Any]:
        """The sequences as one padded micro-batch, in order.

        `input_ids`, `attention_mask` and `rows` [B, L], the last true where the next token is learnt; of
        these N rows, in order, `targets` [N] and `weights` [N].
        """
        ...

    def states(self, sequences: Sequence[TokenSequence]) -> Mapping[str, Tensor]:
        """Final hidden states [N, H] at the learnt rows of one padded batch, by "student" and "teacher"."""
        ...

    def step(self, sequences: Sequence[TokenSequence], *, micro_batch: int, world: int = 1) -> Step:
        """An optimiser step on all of them, in micro-batches and divided over `world` processes."""
        ...
