"""The universal logit distance: its definition, and what must not change it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from kdbench.losses.universal import per_token, with_gradient  # noqa: E402

pytestmark = pytest.mark.medium


def logits(seed, *widths):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, width, generator=generator, dtype=torch.float64) * 2 for width in widths]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), student=st.integers(1, 9), teacher=st.integers(1, 9))
def test_equals_its_definition_at_any_two_widths(seed, student, teacher):
    ours, theirs = logits(seed, student, teacher)
    expected = []
    for one, other in zip(ours.softmax(-1).tolist(), theirs.softmax(-1).tolist(), strict=True):
        width = max(student, teacher)
        pairs = (sorted(x + [0.0] * (width - len(x)), reverse=True) for x in (one, other))
        expected.append(sum(abs(a - b) for a, b in zip(*pairs, strict=True)))
    value, gradient = with_gradient(ours.requires_grad_(), theirs)
    torch.testing.assert_close(value.tolist(), expected)
    again = per_token(ours.softmax(-1), theirs.softmax(-1))
    torch.testing.assert_close(again, value)
    (slope,) = torch.autograd.grad(again.sum(), ours)
    torch.testing.assert_close(gradient, slope)
    assert (value >= 0).all()
    assert (value <= 2).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_which_token_is_which_plays_no_part(seed):
    ours, theirs = logits(seed, 7, 5)
    shuffled = ours[:, torch.randperm(7, generator=torch.Generator().manual_seed(seed))]
    torch.testing.assert_close(with_gradient(ours, theirs)[0], with_gradient(shuffled, theirs)[0])
    value, gradient = with_gradient(ours, shuffled)
    assert value.abs().max() < 1e-12
    assert gradient.isfinite().all()


def test_half_precision_logits_are_scored_in_float32():
    ours, theirs = (one.bfloat16() for one in logits(2, 7, 5))
    value, gradient = with_gradient(ours, theirs)
    assert value.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(value.double(), with_gradient(ours.double(), theirs.double())[0])


def test_it_can_be_learnt_by_following_its_gradient():
    student, teacher = logits(1, 8, 6)
    first = with_gradient(student, teacher)[0].sum()
    for _ in range(300):
        student -= 0.3 * with_gradient(student, teacher)[1]
    assert with_gradient(student, teacher)[0].sum() < 0.1 * first
