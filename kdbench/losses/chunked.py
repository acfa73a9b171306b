"""Losses from hidden states, a few hundred rows at a time: the logits of a batch never exist.

    sums = distillation_loss(student_hidden, student_head, signal, targets)
    (sums.loss / targets.numel()).backward()

Rows are the positions that bear loss, gathered by the caller: N rows instead of batch x length.
For each chunk of rows the logits are made, scored, overwritten with the gradient in closed form, and
multiplied into the gradients of hidden states and head at once, so backward has nothing to redo:
three matrix products for the student (two where the head is frozen) and one for the teacher. Products
want many rows at once; what is done to each number wants few, so that they stay in a CPU's cache.
The idea is Liger Kernel's fused linear cross-entropy (Hsu et al. 2024, arXiv:2410.10989).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdbench.losses.divergences import Divergence, log_probabilities
from kdbench.losses.heads import Head, product_dtype
from kdbench.losses.signals import Signal, at_least_float32

CHUNK_ROWS = 256  # 50 MB of float32 logits at a vocabulary of 49,152
_BLOCK_NUMBERS = 2**20  # scored at once on a CPU: 4 MB of float32


@dataclass(frozen=True, slots=True)
class Objective:
    """(1 - ce_weight) * divergence + ce_weight * cross-entropy, both sides softened by `temperature`.

    Raises ValueError for a number out of range.
    """

    divergence: Divergence = field(default_factory=Divergence)
    temperature: float = 1.0
    ce_weight: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")
        if not 0 <= self.ce_weight <= 1:
            raise ValueError(f"ce_weight must be from 0 to 1, not {self.ce_weight}")


@dataclass(frozen=True, slots=True)
class LossSums:
    """Sums over the rows, each row times its weight: scalars. Only `loss` carries a gradient.

    `divergence` (NaN without a teacher) includes the square of the temperature; `terms` are what else a
    method adds up, by name.
    """

    loss: Tensor
    divergence: Tensor
    cross_entropy: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)


# What a block of rows is scored by: (its rows within the chunk, its logits [n, V]) -> (rows [3, n] as in
# LossSums, gradient [n, V]); and what makes that of a chunk.
Score = Callable[[slice, Tensor], tuple[Tensor, Tensor]]
Scoring = Callable[[slice], Score]


def cross_entropy_loss(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> LossSums:
    """Negative log-likelihood of `targets` [N] under softmax(head.logits(hidden [N, H])), in nats.

    `weights` [N] multiply the rows' losses (default 1). The gradient is computed in the forward pass
    and can be asked for once, to first order.
    """

    def scoring(chunk: slice) -> Score:
        answers = targets[chunk]

        def score(rows: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = token_cross_entropy(log_probabilities(logits), answers[rows])
            return torch.stack([value, torch.full_like(value, torch.nan), value]), gradient

        return score

    return one_shot(hidden, head, scoring, weights, chunk_rows)


def distillation_loss(
    hidden: Tensor,
    head: Head,
    signal: Signal,
    targets: Tensor,
    *,
    objective: Objective | None = None,
    weights: Tensor | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> LossSums:
    """Word-level distillation (Kim & Rush 2016, eq. 5) on N loss-bearing rows.

    The student's `hidden` [N, H] and `head` [V, H]; the teacher's `signal` of N rows over the same V
    tokens; `targets` [N] (used for the cross-entropy part and its report), `weights` [N]. Heads padded
    to different sizes over the same tokenizer must be cut to its real size first (`Head.cut`).
    The teacher gets no gradient. Raises ValueError where vocabularies or numbers of rows differ.
    """
    if head.vocabulary != signal.vocabulary:
        raise ValueError(
            f"the student's head has {head.vocabulary} rows and the teacher's vocabulary {signal.vocabulary}"
            "; cut both to the tokenizer's size with Head.cut()"
        )
    if len(signal) != hidden.shape[0]:
        raise ValueError(f"{hidden.shape[0]} rows of the student and {len(signal)} of the teacher")
    what = objective or Objective()

    def scoring(chunk: slice) -> Score:
        said, answers = signal.part(chunk), targets[chunk]
        return lambda rows, logits: _scored(what, logits, said, rows, answers[rows])

    return one_shot(hidden, head, scoring, weights, chunk_rows)


def _scored(
    what: Objective, logits: Tensor, signal: Signal, rows: slice, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows [3, n] of loss, divergence and cross-entropy, and the loss's gradient [n, V]."""
    heat = what.temperature
    divergence, gradient = signal.compare(rows, logits, what.divergence, heat)
    divergence = divergence * heat**2
    gradient = gradient if (scale := heat**2 * (1 - what.ce_weight)) == 1 else gradient.mul_(scale)
    if what.ce_weight > 0:
        entropy, ce_gradient = token_cross_entropy(log_probabilities(logits), targets)
        gradient = gradient.add_(ce_gradient, alpha=what.ce_weight)
    else:  # for the report alone: nothing as wide as the vocabulary is written
        picked = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        entropy = logits.to(at_least_float32(logits.dtype)).logsumexp(-1) - picked
    loss = (1 - what.ce_weight) * divergence + what.ce_weight * entropy
    return torch.stack([loss, divergence, entropy]), gradient


def token_cross_entropy(student: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """-log S[target] [n], and its gradient with respect to the logits [n, V]: S - onehot(target)."""
    index = targets.unsqueeze(-1)
    value = -student.gather(-1, index).squeeze(-1)
    gradient = student.exp()
    gradient.scatter_add_(-1, index, gradient.new_full((1, 1), -1.0).expand_as(index))
    return value, gradient


def one_shot(
    hidden: Tensor, head: Head, scoring: Scoring, weights: Tensor | None, chunk_rows: int = CHUNK_ROWS
) -> LossSums:
    """Sums over the rows of `hidden` [N, H] of what `scoring` gives them, each times its weight."""
    weight = head.weight
    if not torch.is_grad_enabled():  # a Function is told what requires a gradient, not whether one is taken
        hidden, weight = hidden.detach(), weight.detach()

    def scored(chunk: slice, logits: Tensor) -> Tensor:
        return _overwrite(logits, head, scoring(chunk), None if weights is None else weights[chunk])

    loss, divergence, cross_entropy = _OneShot.apply(hidden, weight, head, scored, chunk_rows)  # type: ignore[no-untyped-call]
    return LossSums(loss, divergence, cross_entropy)


def _overwrite(logits: Tensor, head: Head, score: Score, weights: Tensor | None) -> Tensor:
    """Sums [3] over a chunk's rows; its logits [n, V] become the gradient at the head's products."""
    count, width = logits.shape
    size = count if logits.is_cuda else max(1, _BLOCK_NUMBERS // width)
    sums: list[Tensor] = []
    for start in range(0, count, size):
        rows = slice(start, start + size)
        block = logits[rows]
        value, gradient = score(rows, block)
        if weights is not None:
            value, gradient = value * weights[rows], gradient.mul_(weights[rows].unsqueeze(-1))
        sums.append(value.sum(-1))
        block.copy_(head.unfinish(gradient, block))
    return torch.stack(sums).sum(0)


class _OneShot(torch.autograd.Function):
    """Sums over chunks of rows, with the gradient taken on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head_weight: Tensor,
        head: Head,
        scored: Callable[[slice, Tensor], Tensor],
        chunk_rows: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        weight = head_weight.to(product_dtype(head_weight))  # once, not once per chunk
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_head = torch.zeros_like(head_weight) if wants_head else None
        sums: Tensor | None = None
        for start in range(0, hidden.shape[0], chunk_rows):
            rows = slice(start, start + chunk_rows)
            part = hidden[rows].to(weight.dtype)
            gradient = head.finish(part @ weight.T)  # the logits, until they are scored
            chunk = scored(rows, gradient)
            sums = chunk if sums is None else sums + chunk
            if grad_hidden is not None:
                grad_hidden[rows] = gradient @ weight
            if grad_head is not None:
                _add_product(grad_head, gradient.T, part)
        if sums is None:
            sums = hidden.new_zeros(3)
        ctx.save_for_backward(grad_hidden, grad_head)
        loss, divergence, cross_entropy = sums.unbind()
        ctx.mark_non_differentiable(divergence, cross_entropy)
        return loss, divergence, cross_entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        # In place, as they are as large as the head; a second backward is refused by autograd.
        for gradient in (grad_hidden, grad_head):
            if gradient is not None:
                gradient.mul_(grad_loss.to(gradient.dtype))
        return grad_hidden, grad_head, None, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, summed in the precision of `total`."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
