"""multi_round: train on everything, then again on the samples that are still hard.

    round 1   method on all samples                        -> stages/01_round/model
              every sample's loss under it                 -> stages/02_round/sample_losses.parquet
    round 2   method on a half of them, drawn by their loss, from the model of round 1

PanGu-pi Pro's multiple-round training (Tang et al. 2024, arXiv 2402.02791, section 3.3): what a small model
has forgotten, or never took in, comes again. Its draw is made from the candidates of each batch; here the
same draw is made before the round, of whole groups. What is held out in the first is held out in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from kdbench.config import StrictConfig
from kdbench.models.weights import require_train
from kdbench.records import Completion
from kdbench_trainers._config import TrainConfig
from kdbench_trainers._methods import Method, check_whole, method_of

if TYPE_CHECKING:
    from kdbench.checks.rehearsing import Part


class Config(StrictConfig):
    """The method, and how its later rounds are drawn."""

    method: str = Field("black_box", description="the trainer of every round")
    method_config: dict[str, Any] = Field({}, description="its settings")
    rounds: int = Field(2, ge=2)
    rate: float = Field(0.5, gt=0, lt=1, description="share of the samples that a later round learns from")
    candidates: int = Field(
        64, ge=2, description="samples that compete with each other for a place in a later round"
    )
    seed: int = Field(0, ge=0, description="of the draw")

    @field_validator("method_config")
    @classmethod
    def _known(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """All of the settings, with the method's own defaults. Raises UnknownPlugin, ConfigError."""
        return method_of(info.data["method"], value).settings if "method" in info.data else value

    @model_validator(mode="after")
    def _rounds_follow(self) -> Config:
        method = self.trainer()
        if not isinstance(method.config, TrainConfig):
            raise ValueError(
                f"{self.method} is a sequence of trainings itself; choose one that is a single one"
            )
        if not method.takes("completion"):
            raise ValueError(f"{self.method} does not learn from completions, whose losses are drawn by")
        check_whole(method.config, "method_config")
        return self

    def trainer(self, **settings: Any) -> Method:
        """The method with its settings, some of them changed."""
        return method_of(self.method, {**self.method_config, **settings})


def needs_teacher(config: Config) -> bool:
    """Whether the method loads one."""
    return config.trainer().needs_teacher


def inputs(config: Config) -> dict[str, str]:
    """What the method reads besides samples and models."""
    return config.trainer().inputs


def train(
    samples: Sequence[Completion],
    *,
    teacher: str | None,
    student: str,
    out: Path,
    config: Config,
    resume: bool,
) -> None:
    """Train `student` in rounds; `out/model` holds the result, out/stages/ those between and the losses.

    Raises what the method raises.
    """
    require_train("the trainer multi_round")
    from kdbench.models.sequences import choose_groups
    from kdbench_trainers._sample_losses import hard_ones, measured
    from kdbench_trainers._stages import Stages

    settings = config.trainer().config
    assert isinstance(settings, TrainConfig)
    named = _named(settings, samples)
    groups = [one.group or "" for one in named]
    held_out = choose_groups(groups, settings.validation_share, settings.seed)
    method = config.trainer(conditions=[], held_out=settings.held_out or sorted(held_out))
    settings = method.config
    assert isinstance(settings, TrainConfig)
    with Stages(out, resume=resume, cpu=settings.device == "cpu") as stages:

        def again(number: int, before: str, folder: Path, resume: bool) -> None:
            losses = measured(before, named, settings, folder / "sample_losses.parquet", stages.meet)
            kept = set(settings.held_out or ())
            learnt = [one for one in losses if one.group not in kept]
            drawn = hard_ones(learnt, config.rate, config.candidates, seed=config.seed + number)
            chosen = [one for one in named if one.group in drawn | kept]
            method.train(chosen, teacher, before, folder, resume)

        model = stages.do("round", lambda folder, go_on: method.train(named, teacher, student, folder, go_on))
        for number in range(1, config.rounds):
            model = stages.do("round", partial(again, number, model))
        stages.finish(model)


def _named(config: TrainConfig, samples: Sequence[Completion]) -> list[Completion]:
    """The samples under their conditions, each with the name of its group: it is the same in every round."""
    return [
        one.model_copy(update={"group": one.group or one.id or f"sample {number}"})
        for number, one in enumerate(config.prepared(samples))
        if isinstance(one, Completion)
    ]


def parts(samples: Sequence[Completion], *, teacher: str | None, config: Config) -> list[Part]:
    """The first round, for `kdbench doctor`: the later ones are made of the same."""
    from kdbench.checks.rehearsing import Part

    return [Part("round", config.method, config.trainer().config, samples, teacher)]
