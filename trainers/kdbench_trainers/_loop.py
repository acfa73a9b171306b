"""The training loop that all trainers share, laid over one of TRL's.

    class KdTrainer(Loop, SFTTrainer):      # a loss (`_score`), and what its sums are called (`sums`)

Optimiser, schedule, clipping, checkpoints and DDP are transformers' and accelerate's. Ours are the order of
the samples, the micro-batches, the numbers that are logged and the validation. The loss of an optimiser step
is the sum over all that is learnt in it divided by the sum of the weights, however it is cut into
micro-batches and over processes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer

from kdbench.errors import ConfigError
from kdbench.processes import Place, this_process
from kdbench_trainers._batches import BatchOrder, collate, cut
from kdbench_trainers._checkpoints import read_state, readable, writable, write_state
from kdbench_trainers._clock import Clock, peak_memory_mb
from kdbench_trainers._config import TrainConfig
from kdbench_trainers._models import Compute
from kdbench_trainers._sources import Source

_SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")  # how accelerate launch asks for it
# TRL looks at type and columns; the loader reads the sequences themselves.
_STAND_IN = Dataset.from_dict({"input_ids": [[0]]})
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


class Scored(NamedTuple):
    """A micro-batch's loss, summed and with its gradient, and the sums that are logged, in one tensor."""

    loss: Tensor
    sums: Tensor


@dataclass(slots=True)
class Totals:
    """What has been learnt since the last line of metrics."""

    sums: Tensor
    tokens: int = 0
    slots: int = 0  # positions of the micro-batches, padding included
    padding: int = 0


class Loop(Trainer):
    """Over one of TRL's trainers: our windows of samples, our sums and our checkpoints."""

    loss_is_scaled_for_ga = True  # compute_loss divides by the whole optimiser step's weight
    sums: tuple[str, ...]  # the names of what `_score` sums up; one of them is the weight

    def __init__(
        self,
        model: Any,
        args: Any,
        *,
        source: Source,
        train: list[Any],
        validation: list[Any],
        tokenizer: Any,
        config: TrainConfig,
        resumed: Path | None,
    ) -> None:
        self.place = this_process()
        self.order = BatchOrder(
            len(train),
            batch=config.batch_size,
            shuffle=config.order_by is None,
            repeats=source.repeats,
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
        self.source = source
        self.sequences = {"train": train, "validation": validation}
        if resumed is not None:
            source.restore(read_state(resumed, self.place))
        self.clock = Clock()
        self.totals = Totals(torch.zeros(len(self.sums), device=model.device))
        super().__init__(
            model=model,
            args=args,
            train_dataset=_STAND_IN,
            eval_dataset=_STAND_IN if validation else None,
            processing_class=tokenizer,
            data_collator=self.collate,
        )
        if self.accelerator.num_processes != self.place.world:
            raise ConfigError(
                f"The launcher started {self.accelerator.num_processes} processes, and WORLD_SIZE says "
                f"{self.place.world}; use torchrun or accelerate launch"
            )

    def own(self) -> list[Any]:
        """What this process learns from in the whole training, each once, in the data's order."""
        train = self.sequences["train"]
        return [train[index] for index in sorted({index for indices in self.order for index in indices})]

    def collate(self, sequences: list[Any]) -> dict[str, Any]:
        """A micro-batch; its `weights` are summed up to the divisor of the loss."""
        return collate(sequences)

    def weighed(self, sequences: list[Any], world: int) -> list[Any]:
        """What is learnt in one step, with its weights; `world` processes learn in it."""
        return sequences

    def _score(self, model: Any, inputs: dict[str, Any]) -> Scored:
        """The loss of a micro-batch, and its sums in the order of `sums`."""
        raise NotImplementedError

    def _means(self, sums: dict[str, float]) -> dict[str, float]:
        """What a line of metrics says, from sums over all processes."""
        raise NotImplementedError

    def _send_telemetry(self) -> None:
        """Tell nobody."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none into checkpoints: the job writes the card of the finished model."""

    def get_train_dataloader(self) -> Any:
        """The data's sequences of every step of the training, in order; this process's share."""
        return DataLoader(self.sequences["train"], batch_sampler=self.order, collate_fn=list)  # type: ignore[arg-type]

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """An optimiser step's micro-batches, as one batch, and the sum of all their weights.

        The whole step is known here: the student writes once for all of it, and it is sorted by length
        before it is cut, so that little is padded.
        """
        batch = next(epoch_iterator)
        with self.clock("generate"):
            window = self.source.window(self.state.global_step, batch)
        window = self.weighed(window, self.place.world)
        parts = [self.collate(part) for part in self.parts(window, len(batch))]
        weight: Tensor = sum(one["weights"].sum() for one in parts).to(device)
        return [{"parts": parts}], self.accelerator.reduce(weight, "sum")

    def parts(self, window: list[Any], samples: int) -> list[list[Any]]:
        """Micro-batches of what became of so many samples: a source may give several for one."""
        return self.cut(window, self.micro_batch * len(window) // samples)

    def cut(self, sequences: list[Any], most: int) -> list[list[Any]]:
        """Micro-batches of no more tokens than `most` of the longest."""
        return cut(sequences, most, on_cpu=self.model.device.type == "cpu")

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
        return sum(super(Loop, self).floating_point_ops(part) for part in inputs["parts"])

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """This micro-batch's part of the optimiser step's loss."""
        scored = self._score(model, inputs)
        self.totals.sums += scored.sums
        self.totals.tokens += len(inputs["targets"])
        self.totals.slots += inputs["attention_mask"].numel()
        self.totals.padding += inputs["attention_mask"].numel() - sum(s.length for s in inputs["sequences"])
        assert num_items_in_batch is not None
        # Gradients are averaged over the processes; the divisor is the weight of all of them.
        return scored.loss * self.place.world / num_items_in_batch

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Replace transformers' mean over steps by ours over all that was learnt, and add what it cost."""
        if "loss" in logs:
            logs |= self._logged()
        Trainer.log(self, logs, start_time)

    def _logged(self) -> dict[str, float]:
        totals, self.totals = self.totals, Totals(torch.zeros_like(self.totals.sums))
        phases = self.clock.take()
        seconds = max(sum(phases.values()), 1e-9)
        tokens = self._over_all(totals.tokens)
        return {
            **self._named(self.accelerator.reduce(totals.sums, "sum")),
            "tokens": tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1),
            **{f"seconds_{name}": round(spent, 4) for name, spent in phases.items()},
            "padding": round(totals.padding / totals.slots, 4),
            "peak_memory_mb": round(peak_memory_mb(), 1),
            "epochs": self.order.seen(self.state.global_step) / len(self.sequences["train"]),
            **{name: self._everywhere(name, value) for name, value in self.source.logged().items()},
        }

    def _everywhere(self, name: str, value: float) -> float:
        """What a source says, counts over all processes."""
        return self._over_all(int(value)) if name in ("generated_tokens", "buffer") else value

    def _named(self, sums: Tensor) -> dict[str, float]:
        return self._means(dict(zip(self.sums, sums.tolist(), strict=True)))

    def _over_all(self, count: int) -> int:
        if self.place.world == 1:
            return count
        return int(self.accelerator.reduce(torch.tensor(count, device=self.model.device), "sum"))

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The validation loss: the sum over all that is held out, divided by its weight.

        It is made on the data's own completions, whoever writes what is learnt, and by every process.
        """
        self.model.eval()  # training_step puts it back
        sums, tokens = torch.zeros_like(self.totals.sums), 0
        began = time.perf_counter()
        with self.clock.stopped():
            for part in self.cut(self.weighed(self.sequences["validation"], 1), self.micro_batch):
                batch = self._prepare_inputs(self.collate(part))
                sums += self._score(self.model, batch).sums
                tokens += len(batch["targets"])
        found = self._named(sums) | {"tokens": tokens, "seconds": round(time.perf_counter() - began, 3)}
        metrics = {f"eval_{name}": value for name, value in found.items()}
        Trainer.log(self, metrics)
        self.source.validated(metrics["eval_cross_entropy"])
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with writable(folder):
            write_state(folder, self.place, self.source.state())
            super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with readable(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with readable(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)


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


def arguments(kind: Any, out: Path, config: TrainConfig, **own: Any) -> Any:
    """The settings as TRL's `kind` of arguments, e.g. SFTConfig; `own` are those of that kind alone.

    Raises ConfigError for what a launcher asks for and the trainers cannot do, before TRL looks at it.
    """
    _check_launcher(config, this_process())
    compute = Compute.of(config)
    args = kind(
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
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to=config.report_to or "none",
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        **own,
    )
    args._n_gpu = min(args.n_gpu, 1)  # otherwise all GPUs in sight are taken for DataParallel
    return args
