"""Models as the trainers use them: where they run, and hidden states instead of logits.

reader, model = load_student("smollm2", config)
hidden_rows(model, batch)      # [N, H]: only the rows that bear loss, the head left to the loss
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdbench.errors import ConfigError, UsageError
from kdbench.models.loading import load_model, load_tokenizer, pick_device
from kdbench_trainers._config import TrainConfig
from kdbench_trainers._sequences import Reader


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
        return cls(device, dtype)


def load_student(student: str, config: TrainConfig) -> tuple[Reader, Any]:
    """The student as a reader of sequences, and its model with float32 weights. Raises UsageError."""
    tokenizer = load_tokenizer(student)
    model = load_model(student, device=Compute.of(config).device, dtype="float32")
    check_head(student, model)
    return Reader(tokenizer, (model.generation_config, model.config)), model


def hidden_rows(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Final hidden states at the rows that bear loss, [N, H]: the head is left to the caller."""
    states = model.base_model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        position_ids=inputs["position_ids"],
        use_cache=False,
    ).last_hidden_state
    return states[inputs["rows"]]


@torch.no_grad()
def check_head(name: str, model: Any) -> None:
    """Raise ConfigError for a model whose logits are not hidden states times the head, and nothing more.

    Some models scale or cap their logits, or add a bias; the losses here would silently differ.
    """
    ids = torch.arange(4, device=model.device).unsqueeze(0)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    ours = hidden @ model.get_output_embeddings().weight.T
    if not torch.allclose(ours, model(input_ids=ids, use_cache=False).logits.to(ours), rtol=1e-2, atol=1e-2):
        raise ConfigError(
            f"The model '{name}' ({type(model).__name__}) scales, caps or shifts its logits after the head, "
            "which the trainers do not know; use another model"
        )
