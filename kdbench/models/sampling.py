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

from kdbench.errors import UsageError
from kdbench.models._draws import likeliest, pick
from kdbench.models.chat import end_ids
from kdbench.models.decoding import Decoding, close_gaps
from kdbench.teacher import Drawn, Sampling


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
    part before it. `end` is the end token, None where none was sampled. `drawn` is every token that was
    sampled, in order, with what the model said there, where the sampler was asked for that.
    """

    ids: tuple[int, ...]
    text: str
    finish_reason: Literal["stop", "length"]
    end: int | None = None
    drawn: tuple[Drawn, ...] = ()


@dataclass(slots=True, eq=False)
class _Row:
    job: Job
    limit: int
    last: int  # the token to be fed next
    rng: random.Random
    ids: list[int] = field(default_factory=list)
    drawn: list[Drawn] = field(default_factory=list)


class BatchSampler:
    """Samples from one model. Not thread-safe: one loop at a time."""

    def __init__(self, model: Any, tokenizer: Any, *, batch: int = 64, top_logprobs: int = 0) -> None:
        """`batch` is the number of rows decoded at once; `top_logprobs` how many of the likeliest tokens each
        token of a reply is given with, 0 for a reply without `drawn`.

        Raises UsageError for a model of an unknown kind, or of fewer tokens than that.
        """
        vocabulary = model.get_output_embeddings().weight.shape[0]
        if top_logprobs > vocabulary:
            raise UsageError(
                f"top_logprobs = {top_logprobs}, and the model has {vocabulary:,} tokens; lower top_logprobs"
            )
        self.model = model
        self._decoding = Decoding(model)
        self.tokenizer = tokenizer
        self.batch = batch
        self._top = top_logprobs
        self._refill = max(1, batch // 8)
        self.ends = frozenset(end_ids(tokenizer, model.generation_config, model.config))
        self.context: int = getattr(model.config, "max_position_embeddings", None) or 2**31

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
        with self._decoding.begin():
            while True:
                # A few at a time: a prefill of one row costs nearly as much as one of eight.
                if not rows or self.batch - len(rows) >= self._refill:
                    rows += self._join(take(self.batch - len(rows)))
                if not rows:
                    return
                self._step(rows)
                ended = [(i, self._reply(row)) for i, row in enumerate(rows)]
                gone = [i for i, reply in ended if reply is not None or not wanted(rows[i].job)]
                replies = [(rows[i].job, reply) for i, reply in ended if reply is not None]
                self._decoding.leave(gone)
                close_gaps(rows, gone)
                yield from replies

    def _join(self, jobs: Sequence[Job]) -> list[_Row]:
        rows = [self._row(job) for job in jobs]
        rows.sort(key=lambda row: len(row.job.ids))
        self._decoding.join([row.job.ids for row in rows])
        return rows

    def _row(self, job: Job) -> _Row:
        room = self.context - len(job.ids)
        if room < 1 or not job.ids:
            raise UsageError(
                f"A prompt of {len(job.ids)} tokens does not fit a model of {self.context}; shorten it"
            )
        return _Row(job, min(job.sampling.max_tokens, room), job.ids[-1], random.Random(job.seed))  # noqa: S311

    def _step(self, rows: list[_Row]) -> None:
        """Feed every row its last token and draw the next."""
        logits = self._decoding.next([row.last for row in rows])
        drawn = pick(logits, [row.job.sampling for row in rows], [row.rng.random() for row in rows])
        for row, token in zip(rows, drawn, strict=True):
            row.last = token
            row.ids.append(token)
        if self._top:
            for row, said in zip(rows, likeliest(logits, drawn, self._top), strict=True):
                row.drawn.append(said)

    def _reply(self, row: _Row) -> Sampled | None:
        """The reply of a row that has ended, else None."""
        reply = self._ended(row)
        return replace(reply, drawn=tuple(row.drawn)) if reply is not None and self._top else reply

    def _ended(self, row: _Row) -> Sampled | None:
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
