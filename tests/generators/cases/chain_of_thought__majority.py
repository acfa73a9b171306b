"""Self-consistency without gold answers: two teachers vote, every agreeing path is kept in two formats."""

from __future__ import annotations

from typing import Any

from tests.generators.cases._sums import TASK, tell
from tests.support.teachers import ScriptTeacher

N = 20
CONFIG: dict[str, Any] = {
    "questions": TASK,
    "samples": 2,
    "teachers": 2,
    "shots": 2,
    "student_formats": ["zero_shot_cot", "zero_shot_direct"],
    "filters": {"keep": "majority", "min_share": 0.5, "distinct": False, "valid_equations": False},
}


def teachers() -> dict[str, ScriptTeacher]:
    return {"teacher": ScriptTeacher(tell), "teacher_2": ScriptTeacher(tell, identity="script 2")}
