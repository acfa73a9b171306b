"""adapt_then_distill: carry teacher and student over to a domain's text, then distil (AdaLM).

    texts: [manuals/, runs/abstracts]
    order: from_scratch                         adapt_student
           distil_then_adapt          distil,   adapt_student
           adapt_teacher              adapt_teacher,                  distil
           adapt_both (the default)   adapt_teacher,  adapt_student,  distil

Yao et al. 2021, arXiv 2106.13474, section 3.2: of its four ways to a small model of a domain the last was
the best. To adapt is to go on with pre-training: -log p(token) of the domain's text, in windows. `distil` is
any trainer (`method`, `method_config`); it learns from the samples, or from the domain's text where there are
none. `grow` first gives the models the domain's words (section 3.1), teacher and student the same ones.

The paper's models are BERTs, adapted by masked words and distilled by their attention (MiniLM); here they
are causal, and the distillation is one of kdbench's. `method: feature_matching` comes nearest to the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from kdbench.config import StrictConfig
from kdbench.errors import ConfigError
from kdbench.models.weights import require_train
from kdbench.records import Completion, Text
from kdbench_trainers._config import Material, TeacherConfig, TrainConfig
from kdbench_trainers._methods import Method, check_whole, method_of
from kdbench_trainers._texts import read_texts, texts_sha256

if TYPE_CHECKING:
    from kdbench.checks.rehearsing import Part

TAKES = ("completion", "text")
NEEDS_SAMPLES = False  # `texts` may be all there is

Order = Literal["from_scratch", "distil_then_adapt", "adapt_teacher", "adapt_both"]
_STAGES: dict[Order, tuple[str, ...]] = {
    "from_scratch": ("adapt_student",),
    "distil_then_adapt": ("distil", "adapt_student"),
    "adapt_teacher": ("adapt_teacher", "distil"),
    "adapt_both": ("adapt_teacher", "adapt_student", "distil"),
}


class Grow(StrictConfig):
    """How far a vocabulary grows."""

    step: int = Field(10_000, ge=1, description="new tokens in each round; the paper's number")
    tolerance: float = Field(
        0.01, ge=0, lt=1, description="the last round makes the text likelier by no more than this share"
    )
    min_count: int = Field(
        2, ge=1, description="two neighbours that stand together less often stay two tokens"
    )


class Config(StrictConfig):
    """What is adapted, on which text, and how it is distilled."""

    order: Order = "adapt_both"
    texts: list[str] = Field(
        [], description='domain text: runs that made text, .jsonl of {"text": ...}, .txt, folders of .txt'
    )
    adaptation: TrainConfig = Field(
        TrainConfig(), description="of the student; batches count windows of text"
    )
    teacher_adaptation: TrainConfig | None = Field(None, description="as `adaptation` if not said")
    grow: Grow | None = Field(None, description="grow the vocabulary (byte-level BPE) before adapting")
    method: str = Field("white_box", description="the trainer that distils")
    method_config: dict[str, Any] = Field({}, description="its settings")

    @field_validator("method_config")
    @classmethod
    def _known(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """All of the settings, with the method's own defaults. Raises UnknownPlugin, ConfigError."""
        return method_of(info.data["method"], value).settings if "method" in info.data else value

    @model_validator(mode="after")
    def _makes_sense(self) -> Config:
        method = self.distillation()
        if "adapt_teacher" in _STAGES[self.order] and not method.needs_teacher:
            raise ValueError(
                f"order {self.order} adapts the teacher, and {self.method} with these settings never asks "
                "it; choose white_box, gkd or distillm, or order distil_then_adapt"
            )
        for stage in self.stages[:-1]:
            if stage == "distil":
                check_whole(method.config, "method_config")
            elif stage.startswith("adapt_"):
                check_whole(self.adaptation_of(stage.removeprefix("adapt_")), "adaptation")
        return self

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages by name, in order: vocabularies grow before the first adaptation."""
        stages = list(_STAGES[self.order])
        if self.grow is not None:
            first = next(i for i, one in enumerate(stages) if one.startswith("adapt_"))
            whose = ("teacher", "student") if "adapt_teacher" in stages else ("student",)
            stages[first:first] = [f"grow_{one}" for one in whose]
        return tuple(stages)

    def distillation(self) -> Method:
        """The trainer that distils, with its settings."""
        return method_of(self.method, self.method_config)

    def adaptation_of(self, whom: str) -> TrainConfig:
        """How teacher or student is adapted."""
        return self.teacher_adaptation or self.adaptation if whom == "teacher" else self.adaptation


def needs_teacher(config: Config) -> bool:
    """Whether a stage loads the teacher."""
    return "distil" in config.stages and config.distillation().needs_teacher


def inputs(config: Config) -> dict[str, str]:
    """The domain's text, by path, with its hash, and what else the adaptations and the method read."""
    found = texts_sha256(config.texts) | config.distillation().inputs
    for whom in ("student", "teacher"):
        found |= config.adaptation_of(whom).inputs()
    return found


def train(
    samples: Sequence[Material],
    *,
    teacher: str | None,
    student: str,
    out: Path,
    config: Config,
    resume: bool,
) -> None:
    """Make `student` a model of the domain; `out/model` holds it, out/stages/ all models on the way.

    Samples of the kind text are domain text, too. Raises ConfigError where there is no text or teacher and
    student differ in vocabulary, DataError, MissingExtra, UsageError, and what the method raises.
    """
    texts = [*read_texts(config.texts), *(one for one in samples if isinstance(one, Text))]
    lesson = [one for one in samples if isinstance(one, Completion)] or texts
    if not texts:
        raise ConfigError(
            "The trainer adapt_then_distill adapts to a domain's text and none is given; name some in texts, "
            "or data whose samples are text"
        )
    method = config.distillation()
    if lesson is texts and "distil" in config.stages and not method.takes("text"):
        raise ConfigError(
            f"The method {config.method} with these settings does not learn from plain text, and there are "
            "no completions; give a run of completions with --data, or choose another method"
        )
    require_train("the trainer adapt_then_distill")
    from kdbench_trainers._adapting import Adapting, check_same_vocabulary

    two = bool(getattr(method.module, "TWO_TOKENIZERS", False))
    shared = (isinstance(method.config, TeacherConfig) and not two) or "grow_teacher" in config.stages
    if teacher is not None and needs_teacher(config) and shared:
        check_same_vocabulary(student, teacher)
    Adapting(texts, lesson, config, method).follow(teacher, student, out, resume)


def parts(samples: Sequence[Completion], *, teacher: str | None, config: Config) -> list[Part]:
    """The distillation, for `kdbench doctor`, with teacher and student as they are before they adapt."""
    from kdbench.checks.rehearsing import Part

    method = config.distillation()
    return (
        [Part("distil", config.method, method.config, samples, teacher)] if "distil" in config.stages else []
    )
