"""Students of all three kinds, as folders of weights that anybody can use."""

from __future__ import annotations

import json

import pytest

from kdbench.config import build
from kdbench.errors import ConfigError, StorageError, UsageError
from kdbench.models.students import StudentConfig, make_student
from kdbench.models.weights import weights_sha256
from kdbench.records import Completion, Message
from tests.support import byte_llama, trained_bpe

TEXTS = ["Once upon a time there was a cat.", "The end"]
ASK = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return byte_llama.save(tmp_path_factory.mktemp("teacher"), layers=5)


def made(teacher, out, seed=0, **config):
    return make_student(StudentConfig(**config), teacher=teacher, out=out, sample_text=TEXTS, seed=seed)


def loaded(out):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(out).eval(), AutoTokenizer.from_pretrained(out)


@pytest.mark.medium
def test_a_pruned_student(teacher, tmp_path):
    import torch

    facts = made(teacher, tmp_path, kind="pruned", layers=3)
    student, tokenizer = loaded(tmp_path)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["layers"] == len(student.model.layers) == student.config.num_hidden_layers == 3
    assert facts["parameters"] == student.num_parameters()
    assert facts["weights_sha256"] == weights_sha256(tmp_path)
    assert len(facts["block_influence"]) == 5
    dropped = set(range(5)) - set(facts["kept_layers"])
    assert max(facts["block_influence"][i] for i in dropped) <= min(
        facts["block_influence"][i] for i in facts["kept_layers"]
    )
    original = byte_llama.model(layers=5)
    for new, old in enumerate(facts["kept_layers"]):
        assert torch.equal(
            student.model.layers[new].mlp.up_proj.weight, original.model.layers[old].mlp.up_proj.weight
        )
    assert student.lm_head.weight.data_ptr() == student.model.embed_tokens.weight.data_ptr()
    text = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.medium
def test_a_student_with_all_layers_is_the_teacher(teacher, tmp_path):
    import torch

    made(teacher, tmp_path, kind="pruned", layers=5)
    ids = torch.tensor([[5, 9, 33, 7]])
    with torch.inference_mode():
        assert torch.equal(loaded(tmp_path)[0](ids).logits, byte_llama.model(layers=5)(ids).logits)


@pytest.mark.medium
def test_a_student_that_is_shallower_and_narrower(teacher, tmp_path):
    """Depth comes first: what is narrowed is the shallower model."""
    from kdbench.models.width import Width, prune_width

    facts = made(
        teacher, tmp_path / "both", kind="pruned", layers=3, hidden_size=24, intermediate_size=40, heads=2
    )
    assert json.loads(json.dumps(facts)) == facts
    sizes = {
        k: facts[k] for k in ("layers", "hidden_size", "intermediate_size", "heads", "kv_heads", "head_dim")
    }
    assert sizes == {
        "layers": 3, "hidden_size": 24, "intermediate_size": 40, "heads": 2, "kv_heads": 1, "head_dim": 8,
    }  # fmt: skip
    student, tokenizer = loaded(tmp_path / "both")
    assert facts["parameters"] == student.num_parameters()
    deep = made(teacher, tmp_path / "depth", kind="pruned", layers=3)
    assert deep["kept_layers"] == facts["kept_layers"]
    shallow, _ = loaded(tmp_path / "depth")
    expected = prune_width(shallow, tokenizer, TEXTS, Width(24, 40, 2), "it").state_dict()
    assert all((weight == expected[name]).all() for name, weight in student.state_dict().items())


@pytest.mark.medium
def test_width_alone_needs_no_layers_and_measures_no_influence(teacher, tmp_path):
    facts = made(teacher, tmp_path, kind="pruned", heads=2)
    assert (facts["layers"], facts["heads"]) == (5, 2)
    assert "block_influence" not in facts
    assert loaded(tmp_path)[0].config.num_key_value_heads == 1


@pytest.mark.medium
@pytest.mark.parametrize("config", [{"kind": "pruned", "layers": 3}, {"kind": "weights"}, {"kind": "pruned"}])
def test_a_student_with_a_trimmed_vocabulary(tmp_path, config):
    tokenizer = trained_bpe.tokenizer()
    byte_llama.model(layers=4, vocab_size=len(tokenizer)).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    teacher = str(tmp_path / "teacher")
    if config["kind"] == "weights":
        config = {**config, "model": teacher}
    settings = StudentConfig(trim_vocabulary=True, **config)
    ask, answer = (
        Message(role="user", content="The apple tree"),
        Message(role="assistant", content="The river."),
    )
    facts = make_student(
        settings, teacher=teacher, out=tmp_path / "out", sample_text=["The cat"], seed=0,
        samples=iter([Completion(prompt=(ask,), completion=(answer,))]),
    )  # fmt: skip
    student, small = loaded(tmp_path / "out")
    assert facts["vocabulary"] == student.config.vocab_size == len(small) < facts["vocabulary_before"]
    assert facts["vocabulary_before"] == len(tokenizer)
    assert facts["shares_teacher_vocabulary"] is False
    assert facts["parameters"] == student.num_parameters()
    for text in ("The apple tree", "The river."):
        assert small.tokenize(text) == tokenizer.tokenize(text)
    assert small.tokenize(" together") != tokenizer.tokenize(" together")


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["pruned", "weights", "scratch"])
def test_a_student_names_every_end_of_its_turn(tmp_path, kind):
    """Teachers often name only the end of a text; plain `generate` goes by the generation config."""
    model = byte_llama.model(layers=2)
    model.config.eos_token_id = model.generation_config.eos_token_id = 0
    model.save_pretrained(tmp_path / "teacher")
    byte_llama.tokenizer().save_pretrained(tmp_path / "teacher")
    more = {
        "weights": {"model": str(tmp_path / "teacher")},
        "scratch": {"layers": 1},
        "pruned": {"layers": 1},
    }[kind]
    made(str(tmp_path / "teacher"), tmp_path / "out", kind=kind, **more)
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert ends == (2 if kind == "scratch" else [0, 2])


@pytest.mark.medium
def test_more_layers_than_there_are(teacher, tmp_path):
    with pytest.raises(UsageError, match="has 5 layers, so a student cannot keep 6"):
        made(teacher, tmp_path, kind="pruned", layers=6)


@pytest.mark.medium
@pytest.mark.parametrize("tied", [True, False])
def test_a_student_from_scratch(teacher, tmp_path, tied):
    import torch

    shape = {"hidden_size": 48, "heads": 6, "kv_heads": 3, "context": 128, "tie_embeddings": tied}
    before = torch.random.get_rng_state()
    facts = made(teacher, tmp_path / "a", kind="scratch", layers=2, shape=shape)
    assert torch.equal(torch.random.get_rng_state(), before)
    student, tokenizer = loaded(tmp_path / "a")
    assert student.config.vocab_size == 259
    assert student.config.eos_token_id == tokenizer.eos_token_id == 2
    assert (student.config.hidden_size, student.config.intermediate_size) == (48, 128)
    assert "You are tiny" not in tokenizer.apply_chat_template(ASK, tokenize=False)
    again = made(teacher, tmp_path / "b", kind="scratch", layers=2, shape=shape)
    other = made(teacher, tmp_path / "c", kind="scratch", layers=2, shape=shape, seed=1)
    assert facts["weights_sha256"] == again["weights_sha256"] != other["weights_sha256"]


@pytest.mark.medium
def test_a_student_from_weights_keeps_its_template(teacher, tmp_path):
    facts = made("nowhere", tmp_path, kind="weights", model=teacher)
    _, tokenizer = loaded(tmp_path)
    assert facts["layers"] == 5
    assert "You are tiny" in tokenizer.apply_chat_template(ASK, tokenize=False)


@pytest.mark.medium
def test_a_base_model_gets_a_template(tmp_path):
    byte_llama.model().save_pretrained(tmp_path / "base")
    byte_llama.tokenizer(template=None).save_pretrained(tmp_path / "base")
    made("nowhere", tmp_path / "out", kind="weights", model=str(tmp_path / "base"))
    _, tokenizer = loaded(tmp_path / "out")
    assert tokenizer.apply_chat_template(ASK, tokenize=False) == "<|im_start|>user\nHi<|im_end|>\n"


@pytest.mark.medium
def test_a_place_that_cannot_be_written(teacher, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Cannot write the student"):
        made(teacher, tmp_path / "file" / "model", kind="scratch", layers=1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "pruned"}, "needs `layers`, `hidden_size`, `intermediate_size`, `heads` or"),
        ({"kind": "scratch"}, "needs `layers`"),
        ({"kind": "scratch", "layers": 1, "hidden_size": 8}, "not 'scratch'; write `shape.hidden_size`"),
        ({"kind": "scratch", "layers": 1, "trim_vocabulary": True}, "choose the kind 'pruned' or 'weights'"),
        ({"kind": "weights", "model": "smollm2", "heads": 3}, "`heads` is of a student of kind 'pruned'"),
        ({"kind": "pruned", "hidden_sise": 8}, "Did you mean 'hidden_size'"),
        ({"kind": "weights"}, "needs `model`"),
        ({"kind": "prunned", "layers": 3}, "kind"),
        ({"kind": "pruned", "layers": 0}, "greater than or equal to 1"),
        ({"kind": "scratch", "layers": 2, "shape": {"heads": 3}}, "multiple of heads 3"),
        ({"kind": "scratch", "layers": 2, "shape": {"heads": 4, "kv_heads": 3}}, "multiple of kv_heads 3"),
        ({"kind": "scratch", "layers": 2, "shape": {"head": 4}}, "Did you mean 'heads'"),
    ],
)
def test_a_student_that_makes_no_sense(values, said):
    with pytest.raises(ConfigError, match=said):
        build(StudentConfig, values, "student")
