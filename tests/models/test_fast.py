"""The fast path computes what transformers' own path computes."""

from __future__ import annotations

import pytest

from tests.support import byte_llama

pytestmark = pytest.mark.medium


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_grouped_attention_is_attention_with_repeated_heads(tokens, groups):
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from kdbench.models._fast import grouped_attention

    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 6, tokens, 8, generator=generator)
    key, value = (torch.randn(3, groups, 20, 8, generator=generator) for _ in range(2))
    mask = torch.zeros(3, 1, tokens, 20).masked_fill_(torch.arange(20) > 11, torch.finfo(torch.float32).min)
    got, _ = grouped_attention(None, query, key, value, mask, scaling=0.3)
    each = 6 // groups
    repeated = (t.repeat_interleave(each, dim=1) for t in (key, value))
    expected = scaled_dot_product_attention(query, *repeated, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(got, expected.transpose(1, 2))


def test_packed_weights_give_the_same_logits():
    import torch

    from kdbench.models._fast import fast_inference

    model = byte_llama.model(attention_bias=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    ids = torch.arange(3, 40)[None]
    mask = torch.zeros(1, 1, 37, 37).masked_fill_(torch.ones(37, 37).triu(1).bool(), -1e30)
    with torch.inference_mode():
        expected = model(ids).logits
    with fast_inference(model):
        got = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_everything_is_undone_after_an_error():
    from kdbench.models._fast import fast_inference

    model = byte_llama.model()
    with pytest.raises(ZeroDivisionError), fast_inference(model):
        1 / 0  # noqa: B018
    assert model.config._attn_implementation == "sdpa"
    assert not any("forward" in module.__dict__ for module in model.modules())
