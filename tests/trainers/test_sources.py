"""Whose sequences: what the student writes, when it writes, and DistiLLM's scheduler with its buffer."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from kdbench.models.loading import load_model, load_tokenizer  # noqa: E402
from kdbench.models.sequences import TokenSequence  # noqa: E402
from kdbench.processes import Place  # noqa: E402
from kdbench.teacher import Sampling  # noqa: E402
from kdbench_trainers._sources import Data, Mixed, Replay, Writer, chance  # noqa: E402

pytestmark = pytest.mark.medium

BATCH = [TokenSequence(n, f"g{n}", (1, 4 + n, 2), (7, 8), (1, 3, 4 + n, 2), 0.5) for n in range(4)]


class Scribe:
    """Writes the step's number, and remembers when it did."""

    def __init__(self):
        self.steps = []

    def write(self, step, batch):
        self.steps.append(step)
        return [replace(one, key=None, completion=(100 + step,)) for one in batch]

    def logged(self):
        return {}


def writer(folder, place=None, **sampling):
    model, tok = load_model(folder, device="cpu"), load_tokenizer(folder)
    settings = Sampling(**{"temperature": 1.0, "max_tokens": 6, **sampling})
    return Writer(model.train(), tok, settings, limit=64, seed=3, place=place)


def test_the_student_completes_the_batchs_prompts(student):
    write = writer(student)
    written = write.write(5, BATCH)
    for one, before in zip(written, BATCH, strict=True):
        assert (one.prompt, one.teacher_prompt) == (before.prompt, before.teacher_prompt)
        assert (one.group, one.weight, one.key) == (before.group, before.weight, None)
        assert 1 <= len(one.completion) <= 6
    assert written == writer(student).write(5, BATCH)
    assert written != write.write(6, BATCH)
    assert len({one.completion for one in written}) > 1
    assert write.logged()["generated_tokens"] > 0
    assert write.logged()["generated_tokens"] == 0
    assert write._model.training


def test_the_end_token_is_kept_although_the_tokenizer_pads_with_it(student):
    tok = load_tokenizer(student)
    assert tok.eos_token_id == tok.pad_token_id
    written = [one for step in range(20) for one in writer(student, max_tokens=40).write(step, BATCH)]
    ended = [one for one in written if len(one.completion) < 40]
    assert ended
    assert all(one.completion[-1] == tok.eos_token_id for one in ended)
    assert all(tok.eos_token_id not in one.completion[:-1] for one in written)


def test_what_is_written_fits_the_limit_of_both_models(student):
    tight = writer(student, max_tokens=40)
    tight._limit = 10
    written = [one for step in range(10) for one in tight.write(step, BATCH)]
    assert max(len(one.teacher_prompt) + len(one.completion) for one in written) == 10


def test_two_processes_write_what_one_would(student):
    whole = writer(student).write(2, BATCH)
    for rank in (0, 1):
        share = writer(student, Place(rank, 2)).write(2, BATCH[rank::2])
        assert [one.completion for one in share] == [one.completion for one in whole[rank::2]]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixed_steps_are_the_students_own_at_the_rate_asked_for(share):
    scribe = Scribe()
    source = Mixed(scribe, share, seed=1)
    windows = [source.window(step, BATCH) for step in range(1000)]
    own = [step for step, window in enumerate(windows) if window is not BATCH]
    assert own == scribe.steps == [step for step in range(1000) if chance(1, step) < share]
    assert len(own) == pytest.approx(1000 * share, abs=50)


def test_data_is_the_batch():
    assert Data().window(3, BATCH) is BATCH


def replay(scribe, **more):
    return Replay(scribe, **{"steps": 100, "seed": 1, "capacity": 12, "tolerance": 0.1, **more})


def test_phi_grows_when_validation_gets_worse_than_the_last_that_counted():
    source = replay(Scribe())
    phis = []
    for loss in (3.0, 2.0, 3.05, 3.1, 3.15, 3.21, 9.0):
        source.validated(loss)
        phis.append(source.phi)
    assert phis == pytest.approx([0, 0, 0, 0.1, 0.1, 0.2, 0.3])
    for n in range(20):
        source.validated(10.0 + n)
    assert source.phi == 1.0


def test_nothing_is_written_while_phi_is_zero():
    scribe = Scribe()
    source = replay(scribe)
    assert all(source.window(step, BATCH) is BATCH for step in range(100))
    assert scribe.steps == []


def test_the_schedule_of_a_full_phi():
    """phi = 1: writes until the buffer is full, then with probability 1 - t / T, else it replays."""
    scribe = Scribe()
    source = replay(scribe)
    source.phi = 1.0
    for step in range(100):
        window = source.window(step, BATCH)
        assert window is not BATCH
        assert len(window) == 4
        fresh = step < 3 or chance(1, step) < 1 - step / 100
        assert (step in scribe.steps) == fresh
        assert {one.completion[0] - 100 == step for one in window} == {fresh}
    assert sum(step < 50 for step in scribe.steps) > sum(step >= 50 for step in scribe.steps) > 0


def test_the_buffer_forgets_the_oldest_and_a_checkpoint_keeps_it():
    scribe, other = Scribe(), Scribe()
    source, again = replay(scribe), replay(other)
    source.validated(1.0)
    source.phi = 0.5
    for step in range(60):
        source.window(step, BATCH)
    kept = {one.completion[0] - 100 for one in source._buffer}
    assert kept == set(scribe.steps[-3:])
    again.restore(json.loads(json.dumps(source.state())))
    assert again.logged() == source.logged() == {"phi": 0.5, "buffer": 12}
    for step in range(60, 100):
        assert again.window(step, BATCH) == source.window(step, BATCH)
    for one in (source, again):
        one.validated(1.1)
        assert one.phi == pytest.approx(0.6)
