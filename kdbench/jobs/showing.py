"""`kdbench show RECIPE`: facts, config, templates, and the prompts rendered on a real seed.

    look = look_at("answers", {"samples": 2})
    look.keys                     # every key of the config, with its default and what it is for
    look.played.said              # what the first seed asks, of whom

What the user leaves out comes from the recipe's own EXAMPLE; the later prompts of a chain are shown on
the REPLIES of the recipe's module, or on a real teacher's (`--teacher`). Without either, the first ones are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from rich.console import Console

from kdbench import plugins
from kdbench.engine import make_seeds
from kdbench.errors import UsageError
from kdbench.jobs._describing import REQUIRED, Key, commented_yaml, keys_of
from kdbench.jobs._playing import Played, Said, Scripted, play
from kdbench.jobs._recipes import LoadedRecipe, load_recipe
from kdbench.jobs._teachers import connect_roles
from kdbench.loops import run_async
from kdbench.questions import Question, QuestionSource
from kdbench.records import Completion, Rejection
from kdbench.teacher import Sampling, Teacher

_SOURCES = ("task", "file", "dataset")
# For a recipe that asks questions and brings no example of its own.
_OWN = {
    "verifier": "numeric",
    "rows": [
        {"question": "A crate holds 12 bottles. How many bottles are in 5 crates?", "answer": "60"},
        {"question": "Ann had 20 plums and gave away 3 plums twice. How many are left?", "answer": "14"},
    ],
}
_ROWS_FILE = "questions.jsonl"


@dataclass(frozen=True, slots=True)
class Look:
    """A recipe seen from outside; `missing` are the keys that stand between it and its prompts."""

    name: str
    about: str
    facts: Mapping[str, str]
    keys: list[Key]
    templates: Mapping[str, str]
    roles: Mapping[str, frozenset[str]]
    rows: tuple[Mapping[str, Any], ...]
    missing: list[Key]
    played: Played | None


def look_at(
    recipe: str | Path,
    config: Mapping[str, Any] | None = None,
    *,
    teacher: str | Mapping[str, str] | None = None,
    seed: int = 0,
) -> Look:
    """A recipe with the config given, on the seed of that number. Raises UsageError, TeacherError."""
    path = Path(recipe)
    if path.suffix == ".py":
        module = plugins.load_file(path, "generators")
    else:
        module = plugins.load("generators", str(recipe))
    model = plugins.config_class(module)
    values, rows = _with_example(model, getattr(module, "EXAMPLE", {}), config or {})
    bare = {key: value for key, value in values.items() if key == "questions" or key in (config or {})}
    if not _fits(model, values) and _fits(model, bare):
        values = bare  # the example says something else than the user does
    loaded: LoadedRecipe | None = None
    keys = keys_of(model, values)
    missing = [key for key in keys if key.value is REQUIRED]
    if not missing:
        loaded = load_recipe(recipe, values)
        keys = keys_of(model, loaded.config.model_dump(mode="json"))
    replies = getattr(module, "REPLIES", {}) if teacher is None and seed == 0 else {}
    return Look(
        name=path.stem,
        about=(module.__doc__ or "").strip(),
        facts=getattr(module, "FACTS", {}),
        keys=keys,
        templates=loaded.prompts.hashes() if loaded else {},
        roles=loaded.roles if loaded else {},
        rows=rows,
        missing=missing,
        played=run_async(_play(loaded, rows, teacher, replies, seed)) if loaded else None,
    )


def _with_example(
    model: type[BaseModel], example: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[Mapping[str, Any], ...]]:
    """The config with the example's values where none are given, and the example's rows if it uses them."""
    values = {**example, **given}
    field = model.model_fields.get("questions")
    if field is None or field.annotation is not QuestionSource:
        return values, ()
    asked = given.get("questions", {})
    if any(asked.get(source) is not None for source in _SOURCES):
        return values, ()
    source = {**example.get("questions", _OWN), **asked}
    rows = tuple(source.pop("rows", ()))
    if any(key in source for key in _SOURCES):
        return {**values, "questions": source}, ()
    # A file of that name need not be there: what it would hold is at hand.
    return {**values, "questions": {"file": _ROWS_FILE, **source}}, rows


def _fits(model: type[BaseModel], values: Mapping[str, Any]) -> bool:
    try:
        model.model_validate(values)
    except ValidationError:
        return False
    return True


async def _play(
    recipe: LoadedRecipe,
    rows: tuple[Mapping[str, Any], ...],
    teacher: str | Mapping[str, str] | None,
    replies: Mapping[str, list[str]],
    number: int,
) -> Played:
    questions = [_question(row, recipe) for row in rows] or recipe.rows
    found = list(islice(make_seeds(0, number + 1, questions), number, None))
    if not found:
        raise UsageError(f"There is no seed {number}: the questions end before it; choose a lower one")
    teachers: dict[str, Teacher] = {role: Scripted(said) for role, said in replies.items()}
    if teacher is not None:
        teachers = connect_roles(teacher, recipe.roles)
    try:
        return (await play(recipe, found, teachers))[0]
    finally:
        for one in teachers.values():
            await one.close()


def _question(row: Mapping[str, Any], recipe: LoadedRecipe) -> Question:
    return Question(
        text=row["question"],
        answer=row.get("answer"),
        choices=tuple(row.get("choices") or ()),
        context=row.get("context") or "",
        kind=row.get("kind") or "",
        verifier=recipe.config.questions.verifier,  # type: ignore[attr-defined]
    )


def show_recipe(
    recipe: str | Path,
    config: Mapping[str, Any],
    console: Console,
    *,
    teacher: str | Mapping[str, str] | None = None,
    seed: int = 0,
) -> None:
    """Print what a recipe is. Raises UsageError, TeacherError."""
    look = look_at(recipe, config, teacher=teacher, seed=seed)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    console.rule(look.name)
    say(look.about)
    console.rule("facts")
    for key, fact in look.facts.items():
        say(f"{key}: {fact}")
    console.rule("config (as YAML, for --config FILE; one key: --set sampling.max_tokens=200)")
    say(commented_yaml(look.keys, console.width))
    if look.missing:
        console.rule("prompts")
        needed = ", ".join(f"{key.name} ({key.about or key.kind})" for key in look.missing)
        say(f"To see the prompts, give with --set or --config what has no default: {needed}")
        return
    console.rule("templates (their folder under --prompts DIR overrides them one by one)")
    for name, digest in look.templates.items():
        say(f"{name:<40} sha256 {digest[:12]}")
    for role, needs in look.roles.items():
        say(f"role {role}: needs {', '.join(sorted(needs))}")
    if look.rows:
        console.rule(f"example questions, as in {_ROWS_FILE} (give your own: --set questions.file=...)")
        for row in look.rows:
            say("  ".join(f"{name}: {value}" for name, value in row.items() if value is not None))
    assert look.played is not None
    _say_played(look.played, real=teacher is not None, console=console)


def turns(said: list[Said]) -> list[tuple[int, list[Said]]]:
    """(number of the first, equal requests that follow one another), in the order of asking."""
    numbered = list(enumerate(said, start=1))
    alike = groupby(numbered, key=lambda pair: (pair[1].role, pair[1].messages, pair[1].sampling))
    groups = [list(pairs) for _, pairs in alike]
    return [(pairs[0][0], [one for _, one in pairs]) for pairs in groups]


def sampling_text(sampling: Sampling) -> str:
    """What of a sampling is worth saying: "temperature 0.7, at most 512 tokens"."""
    said = [f"temperature {sampling.temperature:g}", f"at most {sampling.max_tokens} tokens"]
    if sampling.top_p < 1:
        said.insert(1, f"top_p {sampling.top_p:g}")
    if sampling.stop:
        said.append(f"stops at {', '.join(map(repr, sampling.stop))}")
    return ", ".join(said)


def _say_played(played: Played, *, real: bool, console: Console) -> None:
    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    before: tuple[Any, ...] = ()
    for number, alike in turns(played.said):
        first = alike[0]
        times = f", {len(alike)} times" if len(alike) > 1 else ""
        console.rule(
            f"seed {played.seed}, request {number}{times}, to the {first.role}: "
            f"{sampling_text(first.sampling)}"
        )
        # A dialogue that goes on is not printed from its beginning again.
        known = len(before) if before and first.messages[: len(before)] == before else 0
        if known:
            say(f"[the {known} messages above, and then]")
        for message in first.messages[known:]:
            say(f"[{message.role}]\n{message.content}")
        for one in alike:
            if one.reply is not None:
                say(f"[{'reply' if real else 'example of a reply'}]\n{one.reply}")
        before = first.messages
    if played.outcomes is None:
        console.rule("what comes after depends on the reply: add --teacher SPEC to see it")
        return
    for outcome in played.outcomes:
        if isinstance(outcome, Rejection):
            console.rule(f"turned down: {outcome.reason}")
            say(outcome.detail)
        else:
            console.rule(f"a sample of kind {outcome.kind}")
            _say_sample(outcome, say)


def _say_sample(sample: Any, say: Any) -> None:
    for part in ("prompt", "completion", "chosen", "rejected"):
        for message in getattr(sample, part, ()):
            say(f"[{part}, {message.role}]\n{message.content}")
    if not isinstance(sample, Completion) and hasattr(sample, "text"):
        say(sample.text)
    say(f"[fields]\n{sample.fields}")
