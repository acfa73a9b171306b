"""How far the student's next-token distribution S is from the teacher's T, one value per token.

    per_token("forward_kl", student_logits, teacher_logits)     # [N, V], [N, V] -> [N], in nats

    forward_kl   KL(T || S)                             covers all the teacher does (Hinton et al. 2015)
    reverse_kl   KL(S || T)                             seeks one mode (MiniLLM, Gu et al. 2024)
    jsd          beta KL(T || M) + (1 - beta) KL(S || M)   M = beta T + (1 - beta) S
                 (GKD, Agarwal et al. 2024, eq. 1; 0 < beta < 1; beta = 0 stands for forward_kl and
                 beta = 1 for reverse_kl, which are its limits divided by beta and by 1 - beta)

All are true divergences: the teacher's entropy is subtracted, so 0 means a perfect match.
Each formula stands once, beside its gradient with respect to the student's logits in closed form.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]


def per_token(
    divergence: Divergence,
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    beta: float = 0.5,
) -> Tensor:
    """The divergence of each token, in nats, times temperature squared.

    Logits [..., V] of one vocabulary -> [...]. Both sides are softened by `temperature`; the square
    keeps gradients of one size whatever the temperature (Hinton et al. 2015, section 2). Statistics
    are float32 for half-precision logits. Differentiable by autograd.
    """
    student = log_probabilities(student_logits, temperature)
    teacher = log_probabilities(teacher_logits, temperature)
    return with_gradient(divergence, student, teacher, beta)[0] * temperature**2


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) over the last axis, at least in float32."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    return torch.log_softmax(logits, dim=-1)


def with_gradient(
    divergence: Divergence, student: Tensor, teacher: Tensor, beta: float = 0.5
) -> tuple[Tensor, Tensor]:
    """(value [...], gradient [..., V]) from log-probabilities [..., V].

    The gradient is with respect to the student's logits, those that `student` is the log softmax of.
    """
    if divergence == "forward_kl" or (divergence == "jsd" and beta == 0):
        return _forward_kl(student, teacher)
    if divergence == "reverse_kl" or (divergence == "jsd" and beta == 1):
        return _reverse_kl(student, teacher)
    return _jsd(student, teacher, beta)


def _forward_kl(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """sum_i T_i (log T_i - log S_i); gradient S - T."""
    target = teacher.exp()
    value = (target * (teacher - student)).sum(-1)
    return value, student.exp() - target


def _reverse_kl(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """sum_i S_i (log S_i - log T_i); gradient S_i ((log S_i - log T_i) - value)."""
    ratio = student - teacher
    probability = student.exp()
    value = (probability * ratio).sum(-1)
    return value, probability * (ratio - value.unsqueeze(-1))


def _jsd(student: Tensor, teacher: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """beta KL(T || M) + (1 - beta) KL(S || M); gradient (1 - beta) S_i (log S_i / M_i - KL(S || M)).

    The terms through M cancel: sum over T and S of d log M gives -(1 - beta) for every i, a constant
    that the softmax takes out.
    """
    mixture = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    teacher_side = (teacher.exp() * (teacher - mixture)).sum(-1)
    student_side, gradient = _reverse_kl(student, mixture)
    return beta * teacher_side + (1 - beta) * student_side, (1 - beta) * gradient
