"""A model's own texts for the held-out prompts: one batched pass, each sample drawn from its own seed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

from kdbench.evaluation import Generation
from kdbench.models.chat import prompt_ids
from kdbench.models.sampling import BatchSampler, Job, Sampled
from kdbench.progress import Meter
from kdbench.records import Completion
from kdbench.teacher import Sampling


def generate_texts(
    model: Any, tokenizer: Any, samples: Sequence[Completion], *, what: str, sampling: Sampling, seed: int
) -> tuple[Generation, ...]:
    """One text per sample, in their order, from the student's prompt in the model's own chat template.

    The seed of a draw is made from `seed` and the sample's id, so a sample is drawn alike in any batch.
    `seconds` share out the wall time by tokens; the end token counts as one.
    """
    jobs = [Job(tuple(prompt_ids(tokenizer, s.prompt)), sampling, _seed_of(seed, s.id)) for s in samples]
    tokens_done = 0

    with Meter(what, len(jobs)) as meter:
        began = time.perf_counter()
        done = 0

        def on_done(_: int, reply: Sampled) -> None:
            nonlocal done, tokens_done
            done += 1
            tokens_done += _tokens(reply)
            if meter.due():
                meter.update(done, f"{tokens_done / (time.perf_counter() - began):,.0f} tokens/s")

        replies = BatchSampler(model, tokenizer).run(jobs, on_done)
        seconds = time.perf_counter() - began
        meter.update(done, f"{tokens_done / seconds:,.0f} tokens/s", last=True)
    return tuple(
        Generation(
            id=sample.id,
            text=reply.text,
            tokens=_tokens(reply),
            finish_reason=reply.finish_reason,
            seconds=seconds * _tokens(reply) / tokens_done,
        )
        for sample, reply in zip(samples, replies, strict=True)
    )


def _tokens(reply: Sampled) -> int:
    return len(reply.ids) + (reply.finish_reason == "stop")


def _seed_of(seed: int, sample_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{sample_id}".encode()).digest()[:4], "big") >> 1
