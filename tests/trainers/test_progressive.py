"""progressive: stages by hand, each on its own part and with its own teacher."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from kdbench.config import build  # noqa: E402
from kdbench.errors import ConfigError, RunDirError, UsageError  # noqa: E402
from kdbench.jobs.training import train  # noqa: E402
from kdbench.rundir import read_info  # noqa: E402
from kdbench_trainers import black_box, progressive, white_box  # noqa: E402
from tests.jobs.test_training import generated  # noqa: E402
from tests.trainers.test_adapt import SMALL, by_hand, weights  # noqa: E402
from tests.trainers.test_trainer import lines, same  # noqa: E402
from tests.trainers.tiny import save_model, stories  # noqa: E402

pytestmark = pytest.mark.medium

SAMPLES = [
    one.model_copy(update={"fields": json.dumps({"stage": 1 + n % 2})}) for n, one in enumerate(stories(12))
]
WEAK, STRONG = SAMPLES[0::2], SAMPLES[1::2]


def two_stages(**second):
    return [
        {"method": "black_box", "where": {"stage": 1}, "config": SMALL},
        {"method": "white_box", "where": {"stage": 2}, "config": {**SMALL, "steps": 3}, **second},
    ]


def test_stages_are_trainings_one_after_the_other(student, teacher, tmp_path):
    own = save_model(tmp_path / "own", seed=5)
    config = progressive.Config(stages=two_stages(teacher=own, limit=4))
    assert not progressive.needs_teacher(config)
    progressive.train(
        SAMPLES, teacher=teacher, student=student, out=tmp_path / "out", config=config, resume=False
    )
    first = by_hand(black_box, tmp_path / "one", WEAK, student)
    second = by_hand(white_box, tmp_path / "two", STRONG[:4], first, own, steps=3)
    same(weights(tmp_path / "out" / "stages" / "01_black_box" / "model"), weights(first), rtol=0, atol=0)
    same(weights(tmp_path / "out" / "model"), weights(second), rtol=0, atol=0)
    steps = [(line["stage"], line["step"]) for line in lines(tmp_path / "out", "train")]
    assert steps == [("01_black_box", 1), ("01_black_box", 2), *(("02_white_box", n) for n in (3, 4, 5))]


def test_a_run_in_stages_goes_on_where_it_stopped(student, teacher, tmp_path, monkeypatch):
    data = generated(tmp_path / "data", SAMPLES)
    own = save_model(tmp_path / "own", seed=5)
    asked = {"data": data, "student": student, "out": tmp_path / "out"}
    settings = {"stages": two_stages(teacher=own)}

    def stop(*args, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(white_box, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            train("progressive", **asked, config=settings)
    before = (tmp_path / "out" / "stages" / "01_black_box" / "model" / "model.safetensors").stat()
    out = train("progressive", **asked, config=settings, resume=True)
    assert (
        out / "stages" / "01_black_box" / "model" / "model.safetensors"
    ).stat().st_mtime == before.st_mtime
    assert read_info(out)["stats"]["steps"] == 5
    (out / "DONE").unlink()
    save_model(tmp_path / "own", seed=6)
    with pytest.raises(RunDirError, match="out cannot go on: other inputs than when it began"):
        train("progressive", **asked, config=settings, resume=True)


def test_every_part_is_looked_for_before_the_first_stage(student, tmp_path):
    settings = {"stages": two_stages(teacher="nowhere")}
    asked = {"teacher": None, "student": student, "out": tmp_path / "out", "resume": False}
    with pytest.raises(UsageError, match="No model 'nowhere'"):
        progressive.train(SAMPLES, **asked, config=progressive.Config(**settings))
    settings["stages"][1]["where"] = {"stage": 3}
    with pytest.raises(ConfigError, match="No sample has stage = 3; there are 1, 2"):
        progressive.train(SAMPLES, **asked, config=progressive.Config(**settings))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "stages = "),
        ([{"method": "blackbox"}], "No trainer named 'blackbox'. Did you mean 'black_box'"),
        ([{"method": "gkd", "config": {"stepz": 1}}], "trainer gkd: no key 'stepz'. Did you mean 'steps'"),
        ([{"method": "black_box", "limit": 0}], r"stages.0.limit = 0"),
        (
            [{"method": "black_box", "config": {"lora": {"merge": False}}}, {"method": "black_box"}],
            "stages.0.config.lora.merge = false saves adapters alone",
        ),
    ],
)
def test_settings_that_make_no_sense(stages, message):
    with pytest.raises(UsageError, match=message):
        build(progressive.Config, {"stages": stages}, "trainer progressive")


def test_a_stage_without_its_own_teacher_needs_the_one_of_the_whole(student, tmp_path):
    assert progressive.needs_teacher(progressive.Config(stages=two_stages()))
    data = generated(tmp_path / "data", SAMPLES)
    with pytest.raises(
        ConfigError, match=r"progressive learns .* no teacher is given; name one with --teacher"
    ):
        train(
            "progressive", data=data, student=student, out=tmp_path / "out", config={"stages": two_stages()}
        )
