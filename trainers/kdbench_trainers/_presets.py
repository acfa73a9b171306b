"""What the methods that learn a teacher's distribution have in common; torch is imported inside.

distil("gkd", samples, teacher="smollm2", ..., source=lambda writer: Mixed(writer, 0.5, seed=0))
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import ConfigError
from kdbench.models.weights import require_train
from kdbench.records import Completion
from kdbench_trainers._config import DistillConfig, Material, OnPolicyConfig

log = logging.getLogger("kdbench")

if TYPE_CHECKING:
    from kdbench.models.sequences import Reader
    from kdbench_trainers._sources import Source, Writer


def distil(
    method: str,
    samples: Sequence[Material],
    *,
    teacher: str | None,
    student: str,
    out: Path,
    config: DistillConfig,
    resume: bool,
    source: Callable[[Writer], Source] | None = None,
) -> None:
    """Train `student` towards the distribution of `teacher`; `out/model` holds the result.

    `source` says whose sequences are learnt from, given who writes the student's own; the data's if not
    said. Raises ConfigError without a teacher or with one of another vocabulary, MissingExtra,
    NothingLeft, UsageError.
    """
    if teacher is None:
        raise no_teacher(method)
    require_train(f"the trainer {method}")
    from kdbench_trainers._fit import fit
    from kdbench_trainers._models import load_student
    from kdbench_trainers._sources import Data
    from kdbench_trainers._teacher import LiveTeacher, load_teacher
    from kdbench_trainers._trainer import Plan

    reader, model = load_student(student, config)
    teacher_reader, lesson = load_teacher(teacher, student, reader, model, config, LiveTeacher)
    whose: Source = Data()
    if source is not None:
        assert isinstance(config, OnPolicyConfig)
        whose = source(writer_of(model, reader, teacher_reader, config))
    fit(
        samples, student=reader, teacher=teacher_reader, model=model, plan=Plan(lesson, whose), out=out,
        config=config, resume=resume,
    )  # fmt: skip


def no_teacher(method: str) -> ConfigError:
    """What is said of a method that was given none."""
    return ConfigError(
        f"The trainer {method} learns a teacher's distribution and no teacher is given; "
        "name one with --teacher, or use black_box"
    )


def distil_stored(
    method: str,
    samples: Sequence[Completion],
    signals: Path,
    *,
    teacher: str | None,
    student: str,
    out: Path,
    config: DistillConfig,
    resume: bool,
) -> None:
    """Train `student` on what a teacher said before, in the store `signals`; no teacher is loaded.

    `teacher` is only held against the store, where it is given. Raises ConfigError, DataError for a store
    of another tokenizer, teacher or text, RunDirError, MissingExtra, NothingLeft, UsageError.
    """
    require_train(f"the trainer {method}")
    from kdbench_trainers._fit import fit
    from kdbench_trainers._models import load_student
    from kdbench_trainers._teacher import StoredTeacher, open_store
    from kdbench_trainers._trainer import Plan

    reader, model = load_student(student, config)
    rows = model.get_output_embeddings().weight.shape[0]
    store = open_store(signals, samples, student, reader, rows, teacher)
    if store.info.kind == "top_k" and config.kd_temperature != 1:
        log.warning(
            "The signals hold the likeliest tokens and a rest, softened as one: kd_temperature %g is another "
            "objective here than with a live teacher or with hidden states",
            config.kd_temperature,
        )
    lesson = StoredTeacher(store, config, str(model.device))
    fit(
        samples, student=reader, model=model, plan=Plan(lesson), out=out, config=config, resume=resume,
        stored=store.tokens,
    )  # fmt: skip


def writer_of(model: Any, student: Reader, teacher: Reader, config: OnPolicyConfig) -> Writer:
    from kdbench.models.sequences import sequence_limit
    from kdbench.teacher import Sampling
    from kdbench_trainers._sources import Writer

    limit, _ = sequence_limit(config.max_length, student, teacher)
    sampling = Sampling(
        temperature=config.sampling_temperature, top_p=config.top_p, max_tokens=config.max_new_tokens
    )
    return Writer(model, student.tokenizer, sampling, limit=limit, seed=config.seed)
