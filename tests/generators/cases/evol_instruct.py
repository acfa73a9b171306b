"""Seven instructions, two of them equal, through round 0 and three rounds, with a judge of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdbench.teacher import Request
from tests.support.teachers import ScriptTeacher, share

N = 100  # the seeds end before
QUESTIONS = (
    {"question": "Name a fruit that floats.", "context": ""},
    {"question": "Who wrote it, and when?", "context": "Call me Ishmael."},
    {"question": "Name a  fruit that floats.", "context": ""},
    {"question": "Say something kind.", "context": ""},
    {"question": "How many legs have three spiders?", "context": ""},
    {"question": "Find a rhyme for orange.", "context": ""},
    {"question": "What would you plant on a balcony that faces north?", "context": ""},
)
# Words of each operation's request, and what the script makes of it.
ADDED = {
    "one more condition": "Use at most ten words.",
    "go further into": "Say what follows from it, too.",
    "a more particular one": "Think of the northern half of the world alone.",
    "several steps": "Reason it out in three steps before you answer.",
    "some data to work on": "Use this as well: [3, 1, 2]",
}


def config(folder: Path) -> dict[str, Any]:
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return {
        "questions": {"file": str(folder / "questions.jsonl")},
        "instructions": 7,
        "rounds": 3,
        "judged_by": "judge",
    }


def teachers() -> dict[str, ScriptTeacher]:
    return {
        "teacher": ScriptTeacher(teach, identity="teacher"),
        "judge": ScriptTeacher(compare, identity="judge"),
    }


def teach(request: Request) -> str:
    asked = request.messages[-1].content
    number = share(request)
    if "<instruction>\n" not in asked:
        return reply(asked, number)
    parent = asked.partition("<instruction>\n")[2].partition("\n</instruction>")[0]
    if number < 0.06:
        return "I'm sorry, but I can't help with that."
    if number < 0.12:
        return f'"{parent}"'
    if number < 0.2:
        return f"Rewritten prompt: {parent} Be brief."
    if number < 0.26:
        return f"{parent} And then" + ScriptTeacher.CUT
    if "Make up another one" in asked:
        return f"Name {int(number * 1000)} things that people of the trade would rather not talk about."
    (added,) = (text for words, text in ADDED.items() if words in asked)
    return f"Sure! Here is a harder version:\n\n{parent} {added}"


def reply(instruction: str, number: float) -> str:
    if number < 0.1:
        return "So sorry, that one is new to me."
    if number < 0.2:
        return "It is what it was, and so are we ..."
    if number < 0.25:
        return "That depends on" + ScriptTeacher.CUT
    return f"Here are {len(instruction)} letters' worth of an answer, and not one more."


def compare(request: Request) -> str:
    number = share(request)
    if number < 0.2:
        return "Equal."
    return "Both of them are good." if number < 0.25 else "They are not equal."
