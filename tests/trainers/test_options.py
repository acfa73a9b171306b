"""What every trainer offers besides its method: plain text beside it, conditioned sources, an order."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from kdbench.errors import ConfigError, DataError  # noqa: E402
from kdbench.jobs.training import train  # noqa: E402
from kdbench.models.sequences import TokenSequence  # noqa: E402
from kdbench.processes import Place  # noqa: E402
from kdbench.records import Text  # noqa: E402
from kdbench_trainers import black_box, gkd, step_by_step, white_box  # noqa: E402
from kdbench_trainers._config import Condition  # noqa: E402
from kdbench_trainers._options import conditioned  # noqa: E402
from kdbench_trainers._sources import Beside, Data  # noqa: E402
from tests.jobs.test_training import generated  # noqa: E402
from tests.trainers.test_trainer import lines, run, same  # noqa: E402
from tests.trainers.tiny import WORDS, stories, story  # noqa: E402

pytestmark = pytest.mark.medium

PAGES = [" ".join(WORDS[(n + i * i) % len(WORDS)] for i in range(40)) for n in range(3)]
ONE_STEP = {"steps": 1, "validation_share": 0, "max_length": 32}


@pytest.fixture
def pages(tmp_path):
    path = tmp_path / "pages.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in PAGES))
    return str(path)


# plain text


def test_plain_text_has_its_share_of_the_loss(student, teacher, pages, tmp_path):
    alone = run(white_box, tmp_path / "alone", student, teacher, **ONE_STEP)
    texts = [Text(text=text) for text in PAGES]
    run(black_box, tmp_path / "text", student, samples=texts, batch_size=4, **ONE_STEP)
    beside = {"texts": [pages], "share": 0.3, "windows": 4}  # 4 windows of 32 tokens: all of the text
    both = run(white_box, tmp_path / "both", student, teacher, plain_text=beside, **ONE_STEP)
    (line,), (own,), (text,) = (lines(tmp_path / name, "train") for name in ("both", "alone", "text"))
    assert line["divergence"] == pytest.approx(own["divergence"], rel=1e-5)
    assert line["cross_entropy"] == pytest.approx(own["cross_entropy"], rel=1e-5)
    assert line["plain_text_cross_entropy"] == pytest.approx(text["loss"], rel=1e-5)
    assert line["loss"] == pytest.approx(0.7 * own["loss"] + 0.3 * text["loss"], rel=1e-5)
    assert line["tokens"] == own["tokens"] + text["tokens"]
    assert any(not torch.equal(both[name], alone[name]) for name in both)


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_micro_batches_change_nothing_beside_plain_text(student, teacher, pages, tmp_path, micro_batch_size):
    settings = {"plain_text": {"texts": [pages], "windows": 3}, "max_length": 32}
    whole = run(white_box, tmp_path / "whole", student, teacher, **settings)
    cut = run(white_box, tmp_path / "cut", student, teacher, micro_batch_size=micro_batch_size, **settings)
    same(whole, cut)
    for one, other in zip(lines(tmp_path / "whole"), lines(tmp_path / "cut"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_plain_text_goes_with_methods_that_write_and_that_weigh_tasks(student, teacher, pages, tmp_path):
    beside = {"texts": [pages], "windows": 2}
    run(gkd, tmp_path / "gkd", student, teacher, plain_text=beside, lmbda=1.0, max_new_tokens=4, **ONE_STEP)
    (line,) = lines(tmp_path / "gkd", "train")
    assert line["generated_tokens"] > 0
    assert line["plain_text_cross_entropy"] > 0
    views = [
        story(n, group=f"q{n}", fields=json.dumps({"view": view}))
        for n in range(4)
        for view in ("label", "rationale")
    ]
    asked = {"samples": views, "alpha": 0.25, **ONE_STEP}
    run(step_by_step, tmp_path / "alone", student, **asked)
    run(step_by_step, tmp_path / "both", student, plain_text=beside, **asked)
    (alone,), (both,) = lines(tmp_path / "alone", "train"), lines(tmp_path / "both", "train")
    expected = 0.5 * alone["loss"] + 0.5 * both["plain_text_cross_entropy"]
    assert both["loss"] == pytest.approx(expected, rel=1e-5)


def test_windows_of_text_come_in_turn_and_are_shared_by_processes():
    batch, text = (
        [TokenSequence(0, "a", (1,), (2,))],
        [TokenSequence(None, f"{n}", (1,), (n,)) for n in range(5)],
    )
    source = Beside(Data(), text, count=2, seed=3)
    came = [[one.completion[0] for one in source.window(step, batch)[1:]] for step in range(5)]
    flat = [number for step in came for number in step]
    assert sorted(flat[:5]) == sorted(flat[5:]) == list(range(5))
    assert flat[:5] != flat[5:]
    again = Beside(Data(), text, count=2, seed=3)  # as after a resumed training
    assert [one.completion[0] for one in again.window(3, batch)[1:]] == came[3]
    for step in range(5):
        parts = [Beside(Data(), text, count=2, seed=3, place=Place(r, 2)).window(step, batch) for r in (0, 1)]
        assert [part[1].completion[0] for part in parts] == came[step]


def test_text_that_is_not_there_or_has_changed(student, pages, tmp_path):
    data = generated(tmp_path / "data", stories(8))
    asked = {"data": data, "student": student, "out": tmp_path / "out"}
    settings = {"steps": 1, "device": "cpu", "max_length": 32, "plain_text": {"texts": ["nowhere"]}}
    with pytest.raises(DataError, match="No text at 'nowhere'"):
        train("black_box", **asked, config=settings)
    settings["plain_text"] = {"texts": [pages]}
    out = train("black_box", **asked, config=settings, overwrite=True)
    before = json.loads((out / "run.json").read_text())["fingerprint"]["inputs"]
    assert list(before) == [pages]
    with pytest.raises(ConfigError, match=r"plain_text.share"):
        train("black_box", **asked, config=settings | {"plain_text": {"texts": [pages], "share": 1.0}})


# conditioned sources


def test_sources_get_their_prefix_and_weight():
    samples = [
        story(n, weight=2.0, fields=json.dumps({"by": "expert" if n % 2 else "crowd"})) for n in range(4)
    ]
    rules = [
        Condition(where={"by": "expert"}, prefix="expert: "),
        Condition(where={"by": "crowd"}, prefix="crowd: ", weight=0.1),
    ]
    found = conditioned(samples, rules)
    assert [one.id for one in found] == [one.id for one in samples]
    for before, after in zip(samples, found, strict=True):
        by = json.loads(before.fields)["by"]
        assert after.prompt[-1].content == f"{by}: {before.prompt[-1].content}"
        assert after.teacher_prompt == before.prompt  # the teacher is told nothing
        assert after.weight == pytest.approx({"expert": 2.0, "crowd": 0.2}[by])
        assert after.completion == before.completion
    assert conditioned(samples, []) == samples
    first = conditioned(samples, [*rules[:1], Condition(where={"by": "crowd"}, weight=3.0)])
    assert [one.weight for one in first] == [6.0, 2.0, 6.0, 2.0]
    assert first[0].teacher_prompt is None
    with pytest.raises(
        ConfigError, match=r'where = {"by": "expert"} fits no sample that an earlier one has not'
    ):
        conditioned(samples, [rules[0], rules[0]])
    with pytest.raises(ConfigError, match='No sample has by = "nobody"; there are "crowd", "expert"'):
        conditioned(samples, [Condition(where={"by": "nobody"})])


def test_a_weaker_source_counts_less(student, tmp_path):
    samples = [story(n, fields=json.dumps({"good": n < 2})) for n in range(4)]
    rules = [{"where": {"good": False}, "prefix": "sad ", "weight": 0.1}]
    run(black_box, tmp_path / "all", student, samples=samples, conditions=rules, **ONE_STEP)
    for name, part in (("good", samples[:2]), ("bad", samples[2:])):
        more = {"conditions": rules} if name == "bad" else {}
        run(black_box, tmp_path / name, student, samples=part, **more, **ONE_STEP)
    good, bad, both = (lines(tmp_path / name, "train")[0] for name in ("good", "bad", "all"))
    total = good["loss"] * good["tokens"] + 0.1 * bad["loss"] * bad["tokens"]
    assert both["loss"] == pytest.approx(total / (good["tokens"] + 0.1 * bad["tokens"]), rel=1e-5)


# order


@pytest.mark.parametrize("order_by", ["length", "-length", "score", "-score"])
def test_samples_come_by_their_score(student, tmp_path, order_by):
    samples = [
        story(n, words=3 + (n * 5) % 16, fields=json.dumps({"score": (n * 5) % 16})) for n in range(16)
    ]
    run(black_box, tmp_path, student, samples=samples, order_by=order_by, steps=8, validation_share=0)
    tokens = [line["tokens"] for line in lines(tmp_path, "train")]
    assert tokens[:4] == tokens[4:]  # so in every epoch
    assert tokens[:4] == sorted(tokens[:4], reverse=order_by.startswith("-"))
    assert len(set(tokens)) == 4


def test_a_score_that_is_not_there(student, tmp_path):
    samples = [story(n, fields=json.dumps({"score": 1.5, "word": "a"})) for n in range(8)]
    for name in ("scores", "word"):
        with pytest.raises(
            ConfigError, match=rf'"{name}": the sample s\d has no number .* \(it has score, length'
        ):
            run(black_box, tmp_path, student, samples=samples, order_by=name)
    texts = [Text(text=text) for text in PAGES]
    with pytest.raises(ConfigError, match='plain text has no fields to go by; use "length"'):
        run(black_box, tmp_path, student, samples=texts, order_by="score", max_length=16)
