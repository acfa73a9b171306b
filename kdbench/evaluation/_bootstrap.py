"""Intervals over samples: percentile bootstrap (Efron & Tibshirani 1993, chapter 13).

    interval([2.0, 9.0, 4.0], [10.0, 30.0, 20.0], seed=0)    # of the ratio 15 / 60

A number per token is a ratio of two sums over stories, and it is stories that are drawn again: both
sums move together. A mean of per-story ratios would be another number, and too narrow or too wide.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdbench.evaluation import Score, Unit

DRAWS = 2_000
LEVEL = 0.95
_CELLS = 2_000_000  # of the draws x samples matrix held at once: 16 MB


def estimate(
    metric: str,
    numerator: ArrayLike,
    denominator: ArrayLike | None = None,
    *,
    seed: int,
    unit: Unit,
    higher_is_better: bool | None,
) -> Score:
    """The score sum(numerator) / sum(denominator) with its interval; a mean without a denominator."""
    top = np.asarray(numerator, dtype=np.float64)
    below = float(len(top)) if denominator is None else float(np.sum(denominator))
    low, high = interval(top, denominator, seed=seed)
    value = float(top.sum()) / below
    return Score(metric, value, low, high, n=len(top), unit=unit, higher_is_better=higher_is_better)


def interval(
    numerator: ArrayLike,
    denominator: ArrayLike | None = None,
    *,
    seed: int,
    transform: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> tuple[float | None, float | None]:
    """(low, high) of transform(sum(numerator) / sum(denominator)) over samples drawn with replacement.

    numerator [n], denominator [n] (ones if not given: a mean). One seed and one n draw the same
    samples for every model, so that intervals can be compared. (None, None) for fewer than two samples.
    """
    top = np.asarray(numerator, dtype=np.float64)
    bottom = np.ones_like(top) if denominator is None else np.asarray(denominator, dtype=np.float64)
    if len(top) < 2 or not bottom.any():
        return None, None
    ratios = _resampled_ratios(top, bottom, np.random.default_rng(seed), draws)
    values = ratios if transform is None else transform(ratios)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled_ratios(
    top: NDArray[np.float64], bottom: NDArray[np.float64], rng: np.random.Generator, draws: int
) -> NDArray[np.float64]:
    n = len(top)
    both = np.stack([top, bottom], axis=1)
    step = max(1, _CELLS // n)
    parts = []
    for start in range(0, draws, step):
        # How often each sample is drawn: a draw is a row of counts, its sums one matrix product.
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(step, draws - start))
        parts.append(counts @ both)
    sums = np.concatenate(parts)
    sums = sums[sums[:, 1] != 0]  # a draw of empty samples alone has no ratio
    ratios: NDArray[np.float64] = sums[:, 0] / sums[:, 1]
    return ratios
