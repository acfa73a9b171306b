"""Universal logit distance: how far two distributions are over different vocabularies (ULD).

per_token(student_probs [N, V], teacher_probs [N, W]) -> [N]     0 to 2
universal_loss(hidden, head, signal, targets, aligned)           at the rows where the teacher is heard

    sum_i |S_(i) - T_(i)|,  with S_(1) >= S_(2) >= ... and the shorter one filled up with zeros

Which token is which plays no part, only how probability is spread: the Wasserstein-1 distance under a
uniform cost of transport (Boizard et al. 2024, arXiv 2402.12030, eq. 4). Row t of both must predict the
same piece of text: that alignment is the caller's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from kdbench.losses.chunked import CHUNK_ROWS, LossSums, Score, one_shot, token_cross_entropy
from kdbench.losses.divergences import log_probabilities
from kdbench.losses.heads import Head
from kdbench.losses.signals import HiddenStates


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


def universal_loss(
    hidden: Tensor,
    head: Head,
    signal: HiddenStates,
    targets: Tensor,
    aligned: Sequence[int],
    *,
    ce_weight: float,
    weights: Tensor | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> LossSums:
    """Universal logit distillation (ULD, Boizard et al. 2024, arXiv 2402.12030), between two vocabularies.

    `ce_weight` * cross-entropy on `targets` [N] at all N rows of the student; to that is added, at the M of
    them that `aligned` names in rising order, (1 - ce_weight) * the universal logit distance to the M rows of
    `signal`. `divergence` is the sum of those distances. Raises ValueError where numbers of rows differ.
    """
    if len(aligned) != len(signal):
        raise ValueError(f"{len(aligned)} aligned rows of the student and {len(signal)} of the teacher")

    def scoring(chunk: slice) -> Score:
        compared = _within(aligned, chunk)
        said, answers = signal.part(compared).logits, targets[chunk]
        places = [row - chunk.start for row in aligned[compared]]

        def score(rows: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
            entropy, gradient = token_cross_entropy(log_probabilities(logits), answers[rows])
            here = _within(places, rows)
            at = torch.tensor([p - rows.start for p in places[here]], dtype=torch.long, device=logits.device)
            value, slope = with_gradient(logits[at], said[here])
            distance = torch.zeros_like(entropy).index_copy_(0, at, value)
            gradient = gradient.mul_(ce_weight).index_add_(0, at, slope, alpha=1 - ce_weight)
            loss = (1 - ce_weight) * distance + ce_weight * entropy
            return torch.stack([loss, distance, entropy]), gradient

        return score

    return one_shot(hidden, head, scoring, weights, chunk_rows)


def _within(rising: Sequence[int], rows: slice) -> slice:
    """Where in a rising sequence the numbers of some rows stand."""
    return slice(bisect_left(rising, rows.start), bisect_left(rising, rows.stop))
