"""The training loop that all trainers share: TRL's SFTTrainer, fed with our batches and our losses.

    KdTrainer(model, CrossEntropy(), train=..., validation=..., tokenizer=..., out=..., config=config).train()

What a method is stands in its `Signal`: it scores the student's hidden states at the rows that bear
loss. Optimiser, schedule, clipping and checkpoints are transformers'; the loss of an optimiser step is
the sum over all its rows divided by the sum of their weights, however it is cut into micro-batches.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer
from trl import SFTConfig, SFTTrainer

from kdbench.errors import ConfigError
from kdbench.losses.chunked import LossSums, cross_entropy_loss
from kdbench_trainers._batches import BatchOrder, by_length, collate
from kdbench_trainers._callbacks import Timer
from kdbench_trainers._config import TrainConfig
from kdbench_trainers._models import Compute, hidden_rows
from kdbench_trainers._sequences import TokenSequence

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


class Signal(Protocol):
    """What the student learns from."""

    def loss(self, batch: dict[str, Any], hidden: Tensor, head: Tensor) -> LossSums:
        """Sums over the batch's N loss rows: student `hidden` [N, H], `head` [V, H]."""
        ...


class CrossEntropy:
    """The signal of black_box: the tokens themselves."""

    def loss(self, batch: dict[str, Any], hidden: Tensor, head: Tensor) -> LossSums:
        """Weighted negative log-likelihood of the batch's targets."""
        return cross_entropy_loss(hidden, head, batch["targets"], weights=batch["weights"])


class KdTrainer(SFTTrainer):
    """SFTTrainer with our order of micro-batches, our loss and a token-weighted validation loss."""

    loss_is_scaled_for_ga = True  # compute_loss divides by the whole optimiser step's tokens

    def __init__(
        self,
        model: Any,
        signal: Signal,
        *,
        train: list[TokenSequence],
        validation: list[TokenSequence],
        tokenizer: Any,
        out: Path,
        config: TrainConfig,
        resumed: bool = False,
    ) -> None:
        self.signal = signal
        self.sequences = {"train": train, "validation": validation}
        self.micro_batch = min(config.micro_batch_size or config.batch_size, config.batch_size)
        self.order = BatchOrder(
            [s.length for s in train],
            batch=config.batch_size,
            micro_batch=config.micro_batch_size,
            steps=config.steps,
            seed=config.seed,
        )
        self.timer = Timer()
        self.sums = torch.zeros(4, device=model.device)  # loss, divergence, cross-entropy, weight
        self.tokens = 0
        args = _arguments(out, config, self.order.micro_batches, evaluate=bool(validation))
        args.eval_on_start = bool(validation) and not resumed
        super().__init__(
            model=model,
            args=args,
            # TRL looks at type and columns; the loader below reads the sequences themselves.
            train_dataset=_as_dataset(train),
            eval_dataset=_as_dataset(validation) if validation else None,
            processing_class=tokenizer,
            data_collator=collate,
        )

    def _send_telemetry(self) -> None:
        """Tell nobody."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none into checkpoints: the job writes the card of the finished model."""

    def get_train_dataloader(self) -> Any:
        """Every micro-batch of the training, in order."""
        return DataLoader(self.sequences["train"], batch_sampler=self.order, collate_fn=collate)  # type: ignore[arg-type]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """The sum of the weights of all rows of an optimiser step."""
        return sum(batch["weights"].sum() for batch in batch_samples).to(device)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """This micro-batch's part of the optimiser step's loss."""
        sums = self._score(inputs)
        weight = inputs["weights"].sum()
        parts = (sums.loss.detach(), sums.divergence, sums.cross_entropy, weight)
        self.sums += torch.stack(parts)
        self.tokens += len(inputs["targets"])
        return sums.loss / (weight if num_items_in_batch is None else num_items_in_batch)

    def _score(self, inputs: dict[str, Any]) -> LossSums:
        with self.accelerator.autocast():
            hidden = hidden_rows(self.model, inputs)
            return self.signal.loss(inputs, hidden, self.model.get_output_embeddings().weight)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Replace transformers' mean over steps by ours over tokens, and add the speed."""
        if "loss" in logs:
            seconds = self.timer.take()
            logs |= _means(self.sums)
            logs |= {
                "tokens": self.tokens,
                "seconds": round(seconds, 3),
                "tokens_per_second": round(self.tokens / seconds, 1),
                "epochs": self.state.global_step * self.order.batch / len(self.sequences["train"]),
            }
            self.sums.zero_()
            self.tokens = 0
        Trainer.log(self, logs, start_time)

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The validation loss: the sum over all held-out tokens, divided by their weight."""
        self.model.eval()  # training_step puts it back
        held_out = self.sequences["validation"]
        sums, tokens = torch.zeros(4, device=self.model.device), 0
        for indices in by_length(range(len(held_out)), [s.length for s in held_out], self.micro_batch):
            batch = self._prepare_inputs(collate([held_out[i] for i in indices]))
            part = self._score(batch)
            sums += torch.stack((part.loss, part.divergence, part.cross_entropy, batch["weights"].sum()))
            tokens += len(batch["targets"])
        metrics = {f"eval_{name}": value for name, value in (_means(sums) | {"tokens": tokens}).items()}
        Trainer.log(self, metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _means(sums: Tensor) -> dict[str, float]:
    """Per token: the loss and its parts; no divergence where there is no teacher."""
    loss, divergence, entropy, weight = sums.tolist()
    means = {"loss": loss / weight, "divergence": divergence / weight, "cross_entropy": entropy / weight}
    return {name: value for name, value in means.items() if name != "divergence" or not math.isnan(value)}


def _as_dataset(sequences: list[TokenSequence]) -> Dataset:
    return Dataset.from_dict({"input_ids": [list(s.prompt + s.completion) for s in sequences]})


def _arguments(out: Path, config: TrainConfig, micro_batches: int, *, evaluate: bool) -> SFTConfig:
    compute = Compute.of(config)
    args = SFTConfig(
        output_dir=str(out / "checkpoints"),
        max_steps=config.steps,
        per_device_train_batch_size=min(config.micro_batch_size or config.batch_size, config.batch_size),
        gradient_accumulation_steps=micro_batches,
        learning_rate=config.learning_rate,
        lr_scheduler_type=_SCHEDULES[config.schedule],
        warmup_steps=min(config.warmup_steps, config.steps - 1),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused",
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=config.eval_every,
        save_strategy="steps",
        save_steps=config.checkpoint_every,
        save_total_limit=2,
        seed=config.seed,
        use_cpu=compute.device == "cpu",
        bf16=compute.dtype == "bfloat16",
        gradient_checkpointing=False,  # the old name of the next, on by default in TRL
        activation_checkpointing=config.gradient_checkpointing,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
    )
    if args.world_size > 1:
        raise ConfigError(
            f"The trainers run in one process, and {args.world_size} were started; start one without torchrun"
        )
    args._n_gpu = min(args.n_gpu, 1)  # otherwise all GPUs in sight are taken for DataParallel
    return args
