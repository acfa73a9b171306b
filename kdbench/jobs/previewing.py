"""`kdbench generate --dry-run`: the first rendered requests and what the run would cost; asks nobody.

A recipe is run on its first seeds against a teacher that only notes what it is asked, so of a chain
of calls the first is seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.config import build
from kdbench.engine import make_seeds
from kdbench.jobs._playing import play
from kdbench.jobs._recipes import RecipeFunction, load_recipe
from kdbench.jobs.generating import GenerateSettings
from kdbench.loops import run_async
from kdbench.records import Message
from kdbench.teacher import Sampling, Usage

SEEDS = 8  # whose prompts the estimate averages
CHARACTERS_PER_TOKEN = 4.0  # a rule of thumb for English; no tokenizer is loaded for an estimate


@dataclass(frozen=True, slots=True)
class PreviewedRequest:
    """One request as a teacher would get it."""

    seed: int
    role: str
    messages: tuple[Message, ...]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Preview:
    """The first requests, and an estimate for `seeds` seeds that go no further than these."""

    requests: tuple[PreviewedRequest, ...]
    seeds: int
    calls: int
    prompt_tokens: int
    completion_tokens_at_most: int
    cost_at_most: float


def preview(
    recipe: str | Path | RecipeFunction,
    *,
    n: int,
    config: Mapping[str, Any] | None = None,
    prompts: str | Path | None = None,
    **settings: Any,
) -> Preview:
    """What `generate` would ask first, and an estimate if every seed is accepted. Raises UsageError."""
    driven = build(GenerateSettings, {"n": n, **settings}, "generate")
    loaded = load_recipe(recipe, config, Path(prompts) if prompts else None)
    seeds = make_seeds(driven.seed, min(SEEDS, n), loaded.rows)
    played = run_async(play(loaded, seeds))
    requests = [
        PreviewedRequest(one.seed, said.role, said.messages, said.sampling)
        for one in played
        for said in one.said
    ]
    characters = sum(len(m.content) for r in requests for m in r.messages) / max(len(requests), 1)
    per_call = Usage(
        round(characters / CHARACTERS_PER_TOKEN),
        max((r.sampling.max_tokens for r in requests), default=0),
    )
    calls = round(n * len(requests) / max(len(played), 1))
    return Preview(
        requests=tuple(requests),
        seeds=n,
        calls=calls,
        prompt_tokens=calls * per_call.prompt_tokens,
        completion_tokens_at_most=calls * per_call.completion_tokens,
        cost_at_most=calls * driven.prices.of(per_call),
    )
