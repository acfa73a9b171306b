"""Three kinds of sum, two of them with a strategy that the teacher visibly follows; it errs now and then."""

from __future__ import annotations

import re
from math import prod
from typing import Any

from kdbench.teacher import Request
from tests.support.teachers import ScriptTeacher, share

N = 10
TASK: dict[str, Any] = {
    "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
    "products": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "gcd": {"max_value": 50},
}
CONFIG: dict[str, Any] = {
    "questions": {"task": TASK},
    "per_kind": {"chain_sum": "step_by_step", "products": "guess_and_check"},
    "samples": 2,
}
LAYOUTS = {  # what tells a strategy's system message apart -> how a reply looks that follows it
    "straight away": "",
    "Step 1:": "Step 1: I read {sum}.\nStep 2: I work it out, which gives {gold}.\n",
    "Reason:": "Recall: the rules of arithmetic.\nReason: they say that {sum} is {gold}.\n",
    "Recall:": "Recall: the rules of arithmetic.\n",
    "Extract:": "Extract: {sum}\n",
    "Explain:": "Explain: a calculation is wanted, and its numbers decide it.\n",
    "Guess:": "Guess: {near}\nCheck: {sum} is not {near}.\nGuess: {gold}\nCheck: {sum} is {gold}.\n",
}


def teachers() -> dict[str, ScriptTeacher]:
    return {"teacher": ScriptTeacher(solve)}


def solve(request: Request) -> str:
    number = share(request)
    if number < 0.1:
        return "I'm sorry, but I can't help with that."
    if number < 0.2:
        return "Step 1: I read" + ScriptTeacher.CUT
    if number < 0.25:
        return followed(request, offset=0).removesuffix(".").partition("The answer is")[0] + "Done."
    return followed(request, offset=7 if number < 0.4 else 0)


def followed(request: Request, offset: int) -> str:
    """A reply laid out as the system message wants it, right if the offset is 0."""
    system, user = (message.content for message in request.messages)
    (calculation,) = re.findall(r"-?\d+(?: [-+*] \d+)+", user)
    gold = value(calculation) + offset
    layout = next(text for words, text in LAYOUTS.items() if words in system)
    return f"{layout.format(sum=calculation, gold=gold, near=gold - 1)}The answer is {gold}."


def value(calculation: str) -> int:
    """What "2 + 3 - 1" or "4 * 5" comes to."""
    if "*" in calculation:
        return prod(int(number) for number in calculation.split(" * "))
    return sum(int(number) for number in calculation.replace("- ", "-").replace("+ ", "").split())
