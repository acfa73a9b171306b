"""References to weights, and the hash that names them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from kdbench.errors import DataError, RunDirError, UsageError
from kdbench.models.weights import local_weights, weights_sha256
from kdbench.rundir import RunDir


@pytest.fixture
def folder(tmp_path):
    return fake(tmp_path / "weights")


def fake(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama", "transformers_version": "5.0"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    return folder


def run(path, kind, finish=True):
    opened = RunDir.create(path, kind=kind, config={}, fingerprint={})
    fake(path / "model")
    opened.finish() if finish else opened.abandon("failed")
    return path


def test_a_folder_with_and_without_the_scheme(folder):
    assert local_weights(str(folder)) == local_weights(f"hf:{folder}") == folder


@pytest.mark.parametrize("kind", ["train", "student"])
def test_a_run_means_its_model(tmp_path, kind):
    path = run(tmp_path / "run", kind)
    assert local_weights(str(path)) == path / "model"


def test_a_run_of_another_kind(tmp_path):
    with pytest.raises(UsageError, match="'generate' run, which makes no model"):
        local_weights(str(run(tmp_path / "run", "generate")))


def test_a_run_that_is_not_finished(tmp_path):
    with pytest.raises(RunDirError, match="not finished"):
        local_weights(str(run(tmp_path / "run", "train", finish=False)))


@pytest.mark.parametrize(
    ("missing", "named"), [("config.json", "config.json"), ("model.safetensors", "safetensors")]
)
def test_a_folder_that_is_no_model(folder, missing, named):
    (folder / missing).unlink()
    with pytest.raises(UsageError, match=named):
        local_weights(str(folder))


def test_a_name_that_leads_nowhere():
    with pytest.raises(UsageError, match=r"No model 'smolm2'.*give smollm2"):
        local_weights("smolm2")


def test_an_id_is_looked_for_in_the_local_cache_only(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="hf download org/model"):
        local_weights("hf:org/model")
    snapshot = fake(tmp_path / "models--org--model" / "snapshots" / "abc")
    (tmp_path / "models--org--model" / "refs").mkdir()
    (tmp_path / "models--org--model" / "refs" / "main").write_text("abc")
    assert local_weights("hf:org/model") == snapshot


def test_a_name_that_is_no_id():
    with pytest.raises(UsageError, match="neither a folder nor the id"):
        local_weights("hf:a/b/c")


def test_the_hash_is_of_what_the_model_is(folder, tmp_path):
    first = weights_sha256(folder)
    assert weights_sha256(folder) == first
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("notes")
    (copy / ".kdbench_sha256.json").unlink()
    assert weights_sha256(copy) == first


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"]
)
def test_any_change_changes_the_hash(folder, name):
    first = weights_sha256(folder)
    (folder / name).write_text('{"other": 1}')
    assert weights_sha256(folder) != first


def test_another_version_of_the_saving_library_does_not_change_it(folder):
    first = weights_sha256(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_version": "5.9"}, indent=4))
    assert weights_sha256(folder) == first


def test_a_broken_sidecar_is_no_harm(folder):
    first = weights_sha256(folder)
    (folder / ".kdbench_sha256.json").write_text("{torn")
    assert weights_sha256(folder) == first


def test_no_weights_no_hash(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"no \.safetensors"):
        weights_sha256(folder)


def test_references_need_no_torch():
    code = "import sys, kdbench.models.weights as w; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
