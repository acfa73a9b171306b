"""Five kinds of question, two teachers; some refuse, some are cut off, too short or wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdbench.teacher import Request
from tests.support.teachers import ScriptTeacher, share

N = 14
QUESTIONS: list[dict[str, Any]] = [
    {
        "kind": "cot",
        "question": "A crate holds 12 bottles. How many bottles are in 5 crates?",
        "answer": "60",
    },
    {
        "kind": "gsm",
        "question": "Ann had 20 plums and gave away 3 plums twice. How many are left?",
        "answer": "14",
    },
    {
        "kind": "niv2",
        "question": "Definition: turn the word you are given back to front.\nInput: stressed",
        "answer": "desserts",
    },
    {"kind": "t0", "question": "Which sea lies between Sweden and Finland?", "answer": "Baltic"},
    {
        "kind": "flan2021",
        "question": "Which of these is a mammal?",
        "choices": ["trout", "whale", "gecko"],
        "answer": "B",
    },
    {"kind": "flan2021", "question": "What do you call a young dog?", "choices": [], "answer": "puppy"},
    {"kind": "riddle", "question": "What has keys but opens no door?", "answer": "piano"},
    {"kind": "", "question": "Name a metal that is liquid at room temperature.", "answer": "mercury"},
]


def config(folder: Path) -> dict[str, Any]:
    rows = [{"choices": [], **row} for row in QUESTIONS]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 6))
    return {
        "questions": {"file": str(folder / "questions.jsonl")},
        "collections": {"gsm": "cot"},
        "mix": {"cot": 1, "niv2": 2, "flan2021": 2, "other": 2},
        "strong_share": 0.4,
        "filters": {"check_answer": True, "min_words": 8},
    }


def teachers() -> dict[str, ScriptTeacher]:
    return {
        "teacher": ScriptTeacher(explain, identity="plain"),
        "strong_teacher": ScriptTeacher(
            lambda r: explain(r).replace("Look", "Look closely"), identity="strong"
        ),
    }


def explain(request: Request) -> str:
    asked = request.messages[-1].content
    (gold,) = {row["answer"] for row in QUESTIONS if row["question"] in asked}
    number = share(request)
    if number < 0.1:
        return "I'm sorry, but I can't help with that."
    if number < 0.2:
        return "Let us look at what is asked and" + ScriptTeacher.CUT
    if number < 0.3:
        return f"It is {gold}."
    if number < 0.4:
        return "Two things have to be put together here, one after the other. The answer is none of them."
    if number < 0.6:
        return (
            f"Taking the parts of this one after another leads nowhere but to {gold}, for nothing else fits."
        )
    return f"Look at each part of what is asked, in order, and see where it leads. The answer is {gold}."
