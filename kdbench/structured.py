"""Replies as data: a JSON object that fits a pydantic model, with one round of repair.

    class Verdict(BaseModel):
        score: int = Field(ge=1, le=5)

    asked = await ask_structured(teachers["judge"], [question], Verdict, sampling, prompts)
    asked.value                  # -> Verdict(score=4)
    asked.replies                # the reply it came from, and the one before if that had to be mended

The last user message gets the model's JSON schema below it. A reply that does not fit is shown back to
the teacher once, with what is wrong; if the second does not fit either, the seed is turned down.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from kdbench.asking import SeedTeacher
from kdbench.errors import Rejected
from kdbench.prompts import Prompts
from kdbench.records import Message
from kdbench.teacher import Reply, Sampling

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Structured(Generic[ModelT]):
    """A reply as data, the messages that were sent first, and every reply it took."""

    value: ModelT
    asked: tuple[Message, ...]
    replies: tuple[Reply, ...]


async def ask_structured(
    teacher: SeedTeacher,
    messages: Sequence[Message],
    model: type[ModelT],
    sampling: Sampling,
    prompts: Prompts,
) -> Structured[ModelT]:
    """Ask for a JSON object of `model`; the last of `messages` must be the user's.

    Raises kdbench.errors.Rejected("unstructured") if the repaired reply does not fit either, and what
    SeedTeacher.chat raises.
    """
    *before, last = messages
    schema = json.dumps(schema_of(model), ensure_ascii=False)
    request = f"{last.content}\n\n{prompts.render('structured', schema=schema)}"
    asked = (*before, Message(role="user", content=request))
    first = await teacher.chat(asked, sampling)
    try:
        return Structured(parse(first.text, model), asked, (first,))
    except Rejected as exc:
        repair = prompts.user("repair", problem=exc.detail)
    second = await teacher.chat((*asked, first.message, repair), sampling)
    return Structured(parse(second.text, model), asked, (first, second))


def parse(text: str, model: type[ModelT]) -> ModelT:
    """The first JSON object in a text, whatever stands around it. Raises Rejected("unstructured")."""
    start = text.find("{")
    if start < 0:
        raise Rejected("unstructured", "it holds no JSON object")
    try:
        found, _ = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError) as exc:
        raise Rejected("unstructured", f"its JSON is broken ({str(exc)[:80]})") from exc
    try:
        return model.model_validate(found)
    except ValidationError as exc:
        wrong = (f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in exc.errors())
        raise Rejected("unstructured", "; ".join(wrong)[:300]) from exc


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """The model's JSON schema without the titles, which only repeat the names."""

    def bare(part: Any, *, names: bool = False) -> Any:
        if isinstance(part, dict):
            return {k: bare(v, names=k == "properties") for k, v in part.items() if names or k != "title"}
        return [bare(one) for one in part] if isinstance(part, list) else part

    schema: dict[str, Any] = bare(model.model_json_schema())
    return schema
