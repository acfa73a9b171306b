"""The metrics a user asks for, found as plug-ins, each with its config.

choose(["perplexty"], {}, "smollm2")
UnknownPlugin: No metric named 'perplexty'. Did you mean 'perplexity'? Available: ...
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from kdbench import plugins
from kdbench.config import StrictConfig, build, suggestion
from kdbench.errors import ConfigError, UsageError

log = logging.getLogger("kdbench")


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's plug-in with its config."""

    module: ModuleType
    config: StrictConfig

    @property
    def needs(self) -> frozenset[str]:
        """What it reads: see kdbench.evaluation."""
        return frozenset(self.module.NEEDS)


def choose(names: Sequence[str] | None, config: Mapping[str, Any], teacher: str | None) -> dict[str, Metric]:
    """The metrics of these names, or all that can be had, by name.

    One that needs a teacher is left out where none is named, or an error where it was asked for.
    Raises UnknownPlugin, ConfigError, UsageError.
    """
    modules = {name: plugins.load("metrics", name) for name in names or plugins.names("metrics")}
    for name in config:
        if name not in modules:
            raise ConfigError(f"Config of evaluate: no metric '{name}'{suggestion(name, modules)}")
    found = {}
    for name, module in modules.items():
        if "teacher" in module.NEEDS and teacher is None:
            if names is not None:
                raise UsageError(f"Metric {name} compares with the teacher; name it with --teacher")
            log.info("Metric %s is left out: it compares with the teacher, and none is named", name)
            continue
        settings = build(plugins.config_class(module), config.get(name, {}), f"metric {name}")
        found[name] = Metric(module, settings)
    return found
