"""The divergences against their definitions in float64, and what holds for every one of them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from kdbench.losses.divergences import log_probabilities, per_token, with_gradient  # noqa: E402

pytestmark = pytest.mark.medium

CASES = [("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.1), ("jsd", 0.5), ("jsd", 0.9)]


def logits(seed: int, rows: int = 5, vocabulary: int = 11, scale: float = 3.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, rows, vocabulary, generator=generator, dtype=torch.float64).unbind(0), scale


def naive(divergence, student, teacher, temperature=1.0, beta=0.5):
    """The formulas of the docstring, written with probabilities."""
    s, t = torch.softmax(student / temperature, -1), torch.softmax(teacher / temperature, -1)
    kl = lambda p, q: (p * (p / q).log()).sum(-1)  # noqa: E731
    m = beta * t + (1 - beta) * s
    value = {
        "forward_kl": kl(t, s),
        "reverse_kl": kl(s, t),
        "jsd": beta * kl(t, m) + (1 - beta) * kl(s, m),
    }
    return value[divergence] * temperature**2


@pytest.mark.parametrize(("divergence", "beta"), CASES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10))
def test_equals_its_definition(divergence, beta, temperature, seed, scale):
    (student, teacher), _ = logits(seed)
    ours = per_token(divergence, student * scale, teacher * scale, temperature=temperature, beta=beta)
    expected = naive(divergence, student * scale, teacher * scale, temperature, beta)
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("divergence", "beta"), CASES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_is_zero_at_a_match_and_positive_elsewhere(divergence, beta, seed):
    (student, teacher), _ = logits(seed)
    shifted = student + 7.0  # the same distribution
    assert per_token(divergence, student, shifted, beta=beta).abs().max() < 1e-12
    assert (per_token(divergence, student, teacher, beta=beta) > 0).all()


@pytest.mark.parametrize(("divergence", "beta"), [*CASES, ("jsd", 0.0), ("jsd", 1.0)])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_closed_gradient_equals_autograd(divergence, beta, seed):
    (student, teacher), scale = logits(seed)
    student = (student * scale).requires_grad_()
    target = log_probabilities(teacher * scale)
    value, gradient = with_gradient(divergence, log_probabilities(student), target, beta)
    (expected,) = torch.autograd.grad(value.sum(), student)
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10)


def test_jsd_meets_both_divergences_at_its_ends():
    (student, teacher), _ = logits(3)
    small = 1e-6
    forward, reverse = (per_token(name, student, teacher) for name in ("forward_kl", "reverse_kl"))
    torch.testing.assert_close(per_token("jsd", student, teacher, beta=0.0), forward)
    torch.testing.assert_close(per_token("jsd", student, teacher, beta=1.0), reverse)
    near_forward = per_token("jsd", student, teacher, beta=small) / small
    near_reverse = per_token("jsd", student, teacher, beta=1 - small) / small
    torch.testing.assert_close(near_forward, forward, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(near_reverse, reverse, rtol=1e-3, atol=1e-6)


def test_temperature_keeps_the_gradients_size():
    """For T -> infinity, T^2 KL tends to half the mean squared difference of centred logits (Hinton 2015)."""
    (student, teacher), _ = logits(4)
    difference = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    limit = difference.square().mean(-1) / 2
    torch.testing.assert_close(
        per_token("forward_kl", student, teacher, temperature=1e4), limit, rtol=1e-2, atol=1e-3
    )


def test_half_precision_logits_are_scored_in_float32():
    (student, teacher), _ = logits(5)
    half = per_token("forward_kl", student.bfloat16(), teacher.bfloat16())
    assert half.dtype == torch.float32
    exact = per_token("forward_kl", student.bfloat16().double(), teacher.bfloat16().double())
    torch.testing.assert_close(half.double(), exact, rtol=1e-4, atol=1e-5)
