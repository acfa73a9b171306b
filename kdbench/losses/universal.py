"""Universal logit distance: how far two distributions are over different vocabularies (ULD).

per_token(student_probs [N, V], teacher_probs [N, W]) -> [N]     0 to 2

    sum_i |S_(i) - T_(i)|,  with S_(1) >= S_(2) >= ... and the shorter one filled up with zeros

Which token is which plays no part, only how probability is spread: the Wasserstein-1 distance under a
uniform cost of transport (Boizard et al. 2024, arXiv 2402.12030, eq. 4). Row t of both must predict the
same piece of text: that alignment is the caller's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from kdbench.losses.divergences import log_probabilities


def per_token(student_probs: Tensor, teacher_probs: Tensor) -> Tensor:
    """The distance [N] of probabilities [N, V] and [N, W]. Differentiable by autograd."""
    student, teacher = student_probs.sort(-1, descending=True)[0], teacher_probs.sort(-1, descending=True)[0]
    return _difference(student, teacher).abs().sum(-1)


def with_gradient(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """(distance [N], its gradient [N, V] at the student's logits [N, V]); the teacher's are [N, W].

    Statistics are float32 for half-precision logits.
    """
    probability = log_probabilities(student_logits).exp()
    ranked, order = probability.sort(-1, descending=True)
    teacher = log_probabilities(teacher_logits).exp().sort(-1, descending=True)[0]
    difference = _difference(ranked, teacher)
    signs = difference[..., : probability.shape[-1]].sign()
    slope = torch.empty_like(probability).scatter_(-1, order, signs)
    mean = (probability * slope).sum(-1, keepdim=True)
    return difference.abs().sum(-1), probability * (slope - mean)


def _difference(student: Tensor, teacher: Tensor) -> Tensor:
    width = max(student.shape[-1], teacher.shape[-1])
    padded = (pad(one, (0, width - one.shape[-1])) for one in (student, teacher))
    return next(padded) - next(padded)
