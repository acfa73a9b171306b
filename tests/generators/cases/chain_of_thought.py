"""Rejection sampling: four draws a question, the right paths kept, one for each list of equations."""

from __future__ import annotations

from typing import Any

from tests.generators.cases._sums import TASK, tell
from tests.support.teachers import ScriptTeacher

N = 8
CONFIG: dict[str, Any] = {"questions": TASK, "samples": 4}


def teachers() -> dict[str, ScriptTeacher]:
    return {"teacher": ScriptTeacher(tell)}
