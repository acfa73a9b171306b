"""Find and load plug-ins: the only dynamic import in kdbench.

An entry point of a group names a package; each public module in it is one plug-in, and its file
name is the plug-in's name. One more recipe is one more file:

    [project.entry-points."kdbench.generators"]
    builtin = "kdbench_generators"          # holds tinystories.py -> recipe "tinystories"
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from kdbench.config import StrictConfig, suggestion
from kdbench.errors import UnknownPlugin, UsageError

# Group -> the word a user knows it by, and the one function its modules expose.
GROUPS = {
    "teachers": ("teacher", "connect"),
    "generators": ("recipe", "generate"),
    "curators": ("curator", "curate"),
    "trainers": ("trainer", "train"),
    "metrics": ("metric", "measure"),
}


@lru_cache
def _modules(group: str) -> dict[str, str]:
    """Plug-in name -> dotted module name, for every package the group's entry points name."""
    found: dict[str, str] = {}
    for entry in sorted(entry_points(group=f"kdbench.{group}"), key=lambda e: e.name):
        package = importlib.import_module(entry.value)
        for info in pkgutil.iter_modules(package.__path__):
            if info.name.startswith("_"):
                continue
            module = f"{entry.value}.{info.name}"
            other = found.setdefault(info.name, module)
            if other != module:
                raise UsageError(
                    f"Two packages bring a {GROUPS[group][0]} named '{info.name}': {other} and {module}; "
                    "uninstall or rename one"
                )
    return found


def names(group: str) -> list[str]:
    """The names of all plug-ins of a group, sorted."""
    return sorted(_modules(group))


def load(group: str, name: str) -> ModuleType:
    """The module of one plug-in. Raises UnknownPlugin, with the nearest name."""
    word, verb = GROUPS[group]
    if name not in _modules(group):
        raise UnknownPlugin(f"No {word} named '{name}'{suggestion(name, _modules(group))}")
    return _checked(importlib.import_module(_modules(group)[name]), word, verb)


def load_file(path: Path, group: str) -> ModuleType:
    """A user's own plug-in from a Python file. Raises UsageError if it is missing or incomplete."""
    word, verb = GROUPS[group]
    if not path.is_file():
        raise UsageError(
            f"No {word} file {path}; give the path of a Python file, or a name from `kdbench list`"
        )
    # Under a name of its own: a user's copy.py must not stand in for the standard library's.
    spec = importlib.util.spec_from_file_location(f"own_{GROUPS[group][0]}_{path.stem}", path)
    assert spec is not None, "a .py path always has a spec"
    assert spec.loader is not None, "and a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that pydantic can resolve the annotations of its models
    try:
        spec.loader.exec_module(module)
    except UsageError:
        raise
    except Exception as exc:
        raise UsageError(f"{word} file {path} cannot be imported: {type(exc).__name__}: {exc}") from exc
    return _checked(module, word, verb)


def _checked(module: ModuleType, word: str, verb: str) -> ModuleType:
    if not callable(getattr(module, verb, None)):
        raise UsageError(f"{word} {module.__name__} has no function '{verb}'; see CONTRIBUTING.md")
    return module


def config_class(module: ModuleType) -> type[StrictConfig]:
    """The plug-in's `Config`, or the empty config where it has none."""
    config = getattr(module, "Config", StrictConfig)
    if not (isinstance(config, type) and issubclass(config, StrictConfig)):
        raise UsageError(f"{module.__name__}.Config must be a kdbench.config.StrictConfig")
    return config


def needs_teacher(trainer: ModuleType, config: StrictConfig) -> bool:
    """Whether a trainer loads a teacher: by its function `needs_teacher(config)`, or by NEEDS_TEACHER.

    The latter is not meant where `config.signals` names what a teacher said before.
    """
    if own := getattr(trainer, "needs_teacher", None):
        return bool(own(config))
    return bool(getattr(trainer, "NEEDS_TEACHER", False)) and getattr(config, "signals", None) is None


def inputs(trainer: ModuleType, config: StrictConfig) -> dict[str, str]:
    """What a trainer reads besides samples, student and teacher, by name, with a hash of the content.

    Its module says so with `inputs(config)`, or its config with a method of that name.
    """
    if own := getattr(trainer, "inputs", None):
        return dict(own(config))
    own = getattr(config, "inputs", None)
    return dict(own()) if own else {}


def takes(trainer: ModuleType, config: StrictConfig) -> frozenset[str]:
    """The kinds of samples that a trainer learns from: its TAKES, or completions alone.

    What a teacher said before (`config.signals`) is about completions.
    """
    stored = getattr(config, "signals", None) is not None
    return frozenset(("completion",) if stored else getattr(trainer, "TAKES", ("completion",)))


def summary(module: ModuleType) -> str:
    """The first line of the plug-in's docstring, without its name where it begins with that."""
    name = module.__name__.rpartition(".")[2]
    return (module.__doc__ or "").strip().split("\n", 1)[0].removeprefix(f"{name}: ")
