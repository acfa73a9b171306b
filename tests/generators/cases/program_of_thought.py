"""Programs for little sums; the teacher slips, forgets the code, and at times writes what must not run."""

from __future__ import annotations

from typing import Any

from kdbench.teacher import Request
from tests.support.teachers import ScriptTeacher, share

N = 16
CONFIG: dict[str, Any] = {
    "questions": {"task": {"chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}}},
    "samples": 4,
    "shots": 1,
    "filters": {"max_per_question": 2},
}
PROGRAMS = (
    "# Asked: the value of {0}\nprint({0})",
    "# The value is wanted.\nprint( {0} )  # from left to right",
    "# Asked: what comes out\nvalue = {0}\nprint(value)",
    "def solution():\n    return {0}",
)


def teachers() -> dict[str, ScriptTeacher]:
    return {"teacher": ScriptTeacher(tell)}


def expression(request: Request) -> str:
    """The sum that the last message asks for."""
    return request.messages[-1].content.partition("problem: ")[2].partition(" =")[0]


def block(program: str) -> str:
    return f"```python\n{program}\n```"


def program_of(request: Request) -> str:
    """One of several right programs."""
    return PROGRAMS[int(share(request, "which") * len(PROGRAMS))].format(expression(request))


def tell(request: Request) -> str:
    right, number = program_of(request), share(request)
    odd = (
        f"The answer is {expression(request)}.",
        f"{block(right)}\nor\n{block('print(7)')}",
        block("print(" + expression(request)),
        block("print(undefined_total)"),
        block(f"value = {expression(request)}"),
        block(f"open('answer.txt', 'w').write(str({expression(request)}))"),
        block("while True:\n    print(1)"),
        block(f"numbers = [{expression(request)}] * 10**10"),
        "I'm sorry, but I can't help with that.",
        block(right)[:20] + ScriptTeacher.CUT,
        "",
    )
    if number < 0.4:
        return odd[int(number / 0.4 * len(odd))]
    return block(f"print(1 + {expression(request)})" if number < 0.55 else right)
