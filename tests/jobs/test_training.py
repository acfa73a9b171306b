"""`train` from run directories to a run directory, by shipped trainers and by a user's own file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.errors import ConfigError, DataError, NothingLeft, RunDirError, UnknownPlugin, UsageError
from kdbench.jobs.training import train
from kdbench.jsonl import JsonlWriter
from kdbench.records import Text
from kdbench.rundir import RunDir, is_done, read_info
from tests.trainers.tiny import save_model, stories

# A trainer that needs no torch: it copies the student, and can be told to fail.
OWN = '''"""copy: hand back the student."""
import json, shutil
from kdbench.config import StrictConfig

class Config(StrictConfig):
    steps: int = 2
    fail: str = ""

def train(samples, *, teacher, student, out, config, resume):
    seen = out / "seen.json"
    seen.write_text(json.dumps([len(samples), teacher, resume]))
    if config.fail == "interrupt":
        raise KeyboardInterrupt
    shutil.copytree(student, out / "model", dirs_exist_ok=True)
    with open(out / "metrics.jsonl", "w") as file:
        for step in range(1, config.steps + 1):
            line = {"step": step, "split": "train", "loss": 1.0, "tokens": 30, "seconds": 0.5}
            file.write(json.dumps(line) + "\\n")
        file.write(json.dumps({"step": step, "split": "validation", "loss": 0.7, "tokens": 9}) + "\\n")
'''


def generated(path: Path, samples, finish=True) -> Path:
    run = RunDir.create(path, kind="generate", config={}, fingerprint={})
    with JsonlWriter(path / "samples.jsonl") as file:
        for sample in samples:
            file.write(sample)
    if finish:
        run.finish()
    else:
        run.abandon("interrupted")
    return path


@pytest.fixture
def data(tmp_path):
    return generated(tmp_path / "data", [*stories(6), Text(text="no completion")])


@pytest.fixture
def weights(tmp_path):
    """A folder of weights of 2 x 3 and 5 numbers, written by hand."""
    folder = tmp_path / "weights"
    folder.mkdir()
    entries = {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "F32", "shape": [5], "data_offsets": [24, 44]},
        "__metadata__": {"format": "pt"},
    }
    header = json.dumps(entries).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(44))
    (folder / "config.json").write_text("{}")
    return str(folder)


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "copy_student.py"
    path.write_text(OWN)
    return path


def test_a_users_own_trainer_fills_a_run_directory(own, data, weights, tmp_path):
    out = train(own, data=data, student=weights, out=tmp_path / "out", config={"steps": 3})
    info = read_info(out)
    assert is_done(out)
    assert (info["kind"], info["status"], info["trainer"]) == ("train", "done", "copy_student")
    assert info["stats"] == {
        "samples": 6, "steps": 3, "tokens": 90, "seconds": 1.5, "tokens_per_second": 60.0,
        "parameters": 11, "validation_loss": 0.7,
    }  # fmt: skip
    assert info["student"]["ref"] == weights
    assert info["weights_sha256"] == info["student"]["weights_sha256"]
    assert (out / "model" / "README.md").is_file()
    assert json.loads((out / "seen.json").read_text()) == [6, None, False]


def test_several_runs_and_a_limit(own, data, weights, tmp_path):
    more = generated(tmp_path / "more", stories(3))
    out = train(own, data=[data, more], student=weights, out=tmp_path / "all")
    assert json.loads((out / "seen.json").read_text())[0] == 9
    out = train(own, data=[data, more], student=weights, out=tmp_path / "some", limit=7)
    assert json.loads((out / "seen.json").read_text())[0] == 7


def test_ctrl_c_leaves_a_run_that_can_be_resumed(own, data, weights, tmp_path, caplog):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(own, data=data, student=weights, out=out, config={"fail": "interrupt"})
    assert read_info(out)["status"] == "interrupted"
    assert "go on with --resume" in caplog.text
    with pytest.raises(RunDirError, match="is in use; use --resume"):
        train(own, data=data, student=weights, out=out, config={"fail": "interrupt"})
    with pytest.raises(KeyboardInterrupt):
        train(own, data=data, student=weights, out=out, config={"fail": "interrupt"}, resume=True)
    assert json.loads((out / "seen.json").read_text())[2] is True


def test_resume_refuses_another_training_and_keeps_a_finished_one(own, data, weights, tmp_path):
    out = train(own, data=data, student=weights, out=tmp_path / "out")
    (out / "seen.json").unlink()
    train(own, data=data, student=weights, out=out, resume=True)
    assert not (out / "seen.json").exists()
    with pytest.raises(RunDirError, match="cannot go on: other config than when it began"):
        train(own, data=data, student=weights, out=out, resume=True, config={"steps": 5})
    own.write_text(OWN + "\n# mended\n")
    with pytest.raises(RunDirError, match="other trainer source than"):
        train(own, data=data, student=weights, out=out, resume=True)
    other = generated(tmp_path / "other", stories(5))
    with pytest.raises(RunDirError, match="other trainer source, data than"):
        train(own, data=other, student=weights, out=out, resume=True)
    train(own, data=other, student=weights, out=out, overwrite=True)
    assert is_done(out)


def test_bad_input_is_refused_before_a_directory_is_made(own, data, weights, tmp_path):
    def refused(error, match, **changed):
        wanted = {"method": own, "data": data, "student": weights, "out": tmp_path / "out", **changed}
        with pytest.raises(error, match=match):
            train(wanted.pop("method"), **wanted)
        assert not (tmp_path / "out").exists()

    refused(UnknownPlugin, "No trainer named 'black_bx'. Did you mean 'black_box'", method="black_bx")
    refused(ConfigError, "trainer copy_student: no key 'step'. Did you mean 'steps'", config={"step": 3})
    refused(ConfigError, "kd_temperature = -1: input should be greater than 0", method="white_box",
            config={"kd_temperature": -1}, teacher=weights)  # fmt: skip
    refused(ConfigError, "white_box .* no teacher is given; name one with --teacher", method="white_box")
    refused(UsageError, "exclude each other", resume=True, overwrite=True)
    refused(UsageError, "No model 'nowhere'", student="nowhere")
    refused(RunDirError, "is no run directory", data=tmp_path / "nothing")
    unfinished = generated(tmp_path / "unfinished", stories(1), finish=False)
    refused(RunDirError, "is not finished; go on with --resume", data=unfinished)
    refused(NothingLeft, "No completion to train on", data=generated(tmp_path / "none", [Text(text="a")]))
    torn = generated(tmp_path / "torn", stories(2))
    with open(torn / "samples.jsonl", "a") as file:
        file.write('{"kind": "compl')
    refused(DataError, r"samples.jsonl:3 is cut off", data=torn)


@pytest.mark.medium
@pytest.mark.parametrize("method", ["black_box", "white_box", "gkd", "distillm", "minillm"])
def test_shipped_trainers(method, data, tmp_path):
    pytest.importorskip("torch")
    student, teacher = (save_model(tmp_path / name, seed=n) for n, name in enumerate(["student", "teacher"]))
    settings = {"steps": 3, "batch_size": 2, "device": "cpu"}
    out = train(method, data=data, student=student, teacher=teacher, out=tmp_path / "out", config=settings)
    info = read_info(out)
    assert info["stats"]["steps"] == 3
    assert info["stats"]["samples"] == 7  # the text is learnt, too
    assert info["stats"]["parameters"] > 1000
    assert info["stats"]["validation_loss"] > 0
    assert info["weights_sha256"] != info["student"]["weights_sha256"]
    assert bool(info["teacher"]["weights_sha256"]) == (method != "black_box")
    phases = info["stats"]["phases"]
    assert sum(phases.values()) == pytest.approx(info["stats"]["seconds"], abs=0.01)
    assert info["stats"]["peak_memory_mb"] > 10


@pytest.mark.medium
def test_processes_that_a_launcher_starts_write_one_run_directory(data, tmp_path):
    pytest.importorskip("torch")
    student, teacher = (save_model(tmp_path / name, seed=n) for n, name in enumerate(["student", "teacher"]))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = ["-m", "kdbench.cli", "train", "gkd", "--data", str(data), "--student", student, "--teacher"]
    sets = ["steps=3", "batch_size=2", "device=cpu", "max_new_tokens=4", "checkpoint_every=2"]
    command += [teacher, "--out", str(tmp_path / "out"), *(part for one in sets for part in ("--set", one))]
    done = subprocess.run(
        [*launch, *command], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Done: ") == 1
    assert is_done(tmp_path / "out")
    assert read_info(tmp_path / "out")["stats"]["steps"] == 3
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [0, 1, 2, 3, 3]
    again = subprocess.run([*launch, *command], capture_output=True, text=True)
    assert again.returncode != 0
    assert "is in use; use --resume to go on" in again.stderr


def staged(folder, stages):
    samples = [
        s.model_copy(update={"fields": json.dumps({"stage": n})})
        for s, n in zip(stories(4), stages, strict=True)
    ]
    return generated(folder / "staged", samples)


def test_where_takes_the_samples_whose_fields_say_so(tmp_path, weights):
    (tmp_path / "copy.py").write_text(OWN)
    data = staged(tmp_path, [1, 2, 1, 1])
    out = train(tmp_path / "copy.py", data=data, student=str(weights), out=tmp_path / "o", where={"stage": 1})
    assert json.loads((out / "seen.json").read_text())[0] == 3
    assert read_info(out)["fingerprint"]["where"] == {"stage": 1}
    with pytest.raises(RunDirError, match="other where than when it began"):
        train(tmp_path / "copy.py", data=data, student=str(weights), out=out, where={"stage": 2}, resume=True)


def test_where_that_fits_nothing_says_what_there_is(tmp_path, weights):
    (tmp_path / "copy.py").write_text(OWN)
    data = staged(tmp_path, [1, 2, 1, 1])
    asked = {"data": data, "student": str(weights), "out": tmp_path / "o"}
    with pytest.raises(ConfigError, match=r"No sample has stage = 3; there are 1, 2"):
        train(tmp_path / "copy.py", **asked, where={"stage": 3})
    with pytest.raises(ConfigError, match=r"field 'stag' to choose by. Did you mean 'stage'"):
        train(tmp_path / "copy.py", **asked, where={"stag": 1})
    assert not (tmp_path / "o").exists()
