"""A trainer inside another: its name and settings, checked where no torch is, and the training it is.

method = method_of("gkd", {"lmbda": 0.3})        # ConfigError: Config of trainer gkd: no key ...
method.train(samples, "smollm2", "runs/pruned", Path("stages/01_gkd"), False)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from kdbench import plugins
from kdbench.config import StrictConfig, build, canonical_hash
from kdbench.rundir import require
from kdbench_trainers._config import Material


@dataclass(frozen=True, slots=True)
class Method:
    """A trainer with its settings."""

    name: str
    module: ModuleType
    config: StrictConfig

    @property
    def needs_teacher(self) -> bool:
        """Whether it loads a teacher."""
        return plugins.needs_teacher(self.module, self.config)

    @property
    def settings(self) -> dict[str, Any]:
        """All its settings, as plain values."""
        return self.config.model_dump(mode="json")

    @property
    def inputs(self) -> dict[str, str]:
        """What it reads besides samples, student and teacher, signals included, with a hash of each."""
        return plugins.inputs(self.module, self.config) | _signals_sha256(self.settings)

    def takes(self, kind: str) -> bool:
        """Whether it learns from samples of this kind."""
        return kind in plugins.takes(self.module, self.config)

    def train(
        self, samples: Sequence[Material], teacher: str | None, student: str, out: Path, resume: bool
    ) -> None:
        """The training, as the trainer's own `train`."""
        self.module.train(
            samples, teacher=teacher, student=student, out=out, config=self.config, resume=resume
        )


def method_of(name: str, settings: Mapping[str, Any]) -> Method:
    """A trainer by name. Raises UnknownPlugin, and ConfigError for settings that it does not know."""
    module = plugins.load("trainers", name)
    return Method(name, module, build(plugins.config_class(module), settings, f"trainer {name}"))


def _signals_sha256(settings: Mapping[str, Any]) -> dict[str, str]:
    """The run of signals that a trainer's settings name. Raises RunDirError for one that is not finished."""
    if not (path := settings.get("signals")):
        return {}
    return {str(path): canonical_hash(require(Path(path), "signals")["fingerprint"])}


def check_whole(config: StrictConfig, where: str) -> None:
    """Raise ValueError for a stage that is not the last and would save adapters without the weights."""
    lora = getattr(config, "lora", None)
    if lora is not None and not lora.merge:
        raise ValueError(
            f"{where}.lora.merge = false saves adapters alone, and the next stage begins with whole weights; "
            "only the last stage may do so"
        )
