"""One model that reads rows of tokens, each row from where it stands, with a key-value cache.

    decoding = Decoding(model)
    with decoding.begin():
        decoding.join([(1, 5, 7), (1, 9)])      # two prompts; all but their last token is read at once
        decoding.next([7, 9])                   # -> logits [2, V] of what comes after
        decoding.leave([0])                     # the last row takes its place
        decoding.next([4])

What the prompts that join together have in common (system message, instructions, examples) is read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kdbench.errors import UsageError
from kdbench.models._cache import PrefillCache, Prefix, RowCache
from kdbench.models._fast import fast_inference

# Tokens of one prefill pass: enough to keep the cores busy, little enough to stay small in memory.
_PREFILL_TOKENS = 4096
# A shorter common beginning is not worth a pass of its own.
_SHORTEST_PREFIX = 16
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


class Decoding:
    """The rows that one model is reading. Not thread-safe."""

    def __init__(self, model: Any) -> None:
        """Raises UsageError for a model of an unknown kind."""
        layers = set(getattr(model.config, "layer_types", None) or ())
        if unknown := layers - _KNOWN_LAYERS:
            raise UsageError(
                f"A model with layers of kind {', '.join(sorted(unknown))} cannot be sampled here; serve it "
                "with vLLM and use openai:MODEL"
            )
        self.model = model
        self._window: int | None = getattr(model.config, "sliding_window", None)
        self._mixed = "sliding_attention" in layers
        self._forget()

    def _forget(self) -> None:
        self._cache = RowCache()
        self._prefix: Prefix | None = None

    @contextmanager
    def begin(self) -> Iterator[None]:
        """The model in its fast form, in inference mode; at the end all rows are forgotten."""
        with fast_inference(self.model):
            try:
                yield
            finally:
                self._forget()  # the weights may change before it begins again

    def join(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Prefill the prompts of new rows, all but their last token, which the next step feeds.

        Alike lengths side by side make prefills without padding.
        """
        prefix = self._shared(prompts)
        skip = len(prefix.ids) if prefix else 0
        start = 0
        while start < len(prompts):
            end, width = start + 1, len(prompts[start])
            while end < len(prompts):
                width = max(width, len(prompts[end]))
                if (end + 1 - start) * (width - skip) > _PREFILL_TOKENS:
                    break
                end += 1
            part = [prompt[:-1] for prompt in prompts[start:end]]
            self._cache.add(self._prefill(part, prefix), [len(p) for p in part])
            start = end

    def next(self, last: Sequence[int]) -> Tensor:
        """Feed every row its last token: logits (rows, vocabulary) of the next."""
        device = self.model.device
        positions = self._cache.next_column(device)[:, None]
        logits: Tensor = self.model(
            input_ids=torch.tensor([[token] for token in last], device=device),
            attention_mask=self._mask(positions, self._cache.width),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self._cache.wrote()
        return logits

    def leave(self, rows: Sequence[int]) -> None:
        """Let rows go. From the highest on, the last row takes the place of each that leaves."""
        self._cache.remove(rows)

    def _shared(self, prompts: Sequence[tuple[int, ...]]) -> Prefix | None:
        """The prefix that all prompts share: the one at hand if it fits, else a new one, else none."""
        known = self._prefix
        if known and all(len(p) > len(known.ids) and p[: len(known.ids)] == known.ids for p in prompts):
            return known
        if len(prompts) < 2:
            return None
        low, high = min(prompts), max(prompts)
        most = min(len(p) for p in prompts) - 1
        same = next((i for i in range(most) if low[i] != high[i]), most)
        if same < _SHORTEST_PREFIX:
            return None
        read = self._prefill([low[:same]], None)
        self._prefix = Prefix(low[:same], read.keys, read.values)
        return self._prefix

    def _prefill(self, prompts: Sequence[tuple[int, ...]], prefix: Prefix | None) -> PrefillCache:
        """Keys and values of prompts, padded on the right, where no earlier token can see it."""
        skip = len(prefix.ids) if prefix else 0
        width = max(1, *(len(p) - skip for p in prompts))
        padded = [list(p[skip:]) + [0] * (width - len(p) + skip) for p in prompts]
        device = self.model.device
        positions = torch.arange(skip, skip + width, device=device)[None]
        cache = PrefillCache(prefix)
        self.model.get_decoder()(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=self._mask(positions, skip + width),
            position_ids=positions.expand(len(prompts), -1),
            past_key_values=cache,
            use_cache=True,
        )
        return cache

    def _mask(self, positions: Tensor, columns: int) -> Tensor | dict[str, Tensor]:
        """Additive masks (rows, 1, tokens, columns): a token at position p sees the columns up to p."""
        column = torch.arange(columns, device=positions.device)
        hidden = column > positions[..., None]
        far = column <= positions[..., None] - self._window if self._window else torch.zeros_like(hidden)
        full, near = (self._additive(m) for m in (hidden, hidden | far))
        if self._mixed:
            return {"full_attention": full, "sliding_attention": near}
        return near

    def _additive(self, hidden: Tensor) -> Tensor:
        dtype = self.model.dtype
        zero = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return zero.masked_fill_(hidden, torch.finfo(dtype).min)[:, None]


def close_gaps(rows: list[Any], gone: Sequence[int]) -> None:
    """Take rows out of a list as `Decoding.leave` does: the last row fills each hole."""
    for i in sorted(gone, reverse=True):
        rows[i] = rows[-1]
        rows.pop()
