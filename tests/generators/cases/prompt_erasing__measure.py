"""A student that does some strategies better than others is asked everything with each of them."""

from __future__ import annotations

from typing import Any

from kdbench.teacher import Request
from tests.generators.cases.prompt_erasing import TASK, followed
from tests.support.teachers import ScriptTeacher, share

N = 24
CONFIG: dict[str, Any] = {
    "questions": {"task": {name: TASK[name] for name in ("chain_sum", "products")}},
    "measure_strategies": True,
}


def teachers() -> dict[str, ScriptTeacher]:
    return {"teacher": ScriptTeacher(attempt, identity="student")}


def attempt(request: Request) -> str:
    number = share(request)
    system, user = (message.content for message in request.messages)
    able = 0.9 if ("Step 1:" if "+" in user or "-" in user else "Guess:") in system else 0.4
    if number < able:
        return followed(request, offset=0)
    return followed(request, offset=1) if number < 0.95 else "I see" + ScriptTeacher.CUT
