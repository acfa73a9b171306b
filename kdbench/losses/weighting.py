"""Weights of the rows of a sequence, from what the teacher thought of it.

token_scaled([2.0, 0.1, 4.0, 1.0], lengths=[3, 1])   ->  [1.0, 0.8, 1.2, 1.0]   (temperature 10)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def token_scaled(cross_entropy: Tensor, lengths: Sequence[int], temperature: float = 10.0) -> Tensor:
    """Token-scaled logit distillation (TSLD, Kim et al. 2023, arXiv 2308.06744, eq. 6): weights [N].

    w = softmax over a sequence's tokens of c / temperature, where c [N] is the teacher's cross-entropy on
    the token that came: tokens it was unsure of count more. Sequences of `lengths` lie one after the
    other. The paper sums w times the loss over a sequence; here w is times the sequence's length, so that
    it is 1 on average, and a mean over tokens keeps its meaning. Raises ValueError for a temperature that
    is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature of token scaling must be above 0, not {temperature}")
    parts = torch.split(cross_entropy / temperature, list(lengths))
    return torch.cat([part.softmax(-1) * len(part) for part in parts])
