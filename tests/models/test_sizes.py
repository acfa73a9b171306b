"""The sizes of possible students are those of the students that are then made."""

from __future__ import annotations

import pytest

from kdbench.errors import UsageError
from kdbench.models.students import StudentConfig, make_student
from tests.support import byte_llama

pytestmark = pytest.mark.medium


def possible(ref, vocabulary=None):
    from kdbench.models.sizes import possible_students

    return possible_students(ref, vocabulary)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return byte_llama.save(tmp_path_factory.mktemp("teacher"), layers=4)


def test_every_student_listed_can_be_made_and_is_as_large(teacher, tmp_path):
    rows, remark = possible(teacher)
    assert [row.name for row in rows] == [
        "teacher", "layers-3", "layers-2", "layers-1", "heads-2", "mlp-48", "mlp-32", "hidden-24",
        "hidden-16", "hidden-24-mlp-48", "layers-3-hidden-24-mlp-48",
    ]  # fmt: skip
    assert remark == ""
    assert rows[0].parameters == byte_llama.model(layers=4).num_parameters()
    assert rows[0].megabytes == rows[0].parameters * 4 / 1e6
    for row in rows[1:]:
        facts = make_student(
            StudentConfig(kind="pruned", **row.settings), teacher=teacher, out=tmp_path / row.name,
            sample_text=["Once upon a time"], seed=0,
        )  # fmt: skip
        assert facts["parameters"] == row.parameters < rows[0].parameters


def test_trimmed_students_have_fewer_embeddings(teacher):
    plain = {row.name: row for row in possible(teacher)[0]}
    rows = [row for row in possible(teacher, vocabulary=200)[0] if row.settings.get("trim_vocabulary")]
    assert [row.name for row in rows] == ["trimmed", "layers-2-trimmed", "layers-3-hidden-24-mlp-48-trimmed"]
    for row in rows:
        whole = plain[row.name.removesuffix("-trimmed") if "-" in row.name else "teacher"]
        hidden = row.settings.get("hidden_size", 32)
        assert whole.parameters - row.parameters == (259 - 200) * hidden


def test_nothing_is_loaded(teacher, monkeypatch):
    """Only the config is read: the weights may be larger than memory."""
    import safetensors.torch

    monkeypatch.setattr(safetensors, "safe_open", None)
    monkeypatch.setattr(safetensors.torch, "load_file", None)
    assert all(parameter.is_meta for parameter in _meta(teacher).parameters())
    assert possible(teacher)[0]


def _meta(ref):
    from kdbench.models.sizes import meta_model

    return meta_model(ref)


def test_a_model_that_cannot_be_narrower_says_why(tmp_path):
    ref = byte_llama.save(tmp_path, layers=4, architecture="Phi3")
    rows, remark = possible(ref)
    assert [row.name for row in rows] == ["teacher", "layers-3", "layers-2", "layers-1"]
    assert "cannot be pruned by width" in remark


def test_a_model_that_cannot_be_pruned_at_all(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"A gpt2 model cannot be pruned.*kind 'scratch' or 'weights'"):
        possible(str(tmp_path))


def test_a_config_that_cannot_be_read(teacher, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(UsageError, match=r"config of .* cannot be read"):
        possible(str(tmp_path))
