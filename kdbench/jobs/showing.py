"""`kdbench show RECIPE`: facts, config and a prompt rendered on a real seed, in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from kdbench import plugins
from kdbench.config import dump_yaml
from kdbench.jobs._recipes import load_recipe
from kdbench.jobs.previewing import preview


def show_recipe(recipe: str | Path, config: Mapping[str, Any], console: Console) -> None:
    """Print what a recipe is. Raises UsageError."""
    path = Path(recipe)
    module = (
        plugins.load_file(path, "generators")
        if path.suffix == ".py"
        else plugins.load("generators", str(recipe))
    )
    loaded = load_recipe(recipe, config)
    console.rule(loaded.name)
    console.print((module.__doc__ or "").strip(), markup=False, highlight=False)
    for key, fact in getattr(module, "FACTS", {}).items():
        console.print(f"{key}: {fact}", markup=False, highlight=False)
    console.rule("config")
    console.print(dump_yaml(loaded.config.model_dump(mode="json")), markup=False, highlight=False)
    console.rule("templates")
    for name, digest in loaded.prompts.hashes().items():
        console.print(f"{digest[:12]}  {name}", markup=False, highlight=False)
    request = preview(recipe, n=1, config=config).requests[0]
    console.rule(f"the first request of seed {request.seed}, as the {request.role} gets it")
    for message in request.messages:
        console.print(f"{message.role}:\n{message.content}", markup=False, highlight=False)
