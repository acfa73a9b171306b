"""What holds for every recipe: its golden run, resumption after kill -9, concurrency, groups, no torch.

A case in `cases/` says how a recipe is run with a scripted teacher: `NAME.py`, and `NAME__VARIANT.py` for
each further way that is worth a golden run. KDBENCH_UPDATE_GOLDEN=1 writes the golden files anew; read them
before you keep them.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kdbench
from kdbench import plugins
from kdbench.jsonl import read_samples
from kdbench.records import Completion

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.stem for path in (Path(__file__).parent / "cases").glob("[!_]*.py"))
VIEWS = ("samples.jsonl", "rejected.jsonl")


def recipe_of(case: str) -> str:
    return case.partition("__")[0]


def run(name: str, out: Path, *, resume: bool = False, concurrency: int | None = None) -> int:
    """Run a case; the number of calls that its teachers were asked for."""
    case: Any = importlib.import_module(f"tests.generators.cases.{name}")
    inputs = out.with_name("inputs")
    inputs.mkdir(exist_ok=True)
    teachers = case.teachers()
    kdbench.generate(
        recipe_of(name),
        teacher=teachers,
        n=case.N,
        out=out,
        config=case.config(inputs) if hasattr(case, "config") else case.CONFIG,
        resume=resume,
        concurrency=concurrency,
        max_candidates=getattr(case, "MAX_CANDIDATES", None),
    )
    return sum(teacher.asked for teacher in teachers.values())


def views(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in VIEWS]


def test_every_recipe_has_a_case() -> None:
    assert set(map(recipe_of, CASES)) == set(plugins.names("generators"))


@pytest.mark.parametrize("case", CASES)
def test_the_golden_run(case: str, tmp_path: Path) -> None:
    run(case, tmp_path / "run")
    for name in VIEWS:
        golden = GOLDEN / f"{case}.{name}"
        made = (tmp_path / "run" / name).read_text()
        if os.environ.get("KDBENCH_UPDATE_GOLDEN"):
            golden.write_text(made)
        assert made == golden.read_text(), f"{golden.name}: {name} of this run differs"


@pytest.mark.parametrize("case", CASES)
def test_concurrency_changes_nothing(case: str, tmp_path: Path) -> None:
    run(case, tmp_path / "one", concurrency=1)
    run(case, tmp_path / "seven", concurrency=7)
    assert views(tmp_path / "one") == views(tmp_path / "seven")


@pytest.mark.parametrize("case", [case for case in CASES if case != "questions"])  # which asks nobody
def test_a_killed_run_goes_on_to_the_same_bytes(case: str, tmp_path: Path) -> None:
    """kill -9 after a third of the calls, and again after another third."""
    calls = run(case, tmp_path / "whole", concurrency=1)
    for resume in (False, True):
        code = f"""
from pathlib import Path
from tests.generators.test_every_recipe import run
from tests.support.teachers import ScriptTeacher
ScriptTeacher.calls_to_live = {max(1, calls // 3)}
# One seed at a time: what a seed was answered is on disk before the next one begins.
run({case!r}, Path({str(tmp_path / "killed")!r}), resume={resume}, concurrency=1)
"""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, cwd=Path(__file__).parents[2]
        )
        assert done.returncode == -9, done.stderr.decode()
    again = run(case, tmp_path / "killed", resume=True)
    assert views(tmp_path / "killed") == views(tmp_path / "whole")
    assert again < calls


@pytest.mark.parametrize("case", CASES)
def test_samples_of_one_question_share_a_group(case: str, tmp_path: Path) -> None:
    if getattr(importlib.import_module(f"tests.generators.cases.{case}"), "SEVERAL_GROUPS", False):
        return  # a seed makes several questions of its own
    run(case, tmp_path / "run")
    groups: dict[str, set[str | None]] = {}
    for sample in read_samples(tmp_path / "run" / "samples.jsonl"):
        assert isinstance(sample, Completion)
        seed = sample.id.rsplit("-", 1)[0]
        groups.setdefault(seed, set()).add(sample.group)
    many = [found for seed, found in groups.items() if len(found) > 1]
    assert not many, "one seed's samples are in several groups"
