"""The order of a training, its micro-batches, and their padded form.

batch 4, micro-batch 2, lengths 9 3 7 4  ->  [9 7] [4 3], each padded on the right to its longest
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from kdbench.models.rows import padded
from kdbench.models.sequences import TokenSequence


class BatchOrder:
    """The samples of a whole training, as lists of indices: `steps` times `micro_batches` of them.

    Every sample comes once before any comes again. The order depends on the seed alone, so a training
    that is taken up again skips what it has done. Of `world` processes each takes every world-th sample
    of a step's batch: together they see what one process would see.
    """

    def __init__(
        self,
        count: int,
        *,
        batch: int,
        micro_batch: int | None,
        steps: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._count = count
        self.batch = batch
        self._mine = slice(rank, None, world)
        share = batch // world
        self._micro = min(micro_batch or share, share)
        self.micro_batches = -(-share // self._micro)
        self._steps = steps
        self._seed = seed

    def __len__(self) -> int:
        return self._steps * self.micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        stream = self._stream()
        for _ in range(self._steps):
            mine = [next(stream) for _ in range(self.batch)][self._mine]
            for i in range(0, len(mine), self._micro):
                yield mine[i : i + self._micro]

    def _stream(self) -> Iterator[int]:
        chance = random.Random(self._seed)  # noqa: S311 - an order, not a secret
        while True:
            order = list(range(self._count))
            chance.shuffle(order)
            yield from order


def by_length(sequences: Sequence[TokenSequence], size: int) -> list[list[TokenSequence]]:
    """The sequences, longest first, cut into lists of `size`, so that little is padded."""
    ordered = sorted(sequences, key=lambda one: -one.length)
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def weights_of(sequences: Sequence[TokenSequence], tasks: Sequence[str]) -> list[float]:
    """The sum of the weights of all rows of each task."""
    sums = dict.fromkeys(tasks, 0.0)
    for one in sequences:
        sums[one.task] += one.weight * len(one.completion)
    return list(sums.values())


def in_shares(
    sequences: Sequence[TokenSequence], shares: Mapping[str, float], sums: Mapping[str, float]
) -> list[TokenSequence]:
    """The sequences with new weights: the rows of each task then sum to its share of the sum of all.

    `sums` are those of the tasks' rows as they are, over all that is learnt in one step.
    """
    factors = {task: shares[task] * sum(sums.values()) / found for task, found in sums.items() if found}
    return [replace(one, weight=one.weight * factors[one.task]) for one in sequences]


def collate(sequences: Sequence[TokenSequence]) -> dict[str, Any]:
    """A micro-batch for the student.

    `input_ids`, `attention_mask`, `position_ids` [B, L]; `rows` [B, L], true where the next token is
    learnt; of these N rows, in order, `targets` [N] and `weights` [N]; and the sequences themselves.
    """
    ids = [s.prompt + s.completion for s in sequences]
    counts = [len(s.completion) for s in sequences]
    return {
        **padded(ids, counts),
        "targets": torch.tensor([token for s in sequences for token in s.completion]),
        "weights": torch.tensor([s.weight for s in sequences for _ in s.completion]),
        "sequences": list(sequences),
    }
