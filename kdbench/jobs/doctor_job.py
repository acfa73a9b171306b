"""`kdbench doctor`: what is wrong with a training, before it begins.

    doctor("white_box", data="runs/stories", student="runs/pruned", teacher="smollm2")

    samples          ok
    left out         warning  2 of 300 samples (1%) left out as too long: ab12-7-0 (1,310 tokens; at most ...
    vocabularies     ok       student 49,152 tokens, head 49,152; teacher 49,152 tokens, head 49,152; ...
    ...
    denominator      ok       loss 0.3012 in one batch and in micro-batches, and for 2 processes

The data, the settings and the models are those of `kdbench train`; nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdbench import plugins
from kdbench.checks.findings import Finding, about
from kdbench.errors import CallRefused, ConfigError, DataError, NothingLeft, RunDirError, RunFailed
from kdbench.jobs._completions import read_completions
from kdbench.jobs.training import Trainer, check_teacher, load_trainer
from kdbench.models.weights import require_train
from kdbench.records import Completion
from kdbench.selecting import chosen

if TYPE_CHECKING:
    from kdbench.checks.case import Case
    from kdbench.models.sequences import Reader

_TRAINER, _OPTIONS = "trainer", "options"
_STYLES = {"error": "bold red", "warning": "yellow", "ok": "green"}


def doctor(
    method: str | Path,
    *,
    data: str | Path | Sequence[str | Path],
    student: str,
    teacher: str | None = None,
    config: Mapping[str, Any] | None = None,
    where: Mapping[str, Any] | None = None,
    limit: int | None = None,
) -> list[Finding]:
    """What is found before training `student` by `method`, one finding or more per check; `train`'s options.

    First what can be seen without models, then the trainer's own batches, hidden states and first step; of
    a sequence of trainings each by its name, all with the student that the first one begins with.
    Raises UnknownPlugin, ConfigError, UsageError, RunDirError, DataError, NothingLeft for what is no
    training at all, MissingExtra without torch.
    """
    trainer = load_trainer(method, config or {})
    check_teacher(trainer, teacher)
    _check_kind(trainer)
    require_train("the doctor")
    paths = [Path(data)] if isinstance(data, str | Path) else [Path(one) for one in data]
    samples = list(islice(chosen(read_completions(paths), where or {}), limit))
    parts = getattr(trainer.module, "parts", None)
    if parts is None:
        return _found(samples, trainer, student, teacher)
    return [
        replace(one, check=f"{part.name}: {one.check}")
        for part in parts(samples, teacher=teacher, config=trainer.config)
        for one in _found(
            part.samples, load_trainer(part.trainer, part.config.model_dump()), student, part.teacher
        )
    ]


def _found(
    samples: Sequence[Completion], trainer: Trainer, student: str, teacher: str | None
) -> list[Finding]:
    """What is found of one training."""
    from kdbench.checks.case import reader_of, unreadable
    from kdbench.checks.running import examine

    prepared = getattr(trainer.config, "prepared", None)  # a trainer of one's own may have no options
    try:
        samples = prepared(samples) if prepared else samples
    except (ConfigError, DataError, RunDirError) as exc:  # what the training would end with
        return [Finding(_OPTIONS, "error", str(exc))]
    readers = reader_of(student), reader_of(teacher) if trainer.needs_teacher and teacher else None
    try:
        case = _case(samples, *readers, trainer)
    except CallRefused:
        return about(
            "chat templates", "error", "with messages that a chat template turns down",
            unreadable(samples, *readers), way_out="leave them out, or give the model another chat template",
        )  # fmt: skip
    found = examine(case)
    if not case.sequences:
        return found
    return [*found, *_rehearsed(case, trainer, found, student=student, teacher=teacher)]


def _check_kind(trainer: Trainer) -> None:
    kinds = plugins.takes(trainer.module, trainer.config)
    if "completion" not in kinds:
        raise ConfigError(
            f"The doctor looks at completions, and the trainer {trainer.name} learns from "
            f"{' or '.join(sorted(kinds))}; begin the training, which checks its data first"
        )


def _case(samples: Sequence[Completion], student: Reader, teacher: Reader | None, trainer: Trainer) -> Case:
    from kdbench.checks.case import Case
    from kdbench.models.alignment import encode_aligned
    from kdbench.models.sequences import encode, split

    config: Any = trainer.config  # a trainer of one's own may lack any of these
    length = getattr(config, "max_length", 1024)
    two = trainer.two_tokenizers
    try:
        if two and teacher is not None:
            sequences = encode_aligned(samples, student, teacher, length)
        else:
            sequences = encode(samples, student, teacher, length, stored=_stored(trainer))
    except NothingLeft:  # the checks say why
        sequences = []
    parts = split(sequences, getattr(config, "validation_share", 0.0), getattr(config, "seed", 0))
    return Case(samples, student, teacher, length, *parts, two_tokenizers=two)


def _stored(trainer: Trainer) -> Callable[[str], Sequence[int] | None] | None:
    """The tokens of stored signals, where these are learnt from."""
    if trainer.signals is None:
        return None
    from kdbench.signal_store import SignalStore

    return SignalStore.open(trainer.signals).tokens


def _rehearsed(
    case: Case, trainer: Trainer, found: Sequence[Finding], *, student: str, teacher: str | None
) -> list[Finding]:
    """What is found with the models loaded, by the trainer itself; why, if they could not be looked at."""
    from kdbench.checks.running import rehearsed

    unseen = "Batches, positions and denominator were not looked at"
    if any(one.level == "error" and one.check == "vocabularies" for one in found):
        return [Finding(_TRAINER, "warning", unseen, way_out="mend the vocabularies first")]
    rehearse = getattr(trainer.module, "rehearse", None)
    if rehearse is None:
        way_out = f"give {trainer.name} a function `rehearse`, as in kdbench.checks.rehearsing"
        return [Finding(_TRAINER, "warning", unseen, way_out=way_out)]
    try:
        return rehearsed(
            case, rehearse(case.samples, teacher=teacher, student=student, config=trainer.config)
        )
    except (ConfigError, DataError, RunFailed) as exc:  # what the training would end with
        return [Finding(_TRAINER, "error", str(exc))]


def show_findings(findings: Sequence[Finding], console: Console) -> None:
    """A table in a terminal, elsewhere a line for each finding."""
    if not console.is_terminal:
        for one in findings:
            line = f"{one.check}: {one.level}{f': {one}' if str(one) else ''}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("check", "", "finding"):
        table.add_column(heading, overflow="fold")
    before = ""
    for one in findings:
        name = one.check if one.check != before else ""
        table.add_row(name, Text(one.level, _STYLES[one.level]), Text(str(one)))
        before = one.check
    console.print(table, highlight=False)


def has_errors(findings: Sequence[Finding]) -> bool:
    """Whether a training should not begin like this."""
    return any(one.level == "error" for one in findings)
