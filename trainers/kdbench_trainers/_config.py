"""The settings that every trainer shares; plain numbers, checked on a machine without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kdbench.config import StrictConfig


class TrainConfig(StrictConfig):
    """How long, how fast and on what a student is trained."""

    steps: int = Field(200, ge=1, description="optimiser steps")
    batch_size: int = Field(8, ge=1, description="samples per optimiser step")
    micro_batch_size: int | None = Field(
        None, ge=1, description="samples per forward pass; the whole batch if not said. Changes memory only"
    )
    learning_rate: float = Field(3e-4, gt=0, le=1)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(10, ge=0)
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    max_length: int = Field(
        1024, ge=2, description="tokens of prompt and completion; longer ones are dropped"
    )
    validation_share: float = Field(0.1, ge=0, lt=1, description="share of the groups held out")
    seed: int = Field(0, ge=0, description="split and order of the samples")
    log_every: int = Field(1, ge=1, description="steps between two lines of metrics.jsonl")
    eval_every: int = Field(50, ge=1, description="steps between two validations; there is one at the end")
    checkpoint_every: int = Field(100, ge=1, description="steps between two checkpoints")
    keep_checkpoints: bool = Field(False, description="keep the last checkpoints of a finished training")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the matrix products; weights stay float32. auto: bfloat16 on cuda"
    )
    gradient_checkpointing: bool = Field(False, description="less memory, slower")
    freeze_embeddings: bool = Field(
        False, description="leave the embeddings, and a head tied to them, as they are"
    )
