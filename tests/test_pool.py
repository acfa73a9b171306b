"""Rounds: each sees what the rounds before accepted, frozen, whatever the concurrency."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdbench
from kdbench.jsonl import read_rejections, read_samples
from kdbench.pool import Pool, Rounds
from kdbench.records import Completion, Message
from tests.support.teachers import EchoTeacher

# Five seeds a round; each sample notes what its seed saw; every third sample is not admitted.
RECIPE = '''
"""A recipe that grows a pool."""
import asyncio, json
from kdbench.records import Completion, Message, Rejection
from kdbench.teacher import Sampling

def round_size(config):
    return 5

def admission(config):
    seen = []
    def admit(sample):
        seen.append(sample)
        return Rejection(reason="every_third", sample=sample) if len(seen) % 3 == 0 else sample
    return admit

async def generate(seed, teachers, pool):
    ask = Message(role="user", content=f"number {seed.index} of round {pool.round}")
    reply = await teachers["teacher"].chat([ask], Sampling())
    fields = json.dumps({"round": pool.round, "saw": [s.id for s in pool]})
    return [Completion(prompt=(ask,), completion=(reply.message,), group=str(seed.index % 5), fields=fields)]

def finish(config, out):
    (out / "summary.txt").write_text(str(len((out / "samples.jsonl").read_text().splitlines())))
'''


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "growing.py"
    path.write_text(RECIPE)
    return path


def samples_of(run: Path) -> Iterator[Completion]:
    for sample in read_samples(run / "samples.jsonl"):
        assert isinstance(sample, Completion)
        yield sample


@pytest.mark.parametrize("concurrency", [1, 3, 64])
def test_a_round_sees_all_earlier_ones_and_nothing_of_its_own(
    recipe: Path, tmp_path: Path, concurrency: int
) -> None:
    teacher = EchoTeacher(longest_wait=0.002)
    run = kdbench.generate(recipe, teacher=teacher, n=14, out=tmp_path / "r", concurrency=concurrency)
    samples = list(samples_of(run))
    assert len(samples) == 14
    for sample in samples:
        assert sample.origin is not None
        fields, number = json.loads(sample.fields), sample.origin.seed // 5
        assert fields["round"] == number
        earlier = [s.id for s in samples if s.origin is not None and s.origin.seed < number * 5]
        assert fields["saw"] == earlier


def test_what_is_not_admitted_is_a_rejection_with_name_and_origin(recipe: Path, tmp_path: Path) -> None:
    run = kdbench.generate(recipe, teacher=EchoTeacher(), n=4, out=tmp_path / "r")
    assert [s.origin.seed for s in samples_of(run) if s.origin] == [0, 1, 3, 4]
    (rejection,) = read_rejections(run / "rejected.jsonl")
    assert rejection.reason == "every_third"
    assert rejection.id.endswith("-2-0")
    assert rejection.origin is not None
    assert rejection.sample is not None


def test_a_recipe_may_write_files_of_its_own_at_the_end(recipe: Path, tmp_path: Path) -> None:
    run = kdbench.generate(recipe, teacher=EchoTeacher(), n=4, out=tmp_path / "r")
    assert (run / "summary.txt").read_text() == "4"


def test_the_newest_of_each_group() -> None:
    message = (Message(role="user", content="x"),)
    samples = tuple(
        Completion(id=str(i), prompt=message, completion=message, group=group)
        for i, group in enumerate(("a", "b", "a", None))
    )
    assert {group: s.id for group, s in Pool(1, samples).latest.items()} == {"a": "2", "b": "1"}


def test_without_rounds_every_seed_may_begin_and_nothing_is_kept() -> None:
    rounds = Rounds(None)
    rounds.add(
        Completion(
            prompt=(Message(role="user", content="x"),), completion=(Message(role="assistant", content="y"),)
        )
    )
    rounds.settle(0)
    assert rounds.has_begun(10**9)
    assert len(rounds.pool) == 0
