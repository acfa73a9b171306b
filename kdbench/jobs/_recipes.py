"""A recipe as a job uses it: a plug-in's name, a user's file or a function, made into one thing.

recipe = load_recipe("tinystories", {"filters": {"min_words": 40}}, prompts=None)
outcomes = await recipe.run(seed, teachers)
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kdbench import plugins
from kdbench.asking import Teachers
from kdbench.config import StrictConfig, build
from kdbench.engine import Outcome, Seed
from kdbench.errors import UsageError
from kdbench.prompts import Prompts
from kdbench.provenance import source_sha256

RecipeFunction = Callable[..., Awaitable[Iterable[Outcome]]]
_GIVEN = ("seed", "teachers", "config", "prompts")


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with its config. `rows` yields one question per seed where it reads a source."""

    name: str
    config: StrictConfig
    prompts: Prompts
    roles: Mapping[str, frozenset[str]]
    source_sha256: str | None
    _function: RecipeFunction
    _rows: Callable[[StrictConfig], Iterator[Mapping[str, Any]]] | None = None

    async def run(self, seed: Seed, teachers: Teachers) -> Iterable[Outcome]:
        """The outcomes of one seed."""
        given = {"seed": seed, "teachers": teachers, "config": self.config, "prompts": self.prompts}
        return await self._function(**{name: given[name] for name in self._parameters})

    @cached_property
    def _parameters(self) -> list[str]:
        return list(inspect.signature(self._function).parameters)

    def rows(self) -> Iterator[Mapping[str, Any]] | None:
        """The question source, or None for a recipe whose seeds never end."""
        return self._rows(self.config) if self._rows is not None else None

    def generation_config(self) -> dict[str, Any]:
        """The config without its filters: what changes calls and ids."""
        return self.config.model_dump(mode="json", exclude={"filters"})

    def filters(self) -> Any:
        """The filters alone: what may change without a new call."""
        return self.config.model_dump(mode="json").get("filters")


def load_recipe(
    recipe: str | Path | RecipeFunction,
    config: Mapping[str, Any] | StrictConfig | None = None,
    prompts: Path | None = None,
) -> LoadedRecipe:
    """A recipe by name, by file (a path that ends in .py) or as an async function.

    Raises UnknownPlugin, UsageError and ConfigError.
    """
    if callable(recipe):
        return _from_function(recipe, config, prompts)
    path = Path(recipe)
    beside = path.resolve().parent if path.suffix == ".py" else None
    module = plugins.load_file(path, "generators") if beside else plugins.load("generators", str(recipe))
    name = path.stem if beside else str(recipe)
    _check_signature(module.generate, name)
    return LoadedRecipe(
        name=name,
        config=_config(plugins.config_class(module), config, name),
        prompts=Prompts(name, override=prompts, beside=beside),
        roles={role: frozenset(needs) for role, needs in getattr(module, "ROLES", _DEFAULT_ROLES).items()},
        source_sha256=source_sha256(module),
        _function=module.generate,
        _rows=getattr(module, "rows", None),
    )


_DEFAULT_ROLES = {"teacher": {"chat"}}


def _from_function(
    function: RecipeFunction, config: Mapping[str, Any] | StrictConfig | None, prompts: Path | None
) -> LoadedRecipe:
    name = getattr(function, "__name__", "recipe")
    _check_signature(function, name)
    try:
        source = hashlib.sha256(inspect.getsource(function).encode()).hexdigest()
    except OSError:
        source = None  # typed at a prompt that keeps no source
    return LoadedRecipe(
        name=name,
        config=_config(StrictConfig, config, name),
        prompts=Prompts(name, override=prompts),
        roles={role: frozenset(needs) for role, needs in _DEFAULT_ROLES.items()},
        source_sha256=source,
        _function=function,
    )


def _config(
    model: type[StrictConfig], values: Mapping[str, Any] | StrictConfig | None, name: str
) -> StrictConfig:
    if isinstance(values, StrictConfig):
        return values
    return build(model, values or {}, f"recipe {name}")


def _check_signature(function: RecipeFunction, name: str) -> None:
    if not inspect.iscoroutinefunction(function):
        raise UsageError(f"Recipe {name} must be an async function: write 'async def'")
    foreign = [p for p in inspect.signature(function).parameters if p not in _GIVEN]
    if foreign:
        raise UsageError(
            f"Recipe {name} asks for '{foreign[0]}'; a recipe may take any of {', '.join(_GIVEN)}"
        )
