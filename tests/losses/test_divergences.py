"""The divergences against their definitions in float64, and what holds for every one of them."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from kdbench.losses.divergences import (  # noqa: E402
    NAMES,
    Divergence,
    log_probabilities,
    per_token,
    with_gradient,
)

pytestmark = pytest.mark.medium

CASES = [
    Divergence("forward_kl"),
    Divergence("reverse_kl"),
    *(Divergence("jsd", beta=beta) for beta in (0.1, 0.5, 0.9)),
    Divergence("jsd", beta=0.3, normalized=True),
    *(Divergence("skew_kl", alpha=alpha) for alpha in (0.1, 0.6)),
    *(Divergence("skew_reverse_kl", alpha=alpha) for alpha in (0.1, 0.6)),
    Divergence("total_variation"),
    Divergence("adaptive_kl"),
]
ENDS = [
    Divergence("jsd", beta=0),
    Divergence("jsd", beta=1),
    Divergence("skew_kl", alpha=0),
    Divergence("skew_reverse_kl", alpha=0),
]


def logits(seed: int, rows: int = 5, vocabulary: int = 11):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, rows, vocabulary, generator=generator, dtype=torch.float64).unbind(0)


def kl(p, q):
    return (p * (p / q).log()).sum(-1)


def naive(what, student, teacher, temperature=1.0):
    """The formulas of the docstring, written with probabilities."""
    s, t = torch.softmax(student / temperature, -1), torch.softmax(teacher / temperature, -1)
    beta, alpha = what.beta, what.alpha
    m = beta * t + (1 - beta) * s
    jsd = beta * kl(t, m) + (1 - beta) * kl(s, m)
    value = {
        "forward_kl": kl(t, s),
        "reverse_kl": kl(s, t),
        "jsd": jsd / (beta * (1 - beta)) if what.normalized else jsd,
        "skew_kl": kl(t, alpha * t + (1 - alpha) * s),
        "skew_reverse_kl": kl(s, (1 - alpha) * t + alpha * s),
        "total_variation": (s - t).abs().sum(-1) / 2,
        "adaptive_kl": naive_adaptive(s, t),
    }
    return value[what.name] * temperature**2


def naive_adaptive(s, t):
    """Token by token: the likeliest tokens up to half the teacher's mass are its head."""
    found = []
    for student, teacher in zip(s.tolist(), t.tolist(), strict=True):
        mass, head, gap = 0.0, 0.0, 0.0
        for i in sorted(range(len(teacher)), key=lambda i: -teacher[i]):
            difference = abs(teacher[i] - student[i])
            head += difference if mass < 0.5 else 0.0
            gap += difference
            mass += teacher[i]
        share = head / gap
        forward = sum(p * math.log(p / q) for p, q in zip(teacher, student, strict=True))
        reverse = sum(q * math.log(q / p) for p, q in zip(teacher, student, strict=True))
        found.append(share * forward + (1 - share) * reverse)
    return torch.tensor(found, dtype=s.dtype)


def test_every_divergence_is_tested():
    assert {case.name for case in CASES} == set(NAMES)


@pytest.mark.parametrize("what", CASES, ids=str)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10))
def test_equals_its_definition(what, temperature, seed, scale):
    student, teacher = (scale * one for one in logits(seed))
    ours = per_token(what, student, teacher, temperature=temperature)
    torch.testing.assert_close(ours, naive(what, student, teacher, temperature), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("what", [*CASES, *ENDS], ids=str)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_is_zero_at_a_match_and_positive_elsewhere(what, seed):
    student, teacher = logits(seed)
    value, gradient = with_gradient(what, *map(log_probabilities, (student, student + 7.0)))
    assert value.abs().max() < 1e-12
    # Total variation has a kink there: its sign is whatever rounding makes it.
    assert what.name == "total_variation" or gradient.abs().max() < 1e-12
    assert (per_token(what, student, teacher) > 0).all()


@pytest.mark.parametrize("what", [case for case in [*CASES, *ENDS] if case.name != "adaptive_kl"], ids=str)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_closed_gradient_equals_autograd_and_finite_differences(what, seed):
    student, teacher = logits(seed, rows=3, vocabulary=6)
    student.requires_grad_()
    target = log_probabilities(teacher)
    value, gradient = with_gradient(what, log_probabilities(student), target)
    (expected,) = torch.autograd.grad(value.sum(), student)
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10)
    assert torch.autograd.gradcheck(lambda s: per_token(what, s, teacher), (student,), atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_gradient_of_adaptive_kl_takes_its_weight_as_a_constant(seed):
    student, teacher = logits(seed)
    parts = [
        with_gradient(Divergence(name), *map(log_probabilities, (student, teacher)))
        for name in ("forward_kl", "reverse_kl", "adaptive_kl")
    ]
    (forward, forward_slope), (reverse, reverse_slope), (value, slope) = parts
    share = ((value - reverse) / (forward - reverse)).unsqueeze(-1)
    torch.testing.assert_close(slope, share * forward_slope + (1 - share) * reverse_slope)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 30), alpha=st.floats(0.01, 0.99))
def test_identities_of_skew_divergences(seed, scale, alpha):
    """SKL_0 = KL(p||q), SRKL_0 = KL(q||p), JSD_b = b SKL_b + (1 - b) SRKL_{1-b}, SKL_a <= -ln a."""
    student, teacher = (scale * one for one in logits(seed))

    def of(name, **numbers):
        return per_token(Divergence(name, **numbers), student, teacher)

    torch.testing.assert_close(of("skew_kl", alpha=0.0), of("forward_kl"))
    torch.testing.assert_close(of("skew_reverse_kl", alpha=0.0), of("reverse_kl"))
    combined = alpha * of("skew_kl", alpha=alpha) + (1 - alpha) * of("skew_reverse_kl", alpha=1 - alpha)
    torch.testing.assert_close(of("jsd", beta=alpha), combined, rtol=1e-7, atol=1e-10)
    for name in ("skew_kl", "skew_reverse_kl"):
        value = of(name, alpha=alpha)
        assert (value >= -1e-12).all()
        assert (value <= -math.log(alpha) + 1e-12).all()
    assert (of("total_variation") <= 1 + 1e-12).all()
    assert (of("jsd", beta=0.5) <= math.log(2) + 1e-12).all()
    # Pinsker's inequality
    assert (2 * of("total_variation") ** 2 <= of("forward_kl") + 1e-12).all()


def test_the_gradient_of_skew_kl_is_bounded():
    """Its coefficient (1 - a) p / m is at most (1 - a) / a = 9, where forward KL's p / q has no bound."""
    student = torch.tensor([[-60.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[60.0, 0.0, 0.0]], dtype=torch.float64)
    q = student.softmax(-1)
    q.retain_grad()
    p = teacher.softmax(-1)
    kl(p, 0.1 * p + 0.9 * q).sum().backward()
    assert q.grad.abs().max() == pytest.approx(9.0, rel=1e-6)
    _, gradient = with_gradient(Divergence("skew_kl"), *map(log_probabilities, (student.detach(), teacher)))
    torch.testing.assert_close(gradient, student.grad)


@pytest.mark.parametrize("what", [*CASES, *ENDS], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_stay_finite_where_one_side_gives_a_token_nothing(what, dtype):
    certain = torch.tensor([[3e4, 0.0, -3e4], [0.0, 0.0, 3e4]], dtype=dtype)
    value, gradient = with_gradient(what, log_probabilities(certain), log_probabilities(-certain))
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert value.dtype == torch.float32


def test_jsd_meets_both_divergences_at_its_ends():
    student, teacher = logits(3)
    small = 1e-6
    forward, reverse = (
        per_token(Divergence(name), student, teacher) for name in ("forward_kl", "reverse_kl")
    )
    for normalized in (False, True):
        for beta, expected in ((0.0, forward), (1.0, reverse)):
            at_end = per_token(Divergence("jsd", beta=beta, normalized=normalized), student, teacher)
            torch.testing.assert_close(at_end, expected)
    for beta, expected in ((small, forward), (1 - small, reverse)):
        near = per_token(Divergence("jsd", beta=beta, normalized=True), student, teacher)
        torch.testing.assert_close(near, expected, rtol=1e-3, atol=1e-6)
        plain = per_token(Divergence("jsd", beta=beta), student, teacher)
        torch.testing.assert_close(plain / small, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_parity_with_trl(beta, temperature, monkeypatch):
    """The same convention of beta; TRL leaves out the square of the temperature."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDTrainer

    student, teacher = logits(6, rows=7)
    theirs = GKDTrainer.generalized_jsd_loss(
        student[None], teacher[None], beta=beta, temperature=temperature, reduction="sum"
    )
    ours = per_token(Divergence("jsd", beta=beta), student, teacher, temperature=temperature).sum()
    torch.testing.assert_close(ours / temperature**2, theirs)


def test_temperature_keeps_the_gradients_size():
    """For T -> infinity, T^2 KL tends to half the mean squared difference of centred logits (Hinton 2015)."""
    student, teacher = logits(4)
    difference = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    limit = difference.square().mean(-1) / 2
    hot = per_token(Divergence("forward_kl"), student, teacher, temperature=1e4)
    torch.testing.assert_close(hot, limit, rtol=1e-2, atol=1e-3)


def test_half_precision_logits_are_scored_in_float32():
    student, teacher = (one.bfloat16() for one in logits(5))
    half = per_token(Divergence("forward_kl"), student, teacher)
    assert half.dtype == torch.float32
    exact = per_token(Divergence("forward_kl"), student.double(), teacher.double())
    torch.testing.assert_close(half.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"name": "kl"}, "no divergence 'kl'; there are forward_kl, reverse_kl"),
        ({"name": "jsd", "beta": 1.5}, "beta must be from 0 to 1, not 1.5"),
        ({"name": "jsd", "beta": math.nan}, "beta must be"),
        ({"name": "skew_kl", "alpha": 1.0}, "alpha must be from 0 to below 1, not 1.0"),
        ({"name": "skew_kl", "alpha": -0.1}, "alpha must be"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        Divergence(**numbers)
