"""MiniLLM's loss: the reverse KL of whole sequences, by policy gradient, on tokens that were drawn.

    Long-term part: what token t brought on, by the rewards r = log p - log q of the tokens after it.

    tokens        Once   upon   a      <end>
    rewards       -0.2   -1.0   +0.4   -0.6
    returns       -0.4   -0.1   -0.6    0         mean of the rewards that follow: nothing follows the end

With teacher p, student q, and q_old the student that drew y_t from p~ = alpha p + (1 - alpha) q_old
(Gu et al. 2024, arXiv 2306.08543, section 2.2), the loss of a row is

    KL(q || p)  -  w_t min(rho_t R_t+1, clip(rho_t, 1 - eps, 1 + eps) R_t+1)
    rho_t = q(y_t) / q_old(y_t)      w_t = q_old(y_t) / p~(y_t)

The first term is the single-step part: the reward of token t itself, summed over the whole vocabulary.
Rewards, returns and weights are constants; gradients go through q alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.losses.chunked import LossSums, Score, one_shot, token_cross_entropy
from kdbench.losses.divergences import Divergence, log_probabilities, mixed
from kdbench.losses.heads import Head
from kdbench.losses.signals import Signal

_REVERSE_KL = Divergence("reverse_kl")


@dataclass(frozen=True, slots=True)
class Drawn:
    """What is fixed of N drawn tokens [N]: log q_old, the return from the next token on, and w."""

    log_probs: Tensor
    returns: Tensor
    importance: Tensor

    def part(self, rows: slice) -> Drawn:
        """Some of them."""
        return Drawn(self.log_probs[rows], self.returns[rows], self.importance[rows])


def returns_to_come(rewards: Tensor, lengths: Sequence[int], *, mean: bool = True) -> Tensor:
    """R_t+1 [N]: of each token the mean (or sum) of the rewards [N] behind it in its own sequence.

    Sequences of `lengths` lie one after the other; behind a last token there is nothing, and its return
    is 0. The mean is the paper's length-normalised return (section 2.2): sums favour short sequences. Its
    formula divides T - t rewards by T - t - 1, and the authors' code begins with token t's own reward, which
    the single-step part has counted already; here the rewards that follow are divided by their number.
    """
    parts = []
    for part in torch.split(rewards, list(lengths)):
        following = torch.cat([part.flip(0).cumsum(0).flip(0)[1:], part.new_zeros(1)])
        count = torch.arange(len(part) - 1, -1, -1, device=part.device).clamp_min(1)
        parts.append(following / count if mean else following)
    return torch.cat(parts)


def importance(student: Tensor, teacher: Tensor, share: float) -> Tensor:
    """w = q_old / p~ from the log-probabilities of drawn tokens; at most 1 / (1 - share).

    The paper's weight per token, in place of their product over the tokens before, whose variance grows with
    the length. A draw is then weighed exactly given what stands before it; that this was drawn from p~, too,
    and what follows as well, is not made up for. The single-step part needs no weight: given what stands
    before, the mean of w is 1.
    """
    return (student - mixed(teacher, student, share)).exp()


def policy_gradient_loss(
    hidden: Tensor,
    head: Head,
    signal: Signal,
    targets: Tensor,
    drawn: Drawn,
    *,
    clip: float = 0.2,
    weights: Tensor | None = None,
) -> LossSums:
    """The loss above on N rows that predict the drawn tokens `targets` [N].

    The student's `hidden` [N, H] and `head` [V, H], the teacher's `signal` of N rows over the same V tokens,
    `weights` [N]. `clip` is PPO's epsilon (Schulman et al. 2017, arXiv 1707.06347, eq. 7): it bounds how far
    the student may go from the one that drew the tokens, so it is about rho alone; the authors' code clips
    rho times w, and would give no gradient to a token that the teacher's share drew, before any step.
    """

    def scoring(chunk: slice) -> Score:
        said, answers, past = signal.part(chunk), targets[chunk], drawn.part(chunk)

        def score(rows: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
            divergence, gradient = said.compare(rows, logits, _REVERSE_KL, 1.0)
            entropy, slope = token_cross_entropy(log_probabilities(logits), answers[rows])
            surrogate, push = _clipped(-entropy, past.part(rows), clip)
            gradient = gradient.add_(slope.mul_(push.unsqueeze(-1)))
            return torch.stack([divergence + surrogate, divergence, entropy]), gradient

        return score

    return one_shot(hidden, head, scoring, weights)


def _clipped(log_probs: Tensor, drawn: Drawn, clip: float) -> tuple[Tensor, Tensor]:
    """PPO's term [n] of tokens of log-probability `log_probs` [n], and its slope at -log_probs."""
    ratio = (log_probs - drawn.log_probs).exp()
    free, bounded = ratio * drawn.returns, ratio.clamp(1 - clip, 1 + clip) * drawn.returns
    value = -drawn.importance * torch.minimum(free, bounded)
    return value, torch.where(free <= bounded, drawn.importance * free, 0.0)
