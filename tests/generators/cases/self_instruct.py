"""Lists of new tasks over two rounds; kinds, labels and instances go wrong in every way at fixed shares."""

from __future__ import annotations

from typing import Any

from kdbench.teacher import Request
from tests.support.teachers import ScriptTeacher, share

N = 22  # more than the seeds give
MAX_CANDIDATES = 9
SEVERAL_GROUPS = True
CONFIG: dict[str, Any] = {
    "round_size": 3,
    "demos_seed": 3,
    "demos_pool": 2,
    "instructions_per_call": 4,
    "examples": 1,
    "max_instances": 3,
}
THINGS = ("an umbrella", "the moon", "garlic", "a steam engine", "jealousy", "the number zero", "a beehive")
TASKS = (
    "Decide whether the remark on {} is friendly or rude.",
    "Compose a limerick in which {} plays a part.",
    "Explain to a grandmother what {} is good for.",
    "Sort the four claims on {} into true and false ones.",
    "Invent a proverb with {} in it, and say when people would use it.",
    "How would history have gone on without {}?",
    "Draw a picture of {}.",
    "Write a program that counts {}.",
    "Describe {}.",
)
CLASSES = {TASKS[0]: ("friendly", "rude"), TASKS[3]: ("true", "false")}


def teachers() -> dict[str, ScriptTeacher]:
    return {"teacher": ScriptTeacher(answer)}


def answer(request: Request) -> str:
    asked = request.messages[-1].content
    number = share(request)
    if "Go on with the list" in asked:
        return listed(request, number)
    *_, instruction = (
        line.removeprefix("Task: ") for line in asked.splitlines() if line.startswith("Task: ")
    )
    if "Is it a classification task?" in asked:
        return "That depends." if number < 0.1 else "Yes." if classes(instruction) else "No, it is not."
    return labelled(instruction, number) if "first choose a label" in asked else open_ended(number)


def listed(request: Request, number: float) -> str:
    if number < 0.1:
        return "What a nice list! I like the one about the market best."
    asked = request.messages[-1].content
    shown = [line.partition(". ")[2] for line in asked.splitlines() if line[:1].isdigit()]
    made = [
        TASKS[int(share(request, f"task {i}") * len(TASKS))].format(
            THINGS[int(share(request, f"thing {i}") * len(THINGS))]
        )
        for i in range(5)
    ]
    if number < 0.4:
        made[1] = shown[0]
    first = len(shown) + 1
    return "Sure!\n" + "\n".join(f"{i}. {task}" for i, task in enumerate(made, start=first))


def classes(instruction: str) -> tuple[str, ...]:
    start = instruction.split(maxsplit=1)[0]
    return next((labels for task, labels in CLASSES.items() if task.startswith(start)), ())


def labelled(instruction: str, number: float) -> str:
    one, other = classes(instruction)
    if number < 0.25:  # the first two contradict each other
        return f"Label: {one}\nInput: So be it.\nLabel: {other}\nInput: So be it.\nLabel: {other}\nInput: No!"
    if number < 0.5:  # the second has no input, the fourth is one too many
        return f"Label: {one}\nInput: Well done.\n\nLabel: {other}\n\n" + 2 * f"Label: {one}\nInput: Fine.\n"
    return f"Example 1\nLabel: {one}\nInput: How good!\n\nExample 2\n**Label:** {other}\n**Input:** How bad."


def open_ended(number: float) -> str:
    if number < 0.1:
        return "I'm sorry, but I can't help with that."
    if number < 0.2:
        return "Nobody knows, and nobody asks."
    if number < 0.3:
        return "Input: none\nOutput: Long ago it was" + ScriptTeacher.CUT
    if number < 0.4:
        return (
            "Input: the old one\nOutput: the old one\n\nInput: a new one\nOutput:\n\nInput: x\nOutput: See:"
        )
    if number < 0.6:
        return 2 * "Input: in two words\nOutput: Very useful.\n\n" + "Input: in one word\nOutput: Useful."
    return "Input: none\nOutput: It came with the rain, it stayed for tea,\nand no one knew what it might be."
