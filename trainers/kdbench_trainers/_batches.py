"""The order of a training, its micro-batches, and their padded form.

lengths 90 30 80 28 31, at most two of the longest  ->  [90 80] [31 30 28], padded on the right
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from kdbench.models.rows import padded
from kdbench.models.sequences import TokenSequence

# What a pass through the models costs besides its tokens, counted in tokens. On a CPU all weights are read
# and all gradients are added once more, which is worth hundreds of tokens (`benchmarks/trainers.py --only
# ours_ragged` shows padding and speed). Elsewhere, where it was not measured, few tokens are taken to last as
# long as many, so that no pass is made to save padding.
_SPARE_CPU = 384
_SPARE_ELSEWHERE = 4096


class BatchOrder:
    """The samples of a whole training, as lists of indices: one for each of `steps` optimiser steps.

    Every sample comes once before any comes again, in an order that depends on the seed alone, or with
    `shuffle` false as they stand: a training that is taken up again skips what it has done. Of `world`
    processes each takes every world-th sample of a step's batch: together they see what one would see. Each
    batch comes `repeats` times in a row.
    """

    def __init__(
        self,
        count: int,
        *,
        batch: int,
        steps: int,
        seed: int,
        shuffle: bool = True,
        repeats: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._count = count
        self.batch = batch
        self._mine = slice(rank, None, world)
        self._steps = steps
        self._seed = seed
        self._shuffle = shuffle
        self._repeats = repeats

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[int]]:
        stream = self._stream()
        for step in range(self._steps):
            if step % self._repeats == 0:
                batch = [next(stream) for _ in range(self.batch)][self._mine]
            yield batch

    def seen(self, step: int) -> int:
        """Samples that have come by then, each again in every epoch."""
        return -(-step // self._repeats) * self.batch

    def _stream(self) -> Iterator[int]:
        chance = random.Random(self._seed)  # noqa: S311 - an order, not a secret
        while True:
            order = list(range(self._count))
            if self._shuffle:
                chance.shuffle(order)
            yield from order


def cut(sequences: Sequence[TokenSequence], most: int, *, on_cpu: bool = True) -> list[list[TokenSequence]]:
    """The sequences, longest first, in those micro-batches that cost least.

    A micro-batch costs the tokens of its padded form and what a pass costs besides; none has more tokens
    than `most` of the longest sequence.
    """
    ordered = sorted(sequences, key=lambda one: -one.length)
    room = most * ordered[0].length if ordered else 0
    spare = _SPARE_CPU if on_cpu else _SPARE_ELSEWHERE
    cheapest: list[tuple[int, int]] = [(0, 0)]  # for the first n: what they cost, and where the last cut is
    for end in range(1, len(ordered) + 1):
        ways = []
        for begin in range(end - 1, -1, -1):
            tokens = (end - begin) * ordered[begin].length
            if tokens > room:
                break  # further back there are only more and longer ones
            ways.append((cheapest[begin][0] + tokens + spare, begin))
        cheapest.append(min(ways))
    parts, end = [], len(ordered)
    while end:
        begin = cheapest[end][1]
        parts.append(ordered[begin:end])
        end = begin
    return parts[::-1]


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
