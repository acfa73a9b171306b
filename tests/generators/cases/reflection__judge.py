"""A model judges, with gold and without; it errs, and at times cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdbench.teacher import Request
from tests.generators.cases import reflection
from tests.support.teachers import ScriptTeacher, share

N = 7


def config(folder: Path) -> dict[str, Any]:
    sums = [
        "3 + 4",
        "9 - 2 - 5",
        "8 + 8",
        "6 - 7",
        "5 + 1 + 2",
        "4 - 4",
        "2 + 9",
        "7 - 3",
        "1 + 1 + 6",
        "8 - 6",
    ]
    lines = [
        json.dumps({"question": f"Solve this problem: {one} =", "answer": str(eval(one)) if i % 2 else None})
        for i, one in enumerate(sums)
    ]
    (folder / "questions.jsonl").write_text("\n".join(lines))
    return {"questions": {"file": str(folder / "questions.jsonl")}, "judge": "model"}


def teachers() -> dict[str, ScriptTeacher]:
    return {"teacher": ScriptTeacher(reflection.tell), "judge": ScriptTeacher(judge, identity="judge")}


def judge(request: Request) -> str:
    number = share(request)
    if number < (0.3 if len(request.messages) == 1 else 0.2):
        return "It looks right to me."
    text = request.messages[0].content
    value = eval(text.partition("problem: ")[2].partition(" =")[0])
    right = f"The answer is {value}." in text.partition("<solution>")[2]
    return json.dumps({"correct": right if number > 0.4 else not right})
