"""dpo: learn to prefer the chosen answer to the rejected one (direct preference optimisation).

    samples: prompt -> chosen, rejected (the kind preference)
    loss:    -log sigmoid(beta * (r(chosen) - r(rejected))),  r = log p_student - log p_reference

Rafailov et al. 2023, arXiv 2305.18290, eq. 7. p is of a whole answer and its end marker; the reference is the
student as it begins, without its adapters: it reads every pair once, before the first step, and no second
model is held. Needs no teacher and no reward model. Begin with a student that was trained on such prompts
(`black_box`), best on the chosen answers. Dropout is off, as in the authors' code. `sft_weight` adds the
chosen answer's mean of -log p_student(token), as in Pang et al. 2024, arXiv 2404.19733, eq. 2.

In metrics.jsonl a reward is beta * r, `margin` is the difference of the two, and `accuracy` the share of the
pairs where that is above 0; `cross_entropy` is of the chosen answers' tokens: it rises where the student
unlearns both answers, only the rejected one faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from kdbench.models.weights import require_train
from kdbench.records import Preference
from kdbench_trainers._config import TrainConfig

if TYPE_CHECKING:
    from kdbench_trainers._preference import PreferenceTrainer

TAKES = ("preference",)


class Config(TrainConfig):
    """Settings of dpo: those of every trainer, where a sample is a pair, and how the pair is weighed."""

    learning_rate: float = Field(
        1e-6, gt=0, le=1, description="the paper's, for all weights; adapters bear ten times as much"
    )
    loss: Literal["sigmoid", "ipo"] = Field(
        "sigmoid", description="ipo: up to a margin of 1 / (2 beta) per token, for judges who always agree"
    )
    beta: float = Field(0.1, gt=0, description="the larger, the nearer the student stays to what it was")
    sft_weight: float = Field(
        0.0,
        ge=0,
        description="of the chosen answer's cross-entropy per token, which is added to the pair's loss",
    )

    @model_validator(mode="after")
    def _pairs_alone(self) -> Config:
        for name in ("plain_text", "conditions", "order_by"):
            if getattr(self, name):
                raise ValueError(f"dpo learns from pairs of answers alone and has no {name}; leave it out")
        return self

    @model_validator(mode="after")
    def _no_dropout(self) -> Config:
        if self.lora is not None and self.lora.dropout:
            raise ValueError(
                f"lora.dropout = {self.lora.dropout:g}, and dpo is trained without dropout, which would blur "
                "how far the student is from what it was; leave it out"
            )
        return self


def train(
    samples: Sequence[Preference],
    *,
    teacher: str | None,
    student: str,
    out: Path,
    config: Config,
    resume: bool,
) -> None:
    """Train `student` on preference pairs; `out/model` holds the result.

    `teacher` is recorded by the job and not loaded. Raises DataError for samples of another kind or answers
    of several turns, MissingExtra, NothingLeft, UsageError.
    """
    from kdbench_trainers._pairs import answers_of, encode_pairs

    answers = answers_of(samples)
    require_train("the trainer dpo")
    from kdbench.checks.case import Case
    from kdbench.checks.running import VETTED, vet
    from kdbench.models.sequences import split
    from kdbench_trainers._fit import drive
    from kdbench_trainers._models import load_student
    from kdbench_trainers._preference import PreferenceTrainer

    reader, model = load_student(student, config)
    pairs = encode_pairs(answers, reader, config.max_length)
    learnt, held_out = split(pairs, config.validation_share, config.seed, config.held_out)
    sequences = [[one for pair in part for one in pair.both] for part in (learnt, held_out)]
    vet(Case(answers, reader, None, config.max_length, sequences[0], sequences[1], most=VETTED))

    def trainer(resumed: Path | None) -> PreferenceTrainer:
        return PreferenceTrainer(
            model, train=learnt, validation=held_out, tokenizer=reader.tokenizer, out=out, config=config,
            resumed=resumed,
        )  # fmt: skip

    drive(trainer, student=reader, model=model, out=out, config=config, resume=resume)
