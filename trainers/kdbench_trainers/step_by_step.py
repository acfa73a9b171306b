"""step_by_step: a label and a rationale as two tasks of one student (distilling step-by-step).

    samples: "[label] How many ..." -> "60", "[rationale] How many ..." -> "Five crates hold ...", as the
             recipe step_by_step writes them
    loss:    alpha * L_label + (1 - alpha) * L_rationale

Hsieh et al. 2023, arXiv 2305.02301. Each L is the mean of -log p_student(token) over the tokens of its own
task, in the whole optimiser step: a label of one word counts as much as a rationale of eighty, however the
step is cut into micro-batches and over processes. Both views of a question go through one forward pass,
where the authors' code makes two. Needs no teacher, as black_box. Ask the student with the label's prefix.

The paper's equation reads L_label + lambda * L_rationale; its code, with alpha 0.5, is what stands here.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from kdbench.errors import DataError, NothingLeft
from kdbench.models.weights import require_train
from kdbench.records import Completion
from kdbench_trainers._config import TrainConfig

if TYPE_CHECKING:
    from kdbench.checks.rehearsing import Rehearsal
    from kdbench.models.sequences import Reader, TokenSequence

log = logging.getLogger("kdbench")
View = Literal["label", "rationale"]
Pair = tuple[Completion, Completion]  # label and rationale of one question


class Config(TrainConfig):
    """Settings of step_by_step: those of every trainer; a batch counts questions, each with both views."""

    alpha: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the label's loss; null: what the samples' weights carry, 0.5 unless the recipe "
        "was told otherwise",
    )


def train(
    samples: Sequence[Completion],
    *,
    teacher: str | None,
    student: str,
    out: Path,
    config: Config,
    resume: bool,
) -> None:
    """Train `student` on both views of each question; `out/model` holds the result.

    `teacher` is recorded by the job and not loaded. Raises DataError for samples of another kind,
    MissingExtra, NothingLeft, UsageError.
    """
    require_train("the trainer step_by_step")
    from kdbench.checks.case import Case
    from kdbench.checks.running import VETTED, vet
    from kdbench.models.sequences import split
    from kdbench_trainers._fit import learn
    from kdbench_trainers._models import load_student
    from kdbench_trainers._options import in_order
    from kdbench_trainers._sources import Paired
    from kdbench_trainers._trainer import Plan

    views = [one for one in config.prepared(samples) if isinstance(one, Completion)]
    pairs = pair_views(views)
    reader, model = load_student(student, config)
    sequences = encode_pairs(pairs, reader, config.max_length)
    train, validation = split(sequences, config.validation_share, config.seed, config.held_out)
    views = [one for pair in pairs for one in pair]  # by which the sequences know their samples
    vet(Case(views, reader, None, config.max_length, train, validation, most=VETTED))
    plan = Plan(source=Paired(partners(train)), shares=shares_of(pairs, config))
    labels = in_order([one for one in train if one.task == "label"], views, config)
    learn(labels, validation, student=reader, model=model, plan=plan, out=out, config=config, resume=resume)


def pair_views(samples: Sequence[Completion]) -> list[Pair]:
    """Label and rationale of every question; one without the other is counted and left out.

    Of a group with several questions the first label goes with the first rationale, and so on.
    Raises DataError for samples that are no such views, or of one of the two alone.
    """
    views: dict[str, dict[View, list[Completion]]] = defaultdict(lambda: {"label": [], "rationale": []})
    for number, sample in enumerate(samples):
        view = json.loads(sample.fields).get("view")
        if view not in ("label", "rationale"):
            raise DataError(
                "The trainer step_by_step learns a label and a rationale of each question, and the sample "
                f"'{sample.id or number}' is neither (its fields say view = {json.dumps(view)}); make "
                "samples with the recipe step_by_step, or use black_box"
            )
        views[sample.group or sample.id][view].append(sample)
    pairs = [
        pair for found in views.values() for pair in zip(found["label"], found["rationale"], strict=False)
    ]
    if not pairs:
        raise DataError(
            "The trainer step_by_step learns a label and a rationale of each question, and no question has "
            "both; give it all samples of a run of the recipe step_by_step"
        )
    if alone := len(samples) - 2 * len(pairs):
        log.warning(
            "%d of %d samples left out: the other view of their question is missing", alone, len(samples)
        )
    return pairs


def encode_pairs(pairs: Sequence[Pair], reader: Reader, max_length: int) -> list[TokenSequence]:
    """Sequences of the pairs that fit, label and rationale in turn; both or neither.

    A rationale's key is that of its label, and one more. Raises NothingLeft, UsageError.
    """
    from kdbench.models.sequences import encode

    views: dict[int, list[TokenSequence]] = defaultdict(list)
    for one in encode([one for pair in pairs for one in pair], reader, None, max_length):
        assert one.sample is not None
        views[one.sample // 2].append(one)
    kept: list[TokenSequence] = []
    for pair in views.values():
        if len(pair) == 2:
            kept += [
                replace(one, key=len(kept) + number, group=pair[0].group, task=task)
                for number, (one, task) in enumerate(zip(pair, ("label", "rationale"), strict=True))
            ]
    if not kept:
        raise NothingLeft(f"No question has a label and a rationale that fit into max_length {max_length}")
    return kept


def partners(sequences: Sequence[TokenSequence]) -> dict[int, TokenSequence]:
    """Of `encode_pairs`' sequences, the rationales by the keys of their labels."""
    return {one.key - 1: one for one in sequences if one.task == "rationale" and one.key is not None}


def shares_of(pairs: Sequence[Pair], config: Config) -> dict[str, float]:
    """The views' shares of the loss: alpha, or the label's share of the weights.

    The recipe weighs labels by 2 alpha and rationales by 2 (1 - alpha).
    """
    labels, rationales = (sum(one.weight for one in views) for views in zip(*pairs, strict=True))
    alpha = config.alpha if config.alpha is not None else labels / (labels + rationales)
    return {"label": alpha, "rationale": 1 - alpha}


def rehearse(
    samples: Sequence[Completion], *, teacher: str | None, student: str, config: Config
) -> Rehearsal:
    """What `kdbench doctor` looks at. Raises what `train` raises first."""
    pairs = pair_views(samples)
    require_train("the trainer step_by_step")
    from kdbench_trainers._models import load_student
    from kdbench_trainers._rehearsal import PairedRehearsal
    from kdbench_trainers._sources import Paired
    from kdbench_trainers._trainer import Plan

    reader, model = load_student(student, config)
    sequences = encode_pairs(pairs, reader, config.max_length)
    plan = Plan(source=Paired(partners(sequences)), shares=shares_of(pairs, config))
    return PairedRehearsal(reader, model, plan, config, [one for one in sequences if one.task == "label"])
