"""Batched sampling from a causal language model: many requests, each from its own seed.

    sampler = BatchSampler(model, tokenizer, batch=64)
    sampler.run([Job(ids=(1, 4093, ...), sampling=Sampling(temperature=0.8, max_tokens=192), seed=7), ...])
    -> [Sampled(ids=(...), text="Once upon a time ...", finish_reason="stop"), ...]

One loop over tokens. A row that ends leaves the batch at once and a waiting request takes its place, so
the batch stays full and nobody waits for the longest reply. What the prompts of a group have in common
(system message, instructions, examples) is read once. A draw depends on the request's own seed and
on its distribution; its neighbours change that only by the rounding of sums.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from kdbench.errors import UsageError
from kdbench.models._cache import PrefillCache, Prefix, RowCache
from kdbench.models._draws import pick
from kdbench.models._fast import fast_inference
from kdbench.models.chat import end_ids
from kdbench.teacher import Sampling

# Tokens of one prefill pass: enough to keep the cores busy, little enough to stay small in memory.
_PREFILL_TOKENS = 4096
# A shorter common beginning is not worth a pass of its own.
_SHORTEST_PREFIX = 16
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One request: the prompt's token ids (at least one), how to sample, and the seed to draw from."""

    ids: tuple[int, ...]
    sampling: Sampling
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Sampled:
    """One reply. `ids` are the sampled tokens without the end token or stop string; "stop" says one came.

    `text` is `ids` decoded; where a stop string begins inside a token it also holds that token's
    part before it. `end` is the end token, None where none was sampled.
    """

    ids: tuple[int, ...]
    text: str
    finish_reason: Literal["stop", "length"]
    end: int | None = None


@dataclass(slots=True, eq=False)
class _Row:
    job: Job
    limit: int
    last: int  # the token to be fed next
    rng: random.Random
    ids: list[int] = field(default_factory=list)


class BatchSampler:
    """Samples from one model. Not thread-safe: one loop at a time."""

    def __init__(self, model: Any, tokenizer: Any, *, batch: int = 64) -> None:
        """`batch` is the number of rows decoded at once. Raises UsageError for a model of an unknown kind."""
        config = model.config
        kinds = set(getattr(config, "layer_types", None) or ()) - _KNOWN_LAYERS
        if kinds:
            raise UsageError(
                f"A model with layers of kind {', '.join(sorted(kinds))} cannot be sampled here; serve it "
                "with vLLM and use openai:MODEL"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.batch = batch
        self._refill = max(1, batch // 8)
        self.ends = frozenset(end_ids(tokenizer, model.generation_config, config))
        self.context: int = getattr(config, "max_position_embeddings", None) or 2**31
        self._window: int | None = getattr(config, "sliding_window", None)
        self._mixed = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        self._prefix: Prefix | None = None

    def run(
        self, jobs: Sequence[Job], on_done: Callable[[int, Sampled], None] | None = None
    ) -> list[Sampled]:
        """Every job's reply, in the order of `jobs`; `on_done(index, reply)` as each one ends."""
        place = {id(job): i for i, job in enumerate(jobs)}
        # Alike lengths side by side make prefills without padding; the longest first, for a short tail.
        waiting = sorted(jobs, key=lambda j: len(j.ids) + j.sampling.max_tokens)
        found: list[Sampled | None] = [None] * len(jobs)

        def take(room: int) -> list[Job]:
            return [waiting.pop() for _ in range(min(room, len(waiting)))]

        for job, reply in self.stream(take):
            found[place[id(job)]] = reply
            if on_done is not None:
                on_done(place[id(job)], reply)
        return [reply for reply in found if reply is not None]

    def stream(
        self, take: Callable[[int], Sequence[Job]], wanted: Callable[[Job], bool] = lambda job: True
    ) -> Iterator[tuple[Job, Sampled]]:
        """Replies as they end. `take(room)` gives at most `room` new jobs, and is asked whenever an
        eighth of the batch is free.

        Ends when no row is left and `take` gives none. A row whose job is no longer `wanted` leaves
        without a reply. Raises UsageError for a prompt that fills the model's context.
        """
        rows: list[_Row] = []
        cache = RowCache()
        self._prefix = None  # the weights may have changed since
        with fast_inference(self.model):
            while True:
                # A few at a time: a prefill of one row costs nearly as much as one of eight.
                if not rows or self.batch - len(rows) >= self._refill:
                    rows += self._join(cache, take(self.batch - len(rows)))
                if not rows:
                    return
                self._step(rows, cache)
                ended = [(i, self._reply(row)) for i, row in enumerate(rows)]
                gone = [i for i, reply in ended if reply is not None or not wanted(rows[i].job)]
                replies = [(rows[i].job, reply) for i, reply in ended if reply is not None]
                cache.remove(gone)
                _remove(rows, gone)
                yield from replies

    def _join(self, cache: RowCache, jobs: Sequence[Job]) -> list[_Row]:
        """Prefill the prompts of new jobs, all but their last token, which the next step feeds."""
        rows = [self._row(job) for job in jobs]
        rows.sort(key=lambda row: len(row.job.ids))
        prefix = self._shared([row.job.ids for row in rows])
        skip = len(prefix.ids) if prefix else 0
        start = 0
        while start < len(rows):
            end = start + 1
            while end < len(rows) and (end + 1 - start) * (len(rows[end].job.ids) - skip) <= _PREFILL_TOKENS:
                end += 1
            prompts = [row.job.ids[:-1] for row in rows[start:end]]
            cache.add(self._prefill(prompts, prefix), [len(p) for p in prompts])
            start = end
        return rows

    def _row(self, job: Job) -> _Row:
        room = self.context - len(job.ids)
        if room < 1 or not job.ids:
            raise UsageError(
                f"A prompt of {len(job.ids)} tokens does not fit a model of {self.context}; shorten it"
            )
        return _Row(job, min(job.sampling.max_tokens, room), job.ids[-1], random.Random(job.seed))  # noqa: S311

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

    def _step(self, rows: list[_Row], cache: RowCache) -> None:
        """Feed every row its last token and draw the next."""
        device = self.model.device
        positions = cache.next_column(device)[:, None]
        logits = self.model(
            input_ids=torch.tensor([[row.last] for row in rows], device=device),
            attention_mask=self._mask(positions, cache.width),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        cache.wrote()
        drawn = pick(logits, [row.job.sampling for row in rows], [row.rng.random() for row in rows])
        for row, token in zip(rows, drawn, strict=True):
            row.last = token
            row.ids.append(token)

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

    def _reply(self, row: _Row) -> Sampled | None:
        """The reply of a row that has ended, else None."""
        if row.last in self.ends:
            return replace(self._sampled(row.ids[:-1], "stop"), end=row.last)
        if row.job.sampling.stop and (found := self._stopped(row)):
            return found
        if len(row.ids) >= row.limit:
            return self._sampled(row.ids, "length")
        return None

    def _sampled(self, ids: list[int], reason: Literal["stop", "length"]) -> Sampled:
        return Sampled(tuple(ids), self._text(ids), reason)

    def _text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _stopped(self, row: _Row) -> Sampled | None:
        """The reply cut at a stop string, if the last token completed one."""
        stops = row.job.sampling.stop
        # A token brings at least one byte, so a stop string that ends here lies in this many tokens.
        tail = self._text(row.ids[-max(len(s.encode()) for s in stops) - 4 :])
        if not any(stop in tail for stop in stops):
            return None
        text = self._text(row.ids)
        cuts = [at for stop in stops if (at := text.find(stop)) >= 0]
        if not cuts:
            return None
        ids = list(row.ids)
        while ids and len(self._text(ids)) > min(cuts):
            ids.pop()
        return Sampled(tuple(ids), text[: min(cuts)], "stop")


def _remove(rows: list[_Row], gone: Sequence[int]) -> None:
    """Take rows out as RowCache.remove does: the last row fills each hole."""
    for i in sorted(gone, reverse=True):
        rows[i] = rows[-1]
        rows.pop()
