"""The teacher of white_box: its final hidden states at the rows that bear loss, each computed once.

A hidden state of 576 float32 numbers is exact and takes 2 KB, where a row of the vocabulary's logits
takes 200 KB: 200 stories of 150 tokens fit into 70 MB, and every later epoch is free of the teacher's
forward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.losses.chunked import LossSums, Objective, distillation_loss, real_rows
from kdbench.models.loading import load_model, load_tokenizer
from kdbench_trainers._batches import padded
from kdbench_trainers._models import Compute, check_head, hidden_rows
from kdbench_trainers._sequences import Reader, TokenSequence

if TYPE_CHECKING:
    from kdbench_trainers.white_box import Config


def load_teacher(
    teacher: str, student: str, student_reader: Reader, student_model: Any, config: Config
) -> tuple[Reader, TeacherDistribution]:
    """The teacher as a reader of sequences and as a signal. Raises ConfigError, UsageError."""
    tokenizer = load_tokenizer(teacher)
    check_vocabularies(student, student_reader.tokenizer, teacher, tokenizer)
    compute = Compute.of(config)
    model = load_model(teacher, device=compute.device, dtype=compute.dtype)
    check_head(teacher, model)
    vocabulary = min(
        len(tokenizer),
        model.get_output_embeddings().weight.shape[0],
        student_model.get_output_embeddings().weight.shape[0],
    )
    objective = Objective(config.divergence, config.kd_temperature, config.beta, config.ce_weight)
    signal = TeacherDistribution(model, objective, vocabulary, config.teacher_cache_mb * 2**20)
    return Reader(tokenizer, (model.generation_config, model.config)), signal


def check_vocabularies(student: str, student_tokenizer: Any, teacher: str, teacher_tokenizer: Any) -> None:
    """Raise ConfigError where the two do not give every token the same id.

    Heads padded to different sizes are no hindrance: only the tokenizers are compared.
    """
    ours, theirs = student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    if ours == theirs:
        return
    raise ConfigError(
        f"The trainer white_box compares distributions over one vocabulary, but the student '{student}' has "
        f"{len(ours):,} tokens and the teacher '{teacher}' has {len(theirs):,}, of which "
        f"{len(ours.items() & theirs.items()):,} are the same; use black_box, or a student with the "
        "teacher's tokenizer"
    )


class TeacherDistribution:
    """The signal of white_box: a divergence from the live teacher, whose hidden states are kept.

    `cache_bytes` bounds what is kept, on the teacher's device; sequences beyond it are read again.
    """

    def __init__(self, model: Any, objective: Objective, vocabulary: int, cache_bytes: int) -> None:
        self._model = model.requires_grad_(requires_grad=False)
        self._objective = objective
        self._vocabulary = vocabulary
        self._room = cache_bytes
        self._kept: dict[int, Tensor] = {}

    def loss(self, batch: dict[str, Any], hidden: Tensor, head: Tensor) -> LossSums:
        """Sums over the batch's rows: student `hidden` [N, H], `head` [V, H]."""
        return distillation_loss(
            hidden,
            real_rows(head, self._vocabulary),
            self.hidden_states(batch["sequences"]),
            real_rows(self._model.get_output_embeddings().weight, self._vocabulary),
            batch["targets"],
            objective=self._objective,
            weights=batch["weights"],
        )

    def hidden_states(self, sequences: list[TokenSequence]) -> Tensor:
        """The teacher's final hidden states at the loss rows of the sequences, in order: [N, H']."""
        missing = {s.key: s for s in sequences if s.key not in self._kept}
        fresh = self._read(list(missing.values())) if missing else {}
        rows = torch.cat([self._kept[s.key] if s.key in self._kept else fresh[s.key] for s in sequences])
        for key, states in fresh.items():
            size = states.numel() * states.element_size()
            if size <= self._room:
                self._room -= size
                self._kept[key] = states.clone()  # of its own: a view would keep the whole batch alive
        return rows

    @torch.no_grad()
    def _read(self, sequences: list[TokenSequence]) -> dict[int, Tensor]:
        ids = [s.teacher_prompt + s.completion for s in sequences]
        counts = [len(s.completion) for s in sequences]
        inputs = {name: t.to(self._model.device) for name, t in padded(ids, counts).items()}
        states = hidden_rows(self._model, inputs).split(counts)
        return {s.key: part for s, part in zip(sequences, states, strict=True)}
