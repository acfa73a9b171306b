"""One token from each row of logits, every row with its own temperature, nucleus and random number.

    pick(logits, [Sampling(temperature=0.8), Sampling(temperature=0)], [0.31, 0.77]) -> [1504, 28]

A draw inverts the cumulative distribution at one uniform number, so that it depends on the row's own
number and distribution alone, never on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdbench.losses.divergences import log_probabilities
from kdbench.teacher import Drawn, Sampling

_BLOCK = 256
_NUCLEUS_GUESS = 256


def pick(logits: Tensor, samplings: Sequence[Sampling], uniforms: Sequence[float]) -> list[int]:
    """Token ids, one per row. logits (rows, vocabulary); uniforms in [0, 1), unused by greedy rows."""
    found = torch.empty(len(samplings), dtype=torch.long, device=logits.device)
    greedy = [i for i, s in enumerate(samplings) if s.temperature == 0]
    whole = [i for i, s in enumerate(samplings) if s.temperature > 0 and s.top_p >= 1]
    nucleus = [i for i, s in enumerate(samplings) if s.temperature > 0 and s.top_p < 1]
    if greedy:
        found[greedy] = _some(logits, greedy).argmax(-1)
    for rows, draw in ((whole, _draw), (nucleus, _draw_nucleus)):
        if rows:
            heat = _column([samplings[i].temperature for i in rows], logits)
            probabilities = torch.softmax(_some(logits, rows).float() / heat, dim=-1)
            u = _column([uniforms[i] for i in rows], logits, torch.float64)
            top_p = _column([samplings[i].top_p for i in rows], logits)
            found[rows] = draw(probabilities, u, top_p)
    ids: list[int] = found.tolist()
    return ids


def likeliest(logits: Tensor, tokens: Sequence[int], k: int) -> list[Drawn]:
    """What is said at each row of logits (rows, vocabulary) about its token, and about the k likeliest."""
    log_probs = log_probabilities(logits)
    own = log_probs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    values, ids = log_probs.topk(k)
    rows = zip(tokens, own, ids.tolist(), values.tolist(), strict=True)
    return [Drawn(token, at, tuple(zip(top, said, strict=True))) for token, at, top, said in rows]


def _some(logits: Tensor, rows: list[int]) -> Tensor:
    return logits if len(rows) == logits.shape[0] else logits[rows]


def _column(values: list[float], like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=dtype)[:, None]


def _draw(probabilities: Tensor, u: Tensor, _: Tensor) -> Tensor:
    """Inverse of the cumulative distribution at u, in two levels: which block, then which token.

    A cumulative sum over the whole vocabulary would be slower and, in float32, less exact.
    """
    rows, size = probabilities.shape
    padded = torch.nn.functional.pad(probabilities, (0, -size % _BLOCK)).view(rows, -1, _BLOCK)
    blocks = padded.sum(-1, dtype=torch.float64).cumsum(-1)
    target = u * blocks[:, -1:]
    block = torch.searchsorted(blocks, target, right=True).clamp_(max=blocks.shape[1] - 1)
    before = torch.where(block > 0, blocks.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = padded[torch.arange(rows, device=u.device), block[:, 0]].double().cumsum(-1)
    # Sums taken in another order may leave the target a hair beyond the block's last likely token.
    target = torch.minimum(target - before, inside[:, -1:] * (1 - 2**-52))
    return (block * _BLOCK + torch.searchsorted(inside, target, right=True))[:, 0]


def _draw_nucleus(probabilities: Tensor, u: Tensor, top_p: Tensor) -> Tensor:
    """A draw among the fewest likeliest tokens that hold top_p (Holtzman et al., arXiv 1904.09751)."""
    likeliest, ids = probabilities.topk(min(_NUCLEUS_GUESS, probabilities.shape[1]))
    if bool((likeliest.sum(-1, keepdim=True) < top_p).any()):
        likeliest, ids = probabilities.sort(-1, descending=True)
    total = likeliest.double().cumsum(-1)
    kept = torch.where(total - likeliest < top_p, likeliest, 0.0).double().cumsum(-1)
    target = u * kept[:, -1:]
    spot = torch.searchsorted(kept, target, right=True).clamp_(max=kept.shape[1] - 1)
    return ids.gather(1, spot)[:, 0]
