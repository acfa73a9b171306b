"""`kdbench show`: what it prints for a recipe of any shape, and that nothing of it is invented."""

from __future__ import annotations

import io
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml
from pydantic import Field
from rich.console import Console

from kdbench import plugins
from kdbench.config import StrictConfig
from kdbench.errors import ConfigError, UsageError
from kdbench.jobs._describing import REQUIRED, commented_yaml, keys_of
from kdbench.jobs.showing import look_at, show_recipe
from kdbench.questions import QuestionSource
from kdbench.records import Completion
from kdbench.teacher import Sampling


def shown(recipe: str | Path, config: dict[str, Any] | None = None, **more: Any) -> str:
    printed = io.StringIO()
    show_recipe(recipe, config or {}, Console(file=printed, width=100), **more)
    return printed.getvalue()


def write(folder: Path, text: str, **templates: str) -> Path:
    file = folder / "mine.py"
    file.write_text(dedent(text))
    for name, template in templates.items():
        (folder / f"{name}.j2").write_text(template)
    return file


CHAIN = '''
"""A chain."""
from kdbench.config import StrictConfig
from kdbench.questions import Questions, QuestionSource
from kdbench.records import Completion, Message
from kdbench.teacher import Sampling
from pydantic import Field

class Config(StrictConfig):
    questions: QuestionSource
    steps: int = Field(2, ge=1, le=5, description="how often")

ROLES = {"teacher": {"chat"}, "judge": {"chat"}}
SAMPLING = Sampling(temperature=0.5, max_tokens=7)

def rows(config):
    return Questions(config.questions)

async def generate(seed, teachers, config, prompts):
    messages = [prompts.system("be"), prompts.user("question", question=seed.row)]
    for _ in range(config.steps):
        reply = await teachers["teacher"].chat(messages, SAMPLING)
        messages += [reply.message, prompts.user("more", last=reply.text)]
    verdict = await teachers["judge"].chat([prompts.user("rate")], SAMPLING)
    return [Completion(prompt=tuple(messages[:2]), completion=(reply.message,), answer=verdict.text)]
'''
TEMPLATES = {"be": "Be brief.", "more": "After {{ last }}: go on.", "rate": "Rate it."}


def test_without_replies_the_first_prompt_of_each_example_question_is_shown(tmp_path: Path) -> None:
    file = write(tmp_path, CHAIN, **TEMPLATES)
    first, second = shown(file), shown(file, seed=1)
    assert "[system]\nBe brief.\n[user]\nA crate holds 12 bottles." in first
    assert "[user]\nAnn had 20 plums" in second
    for text in (first, second):
        assert "go on" not in text
        assert "add --teacher SPEC" in text
        assert "to the teacher: temperature 0.5, at most 7 tokens" in text


def test_with_replies_the_whole_chain_is_shown_role_by_role_and_no_message_twice(tmp_path: Path) -> None:
    replies = 'REPLIES = {"teacher": ["one", "two"], "judge": ["ten of ten"]}'
    text = shown(write(tmp_path, f"{CHAIN}\n{replies}\n", **TEMPLATES))
    assert "request 1, to the teacher" in text
    assert "request 2, to the teacher" in text
    assert "request 3, to the judge" in text
    assert "After one: go on." in text
    assert text.count("Be brief.") == 2  # in the first request, and in the sample
    assert "[prompt, user]\nA crate holds 12 bottles." in text
    assert "[completion, assistant]\ntwo" in text
    assert "add --teacher" not in text
    assert "add --teacher" in shown(tmp_path / "mine.py", seed=1)  # they are replies to the first seed


def test_replies_that_end_early_end_the_show_there(tmp_path: Path) -> None:
    text = shown(write(tmp_path, f'{CHAIN}\nREPLIES = {{"teacher": ["one"]}}\n', **TEMPLATES))
    assert "After one: go on." in text
    assert "After two" not in text
    assert "add --teacher SPEC" in text


def test_a_real_teacher_takes_the_place_of_the_replies(tmp_path: Path) -> None:
    file = write(tmp_path, f'{CHAIN}\nREPLIES = {{"teacher": ["one", "two"]}}\n', **TEMPLATES)
    text = shown(file, teacher={"teacher": "scripted", "judge": "scripted"}, config={"steps": 1})
    assert "After one" not in text
    assert "turned down: truncated" in text  # at most 7 tokens


def test_the_examples_of_the_recipe_come_first_and_the_users_own_before_them(tmp_path: Path) -> None:
    example = (
        'EXAMPLE = {"questions": {"rows": [{"question": "Who?", "choices": ["you", "me"]}]}, "steps": 3}'
    )
    file = write(tmp_path, f"{CHAIN}\n{example}\n", **TEMPLATES)
    text = shown(file)
    assert "[user]\nWho?\n(A) you\n(B) me" in text
    assert "steps: 3" in text
    assert "[default: 2]" in text
    own = tmp_path / "own.jsonl"
    own.write_text('{"question": "Where?"}\n')
    text = shown(file, {"questions": {"file": str(own)}, "steps": 4})
    assert "[user]\nWhere?" in text
    assert "example questions" not in text
    assert "steps: 4" in text
    assert "verifier: exact " in text  # and not that of the built-in example


def test_what_has_no_default_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    config = 'questions: QuestionSource\n    topic: str = Field(description="what it is about")'
    text = shown(write(tmp_path, CHAIN.replace("questions: QuestionSource", config), **TEMPLATES))
    assert "REQUIRED. what it is about (text)" in text
    assert "give with --set or --config what has no default: topic (what it is about)" in text
    assert "[user]" not in text
    assert "[user]" in shown(tmp_path / "mine.py", {"topic": "tea"})


def test_bad_settings_are_as_clear_as_in_a_run(tmp_path: Path) -> None:
    file = write(tmp_path, CHAIN, **TEMPLATES)
    with pytest.raises(ConfigError, match="steps = 9"):
        look_at(file, {"steps": 9})
    with pytest.raises(ConfigError, match="no key 'stebs'"):
        look_at(file, {"stebs": 1})
    with pytest.raises(UsageError, match="no seed 2: the questions end before it"):
        look_at(file, seed=2)
    with pytest.raises(UsageError, match="needs a teacher for the role 'judge'"):
        look_at(file, teacher="scripted")


def test_draws_of_one_request_are_shown_once() -> None:
    text = shown("answers", {"samples": 2, "scorer": "judge"})
    assert "request 1, 2 times, to the teacher" in text
    assert "request 3, to the judge" in text
    assert "request 4, to the judge" in text
    assert text.count("a sample of kind completion") == 2


class Inner(StrictConfig):
    """What is inside."""

    depth: float = Field(0.5, gt=0, le=1, description="how deep")
    name: str | None = None


class Outer(StrictConfig):
    """A config with one of each."""

    count: int = Field(ge=1, le=9, description="how many")
    pair: tuple[int, int] = (1, 2)
    inner: Inner = Inner(depth=0.75)
    perhaps: Inner | None = Field(None, description="or not")
    sampling: Sampling = Sampling(temperature=0.0)
    questions: QuestionSource | None = None


def test_the_keys_of_a_config() -> None:
    keys = {key.name: key for key in keys_of(Outer, {"inner": {"depth": 0.25, "name": "x: y"}})}
    assert keys["count"].default is REQUIRED
    assert keys["count"].kind == "whole number, 1 to 9"
    assert keys["pair"].kind == "list of 2: whole number"
    assert (keys["inner.depth"].value, keys["inner.depth"].default) == (0.25, 0.75)
    assert keys["inner.depth"].kind == "number, above 0, at most 1"
    assert keys["inner.name"].kind == "text or null"
    assert keys["inner"].about == "What is inside"
    assert keys["perhaps"].about == "or not"
    assert keys["perhaps.depth"].inside_null
    assert keys["sampling.temperature"].default == 0.0


def test_a_comment_never_becomes_part_of_its_value() -> None:
    for length in range(20, 40):
        values = {"count": 1, "inner": {"depth": 0.5, "name": "x" * length}, "perhaps": None}
        read = yaml.safe_load(commented_yaml(keys_of(Outer, values), 60))
        assert read["inner"] == values["inner"]
        assert read["perhaps"] is None


@pytest.mark.parametrize("recipe", plugins.names("generators"))
@pytest.mark.parametrize("width", [60, 100])
def test_the_config_of_every_recipe_reads_back_as_yaml(recipe: str, width: int) -> None:
    look = look_at(recipe)
    model = plugins.config_class(plugins.load("generators", recipe))
    read = yaml.safe_load(commented_yaml(look.keys, width))
    if not look.missing:
        model.model_validate(read)
    assert list(read) == list(model.model_fields)
    assert all(
        len(line) <= width or " # " in line or ": " in line for line in commented_yaml(look.keys, width)
    )


@pytest.mark.parametrize("recipe", plugins.names("generators"))
def test_every_recipe_shows_its_first_prompt_or_says_what_it_needs(recipe: str) -> None:
    look = look_at(recipe)
    assert look.about
    assert look.missing or look.played
    if look.played is not None and not look.played.said:
        assert look.played.outcomes  # it asks nobody
        assert "no teacher is asked" in look.about


@pytest.mark.parametrize("recipe", ["answers", "tinystories"])
def test_the_replies_of_a_recipe_make_a_sample_of_its_example(recipe: str) -> None:
    played = look_at(recipe).played
    assert played is not None
    assert played.outcomes is not None
    assert [type(outcome) for outcome in played.outcomes] == [Completion]
