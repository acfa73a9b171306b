"""The losses of preference pairs: their values, gradients and limits."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from kdbench.losses.preference import dpo, ipo  # noqa: E402

pytestmark = pytest.mark.medium

ratios = st.lists(st.floats(-30, 30), min_size=1, max_size=6)


def tensors(*values):
    return [torch.tensor(one, dtype=torch.float64, requires_grad=True) for one in values]


@settings(max_examples=40, deadline=None)
@given(chosen=ratios, data=st.data(), beta=st.floats(0.01, 5))
def test_value_and_gradient_are_those_of_the_papers(chosen, data, beta):
    size = {"min_size": len(chosen), "max_size": len(chosen)}
    rejected = data.draw(st.lists(st.floats(-30, 30), **size))
    for loss, value, slope in (
        # dpo's gradient is the paper's section 4: beta * sigmoid(reward rejected - reward chosen)
        (dpo, lambda h: math.log1p(math.exp(-beta * h)), lambda h: -beta / (1 + math.exp(beta * h))),
        (ipo, lambda h: (h - 1 / (2 * beta)) ** 2, lambda h: 2 * (h - 1 / (2 * beta))),
    ):
        liked, disliked = tensors(chosen, rejected)
        found = loss(liked, disliked, beta=beta)
        margins = [one - other for one, other in zip(chosen, rejected, strict=True)]
        torch.testing.assert_close(found.tolist(), [value(h) for h in margins])
        up, down = torch.autograd.grad(found.sum(), (liked, disliked))
        torch.testing.assert_close(up.tolist(), [slope(h) for h in margins])
        torch.testing.assert_close(down, -up)


def test_no_opinion_is_log_two_and_ipo_ends_where_dpo_goes_on():
    none, far = tensors([0.0], [1000.0])
    assert dpo(none, none, beta=0.3).item() == pytest.approx(math.log(2))
    end = torch.tensor([1 / (2 * 0.3)], dtype=torch.float64)
    assert ipo(end, none, beta=0.3).item() == pytest.approx(0)
    assert ipo(far, none, beta=0.3).item() > 1
    # Where exp would overflow the loss is still finite, and so is its gradient.
    for chosen, rejected in ((none, far), (far, none)):
        loss = dpo(chosen, rejected, beta=5.0)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, chosen, retain_graph=True)[0].isfinite()
