"""Answers to reasoning-gym tasks, checked by the task's own verifier (reasoning-gym 0.1.25).

    entry = '{"question": "Reach 25 with 4, 7 and 3.", "answer": "7*4 - 3", "metadata": {...}}'
    is_correct("(4 * 7) - 3", gold="7*4 - 3", entry=entry)      # True

A verifier gives a score from 0 to 1; right is 1. It runs with the default settings of its task, which
matter to decimal_arithmetic alone. The entry is trusted: two verifiers evaluate parts of it.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from kdbench.errors import DataError, MissingExtra
from kdbench.verify._numeric import written

_PLAIN_NUMBER = re.compile(r"(?!.{100})-?(?:0|[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d*)(?:\.\d+)?")
# The verifiers of these tasks call eval() on the answer, or sympy's parse_expr(), which calls it. They are
# given numbers, variables of one letter, common functions and small powers of what is no number.
_EVALUATING = frozenset(
    {"binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication"}
    | {"puzzle24", "simple_integration", "spiral_matrix", "string_insertion"}
)
_EXPONENT = r"(?:\d{1,2}|\(-?\d{1,2}(?:/\d{1,2})?\))(?![\d(.]|\s*\*\*)"
_ARITHMETIC = re.compile(
    rf"""(?:(?:a?(?:sin|cos|tan)h?|exp|log|sqrt)(?=\()
    |\b[A-Za-z_]\b(?!\s*[(.])
    |\d+(?:\.\d+)?(?!\s*\*\*|\w|\()
    |\*\*{_EXPONENT}
    |[\s+\-/()]|\*(?!\*))*""",
    re.VERBOSE,
)
_POWER_OF_BRACKET = re.compile(r"\)\s*\*\*")


def read(answer: str) -> str:
    """The answer without spaces around it; a plain number in the form that equal numbers share."""
    text = answer.strip()
    typed = text.replace("−", "-")
    return written(Fraction(typed.replace(",", ""))) if _PLAIN_NUMBER.fullmatch(typed) else text


def is_correct(answer: str, gold: str, entry: str | None) -> bool:
    """Whether an answer is the gold one or has the full score.

    Raises kdbench.errors.DataError for an entry that is missing, torn or of an unknown task, MissingExtra
    where reasoning-gym is not installed.
    """
    try:
        task: dict[str, Any] = json.loads(entry or "")
        name, has_gold = str(task["metadata"]["source_dataset"]), task["answer"] is not None
    except (ValueError, KeyError, TypeError) as exc:
        shown = (entry or "")[:60]
        raise DataError(f"A reasoning_gym answer is checked by its entry, in JSON; it is {shown!r}") from exc
    if name == "puzzle24":
        # Its own verifier takes other numbers than those given, and 24.5 for 24. Countdown has the same
        # rules and a sound one.
        name, task = "countdown", {"metadata": {**task["metadata"], "target": 24}}
    verifier = _verifier(name)
    text = answer.strip()
    # Arc's verifiers want tuples where JSON has lists, and would refuse the gold answer itself.
    if text and has_gold and read(text) == read(gold):
        return True
    # That of game_of_life_halting takes any text for "True".
    if name == "game_of_life_halting" or (name in _EVALUATING and not _is_arithmetic(text)):
        return False
    with contextlib.redirect_stdout(io.StringIO()):  # tower_of_hanoi prints what it thinks of a move
        try:
            return bool(verifier(text, task) >= 1.0)
        except Exception:
            return False  # it cannot read the answer: int() of "two", a key that is not there


def _is_arithmetic(text: str) -> bool:
    """Whether an answer that is going to be evaluated can do no harm, and ends soon."""
    if len(text) > 300 or len(_POWER_OF_BRACKET.findall(text)) > 2:
        return False
    return _ARITHMETIC.fullmatch(text) is not None


@lru_cache(maxsize=256)
def _verifier(name: str) -> Any:
    try:
        from reasoning_gym import get_score_answer_fn
    except ImportError as exc:
        raise MissingExtra("reasoning", "Checking a reasoning-gym answer") from exc
    try:
        return get_score_answer_fn(name)
    except (ValueError, AssertionError) as exc:
        raise DataError(f"reasoning-gym has no verifier for the task '{name}': {exc}") from exc
