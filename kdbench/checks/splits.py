"""Whether what is held out is new to the student: no group, and better no prompt, on both sides.

1 sample held out with a prompt that is also trained on: s8 (as s3, 'Write a story about ...')
"""

from __future__ import annotations

from kdbench.checks.case import Case
from kdbench.checks.findings import Finding, about, shortened
from kdbench.models.sequences import TokenSequence

SPLIT = "split"


def check_split(case: Case) -> list[Finding]:
    """Groups and prompts that stand on both sides. Windows of plain text have none to look at."""
    train = [one for one in case.train if one.sample is not None]
    validation = [one for one in case.validation if one.sample is not None]
    trained = {one.group: one for one in train}
    groups = {
        case.name(one.sample): f"group {one.group!r}, as {case.name(trained[one.group].sample)}"
        for one in validation
        if one.group in trained
    }
    prompts = {_prompt(case, one): one for one in train}
    doubles = {
        case.name(one.sample): f"as {case.name(same.sample)}: {shortened(_prompt(case, one)[-1][1])}"
        for one in validation
        if (same := prompts.get(_prompt(case, one))) is not None and one.group not in trained
    }
    return [
        *about(
            SPLIT, "error", "held out of a group that is also trained on", groups,
            way_out="split by whole groups, so that the validation loss is of questions it never saw",
        ),
        *about(
            SPLIT, "warning", "held out with a prompt that is also trained on", doubles,
            way_out="give samples of one prompt the same group, or leave the doubles out",
        ),
    ]  # fmt: skip


def _prompt(case: Case, sequence: TokenSequence) -> tuple[tuple[str, str], ...]:
    """The turns, however their white space is set."""
    assert sequence.sample is not None
    turns = case.samples[sequence.sample].prompt
    return tuple((turn.role, " ".join(turn.content.split())) for turn in turns)
