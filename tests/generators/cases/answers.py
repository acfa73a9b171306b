"""The best of four draws by consensus, of a teacher that refuses, stops early, loops and talks nonsense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdbench.teacher import Request
from tests.support.teachers import ScriptTeacher, share

N = 7
MAX_CANDIDATES = 8
QUESTIONS = (
    "Why does ice float on water?",
    "Why do birds fly south in autumn?",
    "Why is the sky dark at night?",
    "Why do we put salt on icy roads?",
    "Why do cats purr on a warm lap?",
    "Why does bread rise in the oven?",
    "Why do leaves turn red in autumn?",
    "Why does a bell ring when it is hit?",
)


def config(folder: Path) -> dict[str, Any]:
    lines = [json.dumps({"question": text, "kind": "why"}) for text in QUESTIONS]
    (folder / "questions.jsonl").write_text("\n".join(lines))
    return {
        "questions": {"file": str(folder / "questions.jsonl")},
        "system": "Answer in one sentence.",
        "samples": 4,
        "scorer": "consensus",
        "filters": {"keep": "best", "min_score": 0.2, "max_words": 30},
    }


def teachers() -> dict[str, ScriptTeacher]:
    return {"teacher": ScriptTeacher(tell)}


def tell(request: Request) -> str:
    about = request.messages[-1].content.removeprefix("Why ").removesuffix("?")
    number = share(request)
    if number < 0.08:
        return "I'm sorry, but I can't help with that."
    if number < 0.16:
        return f"It is said that {about} because" + ScriptTeacher.CUT
    if number < 0.22:
        return ""
    if number < 0.3:
        return "It just is. " * 6
    if number < 0.4:
        return (
            f"Nobody has ever asked me why {about}, " + "and it is a long story to tell " * 2 + "even for me."
        )
    if number < 0.5:
        return "Elephants remember everything."
    if number < 0.75:
        return f"Most people think that {about} because of how the world is made."
    return f"People often say that {about} because of the way the world is made."
