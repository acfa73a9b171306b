"""Properties of the bootstrap, and its agreement with a loop that draws samples one by one."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.evaluation._bootstrap import estimate, interval

numbers = st.lists(st.floats(0, 100, allow_nan=False), min_size=2, max_size=40)


@given(numbers, st.integers(0, 5))
def test_interval_stays_within_the_values_and_holds_the_mean(values, seed):
    low, high = interval(values, seed=seed, draws=400)
    slack = 1e-9 * (1 + max(values))
    assert min(values) - slack <= low <= high <= max(values) + slack
    if len(set(values)) == 1:
        assert low == pytest.approx(high)


def test_same_seed_same_interval_other_seed_another():
    values = list(range(30))
    assert interval(values, seed=1) == interval(values, seed=1)
    assert interval(values, seed=1) != interval(values, seed=2)


def test_a_ratio_is_of_sums_and_draws_both_sides_together():
    # Numerator and denominator proportional: whatever is drawn, the ratio is 3.
    tokens = np.array([1.0, 10.0, 100.0, 1000.0])
    assert interval(3 * tokens, tokens, seed=0) == pytest.approx((3.0, 3.0))
    score = estimate("x", [1.0, 9.0], [1.0, 3.0], seed=0, unit="nats", higher_is_better=False)
    assert score.value == 10 / 4
    assert score.n == 2


def test_agrees_with_a_plain_loop_of_draws():
    rng = random.Random(7)
    top = [rng.uniform(0, 5) for _ in range(25)]
    below = [rng.randint(1, 9) for _ in range(25)]
    ratios = []
    for _ in range(20_000):
        drawn = [rng.randrange(25) for _ in range(25)]
        ratios.append(sum(top[i] for i in drawn) / sum(below[i] for i in drawn))
    expected = np.quantile(ratios, [0.025, 0.975])
    assert interval(top, below, seed=0, draws=20_000) == pytest.approx(tuple(expected), rel=0.02)


def test_narrows_with_the_square_root_of_n():
    def width(n):
        low, high = interval(np.arange(n) % 2, seed=0)
        return high - low

    assert width(100) / width(1600) == pytest.approx(4, rel=0.15)


def test_transform_is_applied_to_each_draw():
    low, high = interval([1.0, 2.0, 3.0], seed=0)
    assert interval([1.0, 2.0, 3.0], seed=0, transform=np.exp) == pytest.approx((np.exp(low), np.exp(high)))


def test_one_sample_or_nothing_to_divide_by_has_no_interval():
    assert interval([4.0], seed=0) == (None, None)
    assert interval([4.0, 2.0], [0, 0], seed=0) == (None, None)
    # A draw of the empty sample alone has no ratio and is left out.
    assert interval([0.0, 6.0], [0.0, 2.0], seed=0) == pytest.approx((3.0, 3.0))


def test_coverage_of_the_true_mean():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low, high = interval(rng.exponential(1.0, size=80), seed=seed, draws=400)
        hits += low <= 1.0 <= high
    assert 0.88 <= hits / 200 <= 0.99
