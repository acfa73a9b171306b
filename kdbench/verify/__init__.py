"""Answers read and checked.

    canonical("numeric", "$1,200.00 per month")                     # "1200"
    canonical("exact", 'The "Eiffel Tower".')                       # "eiffel tower"
    canonical("choice", "the answer is (b)", ["Rome", "Paris"])     # "B"
    canonical("numeric", "between 3 and 4")                         # None: it cannot be read

    is_correct("numeric", "3/4 of a cup", gold="0.75")                                  # True
    is_correct("choice", "Paris", gold="B", choices=["Rome", "Paris"])                  # True
    is_correct("reasoning_gym", "-4", gold="-4", entry='{"question": "5 - 9 =", ...}')  # True

Readers are strict: what may be meant in two ways counts as unreadable, for a wrong answer that is taken
for a right one spoils the data, while an answer that is lost costs one more sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from kdbench.errors import Rejected
from kdbench.verify import _choice, _exact, _numeric, _reasoning_gym

VerifierName = Literal["numeric", "exact", "choice", "reasoning_gym"]


def canonical(verifier: VerifierName, answer: str, choices: Sequence[str] = ()) -> str | None:
    """The one form that equal answers share, so that they can be counted; None for an unreadable one.

    - numeric: the one number in the answer, as an integer, a decimal or else a fraction. Currency signs,
      percent signs and words are units and say nothing ("12%" is 12, not 0.12; "50 cents" is 50), but
      hundred, thousand, million and so on multiply. Two different numbers, a formula, a range or a ratio
      cannot be read.
    - exact: lower case, without extra spaces, punctuation and quotes around, and leading articles.
    - choice: the letter, in upper case, that the answer names or whose option it says word for word.
      A letter beyond the choices and two different letters cannot be read. Without `choices` A to Z go.
    - reasoning_gym: the text; a text that is a plain number is normalised ("1,200.0" is "1200").
    """
    match verifier:
        case "numeric":
            value = _numeric.read(answer)
            return None if value is None else _numeric.written(value)
        case "exact":
            return _exact.read(answer) or None
        case "choice":
            return _choice.read(answer, choices)
        case "reasoning_gym":
            return _reasoning_gym.read(answer) or None


def is_correct(
    verifier: VerifierName, answer: str, gold: str, *, choices: Sequence[str] = (), entry: str | None = None
) -> bool:
    """Whether an answer is right. One that cannot be read is wrong, and so is any if the gold cannot be.

    - numeric: equal as exact numbers; where one of the two is no integer, a relative error of 1e-6 passes.
    - exact, choice: equal in canonical form.
    - reasoning_gym: equal to the gold answer in canonical form, or given the full score of 1.0 by the
      task's own verifier on `entry`, which is the task's entry as JSON; partial scores are wrong.

    Raises kdbench.errors.DataError for an entry that is missing, torn or of an unknown task, MissingExtra
    where reasoning-gym is needed and not installed.
    """
    match verifier:
        case "numeric":
            return _numeric.equal(_numeric.read(answer), _numeric.read(gold))
        case "exact" | "choice":
            form = canonical(verifier, answer, choices)
            return form is not None and form == canonical(verifier, gold, choices)
        case "reasoning_gym":
            return _reasoning_gym.is_correct(answer, gold, entry)


def check_gold(verifier: VerifierName, gold: str, choices: Sequence[str] = ()) -> None:
    """Raises kdbench.errors.Rejected("gold_unreadable") for a gold answer that the verifier cannot read."""
    if canonical(verifier, gold, choices) is None:
        among = f" among {len(choices)} choices" if choices else ""
        raise Rejected("gold_unreadable", f"{verifier}: {gold[:80]!r}{among}")
