"""The chunked losses against a float64 computation that holds all logits at once."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kdbench.losses.chunked import Objective, cross_entropy_loss, distillation_loss, real_rows  # noqa: E402
from kdbench.losses.divergences import per_token  # noqa: E402

pytestmark = pytest.mark.medium

ROWS, VOCABULARY, HIDDEN, TEACHER_HIDDEN = 13, 31, 7, 9


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "student_hidden": draw(ROWS, HIDDEN).requires_grad_(),
        "student_head": draw(VOCABULARY, HIDDEN).requires_grad_(),
        "teacher_hidden": draw(ROWS, TEACHER_HIDDEN),
        "teacher_head": draw(VOCABULARY, TEACHER_HIDDEN),
        "targets": torch.randint(VOCABULARY, (ROWS,), generator=generator),
    }


def naive(parts, objective, weights):
    student = parts["student_hidden"] @ parts["student_head"].T
    teacher = parts["teacher_hidden"] @ parts["teacher_head"].T
    what = (objective.divergence, student, teacher)
    divergence = per_token(*what, temperature=objective.temperature, beta=objective.beta)
    entropy = torch.nn.functional.cross_entropy(student, parts["targets"], reduction="none")
    mixed = (1 - objective.ce_weight) * divergence + objective.ce_weight * entropy
    return [(weights * part).sum() for part in (mixed, divergence, entropy)]


def gradients(loss, parts):
    return torch.autograd.grad(loss / 3, [parts["student_hidden"], parts["student_head"]])


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize(
    ("temperature", "ce_weight"), [(1.0, 0.0), (2.0, 0.0), (1.0, 0.3), (0.7, 0.6), (1.0, 1.0)]
)
@pytest.mark.parametrize("chunk_rows", [1, 5, 13, 64])
def test_value_and_gradients_at_any_chunk_size(parts, divergence, temperature, ce_weight, chunk_rows):
    objective = Objective(divergence, temperature, beta=0.3, ce_weight=ce_weight)
    weights = torch.linspace(0.5, 2, ROWS, dtype=torch.float64)
    ours = distillation_loss(**parts, objective=objective, weights=weights, chunk_rows=chunk_rows)
    expected = naive(parts, objective, weights)
    for mine, theirs in zip((ours.loss, ours.divergence, ours.cross_entropy), expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    for mine, theirs in zip(gradients(ours.loss, parts), gradients(expected[0], parts), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("chunk_rows", [1, 5, 64])
def test_cross_entropy_equals_torch(parts, chunk_rows):
    ours = cross_entropy_loss(
        parts["student_hidden"], parts["student_head"], parts["targets"], chunk_rows=chunk_rows
    )
    logits = parts["student_hidden"] @ parts["student_head"].T
    expected = torch.nn.functional.cross_entropy(logits, parts["targets"], reduction="sum")
    torch.testing.assert_close(ours.loss, expected)
    for mine, theirs in zip(gradients(ours.loss, parts), gradients(expected, parts), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_head_tied_to_the_embeddings_gathers_both_gradients(parts):
    """The hidden states come from the head's own rows, as in a model with tied embeddings."""
    head, ids = parts["student_head"], torch.arange(ROWS)

    def gradient(loss_of):
        (found,) = torch.autograd.grad(loss_of(head[ids].tanh(), head), head)
        return found

    ours = gradient(lambda hidden, weight: cross_entropy_loss(hidden, weight, parts["targets"]).loss)
    expected = gradient(
        lambda hidden, weight: torch.nn.functional.cross_entropy(
            hidden @ weight.T, parts["targets"], reduction="sum"
        )
    )
    torch.testing.assert_close(ours, expected)


def test_padded_heads_are_cut_to_the_real_vocabulary(parts):
    real = 20
    padded = dict(parts, targets=parts["targets"] % real)
    padded["teacher_head"] = torch.cat([parts["teacher_head"], torch.full((5, TEACHER_HIDDEN), 9.0).double()])
    with pytest.raises(ValueError, match="31 rows and teacher head 36"):
        distillation_loss(**padded)
    cut = dict(padded)
    cut["student_head"] = real_rows(padded["student_head"], real)
    cut["teacher_head"] = real_rows(padded["teacher_head"], real)
    small = dict(padded, student_head=parts["student_head"][:real].detach().clone().requires_grad_())
    small["teacher_head"] = parts["teacher_head"][:real].clone()
    ours, expected = distillation_loss(**cut), distillation_loss(**small)
    torch.testing.assert_close(ours.loss, expected.loss)
    (grad,) = torch.autograd.grad(ours.loss, parts["student_head"])
    (expected_grad,) = torch.autograd.grad(expected.loss, small["student_head"])
    torch.testing.assert_close(grad[:real], expected_grad)
    assert not grad[real:].any()


def test_a_frozen_head_gets_no_gradient(parts):
    frozen = dict(parts, student_head=parts["student_head"].detach())
    distillation_loss(**frozen).loss.backward()
    assert parts["student_hidden"].grad is not None
    assert frozen["student_head"].grad is None


def test_no_gradient_is_kept_where_none_is_taken(parts):
    with torch.no_grad():
        assert not distillation_loss(**parts).loss.requires_grad


def test_float32_is_close_to_float64_at_a_real_vocabulary():
    generator = torch.Generator().manual_seed(1)
    hidden, teacher = torch.randn(2, 40, 64, generator=generator, dtype=torch.float64)
    head = torch.randn(49152, 64, generator=generator, dtype=torch.float64) * 0.3
    targets = torch.randint(49152, (40,), generator=generator)
    exact = distillation_loss(hidden, head, teacher, head, targets)
    single = distillation_loss(hidden.float(), head.float(), teacher.float(), head.float(), targets)
    torch.testing.assert_close(single.loss.double(), exact.loss, rtol=1e-5, atol=0)
    match = distillation_loss(teacher.float(), head.float(), teacher.float(), head.float(), targets)
    assert match.loss.abs() < 1e-5


def test_autocast_multiplies_in_half_precision_and_keeps_float32_gradients(parts):
    single = {k: v.detach().float() if v.is_floating_point() else v for k, v in parts.items()}
    for name in ("student_hidden", "student_head"):
        single[name].requires_grad_()
    full = distillation_loss(**single).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = distillation_loss(**single).loss
    assert half != full
    torch.testing.assert_close(half, full, rtol=3e-2, atol=1e-2)
    for mine, theirs in zip(gradients(half, single), gradients(full, single), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0.2, atol=0.1)
