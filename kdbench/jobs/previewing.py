"""`kdbench generate --dry-run`: the first rendered requests and what the run would cost; asks nobody.

A recipe is run on its first seeds against a teacher that only notes what it is asked, so of a chain
of calls the first is seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from kdbench.asking import SeedTeacher, Teachers
from kdbench.config import build
from kdbench.engine import Seed, make_seeds
from kdbench.jobs._loops import run_async
from kdbench.jobs._recipes import LoadedRecipe, RecipeFunction, load_recipe
from kdbench.jobs.generating import GenerateSettings
from kdbench.records import Message
from kdbench.teacher import Reply, Sampling, Usage

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
    """The first requests, and an estimate for `seeds` seeds with one call each."""

    requests: tuple[PreviewedRequest, ...]
    seeds: int
    prompt_tokens: int
    completion_tokens_at_most: int
    cost_at_most: float


class _Seen(Exception):
    pass


class _NotingTeacher:
    """Stands where the teacher would and notes the first request of its seed."""

    identity = "dry run"

    def __init__(self, role: str, seed: int, seen: list[PreviewedRequest]) -> None:
        self._role, self._seed, self._seen = role, seed, seen

    async def chat(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        self._seen.append(PreviewedRequest(self._seed, self._role, tuple(messages), sampling))
        raise _Seen


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
    requests = run_async(_first_requests(loaded, driven.seed, min(SEEDS, n)))
    characters = sum(len(m.content) for r in requests for m in r.messages) / max(len(requests), 1)
    per_call = Usage(
        round(characters / CHARACTERS_PER_TOKEN),
        max((r.sampling.max_tokens for r in requests), default=0),
    )
    return Preview(
        requests=tuple(requests),
        seeds=n,
        prompt_tokens=n * per_call.prompt_tokens,
        completion_tokens_at_most=n * per_call.completion_tokens,
        cost_at_most=n * driven.prices.of(per_call),
    )


async def _first_requests(recipe: LoadedRecipe, job_seed: int, count: int) -> list[PreviewedRequest]:
    seen: list[PreviewedRequest] = []
    for seed in make_seeds(job_seed, count, recipe.rows()):
        await _note(recipe, seed, seen)
    return seen


async def _note(recipe: LoadedRecipe, seed: Seed, seen: list[PreviewedRequest]) -> None:
    teachers = Teachers(
        {role: cast(SeedTeacher, _NotingTeacher(role, seed.index, seen)) for role in recipe.roles}
    )
    with suppress(_Seen):
        await recipe.run(seed, teachers)
