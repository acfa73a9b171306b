"""The samples that pass between generators, curators, trainers and metrics.

    {"kind": "completion", "id": "5c1f09d2e7ab-12-0",
     "prompt": [{"role": "user", "content": "Write a short story ... cat, jump, happy"}],
     "completion": [{"role": "assistant", "content": "Once there was a happy cat ..."}],
     "fields": "{\\"words\\": [\\"cat\\", \\"jump\\", \\"happy\\"]}",
     "origin": {"seed": 12, "calls": ["9f3c..."], "finish_reason": "stop", ...}}

A sample is one of three kinds, told apart by `kind`. All three share one Arrow schema, so that
mixed files and columns that are null throughout still load with `datasets.load_dataset`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1


class Record(BaseModel):
    """A frozen record that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    """One turn of a chat; `reasoning` is the teacher's thinking, kept apart from its answer."""

    role: Literal["system", "user", "assistant"]
    content: str
    reasoning: str | None = None


class Origin(Record):
    """Where a sample came from: the seed, the calls that made it (call-log keys) and their usage.

    `finish_reason` is that of the last call; token counts are sums over all calls of the seed.
    """

    seed: int
    calls: tuple[str, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = ""


class _Sample(Record):
    id: str = ""
    group: str | None = None  # samples of one question share it; splits never cut through a group
    weight: float = 1.0
    fields: str = "{}"  # what only this recipe knows: a JSON object, typed by the recipe
    origin: Origin | None = None

    @field_validator("fields")
    @classmethod
    def _is_json_object(cls, value: str) -> str:
        # Recipes write "{}" or a dumped model, so the common cases cost no parse.
        if value != "{}" and not isinstance(json.loads(value), dict):
            raise ValueError("must be a JSON object")
        return value


class Completion(_Sample):
    """A prompt and the assistant turn that answers it.

    `teacher_prompt` is what the teacher saw where that differs from `prompt`, which the student
    sees: prompt erasing is that difference, kept.
    """

    kind: Literal["completion"] = "completion"
    prompt: tuple[Message, ...] = Field(min_length=1)
    completion: tuple[Message, ...] = Field(min_length=1, max_length=1)
    teacher_prompt: tuple[Message, ...] | None = None
    answer: str | None = None

    @property
    def text(self) -> str:
        """The assistant's answer."""
        return self.completion[0].content


class Text(_Sample):
    """Plain text, for domain adaptation."""

    kind: Literal["text"] = "text"
    text: str


class Preference(_Sample):
    """A prompt with a chosen and a rejected answer (TRL's preference format)."""

    kind: Literal["preference"] = "preference"
    prompt: tuple[Message, ...] = Field(min_length=1)
    chosen: tuple[Message, ...] = Field(min_length=1)
    rejected: tuple[Message, ...] = Field(min_length=1)


Sample = Annotated[Completion | Text | Preference, Field(discriminator="kind")]
SAMPLE: TypeAdapter[Completion | Text | Preference] = TypeAdapter(Sample)


class Rejection(Record):
    """A seed, or one sample of it, that was turned down: a countable reason and its detail."""

    reason: str
    detail: str = ""
    id: str = ""
    sample: Completion | Text | Preference | None = Field(default=None, discriminator="kind")
    origin: Origin | None = None


def to_row(sample: Completion | Text | Preference) -> dict[str, Any]:
    """One Arrow row: every column of the shared schema, null where the kind lacks it."""
    row: dict[str, Any] = dict.fromkeys(arrow_schema().names)
    row.update(sample.model_dump(mode="json"))
    return row


def from_row(row: Mapping[str, Any]) -> Completion | Text | Preference:
    """The sample of one Arrow row. Raises pydantic.ValidationError on a foreign row."""
    return SAMPLE.validate_python({k: v for k, v in row.items() if v is not None})


def arrow_schema() -> pa.Schema:
    """The one Arrow schema of all samples."""
    import pyarrow as pa

    messages = pa.list_(
        pa.struct([("role", pa.string()), ("content", pa.string()), ("reasoning", pa.string())])
    )
    origin = pa.struct(
        [
            ("seed", pa.int64()),
            ("calls", pa.list_(pa.string())),
            ("prompt_tokens", pa.int64()),
            ("completion_tokens", pa.int64()),
            ("finish_reason", pa.string()),
        ]
    )
    return pa.schema(
        [
            ("kind", pa.string()),
            ("id", pa.string()),
            ("group", pa.string()),
            ("weight", pa.float64()),
            ("prompt", messages),
            ("completion", messages),
            ("teacher_prompt", messages),
            ("answer", pa.string()),
            ("text", pa.string()),
            ("chosen", messages),
            ("rejected", messages),
            ("fields", pa.string()),
            ("origin", origin),
        ]
    )
