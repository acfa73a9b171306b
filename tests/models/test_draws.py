"""Draws from logits: the inverse of the cumulative distribution, nucleus and greedy."""

from __future__ import annotations

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.teacher import Sampling

pytestmark = pytest.mark.medium


def pick(logits, samplings, uniforms):
    import torch

    from kdbench.models._draws import pick

    return pick(torch.tensor(numpy.asarray(logits), dtype=torch.float32), samplings, uniforms)


def softmax(row, temperature):
    scaled = numpy.asarray(row, dtype=numpy.float32).astype(numpy.float64) / temperature
    weights = numpy.exp(scaled - scaled.max())
    return weights / weights.sum()


rows = st.integers(0, 2**32 - 1).map(
    lambda seed: numpy.random.default_rng(seed).normal(0, 3, numpy.random.default_rng(seed).integers(2, 1500))
)


@given(rows, st.floats(0, 1, exclude_max=True), st.sampled_from([0.3, 0.8, 1.0, 2.0]))
@settings(deadline=None)
def test_a_draw_inverts_the_cumulative_distribution(row, u, temperature):
    (token,) = pick([row], [Sampling(temperature=temperature)], [u])
    cdf = numpy.cumsum(softmax(row, temperature))
    assert (cdf[token - 1] if token else 0.0) - 1e-5 <= u <= cdf[token] + 1e-5


@given(rows, st.floats(0, 1, exclude_max=True), st.sampled_from([0.05, 0.5, 0.9, 0.999]))
@settings(deadline=None)
def test_a_nucleus_holds_only_the_likeliest_tokens(row, u, top_p):
    (token,) = pick([row], [Sampling(temperature=1.0, top_p=top_p)], [u])
    p = softmax(row, 1.0)
    likelier = p[p > p[token]].sum()
    assert likelier < top_p + 1e-5


def test_the_whole_nucleus_can_be_drawn():
    logits = numpy.log([[0.5, 0.3, 0.15, 0.05]])
    sampling = [Sampling(temperature=1.0, top_p=0.8)]
    drawn = [pick(logits, sampling, [u / 800])[0] for u in range(800)]
    assert [drawn.count(t) for t in range(4)] == [500, 300, 0, 0]


def test_a_flat_distribution_wider_than_the_first_guess():
    drawn = {
        pick(numpy.zeros((1, 2000)), [Sampling(temperature=1, top_p=0.9)], [u / 50])[0] for u in range(50)
    }
    assert len(drawn) == 50


def test_impossible_tokens_are_never_drawn():
    row = numpy.full(700, -numpy.inf)
    row[[3, 255, 256, 699]] = 0.0
    drawn = {pick([row], [Sampling(temperature=1)], [u])[0] for u in (0, 0.2499, 0.25, 0.5, 0.75, 1 - 2**-53)}
    assert drawn == {3, 255, 256, 699}


def test_each_row_keeps_its_own_settings():
    logits = numpy.log(numpy.tile([0.1, 0.6, 0.3], (4, 1)))
    samplings = [
        Sampling(temperature=0),
        Sampling(temperature=1),
        Sampling(temperature=1, top_p=0.5),
        Sampling(temperature=1),
    ]
    assert pick(logits, samplings, [0.99, 0.05, 0.99, 0.95]) == [1, 0, 1, 2]
