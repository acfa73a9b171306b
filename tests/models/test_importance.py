"""Importance as Minitron defines it, against a reference in float64 with hooks of its own."""

from __future__ import annotations

import pytest

from kdbench.errors import UsageError
from tests.support import byte_llama

pytestmark = pytest.mark.medium

TEXTS = ["Once upon a time there was a cat.", "", "The end", "A dog ran home to sleep, and all was well."]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_llama.tokenizer()


def measured(model, tokenizer, texts=TEXTS, **more):
    from kdbench.models._structure import read_structure
    from kdbench.models.importance import measure

    return measure(model, read_structure(model, "it"), tokenizer, texts, **more)


def seen_by(model, tokenizer, module):
    """(input, output) of a module in float64, one pair a text, the batch taken off."""
    import torch

    seen = []
    handle = module.register_forward_hook(
        lambda _, args, output: seen.append((args[0][0].double(), output[0].double()))
    )
    with torch.inference_mode():
        for text in filter(None, TEXTS):
            model(torch.tensor([tokenizer(text).input_ids]))
    handle.remove()
    return seen


def l2_of_means(sizes):
    """sqrt(sum over samples of (mean over tokens)^2)."""
    import torch

    return torch.stack([one.mean(0) for one in sizes]).square().sum(0).sqrt()


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3", "Gemma2"])
def test_the_scores_are_those_of_the_paper(tokenizer, architecture):
    import torch

    model = byte_llama.model(architecture=architecture, layers=2, head_dim=8)
    found = measured(model, tokenizer)
    close = {"rtol": 1e-6, "atol": 1e-9}
    norms = [m for n, m in model.named_modules() if n.endswith("norm") and m.weight.shape == (32,)]
    assert len(norms) == {"Llama": 5, "Qwen3": 5, "Gemma2": 9}[architecture]
    outputs = [l2_of_means([out.abs() for _, out in seen_by(model, tokenizer, norm)]) for norm in norms]
    torch.testing.assert_close(found.channels, torch.stack(outputs).sum(0), **close)
    for i, layer in enumerate(model.model.layers):
        products = [x.abs() for x, _ in seen_by(model, tokenizer, layer.mlp.down_proj)]
        torch.testing.assert_close(found.neurons[i], l2_of_means(products), **close)
        heads = [x.view(-1, 4, 8).norm(dim=-1) for x, _ in seen_by(model, tokenizer, layer.self_attn.o_proj)]
        of_heads = l2_of_means(heads)
        expected = torch.stack([of_heads[:2].sum(), of_heads[2:].sum()])  # two heads share a key-value head
        torch.testing.assert_close(found.groups[i], expected, **close)


def test_shares_are_of_the_energy_that_goes_into_a_norm(tokenizer):
    import torch

    model = byte_llama.model(layers=2)
    found = measured(model, tokenizer)
    for name, shares in found.shares.items():
        inputs = torch.cat([x for x, _ in seen_by(model, tokenizer, model.get_submodule(name))])
        energy = inputs.square()
        torch.testing.assert_close(shares, (energy / energy.sum(-1, keepdim=True)).mean(0), rtol=1e-6, atol=0)


def test_long_texts_are_cut_and_hooks_taken_away(tokenizer):
    import torch

    model = byte_llama.model(layers=2)
    cut = measured(model, tokenizer, ["abc" * 100], max_tokens=30)
    assert torch.equal(cut.channels, measured(model, tokenizer, ["abc" * 10]).channels)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text_no_importance(tokenizer, texts):
    with pytest.raises(UsageError, match="needs sample text"):
        measured(byte_llama.model(layers=1), tokenizer, texts)
