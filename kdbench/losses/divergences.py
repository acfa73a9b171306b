"""How far the student's next-token distribution S is from the teacher's T, one value per token.

    per_token(Divergence("forward_kl"), student_logits, teacher_logits)     # [N, V], [N, V] -> [N], in nats

    forward_kl        KL(T || S)                       covers all the teacher does (Hinton et al. 2015)
    reverse_kl        KL(S || T)                       seeks one mode (MiniLLM, Gu et al. 2024)
    jsd               beta KL(T || M) + (1 - beta) KL(S || M)    with M = beta T + (1 - beta) S
                      (GKD, Agarwal et al. 2024, eq. 1; beta = 0 stands for forward_kl and beta = 1 for
                      reverse_kl, as in TRL: its limits divided by beta and by 1 - beta)
    skew_kl           KL(T || alpha T + (1 - alpha) S)           (DistiLLM, Ko et al. 2024, eq. 4)
    skew_reverse_kl   KL(S || (1 - alpha) T + alpha S)           (DistiLLM)
    total_variation   half of sum |T - S|                        (f-distill, Wen et al. 2023)
    adaptive_kl       forward_kl and reverse_kl, weighted by where S and T differ: among the likeliest
                      tokens that hold half of T, or in the rest (Wu et al. 2024, arXiv 2404.02657)

All are true divergences: the teacher's entropy is subtracted, so 0 means a perfect match.
Each formula stands once, beside its gradient with respect to the student's logits in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Name = Literal[
    "forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation", "adaptive_kl"
]
NAMES: tuple[Name, ...] = get_args(Name)
_HEAD_MASS = 0.5  # of adaptive_kl: the share of the teacher's probability that counts as its head


@dataclass(frozen=True, slots=True)
class Divergence:
    """A divergence with its numbers. Raises ValueError for a number out of range.

    `beta` belongs to jsd; `normalized` divides it by beta (1 - beta), so that it goes over into
    forward_kl and reverse_kl at its ends and a learning rate means the same at every beta. `alpha`
    belongs to the two skew divergences: 0 makes them the plain ones.
    """

    name: Name = "forward_kl"
    beta: float = 0.5
    alpha: float = 0.1
    normalized: bool = False

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"no divergence '{self.name}'; there are {', '.join(NAMES)}")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must be from 0 to 1, not {self.beta}")
        if not 0 <= self.alpha < 1:
            raise ValueError(f"alpha must be from 0 to below 1, not {self.alpha}")


# (student, teacher) log-probabilities [..., V] -> (value [...], gradient [..., V])
_Compare = Callable[[Tensor, Tensor, Divergence], tuple[Tensor, Tensor]]


def per_token(
    divergence: Divergence, student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """The divergence of each token, in nats, times temperature squared.

    Logits [..., V] of one vocabulary -> [...]. Both sides are softened by `temperature`; the square
    keeps gradients of one size whatever the temperature (Hinton et al. 2015, section 2). Statistics
    are float32 for half-precision logits. Differentiable by autograd.
    """
    student = log_probabilities(student_logits, temperature)
    teacher = log_probabilities(teacher_logits, temperature)
    return with_gradient(divergence, student, teacher)[0] * temperature**2


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) over the last axis, at least in float32."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    return torch.log_softmax(logits, dim=-1)


def with_gradient(divergence: Divergence, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """(value [...], gradient [..., V]) from log-probabilities [..., V].

    The gradient is with respect to the student's logits, those that `student` is the log softmax of.
    """
    return _FORMULAS[divergence.name](student, teacher, divergence)


def _forward_kl(student: Tensor, teacher: Tensor, _: Divergence) -> tuple[Tensor, Tensor]:
    """sum_i T_i (log T_i - log S_i); gradient S - T."""
    target = teacher.exp()
    value = (target * (teacher - student)).sum(-1)
    return value, student.exp().sub_(target)


def _reverse_kl(student: Tensor, teacher: Tensor, _: Divergence) -> tuple[Tensor, Tensor]:
    """sum_i S_i (log S_i - log T_i); gradient S_i ((log S_i - log T_i) - value)."""
    return _mean_and_gradient(student.exp(), student - teacher)


def _jsd(student: Tensor, teacher: Tensor, what: Divergence) -> tuple[Tensor, Tensor]:
    """beta KL(T || M) + (1 - beta) KL(S || M); gradient (1 - beta) S_i (log S_i / M_i - KL(S || M)).

    The terms through M cancel: sum over T and S of d log M gives -(1 - beta) for every i, a constant
    that the softmax takes out.
    """
    beta = what.beta
    if beta == 0:
        return _forward_kl(student, teacher, what)
    if beta == 1:
        return _reverse_kl(student, teacher, what)
    mixture = mixed(teacher, student, beta)
    teacher_side = (teacher.exp() * (teacher - mixture)).sum(-1)
    student_side, gradient = _mean_and_gradient(student.exp(), student - mixture)
    scale = 1 / (beta * (1 - beta)) if what.normalized else 1.0
    value = beta * teacher_side + (1 - beta) * student_side
    return scale * value, gradient.mul_(scale * (1 - beta))


def _skew_kl(student: Tensor, teacher: Tensor, what: Divergence) -> tuple[Tensor, Tensor]:
    """sum_i T_i (log T_i - log M_i), M = alpha T + (1 - alpha) S.

    d/dS_i = -(1 - alpha) T_i / M_i, which is at most (1 - alpha) / alpha however small S_i is.
    """
    if what.alpha == 0:
        return _forward_kl(student, teacher, what)
    mixture = mixed(teacher, student, what.alpha)
    ratio = teacher - mixture
    value = (teacher.exp() * ratio).sum(-1)
    _, gradient = _mean_and_gradient(student.exp(), ratio.exp())
    return value, gradient.mul_(what.alpha - 1)


def _skew_reverse_kl(student: Tensor, teacher: Tensor, what: Divergence) -> tuple[Tensor, Tensor]:
    """sum_i S_i (log S_i - log M_i), M = (1 - alpha) T + alpha S.

    d/dS_i = log S_i / M_i - alpha S_i / M_i + 1: the student is not detached inside M, as it is in
    DistiLLM's second version.
    """
    if what.alpha == 0:
        return _reverse_kl(student, teacher, what)
    ratio = student - mixed(student, teacher, what.alpha)
    probability = student.exp()
    value = (probability * ratio).sum(-1)
    _, gradient = _mean_and_gradient(probability, ratio - what.alpha * ratio.exp())
    return value, gradient


def _total_variation(student: Tensor, teacher: Tensor, _: Divergence) -> tuple[Tensor, Tensor]:
    """sum_i |S_i - T_i| / 2, from 0 to 1; d/dS_i = sign(S_i - T_i) / 2."""
    probability = student.exp()
    difference = probability - teacher.exp()
    gradient = _mean_and_gradient(probability, difference.sign() / 2)[1]
    return difference.abs_().sum(-1) / 2, gradient


def _adaptive_kl(student: Tensor, teacher: Tensor, what: Divergence) -> tuple[Tensor, Tensor]:
    """w KL(T || S) + (1 - w) KL(S || T); w is the head's share of sum |T - S|, taken as a constant."""
    target = teacher.exp()
    gap = (target - student.exp()).abs_()
    order = target.argsort(dim=-1, descending=True)
    before = target.gather(-1, order).cumsum(-1) - target.gather(-1, order)
    head = gap.gather(-1, order).mul_(before < _HEAD_MASS).sum(-1)
    # Where the two agree everywhere both parts are zero, whatever the weights.
    share = (head / gap.sum(-1).clamp_min(torch.finfo(gap.dtype).tiny)).detach()
    forward, to_forward = _forward_kl(student, teacher, what)
    reverse, to_reverse = _reverse_kl(student, teacher, what)
    weight = share.unsqueeze(-1)
    gradient = weight * to_forward + (1 - weight) * to_reverse
    return share * forward + (1 - share) * reverse, gradient


_FORMULAS: dict[Name, _Compare] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jsd": _jsd,
    "skew_kl": _skew_kl,
    "skew_reverse_kl": _skew_reverse_kl,
    "total_variation": _total_variation,
    "adaptive_kl": _adaptive_kl,
}


def mixed(first: Tensor, second: Tensor, share: float) -> Tensor:
    """log(share first + (1 - share) second) of log-probabilities of any shape, for 0 <= share < 1."""
    if share == 0:
        return second
    return torch.logaddexp(first + math.log(share), second + math.log1p(-share))


def _mean_and_gradient(probability: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """E = sum_i S_i slope_i, and S_i (slope_i - E): what a slope d/dS_i becomes at the logits of S."""
    mean = (probability * slope).sum(-1)
    return mean, probability * (slope - mean.unsqueeze(-1))
