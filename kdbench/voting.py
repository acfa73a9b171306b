"""Self-consistency: the answer that most of several replies to one question agree on (arXiv 2203.11171).

    majority(["18", "17", None, "18"])        # Vote(answer="18", count=2, total=4, share=0.5)
    majority([None, None])                    # None: no reply can be read
    is_settled(["18", "18", "17"], 1)         # True: at worst "17" draws level, and "18" was there first

Answers are compared as they are: bring them into one form first (`kdbench.verify.canonical`). None stands
for a reply without a readable answer: it counts in the total and votes for nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Vote:
    """The winning answer, how many of `total` replies gave it, and their share, in (0, 1]."""

    answer: str
    count: int
    total: int
    share: float


def majority(answers: Sequence[str | None]) -> Vote | None:
    """The most frequent answer; None if no answer can be read.

    Of equally frequent answers the one wins that reached the count first in the order given, so that
    the result is deterministic and a later vote can never take a win away by drawing level.
    """
    counts: Counter[str] = Counter()
    winner, most = "", 0
    for answer in answers:
        if answer is None:
            continue
        counts[answer] += 1
        if counts[answer] > most:
            winner, most = answer, counts[answer]
    if most == 0:
        return None
    return Vote(winner, most, len(answers), most / len(answers))


def is_settled(answers_so_far: Sequence[str | None], still_to_come: int) -> bool:
    """Whether no further `still_to_come` answers can change which one wins (its share they can)."""
    vote = majority(answers_so_far)
    if vote is None:
        return still_to_come == 0
    rivals = Counter(a for a in answers_so_far if a is not None and a != vote.answer)
    return max(rivals.values(), default=0) + still_to_come <= vote.count
