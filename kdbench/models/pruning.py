"""Depth pruning by Block Influence: take out the layers that change their input least.

    scores = block_influence(model, tokenizer, ["Once upon a time ..."])    # [0.81, 0.32, ..., 0.55]
    keep_layers(model, highest(scores, 18))                                  # 30 layers -> 18, in place

Block Influence of ShortGPT (Men et al., arXiv 2403.03853, eq. 1): BI_i = 1 - E_t cos(h_i,t , h_i+1,t), where
h_i,t is the hidden state of token t that goes into layer i. A layer that does nothing has a BI of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdbench.errors import UsageError


def block_influence(model: Any, tokenizer: Any, texts: Sequence[str], max_tokens: int = 512) -> list[float]:
    """The Block Influence of each layer, averaged over all tokens of `texts`.

    Each text is cut at `max_tokens`. One text is in memory at a time, so memory does not grow with their
    number. Raises UsageError where the texts hold no token.
    """
    import torch

    layers = decoder_layers(model)
    sums = [0.0] * len(layers)

    def measure(i: int, before: Any, after: Any) -> None:
        cosine = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
        sums[i] += float((1 - cosine).sum())

    hooks = [
        layer.register_forward_hook(_Hook(i, measure), with_kwargs=True) for i, layer in enumerate(layers)
    ]
    try:
        tokens = read_through(model, tokenizer, texts, max_tokens)
    finally:
        for hook in hooks:
            hook.remove()
    if not tokens:
        raise UsageError("Block Influence needs sample text, and none was given; prune with samples at hand")
    return [total / tokens for total in sums]


def read_through(model: Any, tokenizer: Any, texts: Sequence[str], max_tokens: int) -> int:
    """Let the model read every text, one at a time, for whoever hooked into it; the tokens read."""
    import torch

    tokens = 0
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"]
            if ids:
                tokens += len(ids)
                model.get_decoder()(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    return tokens


class _Hook:
    """Hands a layer's input and output hidden states on."""

    def __init__(self, layer: int, measure: Any) -> None:
        self.layer = layer
        self.measure = measure

    def __call__(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        self.measure(self.layer, before, output[0] if isinstance(output, tuple) else output)


def decoder_layers(model: Any) -> Any:
    """The layers of a model's decoder. Raises UsageError for a model that keeps them elsewhere."""
    layers = getattr(model.get_decoder(), "layers", None)
    if layers is None:
        raise UsageError(
            f"A {model.config.model_type} model cannot be pruned: its decoder has no list named `layers`; "
            "make a student of kind 'scratch' or 'weights'"
        )
    return layers


def highest(scores: Sequence[float], count: int) -> list[int]:
    """The `count` layers of the highest scores, in the order they stand in; the earlier wins a tie."""
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return sorted(ranked[:count])


def keep_layers(model: Any, kept: Sequence[int]) -> None:
    """Keep only these layers of a model, in place: its config and cache indices follow.

    Raises UsageError where `kept` is empty or names a layer that is not there.
    """
    import torch

    decoder = model.get_decoder()
    old = len(decoder_layers(model))
    if not kept or any(not 0 <= i < old for i in kept):
        raise UsageError(f"A model of {old} layers cannot keep the layers {list(kept)}; keep 1 to {old}")
    decoder.layers = torch.nn.ModuleList(decoder.layers[i] for i in kept)
    for new, layer in enumerate(decoder.layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = new  # the layer's place in the key-value cache
    for name, value in list(model.config.to_dict().items()):
        # Lists with one entry a layer, such as layer_types.
        if isinstance(value, list) and len(value) == old:
            setattr(model.config, name, [value[i] for i in kept])
    model.config.num_hidden_layers = len(kept)
