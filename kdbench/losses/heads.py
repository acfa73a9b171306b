"""The step from hidden states to logits, with what some models do after the head's product.

    head = head_of(model)                       # weight [V, H], and the model's scale and cap
    head.logits(hidden)                         # [N, H] -> [N, V]

    logits = cap * tanh(scale * hidden @ weight.T / cap)       scale: Cohere, Granite; cap: Gemma 2

A head that is padded beyond the tokenizer's vocabulary is cut (`cut`), never filled up: a padding row is
a token that nobody can write.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Head:
    """weight [V, H]; `scale` multiplies the products, `cap` bounds them softly (None: not at all)."""

    weight: Tensor
    scale: float = 1.0
    cap: float | None = None

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.weight.shape[0]

    def cut(self, vocabulary: int) -> Head:
        """The head's first `vocabulary` rows: without what pads it beyond the tokenizer."""
        return self if self.vocabulary == vocabulary else replace(self, weight=self.weight[:vocabulary])

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] of hidden states [N, H], multiplied in the precision of autocast."""
        dtype = product_dtype(self.weight)
        return self.finish(hidden.to(dtype) @ self.weight.to(dtype).T)

    def finish(self, products: Tensor) -> Tensor:
        """Logits from hidden @ weight.T."""
        if self.cap is not None:
            return self.cap * torch.tanh(products * (self.scale / self.cap))
        return products if self.scale == 1 else products * self.scale

    def unfinish(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """The gradient at the products, from that at the logits: d/dx cap tanh(x / cap) = 1 - (y / cap)^2."""
        if self.cap is not None:
            gradient = gradient * (1 - (logits / self.cap).square())
        return gradient if self.scale == 1 else gradient * self.scale


def head_of(model: Any) -> Head:
    """The head of a transformers causal language model, as its config describes it."""
    config = model.config
    scale = getattr(config, "logit_scale", None) or 1.0
    if dividing := getattr(config, "logits_scaling", None):  # Granite divides
        scale = scale / dividing
    cap = getattr(config, "final_logit_softcapping", None)
    return Head(model.get_output_embeddings().weight, float(scale), float(cap) if cap else None)


def product_dtype(tensor: Tensor) -> torch.dtype:
    """The precision that autocast gives to a product with `tensor`."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype
