"""A recipe as a job uses it: a plug-in's name, a user's file or a function, made into one thing.

recipe = load_recipe("tinystories", {"filters": {"min_words": 40}}, prompts=None)
outcomes = await recipe.run(seed, teachers)
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from kdbench import plugins
from kdbench.asking import Teachers
from kdbench.config import StrictConfig, build
from kdbench.engine import Outcome, Seed
from kdbench.errors import UsageError
from kdbench.pool import AnySample, Pool
from kdbench.prompts import Prompts
from kdbench.provenance import file_sha256, source_sha256
from kdbench.records import Rejection

RecipeFunction = Callable[..., Awaitable[Iterable[Outcome]]]
_GIVEN = ("seed", "teachers", "config", "prompts", "pool")
# Called in seed order on every sample before it is accepted: gives it back, or a rejection of it.
Admit = Callable[[AnySample], AnySample | Rejection]


class Hooks:
    """What a recipe's module may define besides `generate`; each is called with the recipe's config.

    rows(config)         -> one row per seed, for example kdbench.questions.Questions
    round_size(config)   -> seeds in a round: `generate` then takes a frozen `pool` of earlier rounds
    admission(config)    -> a function called on every sample in seed order: the sample, or a Rejection
    finish(config, out)  -> called once the samples are written; may write files of the recipe's own
    roles(config)        -> the roles, where they depend on the config; else ROLES

    For `kdbench show` and the docs alone, plain data:

    EXAMPLE   config values for keys that have no default. In its `questions`, `rows` may stand for a file:
              {"questions": {"rows": [{"question": "2 + 3 = ?", "answer": "5"}], "verifier": "numeric"}}
    REPLIES   role -> what it might say to the first seed of EXAMPLE, in the order in which it is asked:
              {"teacher": ["2 + 3 = 5. The answer is 5."]}; so the later prompts of a chain can be seen
    """

    def __init__(self, module: ModuleType | None = None) -> None:
        self._module = module

    def __call__(self, name: str, *args: Any, default: Any = None) -> Any:
        """What the hook gives, or the default where the module has none."""
        hook = getattr(self._module, name, None)
        return default if hook is None else hook(*args)


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with its config and the hooks of its module."""

    name: str
    config: StrictConfig
    prompts: Prompts
    roles: Mapping[str, frozenset[str]]
    source_sha256: str | None
    _function: RecipeFunction
    _hooks: Hooks

    async def run(self, seed: Seed, teachers: Teachers, pool: Pool) -> Iterable[Outcome]:
        """The outcomes of one seed."""
        given = {
            "seed": seed, "teachers": teachers, "config": self.config, "prompts": self.prompts, "pool": pool,
        }  # fmt: skip
        return await self._function(**{name: given[name] for name in self._parameters})

    @cached_property
    def _parameters(self) -> list[str]:
        return list(inspect.signature(self._function).parameters)

    @cached_property
    def rows(self) -> Iterable[Any] | None:
        """One row per seed, or None for a recipe whose seeds never end."""
        rows: Iterable[Any] | None = self._hooks("rows", self.config)
        return rows

    def source(self) -> Any:
        """What tells whether rows and files of the config are the same; None where there are none."""
        rows = getattr(self.rows, "fingerprint", None)
        files = {key: {"sha256": file_sha256(path)} for key, path in self._files().items()}
        return {**(rows or {}), **files} if files else rows

    def _files(self) -> dict[str, Path]:
        """The files that the config names by a key of its own, such as a table."""
        return {key: value for key, value in self.config if isinstance(value, Path) and value.is_file()}

    def round_size(self) -> int | None:
        """Seeds in a round, or None for a recipe without rounds."""
        size: int | None = self._hooks("round_size", self.config)
        return size

    def admission(self) -> Admit:
        """What every sample passes, in seed order, before it is accepted."""
        admit: Admit = self._hooks("admission", self.config, default=lambda sample: sample)
        return admit

    def finish(self, out: Path) -> None:
        """Let the recipe write files of its own beside its samples."""
        self._hooks("finish", self.config, out)

    def generation_config(self) -> dict[str, Any]:
        """The config without its filters: what changes calls and ids.

        A file counts by its content, which `source` has, not by where it lies.
        """
        left_out: dict[str, Any] = {
            "filters": True,
            "questions": {"file"},
            **dict.fromkeys(self._files(), True),
        }
        return self.config.model_dump(mode="json", exclude=left_out)

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
    built = _config(plugins.config_class(module), config, name)
    hooks = Hooks(module)
    roles = hooks("roles", built, default=getattr(module, "ROLES", _DEFAULT_ROLES))
    return LoadedRecipe(
        name=name,
        config=built,
        prompts=Prompts(name, override=prompts, beside=beside),
        roles=_frozen(roles),
        source_sha256=source_sha256(module),
        _function=module.generate,
        _hooks=hooks,
    )


_DEFAULT_ROLES = {"teacher": {"chat"}}


def _frozen(roles: Mapping[str, Iterable[str]]) -> dict[str, frozenset[str]]:
    return {role: frozenset(needs) for role, needs in roles.items()}


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
        roles=_frozen(_DEFAULT_ROLES),
        source_sha256=source,
        _function=function,
        _hooks=Hooks(),
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
