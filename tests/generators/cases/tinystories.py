"""A run of the tinystories recipe over the scripted teacher's stories, some of which go wrong."""

from __future__ import annotations

from typing import Any

from kdbench.teacher import Request
from tests.support.teachers import ScriptTeacher, share

N = 6
CONFIG: dict[str, Any] = {"paragraphs": (1, 2), "filters": {"min_words": 20}, "draws": 2}
STORY = (
    "One day Mia saw the {0} by the pond. She wanted to {1} too, but she was a little afraid. "
    '"It is so {2} here," she said to her friend. They held hands and tried it together, '
    "and then they went home for warm soup."
)


def teachers() -> dict[str, ScriptTeacher]:
    return {"teacher": ScriptTeacher(tell)}


def tell(request: Request) -> str:
    words = request.messages[-1].content.split('"')[1:6:2]
    number = share(request)
    if number < 0.2:
        return "I'm sorry, but I can't help with that."
    if number < 0.4:
        return STORY.format("ball", "play", "nice")
    if number < 0.5:
        return STORY.format(*words)[:80] + ScriptTeacher.CUT
    return STORY.format(*words)
