"""The chunked losses against a float64 computation that holds all logits at once, by every route."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kdbench.losses import universal  # noqa: E402
from kdbench.losses.chunked import (  # noqa: E402
    Objective,
    cross_entropy_loss,
    distillation_loss,
)
from kdbench.losses.divergences import (  # noqa: E402
    Divergence,
    log_probabilities,
    per_token,
    with_gradient,
)
from kdbench.losses.heads import Head  # noqa: E402
from kdbench.losses.signals import HiddenStates, Logits, top_k  # noqa: E402

pytestmark = pytest.mark.medium

ROWS, VOCABULARY, HIDDEN, TEACHER_HIDDEN = 13, 31, 7, 9
HEADS = [{}, {"scale": 0.3}, {"cap": 2.5}, {"scale": 1.7, "cap": 4.0}]
DIVERGENCES = [
    Divergence("forward_kl"),
    Divergence("reverse_kl"),
    Divergence("jsd", beta=0.3),
    Divergence("jsd", beta=0.3, normalized=True),
    Divergence("skew_kl"),
    Divergence("skew_reverse_kl"),
    Divergence("total_variation"),
]


class Parts:
    """A student's and a teacher's rows in float64."""

    def __init__(self, student=None, teacher=None):
        generator = torch.Generator().manual_seed(0)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.hidden = draw(ROWS, HIDDEN).requires_grad_()
        self.weight = draw(VOCABULARY, HIDDEN).requires_grad_()
        self.head = Head(self.weight, **(student or {}))
        self.signal = HiddenStates(
            draw(ROWS, TEACHER_HIDDEN), Head(draw(VOCABULARY, TEACHER_HIDDEN), **(teacher or {}))
        )
        self.targets = torch.randint(VOCABULARY, (ROWS,), generator=generator)
        self.weights = torch.linspace(0.5, 2, ROWS, dtype=torch.float64)

    def dense(self, head=None, hidden=None):
        """Logits as the definition has them."""
        head, hidden = head or self.head, self.hidden if hidden is None else hidden
        logits = head.scale * (hidden @ head.weight.T)
        return logits if head.cap is None else head.cap * torch.tanh(logits / head.cap)

    @property
    def teacher_logits(self):
        return self.dense(self.signal.head, self.signal.hidden)

    def naive(self, objective):
        student = self.dense()
        divergence = per_token(
            objective.divergence, student, self.teacher_logits, temperature=objective.temperature
        )
        entropy = torch.nn.functional.cross_entropy(student, self.targets, reduction="none")
        mixed = (1 - objective.ce_weight) * divergence + objective.ce_weight * entropy
        return [(self.weights * part).sum() for part in (mixed, divergence, entropy)]

    def loss(self, objective=None, signal=None, **more):
        return distillation_loss(
            self.hidden, self.head, signal or self.signal, self.targets, objective=objective,
            **{"weights": self.weights, **more},
        )  # fmt: skip

    def gradients(self, loss):
        return torch.autograd.grad(loss / 3, [self.hidden, self.weight])

    def agrees(self, sums, expected):
        found = (sums.loss, sums.divergence, sums.cross_entropy)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs)
        mine, theirs = self.gradients(sums.loss), self.gradients(expected[0])
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
@pytest.mark.parametrize(
    ("temperature", "ce_weight"), [(1.0, 0.0), (2.0, 0.0), (1.0, 0.3), (0.7, 0.6), (1.0, 1.0)]
)
def test_value_and_gradients_at_any_chunk_size(divergence, temperature, ce_weight):
    parts, objective = Parts(), Objective(divergence, temperature, ce_weight)
    for chunk_rows in (1, 5, 13, 64):
        parts.agrees(parts.loss(objective, chunk_rows=chunk_rows), parts.naive(objective))


def test_adaptive_kl_whose_weight_is_a_constant():
    """Autograd would go through the weight: so against the closed gradient, carried on by hand."""
    parts, what = Parts(), Divergence("adaptive_kl")
    student = parts.dense().detach()
    value, slope = with_gradient(what, *map(log_probabilities, (student, parts.teacher_logits)))
    slope = slope * parts.weights.unsqueeze(-1)
    sums = parts.loss(Objective(what), chunk_rows=5)
    torch.testing.assert_close(sums.loss, (parts.weights * value).sum())
    hidden, weight = parts.gradients(sums.loss)
    torch.testing.assert_close(hidden, slope @ parts.weight / 3)
    torch.testing.assert_close(weight, slope.T @ parts.hidden / 3)


@pytest.mark.parametrize("student", HEADS)
@pytest.mark.parametrize("teacher", HEADS)
def test_heads_may_scale_and_cap_their_logits(student, teacher):
    parts, objective = Parts(student, teacher), Objective(Divergence("jsd"), 1.5, 0.2)
    parts.agrees(parts.loss(objective, chunk_rows=5), parts.naive(objective))


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_logits_hidden_states_and_the_whole_vocabulary_as_top_k_are_one(divergence, temperature):
    parts, objective = Parts(), Objective(divergence, temperature, 0.2)
    logits = parts.teacher_logits
    for signal in (parts.signal, Logits(logits), top_k(logits, VOCABULARY)):
        parts.agrees(parts.loss(objective, signal, chunk_rows=5), parts.naive(objective))


@pytest.mark.parametrize("head", HEADS)
def test_cross_entropy_equals_torch(head):
    parts = Parts(head)
    expected = torch.nn.functional.cross_entropy(parts.dense(), parts.targets, reduction="none")
    for chunk_rows in (1, 5, 64):
        ours = cross_entropy_loss(
            parts.hidden, parts.head, parts.targets, weights=parts.weights, chunk_rows=chunk_rows
        )
        weighed = (expected * parts.weights).sum()
        torch.testing.assert_close(ours.loss, weighed)
        torch.testing.assert_close(parts.gradients(ours.loss), torch.autograd.grad(
            weighed / 3, [parts.hidden, parts.weight], retain_graph=True))  # fmt: skip


ALIGNED = [0, 3, 4, 9, 12]  # a chunk of five rows has three of them, another one


def universal_parts(student=None, *, ce_weight=0.4, chunk_rows=5):
    """The universal loss at some of a student's rows with a teacher of 23 tokens, and the same made whole."""
    parts = Parts(student)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(23, TEACHER_HIDDEN, generator=generator, dtype=torch.float64)
    said = HiddenStates(parts.signal.hidden[: len(ALIGNED)], Head(weight, cap=6.0))
    sums = universal.universal_loss(
        parts.hidden, parts.head, said, parts.targets, ALIGNED, ce_weight=ce_weight, weights=parts.weights,
        chunk_rows=chunk_rows,
    )  # fmt: skip
    logits = parts.dense()
    distance = torch.zeros(ROWS, dtype=torch.float64)
    distance[ALIGNED] = universal.per_token(
        logits[ALIGNED].softmax(-1), parts.dense(said.head, said.hidden).softmax(-1)
    )
    entropy = torch.nn.functional.cross_entropy(logits, parts.targets, reduction="none")
    mixed = (1 - ce_weight) * distance + ce_weight * entropy
    return parts, sums, [(parts.weights * part).sum() for part in (mixed, distance, entropy)]


@pytest.mark.parametrize("student", HEADS)
@pytest.mark.parametrize("chunk_rows", [1, 3, 5, 64])
def test_the_universal_loss_at_any_chunk_size(student, chunk_rows):
    parts, sums, expected = universal_parts(student, chunk_rows=chunk_rows)
    parts.agrees(sums, expected)


def test_the_universal_loss_in_small_blocks(monkeypatch):
    monkeypatch.setattr("kdbench.losses.chunked._BLOCK_NUMBERS", 2 * VOCABULARY)
    parts, sums, expected = universal_parts()
    parts.agrees(sums, expected)


def test_the_gradient_of_the_universal_loss_is_that_of_finite_differences():
    parts, *_ = universal_parts()
    said = HiddenStates(parts.signal.hidden[: len(ALIGNED)], parts.signal.head)

    def loss(hidden, weight):
        head = Head(weight, scale=1.7, cap=4.0)
        return universal.universal_loss(
            hidden, head, said, parts.targets, ALIGNED, ce_weight=0.3, chunk_rows=4
        ).loss

    gradients = torch.autograd.grad(loss(parts.hidden, parts.weight), [parts.hidden, parts.weight])
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        steps = [1e-6 * torch.randn(g.shape, generator=generator, dtype=g.dtype) for g in gradients]
        above, below = (
            loss(parts.hidden + sign * steps[0], parts.weight + sign * steps[1]) for sign in (1, -1)
        )
        slope = sum((gradient * step).sum() for gradient, step in zip(gradients, steps, strict=True))
        torch.testing.assert_close((above - below) / 2, slope, rtol=1e-5, atol=1e-10)


def test_rows_that_are_not_aligned_learn_their_tokens_alone():
    parts, sums, _ = universal_parts(ce_weight=0.0)
    (hidden,) = torch.autograd.grad(sums.loss, [parts.hidden])
    others = [row for row in range(ROWS) if row not in ALIGNED]
    assert (hidden[others] == 0).all()
    assert (hidden[ALIGNED] != 0).any(-1).all()
    parts, sums, _ = universal_parts()
    whole = cross_entropy_loss(parts.hidden, parts.head, parts.targets, weights=parts.weights)
    (alone,) = torch.autograd.grad(whole.loss, [parts.hidden])
    (mixed,) = torch.autograd.grad(sums.loss, [parts.hidden])
    torch.testing.assert_close(mixed[others], 0.4 * alone[others])


def test_aligned_rows_must_be_as_many_on_both_sides():
    parts = Parts()
    with pytest.raises(ValueError, match="2 aligned rows of the student and 13 of the teacher"):
        universal.universal_loss(parts.hidden, parts.head, parts.signal, parts.targets, [0, 1], ce_weight=0.5)


def test_a_row_of_no_weight_gets_no_gradient():
    parts = Parts()
    weights = parts.weights.clone()
    weights[[2, 7]] = 0
    grad_hidden, _ = parts.gradients(parts.loss(weights=weights).loss)
    assert not grad_hidden[[2, 7]].any()
    assert grad_hidden[[0, 1, 3]].all()


def test_a_head_tied_to_the_embeddings_gathers_both_gradients():
    """The hidden states come from the head's own rows, as in a model with tied embeddings."""
    parts, ids = Parts(), torch.arange(ROWS)

    def gradient(loss_of):
        (found,) = torch.autograd.grad(loss_of(parts.weight[ids].tanh(), parts.weight), parts.weight)
        return found

    ours = gradient(lambda hidden, weight: cross_entropy_loss(hidden, Head(weight), parts.targets).loss)
    expected = gradient(
        lambda hidden, weight: torch.nn.functional.cross_entropy(
            hidden @ weight.T, parts.targets, reduction="sum"
        )
    )
    torch.testing.assert_close(ours, expected)


def test_padded_heads_are_cut_to_the_real_vocabulary():
    parts, real = Parts(), 20
    targets = parts.targets % real
    wide = HiddenStates(
        parts.signal.hidden,
        Head(torch.cat([parts.signal.head.weight, torch.full((5, TEACHER_HIDDEN), 9.0).double()])),
    )
    with pytest.raises(ValueError, match="31 rows and the teacher's vocabulary 36"):
        distillation_loss(parts.hidden, parts.head, wide, targets)
    cut = HiddenStates(wide.hidden, wide.head.cut(real))
    ours = distillation_loss(parts.hidden, parts.head.cut(real), cut, targets)
    small = parts.weight[:real].detach().clone().requires_grad_()
    expected = distillation_loss(parts.hidden, Head(small), cut, targets)
    torch.testing.assert_close(ours.loss, expected.loss)
    (grad,) = torch.autograd.grad(ours.loss, parts.weight)
    (expected_grad,) = torch.autograd.grad(expected.loss, small)
    torch.testing.assert_close(grad[:real], expected_grad)
    assert not grad[real:].any()


def test_rows_must_be_as_many_on_both_sides():
    parts = Parts()
    with pytest.raises(ValueError, match="13 rows of the student and 12 of the teacher"):
        parts.loss(signal=Logits(parts.teacher_logits[1:]))


def test_a_frozen_head_gets_no_gradient():
    parts = Parts()
    frozen = Head(parts.weight.detach())
    distillation_loss(parts.hidden, frozen, parts.signal, parts.targets).loss.backward()
    assert parts.hidden.grad is not None
    assert frozen.weight.grad is None


def test_no_gradient_is_kept_where_none_is_taken():
    with torch.no_grad():
        assert not Parts().loss().loss.requires_grad


@pytest.mark.parametrize("numbers", [{"temperature": 0.0}, {"temperature": float("nan")}, {"ce_weight": 1.5}])
def test_numbers_out_of_range_are_refused(numbers):
    with pytest.raises(ValueError, match=next(iter(numbers))):
        Objective(**numbers)


@pytest.mark.parametrize("form", ["hidden", "top_k"])
def test_no_two_copies_of_the_logits_exist(form):
    """No tensor is ever as large as the rows times the vocabulary."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            for one in made if isinstance(made, (tuple, list)) else [made]:
                if isinstance(one, torch.Tensor):
                    self.numbers = max(self.numbers, one.numel())
            return made

    rows, vocabulary, width, chunk = 600, 5000, 8, 50
    hidden, said = torch.randn(2, rows, width)
    head, teacher = (
        Head(torch.randn(vocabulary, width).requires_grad_()),
        Head(torch.randn(vocabulary, width)),
    )
    signal = HiddenStates(said, teacher) if form == "hidden" else top_k(teacher.logits(said), 4)
    targets = torch.randint(vocabulary, (rows,))
    with Largest() as seen:
        loss = distillation_loss(hidden.requires_grad_(), head, signal, targets, chunk_rows=chunk).loss
        loss.backward()
    assert seen.numbers <= chunk * vocabulary < rows * vocabulary / 10


def test_float32_is_close_to_float64_at_a_real_vocabulary():
    generator = torch.Generator().manual_seed(1)
    hidden, teacher = torch.randn(2, 40, 64, generator=generator, dtype=torch.float64)
    weight = torch.randn(49152, 64, generator=generator, dtype=torch.float64) * 0.3
    targets = torch.randint(49152, (40,), generator=generator)

    def loss(student, says, matrix):
        return distillation_loss(student, Head(matrix), HiddenStates(says, Head(matrix)), targets).loss

    exact = loss(hidden, teacher, weight)
    torch.testing.assert_close(
        loss(hidden.float(), teacher.float(), weight.float()).double(), exact, rtol=1e-5, atol=0
    )
    assert loss(teacher.float(), teacher.float(), weight.float()).abs() < 1e-5


def test_autocast_multiplies_in_half_precision_and_keeps_float32_gradients():
    parts = Parts()
    hidden, weight = (one.detach().float().requires_grad_() for one in (parts.hidden, parts.weight))
    signal = HiddenStates(parts.signal.hidden.float(), Head(parts.signal.head.weight.float()))

    def loss():
        return distillation_loss(hidden, Head(weight), signal, parts.targets).loss

    full = loss()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = loss()
    assert half != full
    torch.testing.assert_close(half, full, rtol=3e-2, atol=1e-2)
    for mine, theirs in zip(
        *(torch.autograd.grad(one, [hidden, weight]) for one in (half, full)), strict=True
    ):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0.2, atol=0.1)
