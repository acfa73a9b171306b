"""A training's batches, states and first step, without the training: what `kdbench doctor` looks at.

    rehearsal = rehearse_distribution("gkd", teacher="smollm2", student="runs/start", config=config)
    rehearsal.step(sequences, micro_batch=1, world=2).loss

The step is KdTrainer's: its order, its windows, its count of weights and its loss. Only the other processes
are made up: each takes its turn in this one, and where it asks for a sum over all it is given that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from kdbench.checks.rehearsing import Step
from kdbench.models.rows import hidden_rows
from kdbench.models.sequences import Reader, TokenSequence
from kdbench.processes import Place
from kdbench.records import Completion
from kdbench_trainers._batches import BatchOrder, collate
from kdbench_trainers._config import DistillConfig, OnPolicyConfig, TrainConfig
from kdbench_trainers._fit import quiet
from kdbench_trainers._models import load_student
from kdbench_trainers._presets import no_teacher, writer_of
from kdbench_trainers._sources import Data, Source, Writer
from kdbench_trainers._teacher import LiveTeacher, StoredTeacher, TeacherModel, load_teacher, open_store
from kdbench_trainers._trainer import KdTrainer, Plan

NEW_TOKENS = 16  # as many as the student writes at most: enough to be of other lengths than the data's


def rehearse_text(student: str, config: TrainConfig) -> Rehearsal:
    """Of black_box."""
    reader, model = load_student(student, config)
    return Rehearsal(reader, model, Plan(), config)


def rehearse_distribution(
    method: str,
    *,
    teacher: str | None,
    student: str,
    config: DistillConfig,
    source: Callable[[Writer], Source] | None = None,
) -> Rehearsal:
    """Of a method that learns a live teacher's distribution; `source` as for `distil`."""
    if teacher is None:
        raise no_teacher(method)
    reader, model = load_student(student, config)
    teacher_reader, lesson = load_teacher(teacher, student, reader, model, config, LiveTeacher)
    whose: Source = Data()
    if source is not None:
        assert isinstance(config, OnPolicyConfig)
        brief = config.model_copy(update={"max_new_tokens": min(config.max_new_tokens, NEW_TOKENS)})
        whose = source(writer_of(model, reader, teacher_reader, brief))
    return Rehearsal(reader, model, Plan(lesson, whose), config)


def rehearse_stored(
    samples: Sequence[Completion], signals: Path, *, teacher: str | None, student: str, config: DistillConfig
) -> Rehearsal:
    """Of a method that learns what a teacher said before."""
    reader, model = load_student(student, config)
    rows = model.get_output_embeddings().weight.shape[0]
    store = open_store(signals, samples, student, reader, rows, teacher)
    return Rehearsal(reader, model, Plan(StoredTeacher(store, config, str(model.device))), config)


class Rehearsal:
    """One method's models, looked at. No weight changes; there is no dropout."""

    def __init__(self, student: Reader, model: Any, plan: Plan, config: TrainConfig) -> None:
        self._student = student
        self._model = model.eval()
        self._plan = replace(plan, source=_Once(plan.source))
        self._config = config

    def batch(self, sequences: Sequence[TokenSequence]) -> dict[str, Any]:
        """One micro-batch."""
        return collate(sequences)

    @torch.no_grad()
    def states(self, sequences: Sequence[TokenSequence]) -> dict[str, Tensor]:
        """Hidden states of student and teacher."""
        # Without keys: what the teacher keeps of the data it has read in another company.
        batch = self.batch([replace(one, key=None) for one in sequences])
        moved = {k: v.to(self._model.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        found = {"student": hidden_rows(self._model, moved)}
        if isinstance(self._plan.lesson, TeacherModel):  # a store has read them long ago
            found["teacher"] = self._plan.lesson.read(moved).hidden
        return found

    def step(self, sequences: Sequence[TokenSequence], *, micro_batch: int, world: int = 1) -> Step:
        """An optimiser step as KdTrainer makes it."""
        count = len(sequences)
        config = self._config.model_copy(
            update={"batch_size": count, "micro_batch_size": micro_batch, "steps": 1, "report_to": []}
        )
        with TemporaryDirectory() as folder, quiet():
            trainer = KdTrainer(
                self._model, self._plan, train=list(sequences), validation=[],
                tokenizer=self._student.tokenizer, out=Path(folder), config=config,
            )  # fmt: skip
        others = _Others(trainer)
        while True:
            self._model.zero_grad(set_to_none=True)
            losses = learnt = 0.0
            for rank in range(world):
                others.turn()
                trainer.place = Place(rank, world)
                trainer.order = BatchOrder(
                    count, batch=count, steps=1, seed=config.seed, rank=rank, world=world
                )
                trainer.micro_batch = min(micro_batch, count // world)
                loss, divisor, weight = self._work(trainer)
                losses, learnt = losses + loss, learnt + weight
            if not others.asked():
                break
        gradient = {
            name: one.grad.detach().cpu() / world
            for name, one in self._model.named_parameters()
            if one.grad is not None
        }
        self._model.zero_grad(set_to_none=True)
        return Step(losses / world, gradient, divisor, learnt)

    def _work(self, trainer: KdTrainer) -> tuple[float, float, float]:
        """One process's part of the step: its loss, what it was divided by, the weight of its learnt rows."""
        (step,), weight = trainer.get_batch_samples(
            iter(trainer.get_train_dataloader()), 1, self._model.device
        )
        total = learnt = 0.0
        for inputs in step["parts"]:
            learnt += inputs["weights"].sum().item()
            loss = trainer.compute_loss(
                self._model, trainer._prepare_inputs(inputs), num_items_in_batch=weight
            )
            loss.backward()
            total += loss.item()
        return total, weight.item(), learnt


class PairedRehearsal(Rehearsal):
    """Of a method that learns from two sequences at once."""

    def __init__(
        self,
        student: Reader,
        model: Any,
        plan: Plan,
        config: TrainConfig,
        first: Sequence[TokenSequence],
    ) -> None:
        """`first` are those of every pair that the plan's source finds the other one to."""
        super().__init__(student, model, plan, config)
        self._first = sorted(first, key=lambda one: one.length)

    def step(self, sequences: Sequence[TokenSequence], *, micro_batch: int, world: int = 1) -> Step:
        """An optimiser step on as many pairs as there are sequences, from the shortest to the longest."""
        last = max(len(sequences) - 1, 1)
        places = [round(i * (len(self._first) - 1) / last) for i in range(len(sequences))]
        return super().step([self._first[i] for i in places], micro_batch=micro_batch, world=world)


class _Others:
    """Answers a process's question for a sum over all, once all have had their turn.

    A step is made again until no process asks for a sum that is not known yet.
    """

    def __init__(self, trainer: KdTrainer) -> None:
        self._known: list[Tensor] = []
        self._given: list[Tensor] = []
        self._number = 0
        trainer.accelerator.reduce = self._reduce

    def turn(self) -> None:
        """The next process begins."""
        self._number = 0

    def asked(self) -> bool:
        """Whether a sum was asked for that is known only now."""
        if not self._given:
            return False
        self._known.append(torch.stack(self._given).sum(0))
        self._given = []
        return True

    def _reduce(self, own: Tensor, how: str) -> Tensor:
        number, self._number = self._number, self._number + 1
        if number < len(self._known):
            return self._known[number]
        if number == len(self._known):
            self._given.append(own.detach().clone())
        return own


class _Once(Data):
    """A source whose student writes once to every prompt: every way to cut a step learns the same text."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._made: dict[int | None, list[TokenSequence]] = {}

    def window(self, step: int, batch: list[TokenSequence]) -> list[TokenSequence]:
        """What the source makes of the batch's sequences, each by itself and once."""
        for one in batch:
            if one.key not in self._made:
                self._made[one.key] = self._source.window(step, [one])
        return [made for one in batch for made in self._made[one.key]]
