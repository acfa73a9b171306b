"""Loading: from safetensors only, in eval mode, and one sentence where it cannot be done."""

from __future__ import annotations

import importlib.util

import pytest

from kdbench.errors import MissingExtra, UsageError
from kdbench.models.loading import load_model, load_tokenizer, pick_device
from tests.support import byte_llama


@pytest.fixture(scope="module")
def ref(tmp_path_factory):
    return byte_llama.save(tmp_path_factory.mktemp("byte_llama"))


@pytest.mark.medium
def test_a_model_comes_back_as_it_was_saved(ref):
    import torch

    loaded, made = load_model(ref, device="cpu"), byte_llama.model()
    assert loaded.dtype == torch.float32
    assert not loaded.training
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(loaded(ids).logits, made(ids).logits)
    assert load_tokenizer(ref).decode(load_tokenizer(ref)("Héllo").input_ids) == "Héllo"


@pytest.mark.medium
def test_a_dtype_that_was_asked_for(ref):
    import torch

    assert load_model(ref, device="cpu", dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.medium
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"dtype": "int8"}, "No dtype 'int8'; choose one of float32"),
        ({"device": "tpu-nine"}, "No device 'tpu-nine'; choose cpu"),
        ({"device": "cuda:99"}, "No device 'cuda:99' on this machine"),
    ],
)
def test_what_is_not_there(ref, asked, said):
    with pytest.raises(UsageError, match=said):
        load_model(ref, **asked)


@pytest.mark.medium
def test_torn_weights(ref, tmp_path):
    import shutil

    torn = tmp_path / "torn"
    shutil.copytree(ref, torn)
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:500])
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_model(str(torn), device="cpu")


@pytest.mark.medium
def test_a_foreign_config(ref, tmp_path):
    import shutil

    foreign = tmp_path / "foreign"
    shutil.copytree(ref, foreign)
    (foreign / "config.json").write_text('{"model_type": "no_such_thing"}')
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_model(str(foreign), device="cpu")


@pytest.mark.medium
def test_no_tokenizer(tmp_path):
    byte_llama.model().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="tokenizer"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("load", [load_model, load_tokenizer, lambda ref: pick_device()])
def test_without_torch(load, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    with pytest.raises(MissingExtra, match=r"kdbench\[train\]"):
        load("smollm2")
