"""Models as the trainers use them: where they run, adapters, and the loss inside the forward pass.

reader, model = load_student("smollm2", config)
model(kd=score)        # score(model) instead of the model's own forward, through DDP, FSDP or DeepSpeed
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kdbench.errors import ConfigError, UsageError
from kdbench.models.loading import first_line, load_model, load_tokenizer, pick_device
from kdbench.models.rows import check_head
from kdbench.models.sequences import Reader
from kdbench.processes import this_process
from kdbench_trainers._config import Lora, TrainConfig


@dataclass(frozen=True, slots=True)
class Compute:
    """Where and in which precision matrix products are made."""

    device: str
    dtype: str

    @classmethod
    def of(cls, config: TrainConfig) -> Compute:
        """Resolve "auto". Raises UsageError for a device that is not there."""
        found = pick_device()
        device = found if config.device == "auto" else config.device
        if device == "cuda" and found != "cuda":
            raise UsageError("device = cuda, but no CUDA device can be used here; use cpu or auto")
        dtype = config.dtype if config.dtype != "auto" else "bfloat16" if device == "cuda" else "float32"
        place = this_process()
        return cls(f"cuda:{place.local}" if device == "cuda" and place.world > 1 else device, dtype)

    @property
    def on_cpu(self) -> bool:
        """Whether no other device is used."""
        return self.device == "cpu"


def load_student(student: str, config: TrainConfig) -> tuple[Reader, Any]:
    """The student as a reader of sequences, and its model in float32. Raises UsageError, ConfigError."""
    tokenizer = load_tokenizer(student)
    model = load_model(student, device=Compute.of(config).device, dtype="float32")
    check_head(student, model)
    reader = Reader(tokenizer, (model.generation_config, model.config))
    if config.lora is not None:
        model = _with_adapters(model, config.lora, config.seed)
    take_loss_inside(model)
    return reader, model


def take_loss_inside(model: Any) -> None:
    """Let `model(kd=score)` return score(model); without `kd` it is the model it was.

    Wrappers that gather, shard or synchronise weights do so around a forward pass: a loss that is made
    outside of it would go round them.
    """
    own = model.forward

    def forward(*args: Any, kd: Callable[[Any], Any] | None = None, **kwargs: Any) -> Any:
        return own(*args, **kwargs) if kd is None else kd(model)

    model.forward = forward


@contextmanager
def own_forward(model: Any) -> Iterator[None]:
    """The model's own forward pass for a while: without our loss in it, and without accelerate's autocast.

    The sampler calls the decoder and the whole model in turn; autocast around one of them alone would have
    them disagree about precision.
    """
    laid_over = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if laid_over is not None:
            model.forward = laid_over


def _with_adapters(model: Any, lora: Lora, seed: int) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    fixed = {"lm_head", "embed_tokens"} & set(() if isinstance(lora.targets, str) else lora.targets)
    if fixed:
        raise ConfigError(
            f"lora.targets names {fixed.pop()}, and head and embeddings get no adapters: the losses take the "
            "head's own weights; leave it out"
        )
    torch.manual_seed(seed)  # what adapters begin with is drawn
    settings = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    try:
        with warnings.catch_warnings():  # peft asks transformers by a name that has been replaced
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            return get_peft_model(model, settings)
    except ValueError as exc:
        raise ConfigError(
            f"lora.targets = {lora.targets}: {first_line(exc)}; name layers of the student, or all-linear"
        ) from exc
