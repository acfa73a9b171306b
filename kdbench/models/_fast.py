"""What makes a transformers model decode fast on few cores without changing what it computes.

    with fast_inference(model):
        model(...)          # same numbers, up to the order of sums

Two things, undone on leaving:
- grouped-query attention without copying each key-value head once per query head. transformers' own path
  copies the whole cache at every step as soon as there is a mask, and that copy was most of the time.
- on a CPU, weights laid out for oneDNN once, instead of at every call. Weights that change while
  inside would not be seen, so the layout is made anew on every entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody gives it
from transformers import AttentionInterface

_NAME = "kdbench_grouped"


def grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention in which the query heads of a group share their key-value head.

    query (rows, heads, tokens, dim); key, value (rows, groups, columns, dim); mask additive,
    (rows or 1, 1, tokens, columns). Returns (rows, tokens, heads, dim) and no weights.
    """
    rows, heads, tokens, dim = query.shape
    groups = key.shape[1]
    each = heads // groups
    scale = dim**-0.5 if scaling is None else scaling
    # The heads of a group stand one below the other, as if they were tokens of one head.
    folded = query.reshape(rows, groups, each * tokens, dim)
    mask = attention_mask.repeat(1, 1, each, 1) if tokens > 1 else attention_mask
    if tokens == 1:
        weights = (torch.matmul(folded * scale, key.transpose(-1, -2)) + mask).softmax(
            -1, dtype=torch.float32
        )
        out = torch.matmul(weights.to(value.dtype), value)
    else:
        out = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scale)
    return out.reshape(rows, heads, tokens, -1).transpose(1, 2), None


AttentionInterface.register(_NAME, grouped_attention)


@contextmanager
def fast_inference(model: Any) -> Iterator[None]:
    """Inference mode with both speed-ups, where the model allows them; undone on leaving."""
    before = model.config._attn_implementation
    # Only a plain masked softmax can be replaced; soft-capped scores or sinks keep the model's own.
    plain = before == "sdpa" and getattr(model, "_supports_attention_backend", False)
    packed = _packable(model)
    try:
        if plain:
            model.set_attn_implementation(_NAME)
        for layer in packed:
            # On the instance, where it hides the class's method until it is taken away again.
            layer.__dict__["forward"] = partial(_run_packed, _pack(layer.weight), layer.bias)
        with torch.inference_mode():
            yield
    finally:
        for layer in packed:
            layer.__dict__.pop("forward", None)
        if plain:
            model.set_attn_implementation(before)


def _packable(model: Any) -> list[torch.nn.Linear]:
    """The linear layers that oneDNN can take: plain ones in float32 on a CPU."""
    if not torch.backends.mkldnn.is_available():
        return []
    layers = [m for m in model.modules() if type(m) is torch.nn.Linear]
    return [m for m in layers if m.weight.device.type == "cpu" and m.weight.dtype == torch.float32]


def _pack(weight: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 64)


def _run_packed(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
