"""Relations and hidden states against loops in float64, and what must not change them."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from kdbench.losses.features import hidden_state_error, relation_divergence  # noqa: E402

pytestmark = pytest.mark.medium


def draw(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def relation(vectors, head, width, i):
    """Probabilities of the positions up to i, as the paper writes them."""
    parts = [one[head * width : (head + 1) * width] for one in vectors]
    scores = [sum(a * b for a, b in zip(parts[i], parts[j], strict=True)) for j in range(i + 1)]
    exps = [math.exp(score / math.sqrt(width)) for score in scores]
    return [one / sum(exps) for one in exps]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    heads=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    length=st.integers(1, 7),
    data=st.data(),
)
def test_relations_equal_their_definition_at_any_two_widths(seed, heads, widths, length, data):
    first = data.draw(st.integers(0, length - 1))
    stop = data.draw(st.integers(first + 1, length))
    student, teacher = draw(seed, *((length, heads * width) for width in widths))
    expected = []
    for i in range(first, stop):
        total = 0.0
        for head in range(heads):
            ours = relation(student.tolist(), head, widths[0], i)
            theirs = relation(teacher.tolist(), head, widths[1], i)
            total += sum(t * math.log(t / s) for t, s in zip(theirs, ours, strict=True))
        expected.append(total / heads)
    found = relation_divergence(student, teacher, heads=heads, rows=slice(first, stop))
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert (found >= -1e-12).all()


def test_gradients_are_those_of_finite_differences():
    student, teacher = draw(0, (5, 6), (5, 8))
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: relation_divergence(x, teacher, heads=2, rows=slice(1, 4)), (student,)
    )
    states, others = draw(1, (4, 6), (4, 6))
    states.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: hidden_state_error(x, others), (states,))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_zero_where_equal_and_the_teacher_gets_no_gradient(seed):
    (vectors,) = draw(seed, (6, 8))
    student, teacher = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    apart = relation_divergence(student, teacher, heads=4, rows=slice(0, 6))
    error = hidden_state_error(student, teacher)
    assert apart.abs().max() < 1e-12
    assert error.abs().max() == 0
    (apart.sum() + error.sum()).backward()
    assert student.grad.abs().max() < 1e-12
    assert teacher.grad is None


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_rotated_spaces_and_other_widths_are_the_same_relations(seed):
    """Each relation head's space turned by itself, or carried into a wider one, scaled for its width."""
    student, teacher, turn, wider = draw(seed, (6, 8), (6, 12), (4, 4), (10, 4))
    rows = slice(2, 6)
    before = relation_divergence(student, teacher, heads=2, rows=rows)
    for matrix in (torch.linalg.qr(turn)[0], torch.linalg.qr(wider)[0] * (10 / 4) ** 0.25):
        moved = torch.cat([student[:, :4] @ matrix.T, student[:, 4:] @ matrix.T], dim=1)
        torch.testing.assert_close(relation_divergence(moved, teacher, heads=2, rows=rows), before)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), more=st.integers(1, 4))
def test_what_stands_behind_a_row_plays_no_part(seed, more):
    """Padding, or the text that comes."""
    student, teacher, ours, theirs = draw(seed, (5, 6), (5, 4), (more, 6), (more, 4))
    rows = slice(2, 5)
    longer = torch.cat([student, 100 * ours]).requires_grad_()
    found = relation_divergence(longer, torch.cat([teacher, 100 * theirs]), heads=2, rows=rows)
    torch.testing.assert_close(found, relation_divergence(student, teacher, heads=2, rows=rows))
    found.sum().backward()
    assert longer.grad[5:].abs().max() == 0
    assert longer.grad[0].abs().max() > 0


def test_statistics_are_float32_for_half_precision_and_under_autocast():
    student, teacher = (10 * one.bfloat16() for one in draw(3, (9, 8), (9, 8)))
    rows = slice(0, 9)
    exact = relation_divergence(student.double(), teacher.double(), heads=2, rows=rows)
    with torch.autocast("cpu", torch.bfloat16):
        found = relation_divergence(student, teacher, heads=2, rows=rows)
    assert found.dtype == hidden_state_error(student, teacher).dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


def test_hidden_states_are_apart_by_their_mean_square():
    student = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    assert hidden_state_error(student, torch.tensor([[3.0, 2.0], [0.0, 1.0]])).tolist() == [2.0, 0.5]


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="3 relation heads do not divide vectors of 8 numbers"):
        relation_divergence(torch.ones(4, 8), torch.ones(4, 8), heads=3, rows=slice(0, 4))
    with pytest.raises(ValueError, match="4 positions of the student and 5 of the teacher"):
        relation_divergence(torch.ones(4, 8), torch.ones(5, 8), heads=2, rows=slice(0, 4))
    with pytest.raises(ValueError, match=r"states \[4, 8\] of the student and \[4, 9\] of the teacher"):
        hidden_state_error(torch.ones(4, 8), torch.ones(4, 9))
