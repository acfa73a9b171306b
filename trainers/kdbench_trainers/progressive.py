"""progressive: several trainings in sequence, each on its own part of the data or from its own teacher.

    stages: [{method: black_box, where: {stage: 1}, config: {steps: 400}},
             {method: white_box, where: {stage: 2}, teacher: runs/strong, config: {steps: 200}}]

    01_black_box: the student, on the samples whose field stage is 1
    02_white_box: what came of it, on those of stage 2, towards the distribution of runs/strong

Orca's progressive learning (Mukherjee et al. 2023, arXiv 2306.02707, section 3): first the weaker teacher's
answers, then the stronger one's; the recipe explanation writes both, told apart by `stage`. Each stage is a
training of its own: optimiser and schedule begin anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from kdbench.config import StrictConfig
from kdbench.models.weights import local_weights, require_train, weights_sha256
from kdbench.records import Completion
from kdbench.selecting import chosen
from kdbench_trainers._methods import Method, check_whole, method_of

if TYPE_CHECKING:
    from kdbench.checks.rehearsing import Part


class Stage(StrictConfig):
    """One training of the sequence."""

    method: str = Field(description="a trainer")
    teacher: str | None = Field(
        None, description="the stage's own; the one of the whole training if not said"
    )
    where: dict[str, Any] = Field({}, description="take only the samples whose fields have these values")
    limit: int | None = Field(None, ge=1, description="take the first ones of them")
    config: dict[str, Any] = Field({}, description="the trainer's settings")

    @field_validator("config")
    @classmethod
    def _known(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """All of the settings, with the trainer's own defaults. Raises UnknownPlugin, ConfigError."""
        return method_of(info.data["method"], value).settings if "method" in info.data else value

    def trainer(self) -> Method:
        """The trainer with its settings."""
        return method_of(self.method, self.config)


class Config(StrictConfig):
    """The stages, in order."""

    stages: list[Stage] = Field(min_length=1)

    @model_validator(mode="after")
    def _go_on(self) -> Config:
        for number, stage in enumerate(self.stages):
            if not stage.trainer().takes("completion"):
                raise ValueError(
                    f"stages.{number}: {stage.method} does not learn from completions, as the stages do; "
                    "train it by itself"
                )
        for number, stage in enumerate(self.stages[:-1]):
            check_whole(stage.trainer().config, f"stages.{number}.config")
        return self


def needs_teacher(config: Config) -> bool:
    """Whether a stage needs a teacher and names none."""
    return any(stage.teacher is None and stage.trainer().needs_teacher for stage in config.stages)


def inputs(config: Config) -> dict[str, str]:
    """The stages' own teachers with the hash of their weights, and what else their trainers read."""
    teachers = sorted({stage.teacher for stage in config.stages if stage.teacher is not None})
    found = {one: weights_sha256(local_weights(one)) for one in teachers}
    for stage in config.stages:
        found |= stage.trainer().inputs
    return found


def train(
    samples: Sequence[Completion],
    *,
    teacher: str | None,
    student: str,
    out: Path,
    config: Config,
    resume: bool,
) -> None:
    """Train `student` through all stages; `out/model` holds the result, out/stages/ those between.

    Raises ConfigError where a stage's `where` fits no sample, and what the stages' trainers raise.
    """
    require_train("the trainer progressive")
    from kdbench_trainers._stages import Stages

    # All parts and teachers are looked for before the first stage begins.
    parts = [chosen(samples, stage.where)[: stage.limit] for stage in config.stages]
    weights = [weights_sha256(local_weights(one.teacher)) if one.teacher else None for one in config.stages]
    on_cpu = all(stage.config.get("device") == "cpu" for stage in config.stages)
    with Stages(out, resume=resume, cpu=on_cpu) as stages:
        for stage, part, sha256 in zip(config.stages, parts, weights, strict=True):
            own = stage.teacher or teacher
            training = partial(stage.trainer().train, part, own, student)
            student = stages.do(stage.method, training, teacher_sha256=sha256)
        stages.finish(student)


def parts(samples: Sequence[Completion], *, teacher: str | None, config: Config) -> list[Part]:
    """The stages, for `kdbench doctor`. Raises ConfigError where a stage's `where` fits no sample."""
    from kdbench.checks.rehearsing import Part

    return [
        Part(
            f"{number:02d}_{stage.method}",
            stage.method,
            stage.trainer().config,
            chosen(samples, stage.where)[: stage.limit],
            stage.teacher or teacher,
        )
        for number, stage in enumerate(config.stages, start=1)
    ]
