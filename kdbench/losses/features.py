"""How far a student is from its teacher inside: relations of its attention's vectors, and hidden states.

    relation_divergence(student_q, teacher_q, heads=16, rows=slice(9, 40))  # [L, D], [L, D'] -> [31], nats
    hidden_state_error(student_states, teacher_states)                      # [N, H], [N, H] -> [N]

A relation says which of the positions before it a position is like: R_i = softmax over j <= i of
v_i . v_j / sqrt(d), for queries, keys or values v. It is as long as the text, however wide the model is, and
a rotation of the space that v lives in leaves it as it was: student and teacher may differ in width and in
attention heads. Both measures are 0 at a match, and the teacher gets no gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdbench.losses.divergences import log_probabilities
from kdbench.losses.signals import at_least_float32


def relation_divergence(student: Tensor, teacher: Tensor, *, heads: int, rows: slice) -> Tensor:
    """KL(teacher's relation || student's) at `rows`, averaged over the heads: [n], in nats.

    MiniLMv2 (Wang et al. 2021, arXiv 2012.15828, section 3.1): the vectors of all attention heads, `student`
    [L, D] and `teacher` [L, D'] of one sequence, are laid end to end and split into `heads` relation heads,
    of which both models have as many. The softmax is causal, as the attention of a decoder is: what stands
    behind a row, padding or text, plays no part in it. In float32 at least, under autocast as well.
    Raises ValueError where lengths differ or `heads` does not divide a width.
    """
    if len(student) != len(teacher):
        raise ValueError(f"{len(student)} positions of the student and {len(teacher)} of the teacher")
    ours, theirs = _relations(student, heads, rows), _relations(teacher.detach(), heads, rows)
    return (theirs.exp() * (theirs - ours)).sum(-1).mean(0)


def _relations(vectors: Tensor, heads: int, rows: slice) -> Tensor:
    """Log-probabilities [heads, n, L]; of a position that is yet to come the lowest number there is."""
    length, width = vectors.shape
    if width % heads:
        raise ValueError(f"{heads} relation heads do not divide vectors of {width} numbers")
    split = vectors.to(at_least_float32(vectors.dtype)).view(length, heads, -1).transpose(0, 1)
    with torch.autocast(vectors.device.type, enabled=False):
        scores = split[:, rows] @ split.transpose(1, 2) / math.sqrt(width // heads)
    positions = torch.arange(length, device=vectors.device)
    ahead = positions > positions[rows].unsqueeze(1)
    return log_probabilities(scores.masked_fill(ahead, torch.finfo(scores.dtype).min))


def hidden_state_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference over the H channels of states [..., H]: [...], float32 at least.

    Minitron's loss of intermediate states (Muralidharan et al. 2024, arXiv 2407.14679, section 3), without a
    projection. Raises ValueError where the widths differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"states {list(student.shape)} of the student and {list(teacher.shape)} of the teacher"
        )
    precise = at_least_float32(student.dtype)
    return (student.to(precise) - teacher.detach().to(precise)).square().mean(-1)
