"""Label and rationale of each reply as two samples; pairs whose teacher was wrong are turned down."""

from __future__ import annotations

from typing import Any

from tests.generators.cases._sums import TASK, tell
from tests.support.teachers import ScriptTeacher

N = 8
CONFIG: dict[str, Any] = {
    "questions": TASK,
    "shots": 2,
    "alpha": 0.75,
    "sampling": {"temperature": 0.5},
    "filters": {"keep": "gold"},
}


def teachers() -> dict[str, ScriptTeacher]:
    return {"teacher": ScriptTeacher(tell)}
