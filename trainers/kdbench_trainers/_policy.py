"""MiniLLM's choices: text that student and teacher draw together, learnt by policy gradient, several times.

    step          0         1         2         3          inner_epochs 2
    learnt from   rollouts  the same  rollouts  the same   and, with ce_weight, the data that they answer

What both models gave to each drawn token is put down when it is drawn, and stays with it in checkpoints:
rewards, weights and ratios are made of that, so a rollout's are the same however often it is learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdbench.losses.chunked import LossSums, Objective, distillation_loss
from kdbench.losses.divergences import Divergence
from kdbench.losses.heads import Head
from kdbench.losses.policy import Drawn, importance, policy_gradient_loss, returns_to_come
from kdbench.losses.signals import HiddenStates
from kdbench.models.chat import end_ids
from kdbench.models.mixing import MixedSampler, Request
from kdbench.models.sequences import Reader, TokenSequence, sequence_limit
from kdbench.teacher import Sampling
from kdbench_trainers._models import load_student
from kdbench_trainers._sources import Data, Writer, revived
from kdbench_trainers._teacher import TeacherModel, load_teacher
from kdbench_trainers._trainer import CrossEntropy, Plan

if TYPE_CHECKING:
    from kdbench_trainers.minillm import Config

# Tasks: what is drawn, the data's own completions beside it, and what is held out, which no step has.
ROLLOUT, OF_DATA, VALIDATION = "rollout", "data", ""
_TOKENS = Objective(Divergence("reverse_kl"), ce_weight=1.0)


@dataclass(frozen=True, slots=True)
class Rollout(TokenSequence):
    """A drawn completion, with the log-probability that each model gave to each of its tokens."""

    by_student: tuple[float, ...] = ()
    by_teacher: tuple[float, ...] = ()


class MixedWriter(Writer):
    """Student and teacher complete the prompts of a batch together."""

    def __init__(self, teacher: TeacherModel, share: float, *args: Any, **more: Any) -> None:
        """`share` is the teacher's part of each draw; the rest as for Writer."""
        super().__init__(*args, **more)
        self._teacher = teacher
        self._share = share

    def draw(self, step: int, batch: Sequence[TokenSequence]) -> list[Rollout]:
        """The batch with completions from the mixture, the end token kept where one was drawn."""
        jobs = [self._job(step, number, one) for number, one in enumerate(batch)]
        requests = [
            Request(one, job.sampling.max_tokens, job.seed) for one, job in zip(batch, jobs, strict=True)
        ]
        with self._at_rest() as student:
            drawn = MixedSampler(
                student, self._teacher.model, name=self._teacher.name, share=self._share,
                vocabulary=self._teacher.vocabulary,
                ends=end_ids(self._tokenizer, student.generation_config, student.config),
            ).run(requests)  # fmt: skip
        self._tokens += sum(len(one.ids) for one in drawn)
        return [
            Rollout(
                None, one.group, one.prompt, tuple(found.ids), one.teacher_prompt, one.weight, task=ROLLOUT,
                by_student=tuple(found.student), by_teacher=tuple(found.teacher),
            )
            for one, found in zip(batch, drawn, strict=True)
        ]  # fmt: skip


class Rollouts(Data):
    """Rollouts to a step's prompts, for that step and those after it, until `epochs` have learnt them."""

    def __init__(self, writer: MixedWriter, *, epochs: int, with_data: bool) -> None:
        """`with_data` puts their own batch of the data beside them."""
        self._writer = writer
        self.repeats = epochs
        self._epochs = epochs
        self._with_data = with_data
        self._kept: list[Rollout] = []

    def window(self, step: int, batch: list[TokenSequence]) -> list[TokenSequence]:
        """The rollouts, and the batch if asked."""
        if step % self._epochs == 0:
            self._kept = self._writer.draw(step, batch)
        return [*self._kept, *(replace(one, task=OF_DATA) for one in batch if self._with_data)]

    def logged(self) -> dict[str, float]:
        """Tokens drawn."""
        return self._writer.logged()

    def state(self) -> dict[str, Any]:
        """The rollouts, with what was put down about them."""
        return {"rollouts": [asdict(one) for one in self._kept]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with the rollouts of a checkpoint."""
        self._kept = [revived(Rollout, one) for one in state["rollouts"]]


class PolicyGradient(TeacherModel):
    """Rollouts are learnt by policy gradient; of what is held out, tokens and reverse KL are counted."""

    def __init__(self, name: str, model: Any, config: Config, vocabulary: int) -> None:
        super().__init__(name, model, config, vocabulary)
        self._share = config.teacher_mix
        self._clip = config.clip

    def loss(self, batch: dict[str, Any], hidden: Tensor, head: Head, said: HiddenStates) -> LossSums:
        """Sums over the batch's rows: student `hidden` [N, H], and what the teacher said there."""
        head = head.cut(self.vocabulary)
        rollouts = [one for one in batch["sequences"] if isinstance(one, Rollout)]
        if not rollouts:
            return distillation_loss(
                hidden, head, said, batch["targets"], objective=_TOKENS, weights=batch["weights"]
            )
        drawn = self._drawn(rollouts, hidden.device)
        return policy_gradient_loss(
            hidden, head, said, batch["targets"], drawn, clip=self._clip, weights=batch["weights"]
        )

    def _drawn(self, rollouts: Sequence[Rollout], device: torch.device) -> Drawn:
        student = torch.tensor([one for r in rollouts for one in r.by_student], device=device)
        teacher = torch.tensor([one for r in rollouts for one in r.by_teacher], device=device)
        returns = returns_to_come(teacher - student, [len(one.completion) for one in rollouts])
        return Drawn(student, returns, importance(student, teacher, self._share))


def plan_of(teacher: str, student: str, config: Config) -> tuple[Reader, Reader, Any, Plan]:
    """Student and teacher as readers, the student's model, and the plan. Raises ConfigError, UsageError."""
    reader, model = load_student(student, config)
    teacher_reader, lesson = load_teacher(teacher, student, reader, model, config, PolicyGradient)
    limit, _ = sequence_limit(config.max_length, reader, teacher_reader)
    writer = MixedWriter(
        lesson, config.teacher_mix, model, reader.tokenizer,
        Sampling(temperature=1.0, max_tokens=config.max_new_tokens),
        limit=limit, seed=config.seed,
    )  # fmt: skip
    share = config.ce_weight
    source = Rollouts(writer, epochs=config.inner_epochs, with_data=share > 0)
    shares = {ROLLOUT: 1 - share, VALIDATION: 1.0}
    if not share:
        return reader, teacher_reader, model, Plan(lesson, source, shares)
    plan = Plan(lesson, source, {**shares, OF_DATA: share}, {OF_DATA: CrossEntropy()})
    return reader, teacher_reader, model, plan
