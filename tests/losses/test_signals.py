"""Top-k signals: buckets against their definition, their bound, their gradient, and what is left over."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from kdbench.losses.divergences import Divergence, log_probabilities, per_token  # noqa: E402
from kdbench.losses.heads import Head  # noqa: E402
from kdbench.losses.signals import HiddenStates, Logits, TopK, top_k  # noqa: E402

pytestmark = pytest.mark.medium

ROWS, VOCABULARY = 6, 12
ALL = slice(0, ROWS)
F_DIVERGENCES = [
    Divergence("forward_kl"),
    Divergence("reverse_kl"),
    Divergence("jsd", beta=0.3),
    Divergence("skew_kl"),
    Divergence("skew_reverse_kl"),
    Divergence("total_variation"),
]


def logits(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, ROWS, VOCABULARY, generator=generator, dtype=torch.float64).mul(2).unbind(0)


def bucketed(student, teacher, k):
    """Log-probabilities over the teacher's k likeliest tokens and the rest, both [N, k + 1]."""
    ids = teacher.topk(k).indices
    found = []
    for one in (student, teacher):
        probs = one.softmax(-1)
        kept = probs.gather(-1, ids)
        found.append(torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1).log())
    return found


@pytest.mark.parametrize("what", F_DIVERGENCES, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, VOCABULARY - 1))
def test_top_k_is_the_divergence_over_buckets(what, temperature, seed, k):
    student, teacher = logits(seed)
    student.requires_grad_()
    value, gradient = top_k(teacher, k).compare(ALL, student, what, temperature)
    expected = per_token(what, *bucketed(student, teacher, k), temperature=temperature) / temperature**2
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-9)
    (slope,) = torch.autograd.grad(expected.sum(), student)
    torch.testing.assert_close(gradient, slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("what", F_DIVERGENCES, ids=str)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_more_tokens_tell_more_and_all_of_them_everything(what, seed):
    student, teacher = logits(seed)
    exact, slope = Logits(teacher).compare(ALL, student, what, 1.0)
    values = [top_k(teacher, k).compare(ALL, student, what, 1.0)[0] for k in range(1, VOCABULARY + 1)]
    for fewer, more in itertools.pairwise(values):
        assert (fewer <= more + 1e-9).all()
    whole, gradient = top_k(teacher, VOCABULARY).compare(ALL, student, what, 1.0)
    torch.testing.assert_close(whole, exact)
    torch.testing.assert_close(gradient, slope)


@pytest.mark.parametrize("what", F_DIVERGENCES, ids=str)
@pytest.mark.parametrize("k", [1, 4, VOCABULARY])
def test_top_k_is_zero_at_a_match(what, k):
    _, teacher = logits(3)
    value, _ = top_k(teacher, k).compare(ALL, teacher + 5.0, what, 1.0)
    assert value.abs().max() < 1e-9


def test_what_a_student_gives_to_the_rest_is_pressed_upon_even_at_k_1():
    """To renormalise over the k would give no gradient here."""
    student, teacher = logits(4)
    _, gradient = top_k(teacher, 1).compare(ALL, student, Divergence("forward_kl"), 1.0)
    assert (gradient.abs() > 1e-6).all()
    assert gradient.sum(-1).abs().max() < 1e-9


@pytest.mark.parametrize("what", [*F_DIVERGENCES, Divergence("adaptive_kl")], ids=str)
def test_a_teacher_that_is_all_but_certain_leaves_everything_finite(what):
    certain = torch.tensor([[40.0, 0.0, -40.0, 0.0]])
    value, gradient = top_k(certain, 2).compare(slice(0, 1), -certain, what, 1.0)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


def test_half_precision_students_are_scored_in_float32():
    student, teacher = logits(5)
    value, _ = top_k(teacher.float(), 3).compare(ALL, student.bfloat16(), Divergence(), 1.0)
    assert value.dtype == torch.float32


def test_every_form_says_how_sure_the_teacher_was():
    _, teacher = logits(6)
    targets = teacher.argsort(-1, descending=True)[:, 2]  # third in every row
    exact = torch.nn.functional.cross_entropy(teacher, targets, reduction="none")
    head = torch.eye(VOCABULARY, dtype=torch.float64)
    for signal in (Logits(teacher), HiddenStates(teacher, Head(head)), top_k(teacher, 3), top_k(teacher, 12)):
        torch.testing.assert_close(signal.cross_entropy(ALL, targets), exact)
    rest = top_k(teacher, 2).cross_entropy(ALL, targets)
    assert (rest < exact).all()
    expected = -(1 - teacher.softmax(-1).topk(2)[0].sum(-1)).log()
    torch.testing.assert_close(rest, expected)


def test_a_part_of_the_rows():
    student, teacher = logits(7)
    whole, _ = top_k(teacher, 4).compare(ALL, student, Divergence(), 1.0)
    part, _ = top_k(teacher, 4).compare(slice(2, 5), student[2:5], Divergence(), 1.0)
    torch.testing.assert_close(part, whole[2:5])


def test_top_k_holds_true_log_probabilities_likeliest_first():
    _, teacher = logits(8)
    signal = top_k(teacher, 3)
    assert isinstance(signal, TopK)
    torch.testing.assert_close(signal.log_probs, log_probabilities(teacher).gather(-1, signal.ids))
    assert (signal.log_probs.diff(dim=-1) <= 0).all()
    assert len(signal) == ROWS
    assert signal.vocabulary == VOCABULARY
