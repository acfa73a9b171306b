"""Width pruning: fewer hidden channels, MLP neurons and attention heads, the most important ones kept.

    width = Width(hidden_size=432, heads=6)
    narrow = prune_width(model, tokenizer, ["Once upon a time ...", ...], width, "smollm2")
    narrow.config    # hidden_size 432, num_attention_heads 6, num_key_value_heads 2, head_dim still 64

Minitron's one-shot recipe (arXiv 2407.14679, 2408.11796): `importance.py` scores, the highest are kept in
their order, no weight is changed but one per norm. Channels are the same everywhere; each layer keeps
its own neurons and its own groups. A group is a key-value head with all the query heads it serves, so every
query head goes on attending through the key-value head it was trained with.

The norms. RMSNorm divides by the root of the mean square over all channels, so dropping channels also changes
what is divided by: a channel that was always zero still counted in the mean, and without it the outputs
shrink by sqrt(kept / all). The paper leaves that to the training that follows. We put it right: each norm's
weight is multiplied by sqrt(all / kept * share), where `share` is how much of the energy of its inputs lay in
the kept channels, measured on the samples. Where the dropped channels were zero, the model computes what it
did (but for the norm's epsilon); where all channels were equally busy, the factor is 1.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from kdbench.errors import UsageError
from kdbench.models._structure import Axes, Structure, read_structure
from kdbench.models.importance import Importance, measure
from kdbench.models.pruning import highest


@dataclass(frozen=True, slots=True)
class Width:
    """The sizes wanted; None leaves one as it is."""

    hidden_size: int | None = None
    intermediate_size: int | None = None
    heads: int | None = None

    def __bool__(self) -> bool:
        """Whether anything is to be narrower."""
        return any(size is not None for size in (self.hidden_size, self.intermediate_size, self.heads))


def prune_width(model: Any, tokenizer: Any, texts: Sequence[str], width: Width, ref: str) -> Any:
    """A new, narrower model; `ref` names the old one in messages, and `texts` show it at work.

    Raises UsageError for an architecture that is not Llama-like and for sizes that cannot be kept.
    """
    structure = read_structure(model, ref)
    config = narrow_config(model, structure, width, ref)
    found = measure(model, structure, tokenizer, texts)
    groups = config.num_key_value_heads if width.heads else structure.groups
    kept = _Kept(
        hidden=highest(found.channels.tolist(), config.hidden_size),
        neurons=[highest(scores.tolist(), config.intermediate_size) for scores in found.neurons],
        groups=[highest(scores.tolist(), groups) for scores in found.groups],
        of_groups=structure.groups,
    )
    narrow = _rebuilt(model, structure, config, kept)
    if len(kept.hidden) < structure.hidden:
        _keep_scales(model, narrow, structure, _gains(found, kept.hidden))
    return narrow


def narrow_config(model: Any, structure: Structure, width: Width, ref: str) -> Any:
    """The config of the narrower model, which transformers accepts. Raises UsageError."""
    _check_sizes(structure, width, ref)
    config = copy.deepcopy(model.config)
    config.head_dim = structure.head_dim  # said, since hidden_size / heads no longer gives it
    config.hidden_size = width.hidden_size or structure.hidden
    config.intermediate_size = width.intermediate_size or structure.neurons
    if width.heads:
        config.num_attention_heads = width.heads
        config.num_key_value_heads = width.heads * structure.groups // structure.heads
    try:
        type(config).from_dict(config.to_dict())  # as every loader of the checkpoint will do
    except (StrictDataclassError, ValueError) as exc:
        why = str(exc).strip().splitlines()[-1].strip().removeprefix("ValueError: ").rstrip(".")
        raise UsageError(
            f"The teacher '{ref}' cannot be made as narrow as asked: {why}; choose other sizes"
        ) from exc
    return config


def _check_sizes(structure: Structure, width: Width, ref: str) -> None:
    have = {
        "hidden_size": (width.hidden_size, structure.hidden, "hidden channels"),
        "intermediate_size": (width.intermediate_size, structure.neurons, "MLP neurons per layer"),
        "heads": (width.heads, structure.heads, "attention heads"),
    }
    for key, (want, there, what) in have.items():
        if want and want > there:
            raise UsageError(
                f"The teacher '{ref}' has {there} {what}, so a student cannot keep {want} of them; "
                f"lower `{key}`"
            )
    each = structure.heads // structure.groups
    if width.heads and width.heads % each:
        choices = ", ".join(str(n * each) for n in range(1, structure.groups + 1))
        raise UsageError(
            f"The teacher '{ref}' has {structure.heads} heads in groups of {each} that share a key-value "
            f"head, and groups are kept whole, so `heads` cannot be {width.heads}; choose one of {choices}"
        )


@dataclass(frozen=True, slots=True)
class _Kept:
    """Indices of what stays: channels of the model, neurons and groups of each layer."""

    hidden: list[int]
    neurons: list[list[int]]
    groups: list[list[int]]
    of_groups: int

    def along(self, axes: Axes, weight: Tensor) -> Tensor:
        """A weight without what was dropped."""
        for dim, axis in enumerate(axes):
            if axis is None:
                continue
            if axis.role == "hidden":
                weight = _take(weight, dim, self.hidden)
            elif axis.role == "neurons":
                weight = _take(weight, dim, self.neurons[axis.layer])
            else:  # a group is a run of rows: head_dim for each head in it
                whole = weight.unflatten(dim, (self.of_groups, -1))
                weight = _take(whole, dim, self.groups[axis.layer]).flatten(dim, dim + 1)
        return weight


def _take(weight: Tensor, dim: int, kept: list[int]) -> Tensor:
    return weight.index_select(dim, torch.tensor(kept, device=weight.device))


def _rebuilt(model: Any, structure: Structure, config: Any, kept: _Kept) -> Any:
    """A model of the new config with the weights that were kept.

    Built from the config as any loader will build it, so nothing that a module derives from its sizes
    can be left over from the old one.
    """
    weights = {name: kept.along(structure.axes[name], weight) for name, weight in model.state_dict().items()}
    with torch.random.fork_rng(devices=[]):  # the weights it is born with are replaced
        narrow = type(model)(config).to(model.dtype).to(model.device).eval()
    narrow.load_state_dict(weights)
    narrow.generation_config = copy.deepcopy(model.generation_config)
    return narrow


def _gains(found: Importance, hidden: list[int]) -> dict[str, float]:
    """By what each norm's weight is multiplied: how much larger the root mean square of its inputs became."""
    return {
        name: sqrt(len(shares) / len(hidden) * float(shares[hidden].sum()))
        for name, shares in found.shares.items()
    }


@torch.no_grad()
def _keep_scales(old: Any, narrow: Any, structure: Structure, gains: Mapping[str, float]) -> None:
    """Multiply the norms' weights by their gains; undo a scale of the embedding that follows its width."""
    changes = dict(gains)
    embedding, head = narrow.get_input_embeddings(), narrow.get_output_embeddings()
    factor = _embedding_scale(old) / _embedding_scale(narrow)
    if abs(factor - 1) > 1e-6:  # Gemma multiplies its embeddings by sqrt(hidden_size)
        tied = head.weight is embedding.weight
        embedding.weight *= factor
        if tied:  # the logits would grow with it
            changes[structure.final] /= factor
    for name, gain in changes.items():
        norm = narrow.get_submodule(name)
        offset = _norm_offset(norm, narrow.config.model_type)
        norm.weight.copy_(gain * (norm.weight + offset) - offset)


def _embedding_scale(model: Any) -> float:
    """By what the embedding module multiplies its weights."""
    embedding = model.get_input_embeddings()
    ids = torch.arange(min(64, embedding.weight.shape[0]), device=embedding.weight.device)
    return float(embedding(ids).norm() / embedding.weight[ids].norm())


def _norm_offset(norm: Any, kind: str) -> float:
    """0 for a norm that multiplies by its weight, 1 for one that multiplies by 1 + weight, as Gemma's.

    Found by what it does to ones, whose root mean square is 1. Raises UsageError for any other norm.
    """
    beyond = norm(torch.ones_like(norm.weight)) - norm.weight
    offset = float(beyond.mean().round())
    if offset not in (0.0, 1.0) or float((beyond - offset).abs().max()) > 1e-2:
        raise UsageError(
            f"The norms of a {kind} model are no RMSNorm, so its hidden_size cannot be pruned; leave it out"
        )
    return offset
