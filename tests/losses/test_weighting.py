"""Token-scaled weights against the paper's formula."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from kdbench.losses.weighting import token_scaled  # noqa: E402

pytestmark = pytest.mark.medium


@settings(max_examples=30, deadline=None)
@given(
    sequences=st.lists(st.lists(st.floats(0, 20), min_size=1, max_size=6), min_size=1, max_size=4),
    temperature=st.floats(0.5, 50),
)
def test_each_sequence_shares_out_its_own_length(sequences, temperature):
    flat = torch.tensor([c for one in sequences for c in one], dtype=torch.float64)
    weights = token_scaled(flat, [len(one) for one in sequences], temperature).tolist()
    for one in sequences:
        mine, weights = weights[: len(one)], weights[len(one) :]
        whole = sum(math.exp(c / temperature) for c in one)
        expected = [len(one) * math.exp(c / temperature) / whole for c in one]
        assert mine == pytest.approx(expected)
        assert sum(mine) == pytest.approx(len(one))
    assert weights == []


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ValueError, match="token scaling must be above 0"):
        token_scaled(torch.ones(2), [2], temperature)
