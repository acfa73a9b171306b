"""Rounds over a growing pool: every seed of a round sees what the rounds before it accepted, frozen.

    rounds = Rounds(size=20)
    rounds.add(sample)          # samples as they are accepted, in seed order
    rounds.settle(39)           # seed 39 is done, and with it the second round
    rounds.pool                 # -> Pool(round=2, samples=(...)): what seeds 40 to 59 see

A recipe says that it works in rounds by a function `round_size(config)`; its `generate` then takes a
`pool`. No seed of a round begins before the round before it is settled, so that the output does not
depend on concurrency. What a failing seed would have added is missing from the pool: when a resumed run
brings it home after all, the rounds behind it see another pool and ask anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from kdbench.records import Completion, Preference, Text

AnySample = Completion | Text | Preference


@dataclass(frozen=True)
class Pool:
    """What was accepted before this round began, in seed order."""

    round: int = 0
    samples: tuple[AnySample, ...] = ()

    def __iter__(self) -> Iterator[AnySample]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def latest(self) -> Mapping[str, AnySample]:
        """The newest sample of each group."""
        return {sample.group: sample for sample in self.samples if sample.group is not None}


class Rounds:
    """The bookkeeping of rounds. `size` seeds make a round; None: one round without end.

    `pool` is what the seeds of the present round see.
    """

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._accepted: list[AnySample] = []
        self.pool = Pool()

    def has_begun(self, seed: int) -> bool:
        """Whether everything before the seed's round is settled."""
        return self._size is None or seed // self._size <= self.pool.round

    def add(self, sample: AnySample) -> None:
        """Note an accepted sample."""
        if self._size is not None:
            self._accepted.append(sample)

    def settle(self, seed: int) -> None:
        """Note that a seed, and with it every lower one, is done."""
        if self._size is not None and (seed + 1) % self._size == 0:
            self.pool = Pool(self.pool.round + 1, tuple(self._accepted))
