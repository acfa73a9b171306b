"""The recipe pages: each recipe has one, it is not stale, and what its script cuts and counts is right.

A page is stale where its config table is not what the recipe's module gives now:
`python docs/write_recipe_pages.py --only RECIPE` writes it anew.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench import plugins
from kdbench.records import Completion, Message, Rejection

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "recipes"
RECIPES = plugins.names("generators")


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_recipe_pages", ROOT / "docs/write_recipe_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


pages: Any = load()


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_a_page_with_the_config_it_has_now(recipe: str) -> None:
    page = PAGES / f"{recipe}.md"
    assert page.is_file(), f"no page: python docs/write_recipe_pages.py --only {recipe}"
    assert pages.config_table(recipe) in page.read_text(), f"stale: --only {recipe} writes it anew"


def test_no_page_is_left_over_and_the_index_names_them_all() -> None:
    written = {path.stem for path in PAGES.glob("*.md")} - {"README"}
    assert written <= set(RECIPES)
    index = (PAGES / "README.md").read_text()
    assert set(re.findall(r"^\| \[(\w+)\]\(\1\.md\)", index, re.MULTILINE)) == set(RECIPES)


def test_no_page_tells_where_it_was_written() -> None:
    for path in PAGES.glob("*.md"):
        assert not re.search(r"(?<![\w.])/(?:home|root|tmp|work|usr|var)/", path.read_text()), path.name


def test_the_runs_file_asks_for_recipes_and_settings_that_exist() -> None:
    runs = pages.read_runs(PAGES / "runs.yaml")
    assert set(runs) <= set(RECIPES)
    for run in (run for entries in runs.values() for run in entries):
        pages.load_recipe(run.recipe, run.config)
        assert run.max_candidates >= pages.SEEDS
    paths = [run.path for entries in runs.values() for run in entries]
    assert len(set(paths)) == len(paths)


def rejection(reason: str, detail: str = "", text: str = "") -> Rejection:
    said = (Message(role="assistant", content=text),)
    sample = Completion(prompt=(Message(role="user", content="?"),), completion=said) if text else None
    return Rejection(reason=reason, detail=detail, sample=sample)


def test_the_table_of_rejections_counts_each_reason_and_shows_its_first() -> None:
    found = [
        rejection("loop", "", "a | b"),
        rejection("refusal", "I'm sorry", "I'm sorry, no."),
        rejection("loop"),
    ]
    (table,) = pages.rejection_sections(found, 12)
    assert table.splitlines()[2:] == [
        "| `loop` | 2 | 17% | `a \\| b` |",
        "| `refusal` | 1 | 8% | `I'm sorry, no.` |",
    ]


@given(st.text(max_size=60), st.integers(10, 40))
def test_a_text_is_cut_in_the_middle_and_only_if_it_is_too_long(text: str, length: int) -> None:
    cut = pages.shorten(text, length)
    assert cut == text if len(text) <= length else len(cut) <= length + len(" [...] ")
    assert " [...] " in cut or cut == text


@given(st.text(alphabet="`a \n", max_size=40))
def test_nothing_in_a_block_or_a_line_of_code_ends_it(text: str) -> None:
    opening, *inside, closing = pages.fenced(text).split("\n")
    assert opening == f"{closing}text"
    assert all(not line.startswith(closing) for line in inside)
    line = pages.code(text)
    ticks = re.match("`*", line)
    assert ticks is not None
    assert line == "" or line.count(ticks[0]) == 2


@given(st.integers(0, 200))
def test_samples_are_spread_from_the_first_to_the_last(count: int) -> None:
    chosen = pages.spread(list(range(count)), 10)
    assert len(chosen) == len(set(chosen)) == min(count, 10)
    assert chosen == sorted(chosen)
    assert count == 0 or (chosen[0], chosen[-1]) == (0, count - 1)


def test_a_sample_shows_who_saw_what_and_the_fields_that_tell_something() -> None:
    sample = Completion(
        prompt=(Message(role="user", content="2 + 3?"),),
        completion=(Message(role="assistant", content="5", reasoning="Two and three."),),
        teacher_prompt=(Message(role="system", content="Think."), Message(role="user", content="2 + 3?")),
        answer="5",
        fields=json.dumps({"score": 0.66666, "entry": "{}", "remark": None, "draw": 0}),
    )
    rest = (
        "[user]\n2 + 3?\n\n[assistant, thinking]\nTwo and three.\n\n[assistant]\n5\n\n[answer] 5\n\n"
        '[fields] {"score": 0.667, "draw": 0}\n```'
    )
    assert pages.sample_text(sample) == f"```text\n[only the teacher saw: system]\nThink.\n\n{rest}"
    before = pages.only_the_teachers(sample)
    assert pages.sample_text(sample, before).startswith("```text\n[only the teacher saw: the same as above]")
    erased = sample.model_copy(update={"prompt": (Message(role="user", content="Five?"),)})
    assert [m.role for m in pages.only_the_teachers(erased)] == ["system", "user"]


def test_a_run_is_made_once_shown_and_known_to_be_outdated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "RUNS", tmp_path / "runs")
    few = {"paragraphs": [1, 1], "filters": {"min_words": 20}}
    run = pages.PageRun("tinystories", "scripted", config=few, teacher_config={"mistakes": {"refusal": 0.3}})
    assert not run.made()
    run.make()
    assert run.made()
    assert not run.outdated()
    text = "\n\n".join(pages.run_section(run))
    kept, refused = (
        int(re.search(pattern, text)[1]) for pattern in (r": (\d+) of 50 kept", r"refusal` \| (\d+)")
    )  # type: ignore[index]
    assert kept + refused == 50
    assert text.count("[assistant]") == 10
    assert pages.PageRun("tinystories", "scripted", config={**few, "sentences": 3}).outdated()


def test_a_run_that_kept_nothing_is_shown_with_its_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "RUNS", tmp_path / "runs")
    run = pages.PageRun("tinystories", "scripted", config={"filters": {"min_words": 599}})
    run.make()
    assert run.made()
    text = "\n\n".join(pages.run_section(run))
    assert ": 0 of 50 kept (0%)" in text
    assert "| `too_short` | 50 | 100% |" in text
    assert "Nothing was kept." in text
    assert pages.kept_of(run) == "scripted: 0 of 50 (0%)"
