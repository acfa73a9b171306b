"""A run of TinyStories-Instruct: the same stories, and summaries some of which are no good."""

from __future__ import annotations

from typing import Any

from kdbench.teacher import Request
from tests.generators.cases import tinystories
from tests.support.teachers import ScriptTeacher, share

N = 12
CONFIG: dict[str, Any] = {**tinystories.CONFIG, "instruct": True}


def teachers() -> dict[str, ScriptTeacher]:
    return {"teacher": ScriptTeacher(tell)}


def tell(request: Request) -> str:
    asked = request.messages[-1].content
    return sum_up(asked, share(request)) if asked.startswith("Here is a story") else tinystories.tell(request)


def sum_up(asked: str, number: float) -> str:
    if number < 0.15:
        return "I'm sorry, but I can't help with that."
    if number < 0.3:
        return "Mia and her friend" + ScriptTeacher.CUT
    if number < 0.4:
        return asked.split("\n\n")[1].split(". ")[1]
    if number < 0.5:
        return "A good day."
    return "Summary: Mia is a bit shy at first.\nA friend takes her hand, and all ends well."
