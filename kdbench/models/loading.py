"""Load a model or its tokenizer from a reference, ready to run.

    model = load_model("smollm2")          # eval mode; float32 on a CPU, bfloat16 on CUDA
    tokenizer = load_tokenizer("smollm2")

Weights are read from safetensors only: a pickle can run code, and none is ever opened. Nothing is
looked for on a hub, and no code that lies beside the weights is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kdbench.errors import UsageError
from kdbench.models.weights import local_weights, require_train

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16")


def pick_device() -> str:
    """ "cuda" where a CUDA device can be used, else "cpu"."""
    require_train("choosing a device")
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(ref: str, *, device: str | None = None, dtype: str | None = None) -> PreTrainedModel:
    """The causal language model of a reference, in eval mode, on `device`.

    `device` defaults to `pick_device()`, `dtype` (one of DTYPES) to bfloat16 on CUDA and float32
    elsewhere. Raises UsageError for weights that cannot be loaded, an unknown dtype or a device that
    is not there, MissingExtra without torch.
    """
    require_train(f"loading the model '{ref}'")
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    place = _device(device or pick_device())
    name = dtype or ("bfloat16" if place.type == "cuda" else "float32")
    if name not in DTYPES:
        raise UsageError(f"No dtype '{name}'; choose one of {', '.join(DTYPES)}")
    folder = local_weights(ref)
    try:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, name), use_safetensors=True, local_files_only=True
            )
        return model.to(place).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError, KeyError) as exc:
        raise UsageError(f"The model '{ref}' cannot be loaded: {first_line(exc)}") from exc


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as exc:
        raise UsageError(f"No device '{name}'; choose cpu, cuda or cuda:N") from exc
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"No device '{name}' on this machine ({torch.cuda.device_count()} CUDA devices); use cpu"
        )
    return device


def load_tokenizer(ref: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a reference. Raises UsageError where it lacks one, MissingExtra without torch."""
    require_train(f"loading the tokenizer of '{ref}'")
    from transformers import AutoTokenizer

    folder = local_weights(ref)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise UsageError(
            f"The tokenizer of '{ref}' cannot be loaded: {first_line(exc)}; "
            "put its tokenizer.json beside the weights"
        ) from exc


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars off the terminal, which belongs to kdbench's own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def first_line(exc: BaseException) -> str:
    """The first line of a foreign exception's text, short enough for one sentence."""
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0].rstrip(".")[:200]
