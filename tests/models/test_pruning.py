"""Block Influence and the surgery that follows it."""

from __future__ import annotations

import math

import pytest

from kdbench.errors import UsageError
from kdbench.models.pruning import block_influence, highest, keep_layers
from tests.support import byte_llama

pytestmark = pytest.mark.medium

TEXTS = ["Once upon a time there was a cat.", "The end", "A dog ran home to sleep, and all was well."]


@pytest.fixture
def model():
    return byte_llama.model(layers=6)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_llama.tokenizer()


def identity(layer):
    """Make a layer add nothing to what flows past it."""
    import torch

    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()


def logits(model, ids):
    import torch

    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


def test_influence_is_one_minus_the_cosine_of_input_and_output(model, tokenizer):
    import torch

    sums, tokens = [0.0] * 5, 0
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.inference_mode():
            states = model(ids, output_hidden_states=True).hidden_states
        tokens += ids.shape[1]
        for i in range(5):  # the last of hidden_states is taken after the final norm
            a, b = states[i][0].double(), states[i + 1][0].double()
            sums[i] += float((1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).sum())
    found = block_influence(model, tokenizer, TEXTS)
    assert len(found) == 6
    assert all(math.isclose(f, s / tokens, abs_tol=1e-6) for f, s in zip(found, sums, strict=False))


def test_a_layer_that_does_nothing_has_none(model, tokenizer):
    identity(model.model.layers[2])
    influence = block_influence(model, tokenizer, TEXTS)
    assert influence[2] == pytest.approx(0, abs=1e-9)
    assert min(influence[:2] + influence[3:]) > 1e-3
    assert highest(influence, 5) == [0, 1, 3, 4, 5]


def test_taking_out_a_layer_that_does_nothing_changes_nothing(model, tokenizer):
    import torch

    identity(model.model.layers[2])
    before = logits(model, [5, 9, 33, 7])
    keep_layers(model, highest(block_influence(model, tokenizer, TEXTS), 5))
    torch.testing.assert_close(logits(model, [5, 9, 33, 7]), before)


def test_keeping_all_layers_is_the_model_itself(model):
    before = logits(model, [5, 9, 33, 7])
    keep_layers(model, range(6))
    assert (logits(model, [5, 9, 33, 7]) == before).all()


def test_a_pruned_model_generates_the_same_with_and_without_its_cache(model):
    import torch

    keep_layers(model, [0, 3, 5])
    ids = torch.tensor([[5, 9, 33, 7]])
    settings = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with_cache = model.generate(ids, use_cache=True, **settings)
    assert with_cache.tolist() == model.generate(ids, use_cache=False, **settings).tolist()


def test_config_lists_with_an_entry_a_layer_follow(model):
    model.config.layer_types = ["full_attention", "sliding_attention"] * 3
    keep_layers(model, [0, 2, 5])
    assert model.config.num_hidden_layers == 3
    assert model.config.layer_types == ["full_attention", "full_attention", "sliding_attention"]


@pytest.mark.parametrize("kept", [[], [6], [-1]])
def test_layers_that_are_not_there(model, kept):
    with pytest.raises(UsageError, match="keep 1 to 6"):
        keep_layers(model, kept)


def test_long_texts_are_cut_and_hooks_taken_away(model, tokenizer):
    cut = block_influence(model, tokenizer, ["abc" * 1000], max_tokens=30)
    assert cut == block_influence(model, tokenizer, ["abc" * 10], max_tokens=30)
    assert not any(layer._forward_hooks for layer in model.model.layers)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text_no_influence(model, tokenizer, texts):
    with pytest.raises(UsageError, match="needs sample text"):
        block_influence(model, tokenizer, texts)


def test_the_highest_keep_their_order_and_ties_go_to_the_earlier():
    assert highest([0.5, 0.1, 0.9, 0.1, 0.7], 3) == [0, 2, 4]
    assert highest([0.1, 0.1, 0.1], 2) == [0, 1]
