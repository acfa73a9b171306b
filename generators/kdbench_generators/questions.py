"""Questions with their gold answers, for held-out sets: no teacher is asked.

    seed 0 -> "State the final answer to the following arithmetic problem: 4 + 3 =", gold "7"
    sample: prompt = that question, as the template puts it
            completion = "The answer is 7.", answer = "7"

What a generation keeps is what its teacher could do: students compared on that look better than they
are. Here every question is kept. `template` and `system` name the templates that the training data's
students see, such as chain_of_thought/zero_shot_cot, so that both sets ask alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdbench.config import StrictConfig, canonical_hash, suggestion
from kdbench.errors import Rejected, TemplateError, UsageError
from kdbench.prompts import Prompts
from kdbench.questions import Question, QuestionFields, Questions, QuestionSource
from kdbench.records import Completion, Message

if TYPE_CHECKING:
    from kdbench.engine import Seed

FACTS = {
    "ours": "a held-out set of questions; give any teacher, it is not asked",
    "use": "kdbench evaluate ... --metric accuracy --temperature 0",
}
ROLES: dict[str, set[str]] = {"teacher": set()}
EXAMPLE = {"questions": {"task": {"chain_sum": {"min_terms": 2, "max_terms": 3, "max_digits": 1}}}}


class Config(StrictConfig):
    """Which questions, and how they are put."""

    questions: QuestionSource
    template: str = Field(
        "shared/question", pattern=r"^\w+/\w+$", description="RECIPE/TEMPLATE of the user's turn"
    )
    system: str | None = Field(
        None, pattern=r"^\w+/\w+$", description="RECIPE/TEMPLATE of a system message; null: none"
    )
    values: dict[str, Any] = Field({}, description="what the templates are given besides the question")
    marker: str = Field("The answer is", min_length=1, description="what stands before the gold answer")


class Rows:
    """The questions, and what tells whether set and templates are still the same."""

    def __init__(self, config: Config) -> None:
        self._questions = Questions(config.questions)
        used = {name: templates_sha256(name) for name in (config.template, config.system) if name}
        self.fingerprint = {**self._questions.fingerprint, "templates": used}

    def __iter__(self) -> Iterator[Question]:
        return iter(self._questions)


def rows(config: Config) -> Rows:
    """One question per seed. Raises kdbench.errors.TemplateError, DataError, ConfigError."""
    return Rows(config)


async def generate(seed: Seed, config: Config, prompts: Prompts) -> list[Completion]:
    """The question and its gold answer as one sample. Raises kdbench.errors.UsageError with --prompts."""
    if prompts.is_overridden:
        raise UsageError("questions borrows the templates of other recipes as shipped; leave out --prompts")
    question: Question = seed.row
    if question.answer is None:
        raise Rejected("no_gold", "a held-out question needs a gold answer")
    question.check_gold()
    prompt = [Message(role="user", content=_render(config.template, question, config.values))]
    if config.system is not None:
        prompt.insert(0, Message(role="system", content=_render(config.system, question, config.values)))
    answer = Message(role="assistant", content=f"{config.marker} {question.answer}.")
    fields = QuestionFields(**QuestionFields.of(question))
    return [
        Completion(
            prompt=tuple(prompt), completion=(answer,), answer=question.answer, group=question.group,
            fields=fields.model_dump_json(),
        )
    ]  # fmt: skip


def _render(template: str, question: Question, values: dict[str, Any]) -> str:
    recipe, name = PurePosixPath(template).parts
    return _prompts(recipe).render(name, question=question, **values)


def templates_sha256(template: str) -> str:
    """One hash of a template and all it may include. Raises kdbench.errors.TemplateError."""
    recipe, _ = PurePosixPath(template).parts
    known = _prompts(recipe).hashes()
    if f"{template}.j2" not in known:
        raise TemplateError(f"No template {template}{suggestion(f'{template}.j2', known)}")
    return canonical_hash(known)


@lru_cache(maxsize=8)
def _prompts(recipe: str) -> Prompts:
    return Prompts(recipe)
