"""All draws that a judge gives three points or more; the judge is sometimes hard to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdbench.teacher import Request
from tests.generators.cases import answers
from tests.support.teachers import ScriptTeacher, share

N = 8
MAX_CANDIDATES = 8


def config(folder: Path) -> dict[str, Any]:
    return {**answers.config(folder), "samples": 2, "scorer": "judge", "filters": {"min_score": 3}}


def teachers() -> dict[str, ScriptTeacher]:
    return {"teacher": ScriptTeacher(answers.tell), "judge": ScriptTeacher(judge, identity="judge")}


def judge(request: Request) -> str:
    number = share(request)
    if len(request.messages) == 1 and number < 0.6:
        return "I would give it a four."
    if number < 0.3:
        return '{"score": 9}'
    verdict = {"remark": "Short and clear.", "score": 1 + int(number * 1000) % 5}
    return f"```json\n{json.dumps(verdict)}\n```"
