"""One training from samples to a saved model, and again from where it was cut off.

fit(samples, student=reader, model=model, plan=Plan(), out=out, config=config, resume=False)
-> out/model, out/metrics.jsonl; out/checkpoints until it is done
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import PrinterCallback

from kdbench.checks.case import Case
from kdbench.checks.running import VETTED, vet
from kdbench.errors import RunFailed, StorageError
from kdbench.models.sequences import Reader, TokenSequence
from kdbench.processes import this_process
from kdbench.progress import log
from kdbench.records import Completion
from kdbench_trainers._callbacks import Interrupt, Metrics, OptimizerClock
from kdbench_trainers._checkpoints import STATE_FILE
from kdbench_trainers._config import Material, TrainConfig
from kdbench_trainers._loop import Loop
from kdbench_trainers._material import divided
from kdbench_trainers._options import beside, in_order
from kdbench_trainers._trainer import KdTrainer, Plan


def fit(
    samples: Sequence[Material],
    *,
    student: Reader,
    model: Any,
    plan: Plan,
    out: Path,
    config: TrainConfig,
    resume: bool,
    teacher: Reader | None = None,
    stored: Callable[[str], Sequence[int] | None] | None = None,
) -> None:
    """Train `model` and write `out/model` and `out/metrics.jsonl`; `resume` goes on from a checkpoint.

    `stored` gives completions' tokens that were put down before, as in `encode`.
    Raises NothingLeft where no sample fits, DataError and ConfigError for what `vet` finds,
    KeyboardInterrupt after Ctrl-C, once a checkpoint is kept, RunFailed where the loss is no number any
    more or memory runs out, StorageError for a full disk.
    """
    samples = config.prepared(samples)
    train, validation = divided(samples, student, teacher, config, stored)
    completions = [one for one in samples if isinstance(one, Completion)]
    train = in_order(train, completions, config)
    vet(Case(completions, student, teacher, config.max_length, train, validation, most=VETTED))
    learn(train, validation, student=student, model=model, plan=plan, out=out, config=config, resume=resume)


def learn(
    train: list[TokenSequence],
    validation: list[TokenSequence],
    *,
    student: Reader,
    model: Any,
    plan: Plan,
    out: Path,
    config: TrainConfig,
    resume: bool,
) -> None:
    """`fit` on sequences that are made, divided and put in order already."""
    if config.plain_text is not None:
        plan = beside(plan, student, config, config.plain_text)

    def trainer(resumed: Path | None) -> KdTrainer:
        return KdTrainer(
            model, plan, train=train, validation=validation, tokenizer=student.tokenizer, out=out,
            config=config, resumed=resumed,
        )  # fmt: skip

    drive(trainer, student=student, model=model, out=out, config=config, resume=resume)


def drive(
    make: Callable[[Path | None], Loop],
    *,
    student: Reader,
    model: Any,
    out: Path,
    config: TrainConfig,
    resume: bool,
) -> None:
    """`fit` with the trainer that `make` puts together, given the checkpoint to go on from, if any."""
    checkpoint = last_checkpoint(out / "checkpoints") if resume else None
    if config.freeze_embeddings:
        model.get_input_embeddings().weight.requires_grad_(requires_grad=False)
    with (
        _translated(out, config),
        quiet(),
        Metrics(out / "metrics.jsonl", config.steps, checkpoint) as metrics,
        Interrupt() as interrupt,
    ):
        trainer = make(checkpoint)
        trainer.remove_callback(PrinterCallback)
        for callback in (OptimizerClock(trainer.clock), metrics, interrupt):
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        interrupt.check()
        if trainer.sequences["validation"] and metrics.last_validated < config.steps:
            trainer.evaluate()
        _save(trainer, student.tokenizer, out, config)
        trainer.accelerator.wait_for_everyone()  # nobody goes on to read what is not yet written
    if not config.keep_checkpoints and trainer.place.is_first:
        for path in (out / "checkpoints").glob("checkpoint-*"):  # a tracker may have written beside them
            shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            (out / "checkpoints").rmdir()


@contextmanager
def _translated(out: Path, config: TrainConfig) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as exc:
        raise StorageError(
            f"Cannot write into {out}: {exc}; free some room and go on with --resume from the last checkpoint"
        ) from exc
    except (torch.OutOfMemoryError, MemoryError) as exc:
        raise _out_of_memory(config) from exc
    except RuntimeError as exc:
        if "allocate memory" not in str(exc):  # what torch says on a CPU
            raise
        raise _out_of_memory(config) from exc


def _out_of_memory(config: TrainConfig) -> RunFailed:
    share = config.batch_size // this_process().world
    size = min(config.micro_batch_size or share, share)
    smaller = f"a micro_batch_size below {size}, " if size > 1 else ""
    return RunFailed(
        f"The device ran out of memory; train with {smaller}a smaller max_length or "
        "gradient_checkpointing = true"
    )


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None. One that a kill cut short lacks its state or has it torn."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(found, key=lambda p: -int(p.name.removeprefix("checkpoint-"))):
        try:
            json.loads((path / "trainer_state.json").read_bytes())
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
            continue
        if (path / STATE_FILE.format(this_process().world - 1)).is_file():
            return path
        log.warning("%s is passed over: not all processes had written to it", path)
    return None


def _save(trainer: Loop, tokenizer: Any, out: Path, config: TrainConfig) -> None:
    """Write out/model; adapters are added to the weights first, unless they are to be kept apart."""
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # gathers what was sharded
    if not trainer.place.is_first:
        return
    shutil.rmtree(out / "model", ignore_errors=True)
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if config.lora is not None and config.lora.merge:
        model.merge_and_unload().save_pretrained(out / "model")
    else:
        model.save_pretrained(out / "model", state_dict=weights)
    tokenizer.save_pretrained(out / "model")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own notes and bars off the terminal; its errors still show."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
