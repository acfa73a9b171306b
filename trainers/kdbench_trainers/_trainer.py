"""The trainer of the methods that distil: TRL's SFTTrainer, fed with our batches and our losses.

    KdTrainer(model, plan, train=..., validation=..., tokenizer=..., out=..., config=config).train()

What a method is stands in its `Plan`: whose sequences (`source`) and what is learnt from them (`lesson`).
The loss of an optimiser step is the sum over all its rows divided by the sum of their weights; it is counted
after the student has written what it learns from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from trl import SFTConfig, SFTTrainer

from kdbench.losses.chunked import LossSums, cross_entropy_loss
from kdbench.losses.heads import Head, head_of
from kdbench.models.rows import hidden_rows
from kdbench.models.sequences import TokenSequence
from kdbench_trainers._batches import in_shares, weights_of
from kdbench_trainers._config import TrainConfig
from kdbench_trainers._loop import Loop, Scored, arguments
from kdbench_trainers._sources import Data, Source


class Lesson(Protocol):
    """What the student learns from sequences."""

    def prepare(self, sequences: list[TokenSequence]) -> None:
        """The data's sequences that may come, each perhaps several times."""
        ...

    def read(self, batch: dict[str, Any]) -> Any:
        """What the teacher says of a batch; without gradient, before the student's forward pass."""
        ...

    def loss(self, batch: dict[str, Any], hidden: Any, head: Head, said: Any) -> LossSums:
        """Sums over the batch's N loss rows: what the plan's `look` saw, and what `read` returned."""
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

    `look` makes the student's forward pass: its hidden states [N, H] at the loss rows, if not said. `terms`
    are what the lesson's sums have besides. With `balance` every step is read twice: of the sums over all of
    it that number is made which its batches then carry as "balance", for a weight that only the whole step
    can tell.
    """

    lesson: Lesson = field(default_factory=CrossEntropy)
    source: Source = field(default_factory=Data)
    shares: Mapping[str, float] = field(default_factory=dict)
    lessons: Mapping[str, Lesson] = field(default_factory=dict)
    look: Callable[[Any, dict[str, Any]], Any] = hidden_rows
    terms: tuple[str, ...] = ()
    balance: Callable[[Mapping[str, Tensor]], Tensor] | None = None


class KdTrainer(Loop, SFTTrainer):
    """SFTTrainer with our windows of sequences, our loss and a token-weighted validation loss."""

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
        self.plan = plan
        others = (f"{task}_{name}" for task in plan.lessons for name in ("cross_entropy", "weight"))
        self.sums = ("loss", "divergence", "cross_entropy", "weight", *plan.terms, *others)
        super().__init__(
            model,
            arguments(SFTConfig, out, config, dataset_kwargs={"skip_prepare_dataset": True}),
            source=plan.source,
            train=train,
            validation=validation,
            tokenizer=tokenizer,
            config=config,
            resumed=resumed,
        )
        # Apart: what is validated is then never read in the company of what is learnt.
        plan.lesson.prepare(self.own())
        plan.lesson.prepare(validation)

    def weighed(self, sequences: list[TokenSequence], world: int) -> list[TokenSequence]:
        """Sequences weighed by their tasks' shares of all rows, those of other processes included."""
        tasks = list(self.plan.shares)
        if not tasks:
            return sequences
        sums = torch.tensor(weights_of(sequences, tasks), device=self.model.device)
        if world > 1:
            sums = self.accelerator.reduce(sums, "sum")
        return in_shares(sequences, self.plan.shares, dict(zip(tasks, sums.tolist(), strict=True)))

    def get_batch_samples(self, *args: Any) -> tuple[list[dict[str, Any]], Tensor]:
        """As of every trainer; with the plan's `balance` each micro-batch carries it."""
        (step,), weight = super().get_batch_samples(*args)
        if self.plan.balance is not None:
            balance = self.plan.balance(self._summed(step["parts"]))
            step = {"parts": [{**one, "balance": balance} for one in step["parts"]]}
        return [step], weight

    @torch.no_grad()
    def _summed(self, parts: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The sums over a whole step, before anything is learnt from it; without dropout."""
        self.model.eval()  # training_step puts it back
        sums = torch.zeros_like(self.totals.sums)
        with self.clock("student"):
            for one in parts:
                if one["sequences"][0].task in self.plan.lessons:
                    continue  # has no part in it
                sums += self._score(self.model, self._prepare_inputs(one)).sums
        return dict(zip(self.sums, self.accelerator.reduce(sums, "sum"), strict=True))

    def parts(self, window: list[TokenSequence], samples: int) -> list[list[TokenSequence]]:
        """Micro-batches of what became of so many of the data's samples; each is of one lesson."""
        parts = super().parts([one for one in window if one.task not in self.plan.lessons], samples)
        for task in self.plan.lessons:
            parts += self.cut([one for one in window if one.task == task], self.micro_batch)
        return parts

    def _score(self, model: Any, inputs: dict[str, Any]) -> Scored:
        task = inputs["sequences"][0].task
        lesson = self.plan.lessons.get(task, self.plan.lesson)
        look = hidden_rows if task in self.plan.lessons else self.plan.look
        with self.accelerator.autocast():
            with self.clock("teacher"):
                said = lesson.read(inputs)

            def score(whole: Any) -> LossSums:
                hidden = look(whole, inputs)
                with self.clock("loss"):
                    return lesson.loss(inputs, hidden, head_of(whole), said)

            sums: LossSums = model(kd=score)
        weight = inputs["weights"].sum()
        if task in self.plan.lessons:
            found = {f"{task}_cross_entropy": sums.cross_entropy, f"{task}_weight": weight}
        else:
            found = {"divergence": sums.divergence, "cross_entropy": sums.cross_entropy, "weight": weight}
            found |= sums.terms
        found["loss"] = sums.loss.detach()
        nothing = torch.zeros_like(weight)
        return Scored(sums.loss, torch.stack([found.get(name, nothing) for name in self.sums]))

    def _means(self, sums: dict[str, float]) -> dict[str, float]:
        """Per token: the loss of all, the method's own parts, and the cross-entropy of every other lesson.

        There is no divergence where there is no teacher.
        """
        own = sums["weight"]
        others = {task: sums[f"{task}_weight"] for task in self.plan.lessons}
        means = {"loss": sums["loss"] / (own + sum(others.values()))}
        means |= {name: sums[name] / own for name in ("divergence", "cross_entropy", *self.plan.terms)}
        for task, weight in others.items():
            if weight:  # a validation has none
                means[f"{task}_cross_entropy"] = sums[f"{task}_cross_entropy"] / weight
        return {name: value for name, value in means.items() if name != "divergence" or not math.isnan(value)}
