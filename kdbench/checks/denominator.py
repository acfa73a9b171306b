"""The denominator: an optimiser step is the same however it is cut into micro-batches and over processes.

    4 samples of 3, 5, 40 and 90 learnt tokens
    one batch             sum of the losses / 138
    accumulation of 4     a mean of means would weigh the short sample's tokens 30 times the long one's
    2 processes           a divisor of one process's tokens, or of all of them without times 2, is off by 2
    the student's text    80 tokens of its own divided by the 4 of the answers they replace (TRL's GKDTrainer)

The step is the trainer's own, made several times from the same weights and on the same text of the student's.
"""

from __future__ import annotations

import math

import torch

from kdbench.checks.batches import spread
from kdbench.checks.case import Case
from kdbench.checks.findings import Finding
from kdbench.checks.rehearsing import Rehearsal, Step

DENOMINATOR = "denominator"
SAMPLES = 4
TOLERANCE = 1e-3  # of the gradient's size, in float32
_CUTS = {"micro-batches and one batch": (1, 1), "2 processes and 1": (SAMPLES, 2)}


def check_denominator(case: Case, rehearsal: Rehearsal) -> list[Finding]:
    """Loss and gradient of one step are equal for every way to cut it."""
    found = spread(case.sequences, SAMPLES)
    chosen = [found[i % len(found)] for i in range(SAMPLES)]
    names = tuple(dict.fromkeys(case.name(one.sample) for one in chosen))
    whole = rehearsal.step(chosen, micro_batch=SAMPLES)
    if not math.isfinite(whole.loss):
        return [
            Finding(
                DENOMINATOR, "error", "The loss of the first step is no number", names, f"{whole.loss}",
                "check the weights of student and teacher, and the samples' weights",
            )
        ]  # fmt: skip
    findings = _miscounted(names, whole)
    for what, (micro_batch, world) in _CUTS.items():
        cut = rehearsal.step(chosen, micro_batch=micro_batch, world=world)
        difference = _difference(whole, cut)
        if abs(cut.loss - whole.loss) > TOLERANCE * abs(whole.loss) + 1e-5 or not difference <= TOLERANCE:
            findings.append(
                Finding(
                    DENOMINATOR, "error", f"A step's loss or gradient is not the same for {what}", names,
                    f"loss {cut.loss:.5g} and {whole.loss:.5g}; gradients {difference:.2g} of their size off",
                    "divide the sum of a step's losses by the weights of all its learnt tokens, over all "
                    "micro-batches and processes",
                )
            )  # fmt: skip
    text = f"loss {whole.loss:.4g} in one batch and in micro-batches, and for 2 processes"
    return findings or [Finding(DENOMINATOR, "ok", text)]


def _miscounted(names: tuple[str, ...], step: Step) -> list[Finding]:
    """The divisor is what was learnt: not the answers in whose place the student wrote its own."""
    if abs(step.divisor - step.learnt) <= TOLERANCE * abs(step.learnt):
        return []
    return [
        Finding(
            DENOMINATOR, "error", "A step's loss is not divided by what is learnt in it", names,
            f"divided by {step.divisor:g}, and the learnt tokens weigh {step.learnt:g}",
            "count the learnt tokens after the student has written, not from the data",
        )
    ]  # fmt: skip


def _difference(whole: Step, cut: Step) -> float:
    """How far the gradients are apart, in parts of their size; not counting what rounding leaves of zero."""
    if whole.gradient.keys() != cut.gradient.keys():
        return math.inf
    apart = size = 0.0
    for name, gradient in whole.gradient.items():
        apart += float(torch.dist(gradient.float(), cut.gradient[name].float())) ** 2
        size += float(gradient.float().norm()) ** 2
    return max(math.sqrt(apart) - 1e-5, 0.0) / max(math.sqrt(size), 1e-12)
