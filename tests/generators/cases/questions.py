"""A run of the questions recipe: a task and no teacher to speak of."""

from __future__ import annotations

from typing import Any

from tests.support.teachers import ScriptTeacher

N = 5
CONFIG: dict[str, Any] = {
    "questions": {
        "task": {"chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}, "gcd": {}},
        "part": "heldout",
    }
}


def teachers() -> dict[str, ScriptTeacher]:
    return {"teacher": ScriptTeacher(lambda request: "never asked")}
