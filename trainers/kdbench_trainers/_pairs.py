"""Preference pairs as tokens: a prompt and two answers, of which one was preferred.

answers = answers_of(samples)               # chosen and rejected in turn, as completions
pairs = encode_pairs(answers, reader, 1024)
pairs[0].chosen.completion                  # (26, 18, 2): the answer and its end marker
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdbench.errors import DataError, NothingLeft
from kdbench.models.sequences import Reader, TokenSequence, encode
from kdbench.records import Completion, Message, Preference, Sample

log = logging.getLogger("kdbench")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt."""

    chosen: TokenSequence
    rejected: TokenSequence

    @property
    def both(self) -> tuple[TokenSequence, TokenSequence]:
        """The chosen answer, and the rejected one."""
        return self.chosen, self.rejected

    @property
    def group(self) -> str:
        """No split cuts through it."""
        return self.chosen.group

    @property
    def weight(self) -> float:
        """Of the pair in the loss."""
        return self.chosen.weight

    @property
    def length(self) -> int:
        """Tokens of its padded form: two rows as long as the longer one."""
        return 2 * max(one.length for one in self.both)


def answers_of(samples: Sequence[Sample]) -> list[Completion]:
    """Both answers of every sample as completions of its prompt, the chosen one first.

    Raises DataError for a sample of another kind, and for an answer that is not one assistant turn.
    """
    answers = []
    for number, sample in enumerate(samples):
        name = sample.id or f"sample {number}"
        if not isinstance(sample, Preference):
            raise DataError(
                f"The trainer dpo learns from pairs of a chosen and a rejected answer, and '{name}' is a "
                f"{sample.kind}; give it samples of the kind preference, or use black_box"
            )
        for which, turns in (("chosen", sample.chosen), ("rejected", sample.rejected)):
            _check_turns(name, which, turns)
            answers.append(
                Completion(
                    id=f"{name}, {which}",
                    group=sample.group or name,
                    prompt=sample.prompt,
                    completion=turns,
                    weight=sample.weight,
                )
            )
    return answers


def _check_turns(name: str, which: str, turns: Sequence[Message]) -> None:
    roles = [turn.role for turn in turns]
    if roles != ["assistant"]:
        raise DataError(
            f"The {which} answer of '{name}' has the turns {', '.join(roles)}, and dpo learns one assistant "
            "turn; put what both answers begin with into the prompt, and leave out what follows"
        )


def encode_pairs(answers: Sequence[Completion], reader: Reader, max_length: int) -> list[Pair]:
    """Pairs of the answers as `answers_of` gives them: both or neither, and not the same twice.

    What is left out is counted. Raises NothingLeft where that is all, UsageError.
    """
    found: dict[int, list[TokenSequence]] = defaultdict(list)
    for one in encode(answers, reader, None, max_length):
        assert one.sample is not None
        found[one.sample // 2].append(one)
    whole = [Pair(*both) for both in found.values() if len(both) == 2]
    pairs = [one for one in whole if one.chosen.completion != one.rejected.completion]
    total = len(answers) // 2
    for count, reason in (
        (total - len(whole), "one of their answers was, or both"),
        (len(whole) - len(pairs), "their two answers are the same"),
    ):
        if count:
            log.warning("%d of %d pairs left out: %s", count, total, reason)
    if not pairs:
        raise NothingLeft(
            f"No pair can be trained on, out of {total}: of each, an answer is empty or does not fit into "
            f"max_length {max_length}, or both are the same"
        )
    return [
        Pair(replace(one.chosen, key=2 * number), replace(one.rejected, key=2 * number + 1))
        for number, one in enumerate(pairs)
    ]
