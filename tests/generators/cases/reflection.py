"""Little sums solved, reflected upon and told; the teacher is often wrong and at times of no use at all."""

from __future__ import annotations

from typing import Any

from kdbench.teacher import Request
from tests.support.teachers import ScriptTeacher, share

N = 12
CONFIG: dict[str, Any] = {
    "questions": {"task": {"chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}}}
}


def teachers() -> dict[str, ScriptTeacher]:
    return {"teacher": ScriptTeacher(tell)}


def step_of(request: Request) -> str:
    """Which of the three requests this is."""
    last = request.messages[-1].content
    return "told" if "The right answer is" in last else "reflected" if "Reflection:" in last else "solved"


def expression(request: Request) -> str:
    """The sum that the first message asks for."""
    return request.messages[0].content.partition("problem: ")[2].partition(" =")[0]


def solution(request: Request, slip: int = 0) -> str:
    """A worked solution, off by `slip`."""
    result = eval(expression(request)) + slip
    return f"From left to right: {expression(request)} = {result}. The answer is {result}."


def parts(text: str) -> str:
    return f"Reflection: I was careless.\nCorrect solution: {text}"


def tell(request: Request) -> str:
    number = share(request)
    slip = 1 + int(share(request, "slip") * 4)
    step = step_of(request)
    if step == "solved":
        if number < 0.06:
            return "I'm sorry, but I can't help with that."
        if number < 0.12:
            return "From left to right" + ScriptTeacher.CUT
        if number < 0.2:
            return f"It comes to {eval(expression(request))}."
        if number < 0.28:
            return f"{solution(request)} Or rather, the answer is {slip}."
        return solution(request, 0 if number > 0.8 else slip)
    if number < 0.1:
        return solution(request)
    if number < 0.2:
        return parts("From left") + ScriptTeacher.CUT
    if step == "told" and number < 0.4:
        return parts(f"As the given answer says, {solution(request)}")
    return parts(solution(request, 0 if number > (0.7 if step == "reflected" else 0.5) else slip))
