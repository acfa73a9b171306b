"""The training loop that all trainers share: TRL's SFTTrainer, fed with our batches and our losses.

    KdTrainer(model, plan, train=..., validation=..., tokenizer=..., out=..., config=config).train()

What a method is stands in its `Plan`: whose sequences (`source`) and what is learnt from them (`lesson`).
Optimiser, schedule, clipping, checkpoints, DDP, FSDP and DeepSpeed are transformers' and accelerate's. The
loss of an optimiser step is the sum over all its rows divided by the sum of their weights, however it is
cut into micro-batches and over processes; it is counted after the student has written what it learns from.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError  # what torch's weights-only loader raises; nothing is unpickled
from typing import Any, Protocol

import torch
from datasets import Dataset
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer
from trl import SFTConfig, SFTTrainer

from kdbench.errors import ConfigError, RunFailed, StorageError
from kdbench.losses.chunked import LossSums, cross_entropy_loss
from kdbench.losses.heads import Head, head_of
from kdbench.models.loading import first_line
from kdbench.models.rows import hidden_rows
from kdbench.models.sequences import TokenSequence
from kdbench.processes import Place, this_process
from kdbench_trainers._batches import BatchOrder, collate, cut, in_shares, weights_of
from kdbench_trainers._clock import Clock, peak_memory_mb
from kdbench_trainers._config import TrainConfig
from kdbench_trainers._models import Compute
from kdbench_trainers._sources import Data, Source

STATE_FILE = "kdbench_source-{}.json"  # of each process, in a checkpoint
_SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")  # how accelerate launch asks for it
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


class Lesson(Protocol):
    """What the student learns from sequences."""

    def prepare(self, sequences: list[TokenSequence]) -> None:
        """The data's sequences that may come, each perhaps several times."""
        ...

    def read(self, batch: dict[str, Any]) -> Any:
        """What the teacher says of a batch; without gradient, before the student's forward pass."""
        ...

    def loss(self, batch: dict[str, Any], hidden: Tensor, head: Head, said: Any) -> LossSums:
        """Sums over the batch's N loss rows: student `hidden` [N, H], and what `read` returned."""
        ...


class CrossEntropy:
    """The lesson of black_box: the tokens themselves."""

    def prepare(self, sequences: list[TokenSequence]) -> None:
        """Nothing to prepare."""

    def read(self, batch: dict[str, Any]) -> None:
        """Nobody is asked."""

    def loss(self, batch: dict[str, Any], hidden: Tensor, head: Head, said: None) -> LossSums:
        """Weighted negative log-likelihood of the batch's targets."""
        return cross_entropy_loss(hidden, head, batch["targets"], weights=batch["weights"])


@dataclass(frozen=True, slots=True)
class Plan:
    """A method: whose sequences, and what is learnt from them.

    With `shares`, the loss of a step is the sum over tasks of share * mean over the rows of that task;
    without, one mean over all rows. `lessons` are those of tasks that have another one than the rest.
    """

    lesson: Lesson = field(default_factory=CrossEntropy)
    source: Source = field(default_factory=Data)
    shares: Mapping[str, float] = field(default_factory=dict)
    lessons: Mapping[str, Lesson] = field(default_factory=dict)


@dataclass(slots=True)
class Totals:
    """What has been learnt since the last line of metrics."""

    sums: Tensor  # by lesson, the method's own first: loss, divergence, cross-entropy, weight
    tokens: int = 0
    slots: int = 0  # positions of the micro-batches, padding included
    padding: int = 0


class KdTrainer(SFTTrainer):
    """SFTTrainer with our windows of sequences, our loss and a token-weighted validation loss."""

    loss_is_scaled_for_ga = True  # compute_loss divides by the whole optimiser step's tokens

    def __init__(
        self,
        model: Any,
        plan: Plan,
        *,
        train: list[TokenSequence],
        validation: list[TokenSequence],
        tokenizer: Any,
        out: Path,
        config: TrainConfig,
        resumed: Path | None = None,
    ) -> None:
        self.place = this_process()
        _check_launcher(config, self.place)
        args = _arguments(out, config)
        self.order = BatchOrder(
            len(train),
            batch=config.batch_size,
            shuffle=config.order_by is None,
            steps=config.steps,
            seed=config.seed,
            rank=self.place.rank,
            world=self.place.world,
        )
        share = config.batch_size // self.place.world
        self.micro_batch = min(config.micro_batch_size or share, share)
        args.per_device_train_batch_size = share  # transformers sees whole steps; they are cut here
        args.eval_on_start = bool(validation) and resumed is None
        args.eval_strategy = "steps" if validation else "no"
        self.plan = plan
        self.sequences = {"train": train, "validation": validation}
        used = {index for indices in self.order for index in indices}
        # Apart: what is validated is then never read in the company of what is learnt.
        plan.lesson.prepare([train[index] for index in sorted(used)])
        plan.lesson.prepare(validation)
        if resumed is not None:
            plan.source.restore(_read_state(resumed, self.place))
        self.clock = Clock()
        self.totals = Totals(torch.zeros(1 + len(plan.lessons), 4, device=model.device))
        super().__init__(
            model=model,
            args=args,
            # TRL looks at type and columns; the loader below reads the sequences themselves.
            train_dataset=_as_dataset(train),
            eval_dataset=_as_dataset(validation) if validation else None,
            processing_class=tokenizer,
            data_collator=collate,
        )
        if self.accelerator.num_processes != self.place.world:
            raise ConfigError(
                f"The launcher started {self.accelerator.num_processes} processes, and WORLD_SIZE says "
                f"{self.place.world}; use torchrun or accelerate launch"
            )

    def _send_telemetry(self) -> None:
        """Tell nobody."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none into checkpoints: the job writes the card of the finished model."""

    def get_train_dataloader(self) -> Any:
        """The data's sequences of every step of the training, in order; this process's share."""
        return DataLoader(self.sequences["train"], batch_sampler=self.order, collate_fn=list)  # type: ignore[arg-type]

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[TokenSequence]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """An optimiser step's micro-batches, as one batch, and the sum of the weights of all their rows.

        The whole step is known here: the student writes once for all of it, and it is sorted by length
        before it is cut, so that little is padded.
        """
        batch = next(epoch_iterator)
        with self.clock("generate"):
            window = self.plan.source.window(self.state.global_step, batch)
        window = self._in_shares(window, self.place.world)
        parts = [collate(part) for part in self._parts(window, len(batch))]
        weight: Tensor = sum(one["weights"].sum() for one in parts).to(device)
        return [{"parts": parts}], self.accelerator.reduce(weight, "sum")

    def _parts(self, window: list[TokenSequence], samples: int) -> list[list[TokenSequence]]:
        """Micro-batches of what became of so many of the data's samples; each is of one lesson."""
        own = [one for one in window if one.task not in self.plan.lessons]
        # A source may give several sequences for one of the data's.
        parts = self._cut(own, self.micro_batch * len(own) // samples)
        for task in self.plan.lessons:
            parts += self._cut([one for one in window if one.task == task], self.micro_batch)
        return parts

    def _cut(self, sequences: list[TokenSequence], most: int) -> list[list[TokenSequence]]:
        return cut(sequences, most, on_cpu=self.model.device.type == "cpu")

    def _in_shares(self, sequences: list[TokenSequence], world: int) -> list[TokenSequence]:
        """Sequences weighed by their tasks' shares of all rows, those of other processes included."""
        tasks = list(self.plan.shares)
        if not tasks:
            return sequences
        sums = torch.tensor(weights_of(sequences, tasks), device=self.model.device)
        if world > 1:
            sums = self.accelerator.reduce(sums, "sum")
        return in_shares(sequences, self.plan.shares, dict(zip(tasks, sums.tolist(), strict=True)))

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """All micro-batches of a step, on the clock; at the last one processes add up their gradients."""
        step = super().training_step
        *first, last = inputs["parts"]
        with self.clock("student"):
            with self.accelerator.no_sync(model):
                losses = [step(model, part, num_items_in_batch) for part in first]
            losses.append(step(model, last, num_items_in_batch))
        return torch.stack(losses).sum()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Of all micro-batches."""
        return sum(super(KdTrainer, self).floating_point_ops(part) for part in inputs["parts"])

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """This micro-batch's part of the optimiser step's loss."""
        sums = self._score(model, inputs)
        weight = inputs["weights"].sum()
        found = torch.stack((sums.loss.detach(), sums.divergence, sums.cross_entropy, weight))
        self.totals.sums[self._lesson(inputs)[0]] += found
        self.totals.tokens += len(inputs["targets"])
        self.totals.slots += inputs["attention_mask"].numel()
        self.totals.padding += inputs["attention_mask"].numel() - sum(s.length for s in inputs["sequences"])
        assert num_items_in_batch is not None
        # Gradients are averaged over the processes; the divisor counts the tokens of all of them.
        return sums.loss * self.place.world / num_items_in_batch

    def _lesson(self, inputs: dict[str, Any]) -> tuple[int, Lesson]:
        """The lesson of a micro-batch, and its place in the totals."""
        task = inputs["sequences"][0].task
        if task in self.plan.lessons:
            return 1 + list(self.plan.lessons).index(task), self.plan.lessons[task]
        return 0, self.plan.lesson

    def _score(self, model: Any, inputs: dict[str, Any]) -> LossSums:
        _, lesson = self._lesson(inputs)
        with self.accelerator.autocast():
            with self.clock("teacher"):
                said = lesson.read(inputs)

            def score(whole: Any) -> LossSums:
                hidden = hidden_rows(whole, inputs)
                with self.clock("loss"):
                    return lesson.loss(inputs, hidden, head_of(whole), said)

            sums: LossSums = model(kd=score)
            return sums

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Replace transformers' mean over steps by ours over tokens, and add what it cost."""
        if "loss" in logs:
            logs |= self._logged()
        Trainer.log(self, logs, start_time)

    def _logged(self) -> dict[str, float]:
        totals, self.totals = self.totals, Totals(torch.zeros_like(self.totals.sums))
        phases = self.clock.take()
        seconds = max(sum(phases.values()), 1e-9)
        tokens = self._over_all(totals.tokens)
        return {
            **_means(self.accelerator.reduce(totals.sums, "sum"), list(self.plan.lessons)),
            "tokens": tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1),
            **{f"seconds_{name}": round(spent, 4) for name, spent in phases.items()},
            "padding": round(totals.padding / totals.slots, 4),
            "peak_memory_mb": round(peak_memory_mb(), 1),
            "epochs": self.state.global_step * self.order.batch / len(self.sequences["train"]),
            **self.plan.source.logged(),
        }

    def _over_all(self, count: int) -> int:
        if self.place.world == 1:
            return count
        return int(self.accelerator.reduce(torch.tensor(count, device=self.model.device), "sum"))

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The validation loss: the sum over all held-out tokens, divided by their weight.

        It is made on the data's own completions, whoever writes what is learnt, and by every process.
        """
        self.model.eval()  # training_step puts it back
        sums, tokens = torch.zeros(4, device=self.model.device), 0
        began = time.perf_counter()
        with self.clock.stopped():
            for part in self._cut(self._in_shares(self.sequences["validation"], 1), self.micro_batch):
                batch = self._prepare_inputs(collate(part))
                scored = self._score(self.model, batch)
                weight = batch["weights"].sum()
                sums += torch.stack((scored.loss, scored.divergence, scored.cross_entropy, weight))
                tokens += len(batch["targets"])
        found = _means(sums.unsqueeze(0), [])
        found |= {"tokens": tokens, "seconds": round(time.perf_counter() - began, 3)}
        metrics = {f"eval_{name}": value for name, value in found.items()}
        Trainer.log(self, metrics)
        self.plan.source.validated(metrics["eval_cross_entropy"])
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        path = _state_file(folder, self.place)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            state = {"world": self.place.world, "source": self.plan.source.state()}
            path.write_text(json.dumps(state), encoding="utf-8")
            super()._save_checkpoint(model, trial)
        except OSError as exc:
            raise StorageError(
                f"Cannot write into {folder}: {exc.strerror or exc}; free some room and go on with --resume"
            ) from exc
        except RuntimeError as exc:
            if "PytorchStreamWriter" not in str(exc) and "inline_container" not in str(exc):
                raise
            raise StorageError(
                f"Cannot write into {folder}: {first_line(exc)}; free some room and go on with --resume"
            ) from exc

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _readable(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _readable(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)


@contextmanager
def _readable(checkpoint: str | None) -> Iterator[None]:
    """What a foreign or broken checkpoint raises, in a sentence."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError, EOFError, OSError, UnpicklingError, SafetensorError) as exc:
        raise RunFailed(
            f"The checkpoint {checkpoint} is broken or of another training ({first_line(exc)}); remove it "
            "and go on with --resume from the one before, or begin anew with --overwrite"
        ) from exc


def _state_file(checkpoint: Path, place: Place) -> Path:
    return checkpoint / STATE_FILE.format(place.rank)


def _read_state(checkpoint: Path, place: Place) -> dict[str, Any]:
    """What the source of sequences kept in a checkpoint. Raises RunFailed."""
    path = _state_file(checkpoint, place)
    try:
        state: dict[str, Any] = json.loads(path.read_bytes())
        source: dict[str, Any] = state["source"]
        world = int(state["world"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise RunFailed(
            f"The checkpoint {checkpoint} has no readable {path.name}; go on with as many processes as wrote "
            "it, remove it to go on from the one before, or begin anew with --overwrite"
        ) from exc
    if world != place.world:
        raise RunFailed(
            f"The checkpoint {checkpoint} was written by {world} processes, and there are {place.world}; go "
            "on with as many, or begin anew with --overwrite"
        )
    return source


def _means(sums: Tensor, tasks: list[str]) -> dict[str, float]:
    """Per token: the loss of all, the method's own parts, no divergence where there is no teacher, and the
    cross-entropy of each of the `tasks` that have a lesson of their own."""
    own, *others = sums.tolist()
    loss, weight = sum(one[0] for one in (own, *others)), sum(one[3] for one in (own, *others))
    means = {"loss": loss / weight, "divergence": own[1] / own[3], "cross_entropy": own[2] / own[3]}
    means |= {f"{task}_cross_entropy": one[2] / one[3] for task, one in zip(tasks, others, strict=True)}
    return {name: value for name, value in means.items() if name != "divergence" or not math.isnan(value)}


def _as_dataset(sequences: list[TokenSequence]) -> Dataset:
    return Dataset.from_dict({"input_ids": [list(s.prompt + s.completion) for s in sequences]})


def _check_launcher(config: TrainConfig, place: Place) -> None:
    """Raise ConfigError for what a launcher asks for and the trainers cannot do."""
    if any(os.environ.get(name, "").lower() in ("true", "1") for name in _SHARDING):
        raise ConfigError(
            "The trainers work with DDP, and not with FSDP or DeepSpeed yet; launch without them, and with "
            "lora, gradient_checkpointing or a smaller micro_batch_size where memory is short"
        )
    if config.batch_size % place.world:
        raise ConfigError(
            f"batch_size = {config.batch_size} cannot be shared by {place.world} processes; "
            f"make it a multiple of {place.world}"
        )


def _arguments(out: Path, config: TrainConfig) -> SFTConfig:
    compute = Compute.of(config)
    args = SFTConfig(
        output_dir=str(out / "checkpoints"),
        max_steps=config.steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=_SCHEDULES[config.schedule],
        warmup_steps=min(config.warmup_steps, config.steps - 1),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused",
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        eval_steps=config.eval_every,
        save_strategy="steps",
        save_steps=config.checkpoint_every,
        save_total_limit=2,
        seed=config.seed,
        use_cpu=compute.on_cpu,
        bf16=compute.dtype == "bfloat16",
        gradient_checkpointing=False,  # the old name of the next, on by default in TRL
        activation_checkpointing=config.gradient_checkpointing,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to=config.report_to or "none",
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
    )
    args._n_gpu = min(args.n_gpu, 1)  # otherwise all GPUs in sight are taken for DataParallel
    return args
