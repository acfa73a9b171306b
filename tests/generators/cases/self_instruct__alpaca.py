"""Whole tasks in one call, some without output, with an input that is one, or copied from what was shown."""

from __future__ import annotations

from typing import Any

from kdbench.teacher import Request
from tests.generators.cases.self_instruct import THINGS
from tests.support.teachers import ScriptTeacher, share

N = 9  # more than the seeds give
MAX_CANDIDATES = 6
SEVERAL_GROUPS = True
CONFIG: dict[str, Any] = {"mode": "alpaca", "round_size": 2, "instructions_per_call": 4, "demos_seed": 2}
TASKS = (
    ("Compose a limerick in which {} plays a part.", "none", "There once was a thing on the shore."),
    ("Put the sentence on {} into the past tense.", "It rains and it shines.", "It rained and it shone."),
    ("Choose music that goes with {}.", "N/A", "A slow waltz."),
    ("Which is the better gift, {} or a loaf of bread?", "<noinput>", "The loaf, for it can be shared."),
)


def teachers() -> dict[str, ScriptTeacher]:
    return {"teacher": ScriptTeacher(answer)}


def answer(request: Request) -> str:
    lines = request.messages[-1].content.splitlines()
    shown = next(line for line in lines if line.startswith("Instruction: "))
    if share(request) < 0.15:
        return "As an AI language model, I cannot create tasks."
    entries = []
    for i in range(5):
        number = share(request, f"entry {i}")
        instruction, given, output = TASKS[int(share(request, f"task {i}") * len(TASKS))]
        first = instruction.format(THINGS[int(number * len(THINGS))])
        entry = [f"Task {i + 3}", f"Instruction: {first}", f"Input: {given}", f"Output: {output}"]
        if number < 0.1:
            entry[3:] = []
        elif number < 0.2:
            entry[1] = shown
        elif number < 0.3:
            entry[3] = f"Output: {given}"
        entries.append("\n".join(entry))
    return "\n\n".join(entries)
