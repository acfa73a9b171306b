"""The settings that trainers share; plain numbers, checked on a machine without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from kdbench.config import StrictConfig
from kdbench.records import Completion, Text
from kdbench_trainers._texts import texts_sha256

Material = Completion | Text  # what is trained on

DivergenceName = Literal[
    "forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation", "adaptive_kl"
]


class Lora(StrictConfig):
    """Low-rank adapters in place of all weights (LLM-Neo, Yang et al. 2024, arXiv 2411.06839)."""

    rank: int = Field(64, ge=1, description="of the adapters")
    alpha: float = Field(64, gt=0, description="the adapters' part counts alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="names of the layers that get one; all-linear: all but the head"
    )
    merge: bool = Field(
        True, description="add them to the weights at the end; false: save the adapters alone"
    )


class PlainText(StrictConfig):
    """Plain text beside the samples, learnt by cross-entropy, as DistiLLM and MiniLLM do with OpenWebText."""

    texts: list[str] = Field(
        min_length=1, description='runs that made text, .jsonl of {"text": ...}, .txt, folders of .txt'
    )
    share: float = Field(0.5, gt=0, lt=1, description="of the loss; the method's own part keeps the rest")
    windows: int = Field(4, ge=1, description="windows of text in each step, over all processes")


class Condition(StrictConfig):
    """A source of samples, and how they are told apart and weighed (C-RLFT, Wang et al. 2023)."""

    where: dict[str, Any] = Field(min_length=1, description="the samples whose fields have these values")
    prefix: str = Field(
        "", description="stands before their question; the teacher does not see it. Ask with the best one's"
    )
    weight: float = Field(1.0, gt=0, description="their weights are multiplied by it")


class TrainConfig(StrictConfig):
    """How long, how fast and on what a student is trained."""

    steps: int = Field(200, ge=1, description="optimiser steps")
    batch_size: int = Field(8, ge=1, description="samples per optimiser step, over all processes")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="of a step's longest samples, so many at most in a forward pass, or as many tokens of "
        "shorter ones; a process's whole share if not said. Changes memory and speed only",
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
    held_out: list[str] | None = Field(
        None, description="names of the groups to hold out, in place of a share of them by chance"
    )
    seed: int = Field(0, ge=0, description="split and order of the samples, and what a student writes")
    order_by: str | None = Field(
        None,
        description='a field of the samples that is a number, or "length": the smallest first in every '
        "epoch; with a minus before it, the largest. null: by chance",
    )
    conditions: list[Condition] = Field([], description="sources of samples; each takes what fits it first")
    plain_text: PlainText | None = None
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
    lora: Lora | None = Field(None, description="train low-rank adapters instead of all weights")
    report_to: list[Literal["trackio", "wandb", "tensorboard"]] = Field(
        [], description="trackers that get every logged number; each must be installed"
    )

    def prepared(self, samples: Sequence[Material]) -> list[Material]:
        """The samples as a training takes them, its options held against them.

        Raises ConfigError for a condition or a score that does not fit, DataError and RunDirError for text
        that is not there.
        """
        from kdbench_trainers._options import check_score, conditioned

        found = conditioned(samples, self.conditions)
        check_score(found, self.order_by)
        self.inputs()
        return found

    def inputs(self) -> dict[str, str]:
        """What is read besides samples and models, with a hash of it. Raises DataError, RunDirError."""
        return texts_sha256(self.plain_text.texts) if self.plain_text else {}


class TeacherConfig(TrainConfig):
    """What is kept of what a live teacher says."""

    teacher_cache_mb: int = Field(
        4096,
        ge=0,
        description="memory for the teacher's hidden states of the data, in MB; none is kept beyond",
    )


class DistillConfig(TeacherConfig):
    """How the student's distribution is compared with the teacher's."""

    divergence: DivergenceName = "forward_kl"
    beta: float = Field(
        0.5, ge=0, le=1, description="of jsd: 0 is forward_kl, 1 reverse_kl, as in GKD and TRL"
    )
    alpha: float = Field(0.1, ge=0, lt=1, description="of the skew divergences: the share that is mixed in")
    normalize_jsd: bool = Field(
        False, description="divide jsd by beta (1 - beta), so that it goes over into its ends"
    )
    kd_temperature: float = Field(
        1.0, gt=0, le=100, description="softens both sides; the loss is times its square"
    )
    ce_weight: float = Field(0.0, ge=0, le=1, description="share of the cross-entropy on the samples' tokens")
    token_scaling: float | None = Field(
        None,
        gt=0,
        description="temperature of token scaling (TSLD uses 10): tokens that the teacher found hard count "
        "more; null: all alike",
    )

    @model_validator(mode="after")
    def _used(self) -> DistillConfig:
        for key, default, users in (("beta", 0.5, "jsd"), ("alpha", 0.1, "skew_")):
            if getattr(self, key) != default and not self.divergence.startswith(users):
                raise ValueError(f"{key} plays no part in divergence {self.divergence}; leave it out")
        if self.normalize_jsd and self.divergence != "jsd":
            raise ValueError(f"normalize_jsd belongs to divergence jsd, not to {self.divergence}")
        return self


class OnPolicyConfig(DistillConfig):
    """How the student writes what it learns from."""

    max_new_tokens: int = Field(128, ge=1, description="longest completion that the student writes")
    sampling_temperature: float = Field(1.0, ge=0, le=2, description="of the student; 0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="of the student")
