"""docs/own_recipe.md does what it says: its files, its commands, its cells, one after the other."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from kdbench import cli
from kdbench.jsonl import read_samples
from kdbench.records import Completion

PAGE = (Path(__file__).parents[1] / "docs" / "own_recipe.md").read_text()
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
PYTHON, JINJA, SHELL = (
    [body for kind, body in BLOCK.findall(PAGE) if kind == wanted] for wanted in ("python", "jinja", "sh")
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fables.py").write_text(PYTHON[0])
    (tmp_path / "fable.j2").write_text(JINJA[0])
    (tmp_path / "my_prompts" / "tinystories").mkdir(parents=True)
    (tmp_path / "my_prompts" / "tinystories" / "short.j2").write_text(JINJA[1])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str) -> None:
    words = shlex.split(command, comments=True)
    assert words.pop(0) == "kdbench"
    cli.app(words, standalone_mode=False)


def samples(name: str) -> list[Completion]:
    return [s for s in read_samples(Path("runs") / name / "samples.jsonl") if isinstance(s, Completion)]


def test_the_file_s_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show, first, again, short = SHELL[0].strip().splitlines()
    run(show)
    assert "min_words" in capsys.readouterr().out
    run(first)
    made = samples("fables")
    assert len(made) == 20
    assert made[0].prompt[0].content.startswith("Write a fable in 6 sentences")
    assert set(json.loads(made[0].fields)) == {"animals"}
    calls = json.loads((folder / "runs/fables/run.json").read_text())["stats"]["calls"]
    assert calls >= 20
    run(again)
    assert json.loads((folder / "runs/fables/run.json").read_text())["stats"]["calls"] == 0
    assert all(len(sample.text.split()) >= 60 for sample in samples("fables"))
    run(short)
    assert "3 sentences" in samples("short")[0].prompt[0].content


def test_the_notebook_s_cell() -> None:
    exec(compile(PYTHON[1], "cell", "exec"), {"__name__": "cell"})
    assert len(samples("limericks")) == 5


def test_the_override() -> None:
    run(SHELL[1].strip())
    assert all(s.prompt[0].content.startswith("Tell a bedtime story in 5") for s in samples("bedtime"))
