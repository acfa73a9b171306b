"""A student from scratch: a small Llama of the given shape with the teacher's vocabulary.

    Shape(hidden_size=192, heads=6, kv_heads=2)   ->  new_model(shape, 8, tokenizer, 49152, seed=0)

The weights are drawn from the seed; the embedding is tied to the output unless told otherwise, since in
a small model it would else be most of the parameters.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from kdbench.config import StrictConfig


class Shape(StrictConfig):
    """The shape of a model from scratch, apart from its number of layers."""

    hidden_size: int = Field(256, ge=8, le=16384)
    heads: int = Field(4, ge=1, le=256, description="query heads; hidden_size is a multiple of it")
    kv_heads: int = Field(2, ge=1, le=256, description="key-value heads; heads is a multiple of it")
    intermediate_size: int = Field(0, ge=0, le=131072, description="0: 8/3 of hidden_size")
    context: int = Field(2048, ge=16, le=1048576, description="longest prompt and reply together, in tokens")
    tie_embeddings: bool = True

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} must be an even multiple of heads {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        return self


def new_model(shape: Shape, layers: int, tokenizer: Any, vocabulary: int, seed: int) -> Any:
    """A LlamaForCausalLM in float32, initialised from `seed` without touching the global generator.

    `vocabulary` is the teacher's (which may be larger than its tokenizer's), so that their distributions
    can be compared.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size or -(-shape.hidden_size * 8 // 3 // 32) * 32,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tie_embeddings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float().eval()
