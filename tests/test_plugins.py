"""Plug-ins: found by file name, readable without torch, clear when unknown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kdbench import plugins
from kdbench.config import StrictConfig
from kdbench.errors import UnknownPlugin, UsageError


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("generators", "tinystories"),
        ("trainers", "black_box"),
        ("trainers", "white_box"),
        ("trainers", "step_by_step"),
        ("trainers", "dpo"),
        ("trainers", "adapt_then_distill"),
        ("trainers", "progressive"),
        ("teachers", "scripted"),
        ("teachers", "openai_compatible"),
        ("teachers", "local"),
        ("metrics", "perplexity"),
    ],
)
def test_what_is_shipped_is_found(group: str, name: str) -> None:
    assert name in plugins.names(group)
    module = plugins.load(group, name)
    assert plugins.summary(module)
    assert issubclass(plugins.config_class(module), StrictConfig)


@pytest.mark.parametrize(
    ("group", "typo", "nearest", "word"),
    [
        ("generators", "tinystorys", "tinystories", "recipe"),
        ("trainers", "blackbox", "black_box", "trainer"),
        ("teachers", "script", "scripted", "teacher"),
        ("metrics", "perplexty", "perplexity", "metric"),
    ],
)
def test_a_typo_gets_the_nearest_name(group: str, typo: str, nearest: str, word: str) -> None:
    with pytest.raises(UnknownPlugin, match=f"No {word} named '{typo}'.*Did you mean '{nearest}'"):
        plugins.load(group, typo)


def test_private_modules_are_no_plug_ins() -> None:
    assert not [name for group in plugins.GROUPS for name in plugins.names(group) if name.startswith("_")]


def test_every_plug_in_and_the_command_line_import_without_torch() -> None:
    """In a process where torch, transformers, trl and their kin cannot be imported."""
    code = """
import sys
for name in ("torch", "transformers", "trl", "accelerate", "peft", "gguf", "matplotlib"):
    sys.modules[name] = None
from kdbench import plugins
import kdbench.cli, kdbench.jobs.generating, kdbench.jobs.training, kdbench.jobs.evaluating
import kdbench.jobs.running, kdbench.jobs.report_job, kdbench.jobs.student_job
for group in plugins.GROUPS:
    for name in plugins.names(group):
        plugins.config_class(plugins.load(group, name)).model_json_schema()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_user_s_file_that_is_missing_or_broken_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No recipe file"):
        plugins.load_file(tmp_path / "absent.py", "generators")
    (tmp_path / "broken.py").write_text("import nothing_of_that_name")
    with pytest.raises(UsageError, match="cannot be imported: ModuleNotFoundError"):
        plugins.load_file(tmp_path / "broken.py", "generators")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UsageError, match="has no function 'generate'"):
        plugins.load_file(tmp_path / "empty.py", "generators")


def test_a_user_s_file_never_stands_in_for_a_module_of_the_same_name(tmp_path: Path) -> None:
    import copy

    (tmp_path / "copy.py").write_text("async def generate(seed, teachers): return []")
    assert plugins.load_file(tmp_path / "copy.py", "generators").__name__ == "own_recipe_copy"
    assert sys.modules["copy"] is copy
