"""Key-value caches of a decode loop whose rows come and go.

    rows = RowCache()
    rows.add(prefilled, lengths=[17, 20])     # two rows join
    ... model(..., past_key_values=rows)      # one token for every row: row i is written at lengths[i]
    rows.remove([0])                          # the last row moves into the hole; cost: one row

Every row begins at column 0 and has a length of its own, so rows of any age stand in one batch, no row
is padded on the left, and a finished row frees its place at once. What lies beyond a row's length is
never seen: the mask hides it. Shapes are (rows, key-value heads, columns, head dimension) per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

# Columns are added in blocks: attention reads whole blocks, and growing copies everything once a block.
_BLOCK = 32


class Prefix:
    """The keys and values that several prompts share: per layer (1, heads, columns, dimension)."""

    def __init__(self, ids: Sequence[int], keys: list[Tensor], values: list[Tensor]) -> None:
        self.ids = tuple(ids)
        self.keys = keys
        self.values = values


class PrefillCache(Cache):
    """What a prefill writes; it reads the shared prefix, if any, before its own columns."""

    def __init__(self, prefix: Prefix | None = None) -> None:
        super().__init__(layers=[])
        self.prefix = prefix
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep a layer's new columns; the keys and values to attend to, prefix first."""
        self.keys.append(key_states)
        self.values.append(value_states)
        if self.prefix is None:
            return key_states, value_states
        rows = key_states.shape[0]
        before = self.prefix.keys[layer_idx], self.prefix.values[layer_idx]
        key, value = (t.expand(rows, -1, -1, -1) for t in before)
        return torch.cat([key, key_states], dim=2), torch.cat([value, value_states], dim=2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the prefix."""
        return len(self.prefix.ids) if self.prefix else 0


class RowCache(Cache):
    """Keys and values of the rows that are being decoded."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.lengths: list[int] = []
        self.width = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._at: tuple[Tensor, Tensor] | None = None

    def add(self, prefilled: PrefillCache, lengths: Sequence[int]) -> None:
        """Let prefilled rows join; `lengths` are theirs, the prefix included."""
        old, new = len(self.lengths), len(lengths)
        if not self._keys:
            self._keys = [_no_rows(t) for t in prefilled.keys]
            self._values = [_no_rows(t) for t in prefilled.values]
        self.lengths += lengths
        self._fit(extra=1, rows=old + new)
        skip = prefilled.get_seq_length()
        for kept, fresh, before in self._pairs(prefilled):
            if before is not None:
                kept[old : old + new, :, :skip] = before
            room = min(fresh.shape[2], self.width - skip)
            kept[old : old + new, :, skip : skip + room] = fresh[:, :, :room]

    def _pairs(self, prefilled: PrefillCache) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        prefix = prefilled.prefix
        none: list[Tensor | None] = [None] * len(self._keys)
        keys = zip(self._keys, prefilled.keys, prefix.keys if prefix else none, strict=True)
        values = zip(self._values, prefilled.values, prefix.values if prefix else none, strict=True)
        return [*keys, *values]

    def remove(self, rows: Sequence[int]) -> None:
        """Let rows leave. From the highest on, the last row takes the place of each that leaves."""
        for row in sorted(rows, reverse=True):
            last = len(self.lengths) - 1
            if row != last:
                for tensor in (*self._keys, *self._values):
                    tensor[row] = tensor[last]
                self.lengths[row] = self.lengths[last]
            self.lengths.pop()

    def next_column(self, device: torch.device) -> Tensor:
        """Make room for one more column in every row; where each row will write, (rows,)."""
        self._fit(extra=1, rows=len(self.lengths))
        columns = torch.tensor(self.lengths, device=device)
        self._at = torch.arange(len(self.lengths), device=device), columns
        return columns

    def wrote(self) -> None:
        """Every row is one column longer."""
        self.lengths = [length + 1 for length in self.lengths]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one column of every row; all columns of all rows."""
        assert self._at is not None, "next_column() comes before the forward pass"
        rows, columns = self._at
        keys, values = self._keys[layer_idx][: len(rows)], self._values[layer_idx][: len(rows)]
        keys[rows, :, columns] = key_states[:, :, 0]
        values[rows, :, columns] = value_states[:, :, 0]
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the longest row."""
        return max(self.lengths, default=0)

    def _fit(self, extra: int, rows: int) -> None:
        """Keep the tensors as wide as the longest row needs, in whole blocks, and with room for `rows`."""
        need = -(-(max(self.lengths, default=0) + extra) // _BLOCK) * _BLOCK
        have = self._keys[0].shape[0]
        # Narrower only by much: a copy for a block or two would cost more than reading them.
        if rows <= have and need <= self.width <= need + 4 * _BLOCK:
            return
        self._keys = [_resized(t, max(rows, have), need) for t in self._keys]
        self._values = [_resized(t, max(rows, have), need) for t in self._values]
        self.width = need


def _no_rows(like: Tensor) -> Tensor:
    return like.new_zeros(0, like.shape[1], 0, like.shape[3])


def _resized(tensor: Tensor, rows: int, width: int) -> Tensor:
    # Zeros, not empty: hidden columns are multiplied by zero, and 0 * nan is nan.
    new = tensor.new_zeros(rows, tensor.shape[1], width, tensor.shape[3])
    keep = min(width, tensor.shape[2])
    new[: tensor.shape[0], :, :keep] = tensor[:, :, :keep]
    return new
