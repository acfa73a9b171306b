"""Sequences to tensors: the order of a training, its micro-batches, and their padded form.

batch 4, micro-batch 2, lengths 9 3 7 4  ->  [9 7] [4 3], each padded on the right to its longest
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kdbench_trainers._sequences import TokenSequence


class BatchOrder:
    """The micro-batches of a whole training, as indices: `steps` times `micro_batches` lists.

    Every sample comes once before any comes again. The order depends on the seed alone, so a training
    that is taken up again skips what it has done.
    """

    def __init__(
        self, lengths: Sequence[int], *, batch: int, micro_batch: int | None, steps: int, seed: int
    ) -> None:
        self._lengths = lengths
        self.batch = batch
        self._micro = min(micro_batch or batch, batch)
        self._steps = steps
        self._seed = seed

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one optimiser step."""
        return -(-self.batch // self._micro)

    def __len__(self) -> int:
        return self._steps * self.micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        stream = self._stream()
        for _ in range(self._steps):
            yield from by_length([next(stream) for _ in range(self.batch)], self._lengths, self._micro)

    def _stream(self) -> Iterator[int]:
        chance = random.Random(self._seed)  # noqa: S311 - an order, not a secret
        while True:
            order = list(range(len(self._lengths)))
            chance.shuffle(order)
            yield from order


def by_length(indices: Sequence[int], lengths: Sequence[int], size: int) -> list[list[int]]:
    """The indices, longest first, cut into lists of `size`, so that little is padded."""
    ordered = sorted(indices, key=lambda index: -lengths[index])
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


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


def padded(ids: Sequence[Sequence[int]], counts: Sequence[int]) -> dict[str, Tensor]:
    """Right-padded inputs; `rows` marks the `counts` positions that predict each one's last tokens.

    The padding's ids do not matter: nothing attends to them, so an end marker that a tokenizer also
    pads with keeps its meaning.
    """
    longest = max(len(one) for one in ids)
    input_ids = torch.zeros(len(ids), longest, dtype=torch.long)
    rows = torch.zeros(len(ids), longest, dtype=torch.bool)
    for i, (one, count) in enumerate(zip(ids, counts, strict=True)):
        input_ids[i, : len(one)] = torch.tensor(one)
        rows[i, len(one) - count - 1 : len(one) - 1] = True
    lengths = torch.tensor([len(one) for one in ids]).unsqueeze(1)
    positions = torch.arange(longest).expand(len(ids), longest)
    return {
        "input_ids": input_ids,
        "attention_mask": (positions < lengths).long(),
        "position_ids": positions.contiguous(),
        "rows": rows,
    }
