"""A teacher that solves sums step by step and goes wrong at fixed shares, each in its own way."""

from __future__ import annotations

import re

from kdbench.teacher import Request
from tests.support.teachers import ScriptTeacher, share

TASK = {"task": {"chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}}}
_SUM = re.compile(r"(-?\d+(?: [+-] \d+)+) =")


def terms(text: str) -> tuple[list[int], list[str]]:
    """The numbers and the signs between them of the last sum in a text."""
    found = _SUM.findall(text)[-1].split()
    return [int(one) for one in found[::2]], found[1::2]


def solve(text: str, *, slip: int = 0, backwards: bool = False) -> str:
    """A path to the result, from the front or from the back; `slip` is added to the last step."""
    numbers, signs = terms(text)
    signed = [numbers[0], *(n if sign == "+" else -n for n, sign in zip(numbers[1:], signs, strict=True))]
    if backwards:
        signed.reverse()
    value, steps = signed[0], []
    for place, one in enumerate(signed[1:], start=2):
        after = value + one + (slip if place == len(signed) else 0)
        steps.append(f"{value} {'+' if one >= 0 else '-'} {abs(one)} = {after}.")
        value = after
    return " ".join([*steps, f"The answer is {value}."])


def tell(request: Request) -> str:
    """What the teacher says: right in six of ten replies, from the front or from the back."""
    text, number = request.messages[-1].content, share(request)
    if number < 0.05:
        return "I'm sorry, but I can't help with that."
    if number < 0.1:
        return solve(text).partition("The answer")[0] + ScriptTeacher.CUT
    if number < 0.15:
        return solve(text).replace("The answer is", "That makes")
    if number < 0.2:
        return solve(text) + " No, wait. The answer is 1000."
    if number < 0.25:
        return ""
    if number < 0.35:
        return solve(text, slip=1).rpartition(" The")[0] + " " + solve(text).rpartition(". ")[2]
    if number < 0.45:
        return solve(text, slip=2)
    return solve(text, backwards=number > 0.8)
