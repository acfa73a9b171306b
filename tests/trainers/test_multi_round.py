"""multi_round: what each sample's loss is, how hard ones are drawn, and rounds that hold out the same."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

import pyarrow.parquet as pq  # noqa: E402

from kdbench.errors import ConfigError, UnknownPlugin  # noqa: E402
from kdbench.jobs.training import train  # noqa: E402
from kdbench.models.loading import load_model, load_tokenizer  # noqa: E402
from kdbench.models.sequences import Reader, encode, split  # noqa: E402
from kdbench_trainers import black_box, multi_round  # noqa: E402
from kdbench_trainers._sample_losses import SampleLoss, hard_ones, sample_losses  # noqa: E402
from tests.jobs.test_training import generated  # noqa: E402
from tests.trainers.test_adapt import SMALL, by_hand, weights  # noqa: E402
from tests.trainers.test_trainer import lines, same  # noqa: E402
from tests.trainers.tiny import stories  # noqa: E402

pytestmark = pytest.mark.medium


def losses(values):
    return [SampleLoss(n, f"s{n}", f"s{n}", value, 5) for n, value in enumerate(values)]


@given(
    values=st.lists(st.floats(0, 20), min_size=1, max_size=40),
    rate=st.floats(0.05, 0.95),
    candidates=st.integers(2, 16),
    seed=st.integers(0, 9),
)
def test_a_share_of_every_company_is_drawn_once(values, rate, candidates, seed):
    drawn = hard_ones(losses(values), rate, candidates, seed=seed)
    assert drawn <= {f"s{n}" for n in range(len(values))}
    sizes = [len(values[i : i + candidates]) for i in range(0, len(values), candidates)]
    assert len(drawn) == sum(max(1, round(rate * size)) for size in sizes)
    assert drawn == hard_ones(losses(values), rate, candidates, seed=seed)


def test_hard_samples_are_drawn_as_by_turns_without_replacement():
    values, draws = [0.5, 1.5, 2.5, 0.0], 4000
    heat = [math.exp(value) for value in values]
    expected = dict.fromkeys(range(4), 0.0)
    for first, second in itertools.permutations(range(4), 2):
        chance = heat[first] / sum(heat) * heat[second] / (sum(heat) - heat[first])
        expected[first] += chance
        expected[second] += chance
    counts = dict.fromkeys(range(4), 0)
    for seed in range(draws):
        for group in hard_ones(losses(values), 0.5, 4, seed=seed):
            counts[int(group[1:])] += 1
    for number, chance in expected.items():
        spread = math.sqrt(draws * chance * (1 - chance))
        assert abs(counts[number] - draws * chance) < 4.5 * spread


def test_a_group_is_drawn_whole_by_the_mean_over_its_tokens():
    """A short easy member does not hide that a group's tokens are hard."""
    hard = [SampleLoss(0, "a", "hard", 0.0, 1), SampleLoss(1, "b", "hard", 30.0, 29)]
    easy = [SampleLoss(2, "c", "easy", 1.0, 5)]
    assert all(hard_ones([*hard, *easy], 0.5, 2, seed=seed) == {"hard"} for seed in range(20))


def test_a_samples_loss_is_the_mean_over_its_completion(student):
    samples = stories(7)
    found = sample_losses(student, samples, black_box.Config(device="cpu", lora={"rank": 2}))
    model, reader = load_model(student, device="cpu"), Reader(load_tokenizer(student))
    for loss, one in zip(found, encode(samples, reader, None, 128), strict=True):
        logits = model(torch.tensor([one.prompt + one.completion])).logits[0, len(one.prompt) - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(one.completion)).item()
        assert loss.loss == pytest.approx(expected, rel=1e-4)
        assert (loss.sample, loss.tokens) == (one.sample, len(one.completion))


def test_later_rounds_learn_hard_samples_and_hold_out_the_same(student, tmp_path, monkeypatch):
    samples, trained = stories(20), []
    plain = black_box.train

    def watched(given, *, config, **more):
        reader = Reader(load_tokenizer(student))
        parts = split(encode(given, reader, None, 128), 0.5, config.seed, config.held_out)
        trained.append([{one.group for one in part} for part in parts])
        plain(given, config=config, **more)

    monkeypatch.setattr(black_box, "train", watched)
    config = multi_round.Config(method_config=SMALL, rounds=3, rate=0.5, candidates=8)
    multi_round.train(
        samples, teacher=None, student=student, out=tmp_path / "out", config=config, resume=False
    )
    (first, held_out), *later = trained
    assert len(held_out) == 4
    assert [part[1] for part in later] == [held_out] * 2
    assert all(len(part[0]) == 8 and part[0] < first for part in later)
    assert later[0][0] != later[1][0]
    start = by_hand(black_box, tmp_path / "one", samples, student)
    same(weights(tmp_path / "out" / "stages" / "01_round" / "model"), weights(start), rtol=0, atol=0)
    table = pq.read_table(tmp_path / "out" / "stages" / "02_round" / "sample_losses.parquet").to_pylist()
    assert [row["id"] for row in table] == [one.id for one in samples]
    found = sample_losses(start, samples, black_box.Config(**SMALL))
    assert [row["loss"] for row in table] == [one.loss for one in found]
    assert [line["stage"] for line in lines(tmp_path / "out", "train")] == [
        stage for stage in ("01_round", "02_round", "03_round") for _ in range(2)
    ]


def test_a_round_that_was_cut_off_is_drawn_again_the_same(student, tmp_path, monkeypatch):
    data, settings = generated(tmp_path / "data", stories(12)), {"method_config": SMALL}
    whole = train("multi_round", data=data, student=student, out=tmp_path / "whole", config=settings)
    asked = {"data": data, "student": student, "out": tmp_path / "out", "config": settings}
    plain, calls = black_box.train, []

    def stop(*args, **more):
        calls.append(more["out"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        plain(*args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(black_box, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            train("multi_round", **asked)
    out = train("multi_round", **asked, resume=True)
    same(weights(out / "model"), weights(whole / "model"), rtol=0, atol=0)
    assert json.loads((out / "run.json").read_text())["stats"]["steps"] == 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"method": "progressive", "method_config": {"stages": [{"method": "black_box"}]}},
            "a sequence of train",
        ),
        ({"method_config": {"lora": {"merge": False}}}, "method_config.lora.merge = false"),
        ({"method_config": {"stepz": 3}}, "stepz"),
        ({"method": "blackbox"}, "No trainer named 'blackbox'. Did you mean 'black_box'"),
        ({"rate": 1.0}, "rate"),
        ({"rounds": 1}, "rounds"),
    ],
)
def test_what_cannot_be_rounds(settings, said, student, tmp_path):
    data = generated(tmp_path / "data", stories(4))
    with pytest.raises((ConfigError, UnknownPlugin), match=said):
        train("multi_round", data=data, student=student, out=tmp_path / "out", config=settings)


def test_rounds_of_both_views_keep_questions_whole(student, tmp_path, monkeypatch):
    """step_by_step learns a label with its rationale: neither is drawn, or held out, without the other."""
    from kdbench_trainers import step_by_step
    from tests.trainers.test_step_by_step import questions

    seen, plain = [], step_by_step.train

    def watched(given, *, config, **more):
        seen.append(({one.group for one in given}, set(config.held_out), len(given)))
        assert not config.conditions  # they have been applied, once for all rounds
        asked = [one.prompt[-1].content for one in given if json.loads(one.fields)["view"] == "label"]
        assert all(one.startswith("be label") for one in asked)
        plain(given, config=config, **more)

    monkeypatch.setattr(step_by_step, "train", watched)
    rules = [{"where": {"view": "label"}, "prefix": "be "}]
    config = multi_round.Config(method="step_by_step", method_config={**SMALL, "conditions": rules})
    asked = {"teacher": None, "student": student, "out": tmp_path, "config": config, "resume": False}
    multi_round.train(questions(10), **asked)
    (every, held_out, _), (drawn, again, count) = seen
    assert len(every) == 10
    assert len(held_out) == 2
    assert again == held_out < drawn
    assert count == 2 * len(drawn) == 2 * (2 + 4)
