"""Sequences to tensors, and a model's hidden states at the rows that bear loss.

    padded([[5, 6, 7], [8, 9]], counts=[2, 1])
    -> input_ids [[5, 6, 7], [8, 9, 0]], rows [[x, x, -], [x, -, -]]
    hidden_rows(model, inputs)
    -> [3, H]: the head is left to the loss

Padding is on the right, with explicit positions, so a model with learned positions reads what it would
read without padding; and its ids do not matter, as nothing attends to them: an end marker that a tokenizer
also pads with keeps its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdbench.errors import ConfigError, RunFailed
from kdbench.losses.heads import head_of
from kdbench.models.sequences import TokenSequence


def padded(ids: Sequence[Sequence[int]], counts: Sequence[int]) -> dict[str, Tensor]:
    """Inputs [B, L]; `rows` marks the `counts` positions that predict each sequence's last tokens."""
    longest = max(len(one) for one in ids)
    input_ids = torch.zeros(len(ids), longest, dtype=torch.long)
    rows = torch.zeros(len(ids), longest, dtype=torch.bool)
    for i, (one, count) in enumerate(zip(ids, counts, strict=True)):
        input_ids[i, : len(one)] = torch.tensor(one)
        rows[i, len(one) - count - 1 : len(one) - 1] = True
    lengths = torch.tensor([len(one) for one in ids]).unsqueeze(1)
    positions = torch.arange(longest).expand(len(ids), longest)
    return {
        "input_ids": input_ids,
        "attention_mask": (positions < lengths).long(),
        "position_ids": positions.contiguous(),
        "rows": rows,
    }


def decoder_of(model: Any) -> Any:
    """The model below the head, adapters included: what gives final hidden states."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    return whole.base_model


def hidden_rows(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Final hidden states [N, H] at the N rows that are marked, in the order of the sequences."""
    states = decoder_of(model)(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        position_ids=inputs["position_ids"],
        use_cache=False,
    ).last_hidden_state
    return states[inputs["rows"]]


@torch.no_grad()
def teacher_states(name: str, model: Any, sequences: Sequence[TokenSequence]) -> tuple[Tensor, ...]:
    """What the teacher `name` makes of each sequence's completion behind its own prompt: [n, H] each.

    With tokens of its own it is heard at the aligned rows only. Raises RunFailed where that is no number.
    """
    counts = [len(one.teacher_completion) for one in sequences]
    inputs = padded([one.teacher_prompt + one.teacher_completion for one in sequences], counts)
    states = hidden_rows(model, {key: value.to(model.device) for key, value in inputs.items()})
    if not bool(states.isfinite().all()):
        raise no_numbers(name, sequences)
    return tuple(
        part if one.alignment is None else part[list(one.alignment.teacher_rows)]
        for one, part in zip(sequences, torch.split(states, counts), strict=True)
    )


def no_numbers(name: str, sequences: Sequence[TokenSequence]) -> RunFailed:
    """What is said of the teacher `name` that answers with no numbers on some of the sequences."""
    groups = list(dict.fromkeys(one.group for one in sequences))
    whose = f"{', '.join(groups[:3])}{' and others' if len(groups) > 3 else ''}"
    return RunFailed(
        f"The teacher '{name}' answers with numbers that are none (NaN or infinity) on the samples of "
        f"{whose}; check its weights, or read it in float32 (dtype)"
    )


@torch.no_grad()
def check_head(name: str, model: Any) -> None:
    """Raise ConfigError for a model whose logits are not what `head_of` makes of its hidden states.

    Scales and soft caps are known; with a bias, or anything else, the losses here would silently differ.
    """
    ids = torch.arange(4, device=model.device).unsqueeze(0)
    hidden = decoder_of(model)(input_ids=ids, use_cache=False).last_hidden_state
    ours = head_of(model).logits(hidden)
    theirs = model(input_ids=ids, use_cache=False).logits
    # A bias may be zero before the training and not after it.
    biased = getattr(model.get_output_embeddings(), "bias", None) is not None
    if biased or not torch.allclose(ours, theirs.to(ours), rtol=1e-2, atol=1e-2, equal_nan=True):
        raise ConfigError(
            f"The model '{name}' ({type(model).__name__}) changes its logits after the head in a way that "
            "the trainers do not know (they know a scale and a soft cap); use another model"
        )
