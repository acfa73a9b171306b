"""What a teacher says about N tokens, in the forms it can be had: hidden states, logits, or the top k.

    HiddenStates(hidden, head)          exact; live, or read from a store, 2 KB a token at 576 numbers
    Logits(logits)                      exact; as large as the vocabulary
    TopK(ids, log_probs)                the k likeliest tokens, and one bucket for all others

    signal.compare(rows, student_logits, divergence, temperature)  -> (value [n], gradient [n, V])

Top-k distributions are compared over k + 1 buckets, the last of which holds all that is left. That is a
divergence in its own right: zero at a match, exact at k = V, and at temperature 1 never above the exact one
(merging outcomes loses information; adaptive_kl, no f-divergence, apart). To renormalise over the k instead
would put no pressure on what the student gives to the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kdbench.losses.divergences import Divergence, log_probabilities, with_gradient
from kdbench.losses.heads import Head


class Signal(Protocol):
    """The teacher's distributions at N rows over a vocabulary of V tokens."""

    @property
    def vocabulary(self) -> int:
        """V."""
        ...

    def __len__(self) -> int:
        """N."""
        ...

    def part(self, rows: slice) -> Signal:
        """Some of the rows, with whatever product makes them done once for all of them."""
        ...

    def compare(
        self, rows: slice, student_logits: Tensor, divergence: Divergence, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """(value [n], gradient [n, V] at student_logits) of D(softened teacher, softened student)."""
        ...

    def cross_entropy(self, rows: slice, targets: Tensor) -> Tensor:
        """-log T(target) [n] at temperature 1: how sure the teacher was of the token that came."""
        ...


@dataclass(frozen=True, slots=True)
class Logits:
    """Logits [N, V]; raw, at temperature 1."""

    logits: Tensor

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.logits.shape[-1]

    def __len__(self) -> int:
        return self.logits.shape[0]

    def part(self, rows: slice) -> Logits:
        """As Signal.part."""
        return Logits(self.logits[rows])

    def compare(
        self, rows: slice, student_logits: Tensor, divergence: Divergence, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """As Signal.compare."""
        return _compare(self.logits[rows], student_logits, divergence, temperature)

    def cross_entropy(self, rows: slice, targets: Tensor) -> Tensor:
        """As Signal.cross_entropy."""
        return _picked(log_probabilities(self.logits[rows]), targets)


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """Final hidden states [N, H'] and the head that makes logits of them, a few hundred rows at a time."""

    hidden: Tensor
    head: Head

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.head.vocabulary

    def __len__(self) -> int:
        return self.hidden.shape[0]

    def part(self, rows: slice) -> Logits:
        """As Signal.part: the head's product, once."""
        return Logits(self.head.logits(self.hidden[rows]))

    def compare(
        self, rows: slice, student_logits: Tensor, divergence: Divergence, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """As Signal.compare."""
        return _compare(self.head.logits(self.hidden[rows]), student_logits, divergence, temperature)

    def cross_entropy(self, rows: slice, targets: Tensor) -> Tensor:
        """As Signal.cross_entropy."""
        return _picked(log_probabilities(self.head.logits(self.hidden[rows])), targets)


@dataclass(frozen=True, slots=True)
class TopK:
    """ids [N, k], all different in a row, and their true log-probabilities [N, k], of a vocabulary of V."""

    ids: Tensor
    log_probs: Tensor
    vocabulary: int

    def __len__(self) -> int:
        return self.ids.shape[0]

    def part(self, rows: slice) -> TopK:
        """As Signal.part."""
        return TopK(self.ids[rows], self.log_probs[rows], self.vocabulary)

    def compare(
        self, rows: slice, student_logits: Tensor, divergence: Divergence, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """As Signal.compare, over k + 1 buckets.

        With a temperature both sides are first put into buckets and then softened, the rest as one
        bucket: how probability is spread inside it is not known of the teacher.
        """
        ids, given = self.ids[rows], self.log_probs[rows].to(at_least_float32(student_logits.dtype))
        student = log_probabilities(student_logits)
        at_ids = student.gather(-1, ids)
        whole = ids.shape[-1] == self.vocabulary
        if whole:  # nothing is left over
            rest, buckets, teacher = None, at_ids, given
        else:
            rest = student.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True)
            buckets = torch.cat([at_ids, rest], dim=-1)
            teacher = torch.cat([given, _left_over(given)], dim=-1)
        value, slope = with_gradient(
            divergence, log_probabilities(buckets, temperature), log_probabilities(teacher, temperature)
        )
        # A bucket's log-probability moves with its members' logits: by S_i / S_bucket, less S_i for every
        # token. The slopes of a softmax add up to zero, so what is subtracted cancels.
        slope = slope / temperature
        if rest is None:
            return value, torch.zeros_like(student).scatter_(-1, ids, slope)
        gradient = (student - rest).exp_().mul_(slope[..., -1:])
        return value, gradient.scatter_(-1, ids, slope[..., :-1])

    def cross_entropy(self, rows: slice, targets: Tensor) -> Tensor:
        """As Signal.cross_entropy; for a target outside the k, of the whole rest: a lower bound."""
        ids, given = self.ids[rows], self.log_probs[rows]
        found = ids == targets.unsqueeze(-1)
        inside = torch.where(found, given, 0).sum(-1)
        if ids.shape[-1] == self.vocabulary:
            return -inside
        return -torch.where(found.any(-1), inside, _left_over(given).squeeze(-1))


def top_k(logits: Tensor, k: int) -> TopK:
    """The k likeliest tokens of logits [N, V] with their log-probabilities, likeliest first."""
    log_probs, ids = log_probabilities(logits).topk(k)
    return TopK(ids, log_probs, logits.shape[-1])


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float32 for the half precisions, else the precision itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _left_over(log_probs: Tensor) -> Tensor:
    """log(1 - sum of the probabilities) [N, 1], never of less than a rounding error."""
    total = log_probs.exp().sum(-1, keepdim=True)
    return (1 - total).clamp_min(torch.finfo(total.dtype).eps).log()


def _compare(
    teacher_logits: Tensor, student_logits: Tensor, divergence: Divergence, temperature: float
) -> tuple[Tensor, Tensor]:
    student = log_probabilities(student_logits, temperature)
    teacher = log_probabilities(teacher_logits, temperature)
    value, gradient = with_gradient(divergence, student, teacher)
    return value, gradient if temperature == 1 else gradient.div_(temperature)


def _picked(log_probs: Tensor, targets: Tensor) -> Tensor:
    return -log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
