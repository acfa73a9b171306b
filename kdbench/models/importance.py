"""Which channels, neurons and heads a model uses: activation-only importance, measured in one pass.

    found = measure(model, read_structure(model, "smollm2"), tokenizer, ["Once upon a time ...", ...])
    found.channels        # (hidden_size,)              [3.1, 0.2, 11.8, ...]
    found.neurons[4]      # (intermediate_size,)        of layer 4
    found.groups[4]       # (key-value heads,)          of layer 4

Minitron (Muralidharan et al., arXiv 2407.14679, section 2.2, and 2408.11796), with its best aggregation:
for an activation a of sample b at token t, the score is sqrt(sum_b (mean_t |a_bt|)^2), the L2 norm over the
batch of the mean over the sequence. The activations are
    channel i    output i of each norm, the scores of all norms added up
    neuron i     input i of down_proj, that is act(gate) * up
    head i       the L2 norm of the head's output, which goes into o_proj; a group's score is its heads' sum
Every text is a sample with a mean of its own, so nothing depends on padding.

`shares` serves the norms of the pruned model; `width.py` says how.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdbench.errors import UsageError
from kdbench.models._structure import Structure
from kdbench.models.pruning import read_through


@dataclass(frozen=True, slots=True)
class Importance:
    """Scores in float64, and how the energy of what goes into each norm spreads over the channels."""

    channels: Tensor
    neurons: list[Tensor]
    groups: list[Tensor]
    shares: dict[str, Tensor]  # by the norm's name: mean over tokens of x_i^2 / sum_j x_j^2


def measure(
    model: Any, structure: Structure, tokenizer: Any, texts: Sequence[str], max_tokens: int = 512
) -> Importance:
    """The importance of everything that width pruning may drop; each text is cut at `max_tokens`.

    Raises UsageError where the texts hold no token.
    """
    norms = {name: _Norm(structure.hidden) for name in structure.norms}
    neurons = [_Squares(structure.neurons) for _ in structure.downs]
    heads = [_Squares(structure.heads) for _ in structure.outputs]
    watched = [(module, norms[name].see) for name, module in structure.norms.items()]
    watched += [(module, see.see_inputs) for module, see in zip(structure.downs, neurons, strict=True)]
    for module, see in zip(structure.outputs, heads, strict=True):
        watched.append((module, _per_head(see, structure.head_dim)))
    with _hooked(watched):
        tokens = read_through(model, tokenizer, texts, max_tokens)
    if not tokens:
        raise UsageError("Width pruning needs sample text, and none was given; prune with samples at hand")
    each = structure.heads // structure.groups
    return Importance(
        channels=torch.stack([norm.outputs.score() for norm in norms.values()]).sum(0),
        neurons=[one.score() for one in neurons],
        groups=[one.score().view(-1, each).sum(1) for one in heads],
        shares={name: norm.shares / tokens for name, norm in norms.items()},
    )


class _Squares:
    """Adds up, over the samples, the square of each activation's mean size over the tokens."""

    def __init__(self, size: int) -> None:
        self.sum = torch.zeros(size, dtype=torch.float64)

    def add(self, sizes: Tensor) -> None:
        """`sizes` (tokens, n) of one sample, none below zero."""
        self.sum += sizes.mean(0, dtype=torch.float64).cpu() ** 2

    def see_inputs(self, inputs: Tensor, output: Tensor) -> None:
        """Take a module's inputs in."""
        self.add(inputs.abs())

    def score(self) -> Tensor:
        """The score so far."""
        return self.sum.sqrt()


class _Norm:
    """What comes out of a norm, and the spread of what goes in."""

    def __init__(self, size: int) -> None:
        self.outputs = _Squares(size)
        self.shares = torch.zeros(size, dtype=torch.float64)

    def see(self, inputs: Tensor, output: Tensor) -> None:
        """Take one sample in."""
        self.outputs.add(output.abs())
        energy = inputs.double() ** 2
        total = energy.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        self.shares += (energy / total).sum(0).cpu()


def _per_head(see: _Squares, head_dim: int) -> Any:
    def take(inputs: Tensor, output: Tensor) -> None:
        see.add(inputs.unflatten(-1, (-1, head_dim)).norm(dim=-1))

    return take


@contextmanager
def _hooked(watched: Sequence[tuple[Any, Any]]) -> Iterator[None]:
    """Let each function see (inputs, output) of its module, the batch of one sample taken off."""
    handles = [
        module.register_forward_hook(lambda _, args, output, see=see: see(args[0][0], output[0]))
        for module, see in watched
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
