"""Width pruning: what is kept computes what it did, in a model that anybody can load."""

from __future__ import annotations

import pytest

from kdbench.errors import UsageError
from tests.support import byte_llama

pytestmark = pytest.mark.medium

TEXTS = ["Once upon a time there was a cat.", "The end", "A dog ran home to sleep, and all was well."]
IDS = [5, 9, 33, 7, 100, 200]
LLAMAS = ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3", "SmolLM3", "Granite"]
IDLE_CHANNELS, IDLE_NEURONS = [3, 7, 8, 30], range(5, 21)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_llama.tokenizer()


def made(architecture, layers=2, **more):
    """A tiny model of the architecture: 32 channels, 64 neurons, 4 heads in 2 groups of 8 dimensions."""
    import torch
    import transformers

    if architecture != "Gemma3":
        return byte_llama.model(architecture=architecture, layers=layers, head_dim=8, **more)
    config = transformers.Gemma3TextConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.25, **more,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.Gemma3ForCausalLM(config).eval()


def idle(model):
    """Make channels, neurons and the second group of heads of a model do nothing."""
    import torch

    with torch.no_grad():
        model.model.embed_tokens.weight[:, IDLE_CHANNELS] = 0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[IDLE_CHANNELS] = 0
            layer.mlp.down_proj.weight[IDLE_CHANNELS] = 0
            layer.mlp.up_proj.weight[list(IDLE_NEURONS)] = 0
            layer.self_attn.v_proj.weight[8:] = 0
            if layer.self_attn.v_proj.bias is not None:
                layer.self_attn.v_proj.bias[8:] = 0
            for norm in [m for n, m in layer.named_children() if "norm" in n]:
                norm.weight += torch.linspace(-0.5, 0.5, 32)  # not all the same
    return model


def narrowed(model, tokenizer, ref="it", **width):
    from kdbench.models.width import Width, prune_width

    return prune_width(model, tokenizer, TEXTS, Width(**width), ref)


def logits(model):
    import torch

    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0]


@pytest.mark.parametrize("architecture", LLAMAS)
def test_keeping_everything_changes_nothing(architecture, tokenizer):
    model = made(architecture)
    narrow = narrowed(model, tokenizer, hidden_size=32, intermediate_size=64, heads=4)
    assert (logits(narrow) == logits(model)).all()
    assert narrow is not model


@pytest.mark.parametrize("architecture", LLAMAS)
@pytest.mark.parametrize(
    "width",
    [{"hidden_size": 28}, {"intermediate_size": 48}, {"heads": 2},
     {"hidden_size": 28, "intermediate_size": 48, "heads": 2}],
    ids=lambda w: "-".join(w),
)  # fmt: skip
def test_dropping_what_does_nothing_changes_nothing(architecture, width, tokenizer):
    import torch

    model = idle(made(architecture))
    narrow = narrowed(model, tokenizer, **width)
    torch.testing.assert_close(logits(narrow), logits(model), rtol=1e-5, atol=1e-4)
    layer = narrow.model.layers[0]
    hidden, neurons, heads = (width.get(k, n) for k, n in
                              (("hidden_size", 32), ("intermediate_size", 64), ("heads", 4)))  # fmt: skip
    assert layer.mlp.up_proj.weight.shape == (neurons, hidden)
    assert layer.self_attn.q_proj.weight.shape == (8 * heads, hidden)
    assert layer.self_attn.k_proj.weight.shape == (4 * heads, hidden)
    assert narrow.config.head_dim == 8


def test_an_untied_head_of_a_model_that_scales_its_embeddings(tokenizer):
    import torch

    model = idle(made("Gemma", tie_word_embeddings=False))
    narrow = narrowed(model, tokenizer, hidden_size=28)
    assert narrow.lm_head.weight is not narrow.model.embed_tokens.weight
    torch.testing.assert_close(logits(narrow), logits(model), rtol=1e-5, atol=1e-4)


def test_the_most_important_are_kept_in_their_order(tokenizer):
    import torch

    from kdbench.models._structure import read_structure
    from kdbench.models.importance import measure

    model = made("Llama")
    scores = measure(model, read_structure(model, "it"), tokenizer, TEXTS)
    narrow = narrowed(model, tokenizer, hidden_size=20, intermediate_size=30, heads=2)
    hidden = sorted(scores.channels.argsort(descending=True)[:20].tolist())
    assert torch.equal(narrow.model.embed_tokens.weight, model.model.embed_tokens.weight[:, hidden])
    for i, (new, old) in enumerate(zip(narrow.model.layers, model.model.layers, strict=True)):
        neurons = sorted(scores.neurons[i].argsort(descending=True)[:30].tolist())
        assert torch.equal(new.mlp.up_proj.weight, old.mlp.up_proj.weight[neurons][:, hidden])
        assert torch.equal(new.mlp.down_proj.weight, old.mlp.down_proj.weight[hidden][:, neurons])
        group = int(scores.groups[i].argmax())
        q, kv = slice(16 * group, 16 * group + 16), slice(8 * group, 8 * group + 8)
        assert torch.equal(new.self_attn.q_proj.weight, old.self_attn.q_proj.weight[q][:, hidden])
        assert torch.equal(new.self_attn.k_proj.weight, old.self_attn.k_proj.weight[kv][:, hidden])
        assert torch.equal(new.self_attn.v_proj.weight, old.self_attn.v_proj.weight[kv][:, hidden])
        assert torch.equal(new.self_attn.o_proj.weight, old.self_attn.o_proj.weight[hidden][:, q])


def test_evenly_busy_channels_leave_the_norms_as_they_are(tokenizer):
    """The gain follows the energy that was dropped; it is no fixed sqrt(all / kept)."""
    import torch

    model = made("Llama")
    with torch.no_grad():  # every channel has the same energy in the first norm
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight.sign())
    narrow = narrowed(model, tokenizer, hidden_size=16)
    torch.testing.assert_close(narrow.model.layers[0].input_layernorm.weight, torch.ones(16))


@pytest.mark.parametrize("architecture", ["Llama", "Qwen2", "Gemma3"])
def test_plain_transformers_loads_the_checkpoint(architecture, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    model = made(architecture)
    model.generation_config.eos_token_id = [0, 2]
    narrow = narrowed(model, tokenizer, hidden_size=24, intermediate_size=40, heads=2)
    narrow.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.generation_config.eos_token_id == [0, 2]
    assert again.config.head_dim == 8
    assert (logits(again) == logits(narrow)).all()


def test_a_narrow_model_generates_the_same_with_and_without_its_cache(tokenizer):
    import torch

    narrow = narrowed(made("Llama"), tokenizer, hidden_size=24, heads=2)
    ids = torch.tensor([IDS])
    settings = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with_cache = narrow.generate(ids, use_cache=True, **settings)
    assert with_cache.tolist() == narrow.generate(ids, use_cache=False, **settings).tolist()


def test_the_teacher_and_the_generator_stay_as_they_were(tokenizer):
    import torch

    model = made("Llama")
    before, state = logits(model), torch.random.get_rng_state()
    narrowed(model, tokenizer, hidden_size=16)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (logits(model) == before).all()
    assert model.config.hidden_size == 32


@pytest.mark.parametrize(
    ("architecture", "why"),
    [("Olmo2", "q_norm.weight"), ("Phi3", "o_proj.weight"), ("Mixtral", "mlp"), ("Cohere", "no RMSNorm"),
     ("StableLm", "layernorm.bias")],
)  # fmt: skip
def test_other_architectures_are_refused(architecture, why, tokenizer):
    with pytest.raises(UsageError, match=why):
        narrowed(byte_llama.model(architecture=architecture, layers=1), tokenizer, hidden_size=24)


@pytest.mark.parametrize(
    ("width", "said"),
    [
        ({"hidden_size": 33}, "'it' has 32 hidden channels, so a student cannot keep 33"),
        ({"intermediate_size": 65}, "64 MLP neurons per layer, so a student cannot keep 65"),
        ({"heads": 6}, "4 attention heads, so a student cannot keep 6"),
        ({"heads": 3}, "`heads` cannot be 3; choose one of 2, 4"),
        ({"hidden_size": 30}, r"hidden size \(30\) is not a multiple.*; choose other sizes"),
    ],
)
def test_sizes_that_cannot_be(width, said, tokenizer):
    with pytest.raises(UsageError, match=said):
        narrowed(made("Llama"), tokenizer, **width)
