"""`kdbench train`: samples and a student to a trained model, in a run directory.

    train("white_box", data="runs/stories", student="runs/pruned", teacher="smollm2", out="runs/white_box")

    runs/white_box/model/           the trained student: safetensors, tokenizer, model card
                   metrics.jsonl    one line per logged step: loss, tokens, tokens_per_second, ...
                   checkpoints/     until it is done
                   run.json DONE    where it came from

A training that was cut off goes on from its last checkpoint with `resume`, to the same weights. Several
processes (`accelerate launch -m kdbench.cli train ...`) share one training and write one run directory.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from kdbench import plugins
from kdbench.config import StrictConfig, build
from kdbench.errors import ConfigError, DataError, RunDirError, UsageError
from kdbench.jobs._completions import data_sha256, read_kinds
from kdbench.models.weights import local_weights, weights_sha256
from kdbench.processes import this_process
from kdbench.provenance import folder_sha256, source_sha256
from kdbench.records import Sample
from kdbench.reporting.model_card import write_model_card
from kdbench.rundir import IfExists, RunDir, is_done, read_info, require
from kdbench.selecting import chosen

KIND = "train"
log = logging.getLogger("kdbench")


@dataclass(frozen=True, slots=True)
class Trainer:
    """A trainer plug-in with its config."""

    name: str
    module: ModuleType
    config: StrictConfig
    source_sha256: str | None
    needs_teacher: bool
    needs_samples: bool
    two_tokenizers: bool  # compares models that have different ones
    signals: Path | None  # what is learnt from in place of a teacher


def train(
    method: str | Path,
    *,
    data: str | Path | Sequence[str | Path] = (),
    student: str,
    out: str | Path,
    teacher: str | None = None,
    config: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    where: Mapping[str, Any] | None = None,
    limit: int | None = None,
) -> Path:
    """Train `student` by a trainer's name or file on finished generate runs; `out/model` holds it.

    A trainer that has other sources than samples needs no `data`. `config` are the trainer's settings;
    `where` takes only the samples whose fields have these values, `limit` the first ones of them. `resume`
    goes on from the last checkpoint, if data, student, teacher, settings and the trainer's source are what
    they were.
    Raises UnknownPlugin, ConfigError, UsageError, RunDirError, DataError, NothingLeft, MissingExtra.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other; choose one")
    trainer = load_trainer(method, config or {})
    check_teacher(trainer, teacher)
    paths = [Path(data)] if isinstance(data, str | Path) else [Path(one) for one in data]
    if trainer.needs_samples and not paths:
        raise UsageError(
            f"The trainer {trainer.name} learns from samples and none are given; name a finished generate "
            "run with --data"
        )
    there = read_kinds(paths, plugins.takes(trainer.module, trainer.config), trainer.name)
    samples = list(islice(chosen(there, where or {}), limit))
    fingerprint = {
        "trainer": trainer.name,
        "trainer_source": trainer.source_sha256,
        "config": trainer.config.model_dump(mode="json"),
        "data_sha256": data_sha256(paths),
        "where": dict(where) if where else None,
        "limit": limit,
        "student_weights": weights_sha256(local_weights(student)),
        "teacher_weights": weights_sha256(local_weights(teacher))
        if trainer.needs_teacher and teacher
        else None,
        **({"signals": require(trainer.signals, "signals")["fingerprint"]} if trainer.signals else {}),
        **({"inputs": read} if (read := plugins.inputs(trainer.module, trainer.config)) else {}),
    }
    path = Path(out)
    if resume and (path / "run.json").is_file():
        _check_same(path, fingerprint)
        if is_done(path):
            log.info("%s is finished already, from the same data, student and settings", path)
            return path
    if not this_process().is_first:  # the first one keeps the run directory for all
        trainer.module.train(
            samples, teacher=teacher, student=student, out=path, config=trainer.config, resume=resume
        )
        return path
    written = {
        "trainer": trainer.name,
        "data": [str(one) for one in paths],
        "student": student,
        "teacher": teacher,
        "config": fingerprint["config"],
    }
    how: IfExists = "overwrite" if overwrite else "resume" if resume else "refuse"
    run = RunDir.create(path, kind=KIND, config=written, fingerprint=fingerprint, if_exists=how)
    run.update(
        trainer=trainer.name,
        student={"ref": student, "weights_sha256": fingerprint["student_weights"]},
        **(
            {"teacher": {"spec": teacher, "weights_sha256": fingerprint["teacher_weights"]}}
            if teacher
            else {}
        ),
    )
    _work(run, trainer, samples, student=student, teacher=teacher, resume=resume)
    return path


def check_teacher(trainer: Trainer, teacher: str | None) -> None:
    """Raise ConfigError where the trainer needs a teacher and none is given."""
    if trainer.needs_teacher and teacher is None:
        raise ConfigError(
            f"The trainer {trainer.name} learns from a teacher's distribution and no teacher is given; "
            "name one with --teacher, or use black_box"
        )


def load_trainer(method: str | Path, config: Mapping[str, Any]) -> Trainer:
    """A trainer by its name or file. Raises UnknownPlugin, UsageError, ConfigError."""
    path = Path(method)
    own_file = path.suffix == ".py"
    module = plugins.load_file(path, "trainers") if own_file else plugins.load("trainers", str(method))
    name = path.stem if own_file else str(method)
    # What a shipped trainer shares with its neighbours decides the result, too.
    folder = None if own_file or module.__file__ is None else Path(module.__file__).parent
    built = build(plugins.config_class(module), config, f"trainer {name}")
    return Trainer(
        name=name,
        module=module,
        config=built,
        source_sha256=folder_sha256(folder, ["*.py"]) if folder else source_sha256(module),
        needs_teacher=plugins.needs_teacher(module, built),
        needs_samples=bool(getattr(module, "NEEDS_SAMPLES", True)),
        two_tokenizers=bool(getattr(module, "TWO_TOKENIZERS", False)),
        signals=getattr(built, "signals", None),
    )


def _check_same(path: Path, fingerprint: Mapping[str, Any]) -> None:
    """A training goes on only as what it was."""
    info = read_info(path)
    if info["kind"] != KIND:
        return  # RunDir.create says so
    before = info.get("fingerprint", {})
    changed = [key for key, value in fingerprint.items() if before.get(key) != value]
    if changed:
        words = ", ".join(key.replace("_sha256", "").replace("_", " ") for key in changed)
        raise RunDirError(
            f"{path} cannot go on: other {words} than when it began; set it back, begin anew with "
            "--overwrite, or choose another directory"
        )


def _work(
    run: RunDir,
    trainer: Trainer,
    samples: Sequence[Sample],
    *,
    student: str,
    teacher: str | None,
    resume: bool,
) -> None:
    """Call the trainer and put down what came of it; run.json says how it ended."""
    status = "failed"
    try:
        trainer.module.train(
            samples, teacher=teacher, student=student, out=run.path, config=trainer.config, resume=resume
        )
        run.update(
            weights_sha256=weights_sha256(run.path / "model"),
            stats={"samples": len(samples), **_stats(run.path)},
        )
        write_model_card(run.path, run.info)
        run.finish()
    except KeyboardInterrupt:
        status = "interrupted"
        log.warning("Interrupted; the last checkpoint is kept in %s: go on with --resume", run.path)
        raise
    finally:
        if not run.closed:
            run.abandon(status)


def _stats(path: Path) -> dict[str, Any]:
    """What a training came to, from its metrics and its weights."""
    lines = _metrics(path / "metrics.jsonl")
    steps = [line for line in lines if line.get("split") == "train"]
    tokens = sum(int(line.get("tokens", 0)) for line in steps)
    seconds = sum(float(line.get("seconds", 0)) for line in steps)
    held_out = [float(line["loss"]) for line in lines if line.get("split") == "validation"]
    phases = dict.fromkeys((key for line in steps for key in line if key.startswith("seconds_")), 0.0)
    for line in steps:
        for key in phases:
            phases[key] += float(line.get(key, 0))
    return {
        "steps": max((int(line["step"]) for line in steps), default=0),
        "tokens": tokens,
        "seconds": round(seconds, 3),
        **({"tokens_per_second": round(tokens / seconds, 1)} if seconds else {}),
        **(
            {"phases": {k.removeprefix("seconds_"): round(v, 3) for k, v in phases.items()}} if phases else {}
        ),
        **{
            name: over(float(line[name]) for line in steps if name in line)
            for name, over in (("generated_tokens", sum), ("peak_memory_mb", max))
            if any(name in line for line in steps)
        },
        "parameters": _parameters(path / "model"),
        **({"validation_loss": held_out[-1]} if held_out else {}),
    }


def _metrics(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as exc:
        raise DataError(f"The trainer left no readable {path}: {exc}") from exc


def _parameters(folder: Path) -> int:
    """Numbers in the safetensors files, counted from their headers; tied weights stand there once."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total
