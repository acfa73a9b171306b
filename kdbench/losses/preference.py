"""Losses of preference pairs: how much more a model has come to like the chosen answer than the rejected one.

log-ratio  = log p(answer | prompt) - log p_ref(answer | prompt), summed over the answer's tokens
reward     = beta * log-ratio
dpo        = -log sigmoid(reward of the chosen - reward of the rejected)

dpo(torch.tensor([0.0]), torch.tensor([0.0]), beta=0.1)     # -> [0.6931]: no opinion yet, log 2
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, eq. 7): losses [B].

    `chosen` and `rejected` [B] are the log-ratios of whole answers. The larger `beta`, the nearer the model
    stays to the reference.
    """
    return -logsigmoid(beta * (chosen - rejected))


def ipo(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Identity preference optimisation (Azar et al. 2023, arXiv 2310.12036, eq. 17): losses [B].

    The squared distance of the log-ratios' difference from 1 / (2 beta), where it ends: it does not grow
    without bound, as dpo's does where all judges agree. The paper's tau is `beta`. `chosen` and `rejected`
    [B] are log-ratios per token, as in TRL: of whole answers, the distance would depend on their length.
    """
    return (chosen - rejected - 1 / (2 * beta)).square()
