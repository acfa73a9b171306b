"""Losses from hidden states, a few hundred rows at a time: the logits of a batch never exist.

    sums = distillation_loss(student_hidden, student_head, teacher_hidden, teacher_head, targets)
    (sums.loss / targets.numel()).backward()

Rows are the positions that bear loss, gathered by the caller: N rows instead of batch x length.
For each chunk of rows the logits are made, scored, turned into the gradient in closed form, and
multiplied into the gradients of hidden states and head at once, so backward has nothing to redo:
three matrix products for the student (two where the head is frozen) and one for the teacher.
The idea is Liger Kernel's fused linear cross-entropy (Hsu et al. 2024, arXiv:2410.10989).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdbench.losses.divergences import Divergence, log_probabilities, with_gradient

CHUNK_ROWS = 256  # 50 MB of float32 logits at a vocabulary of 49,152


@dataclass(frozen=True, slots=True)
class Objective:
    """(1 - ce_weight) * divergence + ce_weight * cross-entropy; see `divergences` for the rest."""

    divergence: Divergence = "forward_kl"
    temperature: float = 1.0
    beta: float = 0.5
    ce_weight: float = 0.0


@dataclass(frozen=True, slots=True)
class LossSums:
    """Sums over the rows, each row times its weight: scalars. Only `loss` carries a gradient.

    `divergence` (NaN without a teacher) includes the square of the temperature.
    """

    loss: Tensor
    divergence: Tensor
    cross_entropy: Tensor


# What a chunk is scored by: (rows, logits [n, V]) -> (sums [3] as in LossSums, gradient [n, V]).
_Score = Callable[[slice, Tensor], tuple[Tensor, Tensor]]


def cross_entropy_loss(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> LossSums:
    """Negative log-likelihood of `targets` [N] under softmax(hidden [N, H] @ head [V, H].T), in nats.

    `weights` [N] multiply the rows' losses (default 1). The gradient is computed in the forward pass
    and can be asked for once, to first order.
    """

    def score(rows: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = _cross_entropy(log_probabilities(logits), targets[rows])
        value, gradient = _weigh(weights, rows, value, gradient)
        total = value.sum()
        return torch.stack([total, torch.full_like(total, torch.nan), total]), gradient

    return _run(hidden, head, score, chunk_rows)


def distillation_loss(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    targets: Tensor,
    *,
    objective: Objective | None = None,
    weights: Tensor | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> LossSums:
    """Word-level distillation (Kim & Rush 2016, eq. 5) on N loss-bearing rows.

    student_hidden [N, H], student_head [V, H], teacher_hidden [N, H'], teacher_head [V', H'],
    targets [N] (used for the cross-entropy part and its report), weights [N]. Heads padded to
    different sizes over the same tokenizer must be cut to its real size first (`real_rows`).
    The teacher gets no gradient. Raises ValueError where V differs from V'.
    """
    if student_head.shape[0] != teacher_head.shape[0]:
        raise ValueError(
            f"student head has {student_head.shape[0]} rows and teacher head {teacher_head.shape[0]}; "
            "cut both to the tokenizer's size with real_rows()"
        )
    what = objective or Objective()

    def score(rows: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        teacher_logits = _logits(teacher_hidden[rows], teacher_head)
        value, gradient = _scored(what, logits, teacher_logits, targets[rows])
        value, gradient = _weigh(weights, rows, value, gradient)
        return value.sum(-1), gradient

    return _run(student_hidden, student_head, score, chunk_rows)


def real_rows(head: Tensor, vocabulary: int) -> Tensor:
    """The head [V, H] without the rows that pad it beyond the tokenizer's `vocabulary`."""
    return head if head.shape[0] == vocabulary else head[:vocabulary]


def _scored(
    what: Objective, logits: Tensor, teacher_logits: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows [3, n] of loss, divergence and cross-entropy, and the loss's gradient [n, V]."""
    heat = what.temperature
    student = log_probabilities(logits, heat)
    teacher = log_probabilities(teacher_logits, heat)
    divergence, gradient = with_gradient(what.divergence, student, teacher, what.beta)
    divergence = divergence * heat**2
    # d/d logits of T^2 D(logits / T) is T times the gradient at the softened logits.
    gradient = gradient if (scale := heat * (1 - what.ce_weight)) == 1 else gradient * scale
    plain = student if heat == 1 else log_probabilities(logits)
    if what.ce_weight > 0:
        entropy, ce_gradient = _cross_entropy(plain, targets)
        gradient = gradient.add_(ce_gradient, alpha=what.ce_weight)
    else:
        entropy = -plain.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    loss = (1 - what.ce_weight) * divergence + what.ce_weight * entropy
    return torch.stack([loss, divergence, entropy]), gradient


def _cross_entropy(student: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """-log S[target], and its gradient with respect to the logits: S - onehot(target)."""
    index = targets.unsqueeze(-1)
    value = -student.gather(-1, index).squeeze(-1)
    gradient = student.exp()
    gradient.scatter_add_(-1, index, gradient.new_full((1, 1), -1.0).expand_as(index))
    return value, gradient


def _weigh(weights: Tensor | None, rows: slice, value: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    if weights is None:
        return value, gradient
    return value * weights[rows], gradient * weights[rows].unsqueeze(-1)


def _run(hidden: Tensor, head: Tensor, score: _Score, chunk_rows: int) -> LossSums:
    if not torch.is_grad_enabled():  # a Function is told what requires a gradient, not whether one is taken
        hidden, head = hidden.detach(), head.detach()
    loss, divergence, cross_entropy = _OneShot.apply(hidden, head, score, chunk_rows)  # type: ignore[no-untyped-call]
    return LossSums(loss, divergence, cross_entropy)


def _product_dtype(tensor: Tensor) -> torch.dtype:
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def _logits(hidden: Tensor, head: Tensor) -> Tensor:
    dtype = _product_dtype(head)
    return hidden.to(dtype) @ head.to(dtype).T


class _OneShot(torch.autograd.Function):
    """Sums over chunks of rows, with the gradient taken on the way forward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, score: _Score, chunk_rows: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        weight = head.to(_product_dtype(head))  # once, not once per chunk
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_head = torch.zeros_like(head) if wants_head else None
        sums: Tensor | None = None
        for start in range(0, hidden.shape[0], chunk_rows):
            rows = slice(start, start + chunk_rows)
            part = hidden[rows].to(weight.dtype)
            chunk, gradient = score(rows, part @ weight.T)
            sums = chunk if sums is None else sums + chunk
            gradient = gradient.to(weight.dtype)
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
        return grad_hidden, grad_head, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, summed in the precision of `total`."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
