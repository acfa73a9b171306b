"""MiniLLM's loss against all sequences of a tiny language, written down one by one in float64.

Three tokens, of which 0 ends; sequences of at most three. A distribution is a table: a row of logits for
every prefix. The reverse KL of whole sequences and its gradient are then sums without any sampling.
"""

from __future__ import annotations

from itertools import product

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from kdbench.losses.chunked import Objective, distillation_loss  # noqa: E402
from kdbench.losses.divergences import Divergence  # noqa: E402
from kdbench.losses.heads import Head  # noqa: E402
from kdbench.losses.policy import Drawn, importance, policy_gradient_loss, returns_to_come  # noqa: E402
from kdbench.losses.signals import Logits  # noqa: E402
from tests.losses.test_chunked import HEADS, ROWS, Parts  # noqa: E402

pytestmark = pytest.mark.medium

TOKENS, LONGEST = 3, 3
SINGLE_STEP = Objective(Divergence("reverse_kl"))
PREFIXES = [p for n in range(LONGEST) for p in product(range(1, TOKENS), repeat=n)]
SENTENCES = [(*p, token) for p in PREFIXES for token in range(TOKENS) if token == 0 or len(p) == LONGEST - 1]
HEAD = Head(torch.eye(TOKENS, dtype=torch.float64))  # hidden states are the logits


def table(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(PREFIXES), TOKENS, generator=generator, dtype=torch.float64)


TEACHER = table(1)


def rows_of(sentence):
    return [PREFIXES.index(sentence[:t]) for t in range(len(sentence))]


def log_probs(logits, sentence):
    """Of each token [T]."""
    chosen = logits.log_softmax(-1)[rows_of(sentence)]
    return chosen.gather(-1, torch.tensor(sentence).unsqueeze(-1)).squeeze(-1)


def sequence_reverse_kl(student):
    terms = [(log_probs(student, y).sum(), log_probs(TEACHER, y).sum()) for y in SENTENCES]
    return sum(q.exp() * (q - p) for q, p in terms)


def behaviour(old, share):
    """The distribution that is drawn from, as logits."""
    return ((1 - share) * old.softmax(-1) + share * TEACHER.softmax(-1)).log()


def loss_of(student, old, sentence, *, weigh, weight=1.0, mean=False, clip=0.2):
    """The loss of one sentence's rows, made of what was put down when it was drawn from `old`."""
    was, theirs = log_probs(old, sentence).detach(), log_probs(TEACHER, sentence)
    rows = rows_of(sentence)
    drawn = Drawn(was, returns_to_come(theirs - was, [len(sentence)], mean=mean), weigh(was, theirs))
    return policy_gradient_loss(
        student[rows], HEAD, Logits(TEACHER[rows]), torch.tensor(sentence), drawn, clip=clip,
        weights=torch.full((len(sentence),), float(weight), dtype=torch.float64),
    ).loss  # fmt: skip


def expected_gradient(share, **more):
    """Of the estimator, over all that could be drawn from the mixture with the teacher."""
    student, total = table(0).requires_grad_(), 0.0
    old = student.detach()
    for sentence in SENTENCES:
        chance = log_probs(behaviour(old, share), sentence).sum().exp()
        total = total + chance * loss_of(student, old, sentence, **more)
    return torch.autograd.grad(total, student)[0]


def exact_gradient():
    student = table(0).requires_grad_()
    return torch.autograd.grad(sequence_reverse_kl(student), student)[0]


def plain(was, theirs):
    return torch.ones_like(was)


def test_the_sentences_are_all_there_are():
    assert len(SENTENCES) == 1 + 2 + 4 * 3
    assert sum(log_probs(table(0), y).sum().exp() for y in SENTENCES) == pytest.approx(1)


def test_the_expected_gradient_is_that_of_the_reverse_kl_of_sequences():
    torch.testing.assert_close(expected_gradient(0.0, weigh=plain), exact_gradient())


def test_without_the_long_term_part_it_is_another():
    student = table(0).requires_grad_()
    total = 0.0
    for sentence in SENTENCES:
        rows = rows_of(sentence)
        signal, targets = Logits(TEACHER[rows]), torch.tensor(sentence)
        chance = log_probs(student.detach(), sentence).sum().exp()
        alone = distillation_loss(student[rows], HEAD, signal, targets, objective=SINGLE_STEP)
        total = total + chance * alone.loss
    (found,) = torch.autograd.grad(total, student)
    assert (found - exact_gradient()).abs().max() > 0.01


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_whole_weights_make_what_is_drawn_with_the_teachers_help_unbiased(share):
    """The product of q / p~ over a whole sentence, on every one of its rows."""
    student = table(0).requires_grad_()
    old, total, unweighed = student.detach(), 0.0, 0.0
    for sentence in SENTENCES:
        chance = log_probs(behaviour(old, share), sentence).sum().exp()
        whole = importance(log_probs(old, sentence), log_probs(TEACHER, sentence), share).prod()
        total = total + chance * loss_of(student, old, sentence, weigh=plain, weight=whole)
        unweighed = unweighed + chance * loss_of(student, old, sentence, weigh=plain)
    exact = exact_gradient()
    torch.testing.assert_close(torch.autograd.grad(total, student, retain_graph=True)[0], exact)
    assert (torch.autograd.grad(unweighed, student)[0] - exact).abs().max() > 0.01


@pytest.mark.parametrize("mean", [False, True])
def test_weights_of_tokens_make_each_draw_unbiased_given_what_stands_before(mean):
    """As the paper has them: prefixes and what follows come from the mixture, the token itself from q."""
    share = 0.4
    found = expected_gradient(share, weigh=lambda was, theirs: importance(was, theirs, share), mean=mean)
    student = table(0).requires_grad_()
    old, mixture = student.detach(), behaviour(student.detach(), share)
    rewards = (TEACHER.log_softmax(-1) - old.log_softmax(-1)).tolist()

    def walk(prefix, chance):
        """(chance, prefix, rewards to come) of all ends that a prefix may have under the mixture."""
        if (prefix and prefix[-1] == 0) or len(prefix) == LONGEST:
            return [(chance, [])]
        row = PREFIXES.index(prefix)
        return [
            (part, [rewards[row][token], *more])
            for token in range(TOKENS)
            for part, more in walk((*prefix, token), chance * mixture[row, token].exp().item())
        ]

    def to_come(prefix):
        ends = [(chance, more) for chance, more in walk(prefix, 1.0) if more]
        return sum(chance * sum(more) / (len(more) if mean else 1) for chance, more in ends)

    objective = 0.0
    for row, prefix in enumerate(PREFIXES):
        reached = log_probs(mixture, prefix).sum().exp() if prefix else 1.0
        log_q, log_p = student[row].log_softmax(-1), TEACHER[row].log_softmax(-1)
        future = torch.tensor([to_come((*prefix, token)) for token in range(TOKENS)], dtype=torch.float64)
        # d/dx of q * constant, where q is the student: the expectation of constant * d log q.
        objective = objective + reached * (log_q.exp() * (log_q - log_p - future)).sum()
    torch.testing.assert_close(found, torch.autograd.grad(objective, student)[0])
    assert (found - expected_gradient(share, weigh=plain, mean=mean)).abs().max() > 1e-3


def test_the_single_step_part_is_the_reverse_kl():
    parts = Parts()
    none = Drawn(torch.zeros(ROWS), torch.zeros(ROWS), torch.ones(ROWS))
    found = policy_gradient_loss(
        parts.hidden, parts.head, parts.signal, parts.targets, none, weights=parts.weights
    )
    parts.agrees(found, parts.naive(SINGLE_STEP))


@pytest.mark.parametrize("head", HEADS)
def test_value_and_gradients_are_those_of_the_clipped_objective(head):
    """Against autograd on all logits at once; ratios from a half to two, returns of either sign."""
    parts = Parts(head)
    generator = torch.Generator().manual_seed(5)

    def draw():
        return torch.randn(ROWS, generator=generator, dtype=torch.float64)

    logits = parts.dense()
    now = logits.log_softmax(-1).gather(-1, parts.targets.unsqueeze(-1)).squeeze(-1)
    drawn = Drawn((now + 0.4 * draw()).detach(), draw(), 1 + 0.2 * draw())
    ratio = (now - drawn.log_probs).exp()
    assert {"low", "within", "high"} == {
        "low" if one < 0.8 else "high" if one > 1.2 else "within" for one in ratio.tolist()
    }
    clipped = torch.minimum(ratio * drawn.returns, ratio.clamp(0.8, 1.2) * drawn.returns)
    kl, divergence, entropy = parts.naive(SINGLE_STEP)
    expected = kl - (parts.weights * drawn.importance * clipped).sum()
    found = policy_gradient_loss(
        parts.hidden, parts.head, parts.signal, parts.targets, drawn, clip=0.2, weights=parts.weights
    )
    parts.agrees(found, [expected, divergence, entropy])


def test_a_student_that_went_too_far_is_pushed_no_further():
    """Beyond the clip the long-term part has a gradient only where it leads back."""
    logits = torch.zeros(1, TOKENS, dtype=torch.float64)

    def push(ratio, value):
        hidden = logits.clone().requires_grad_()
        one = torch.ones(1, dtype=torch.float64)
        drawn = Drawn(hidden.detach().log_softmax(-1)[:, 1] - torch.tensor(ratio).log(), value * one, one)
        # The teacher is the student: the single-step part is silent.
        loss = policy_gradient_loss(hidden, HEAD, Logits(logits), torch.tensor([1]), drawn).loss
        return torch.autograd.grad(loss, hidden)[0][0, 1].item()

    assert push(1.0, 2.0) < 0 < push(1.0, -2.0)
    assert push(1.3, 2.0) == push(0.7, -2.0) == 0
    assert push(0.7, 2.0) < 0 < push(1.3, -2.0)


@settings(max_examples=30, deadline=None)
@given(
    sequences=st.lists(st.lists(st.floats(-20, 5), min_size=1, max_size=6), min_size=1, max_size=4),
    mean=st.booleans(),
)
def test_returns_are_those_of_the_tokens_behind_in_the_same_sequence(sequences, mean):
    rewards = torch.tensor([r for one in sequences for r in one], dtype=torch.float64)
    found = returns_to_come(rewards, [len(one) for one in sequences], mean=mean).tolist()
    for one in sequences:
        mine, found = found[: len(one)], found[len(one) :]
        sums = [sum(one[t + 1 :]) for t in range(len(one))]
        counts = [max(len(one) - t - 1, 1) if mean else 1 for t in range(len(one))]
        assert mine == pytest.approx([a / b for a, b in zip(sums, counts, strict=True)], abs=1e-9)
        assert mine[-1] == 0
    assert found == []


def test_weights_are_bounded_by_the_teachers_share():
    student, teacher = torch.tensor([-0.1, -3.0, -30.0]), torch.tensor([-40.0, -3.0, -0.1])
    found = importance(student, teacher, 0.2)
    torch.testing.assert_close(found, torch.tensor([1.25, 1.0, 0.0]), atol=1e-6, rtol=1e-4)
    assert torch.equal(importance(student, teacher, 0.0), torch.ones(3))
