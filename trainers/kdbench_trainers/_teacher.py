"""The teacher of a distillation, live or stored: what it says at the rows that bear loss.

A hidden state of 576 float32 numbers is exact and takes 2 KB, where a row of the vocabulary's logits
takes 200 KB: 200 stories of 150 tokens fit into 70 MB, and every later epoch is free of the teacher's
forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from kdbench.errors import ConfigError, DataError
from kdbench.losses.chunked import CHUNK_ROWS, LossSums, Objective, distillation_loss
from kdbench.losses.divergences import Divergence
from kdbench.losses.heads import Head, head_of
from kdbench.losses.signals import HiddenStates, Signal
from kdbench.losses.weighting import token_scaled
from kdbench.models.activations import Seen
from kdbench.models.loading import load_model, load_tokenizer
from kdbench.models.rows import check_head, teacher_states
from kdbench.models.sequences import Reader, TokenSequence, end_of_turn, last_id, text_key
from kdbench.models.weights import local_weights, weights_sha256
from kdbench.records import Completion
from kdbench.signal_store import SignalStore, tokenizer_sha256
from kdbench_trainers._batches import cut
from kdbench_trainers._config import DistillConfig, TeacherConfig
from kdbench_trainers._models import Compute

ConfigT = TypeVar("ConfigT", bound=TeacherConfig)
LessonT = TypeVar("LessonT")
_READ_AT_ONCE = 8  # of the longest sequences: what the teacher reads together where its states are kept


def objective_of(config: DistillConfig) -> Objective:
    """The config's divergence and its mixture with the cross-entropy."""
    divergence = Divergence(config.divergence, config.beta, config.alpha, config.normalize_jsd)
    return Objective(divergence, config.kd_temperature, config.ce_weight)


def load_teacher(
    teacher: str,
    student: str,
    student_reader: Reader,
    student_model: Any,
    config: ConfigT,
    lesson: Callable[[str, Any, ConfigT, int], LessonT],
) -> tuple[Reader, LessonT]:
    """The teacher as a reader of sequences and as what is learnt from.

    `lesson` makes that of the teacher's name and model, the config and the size of the vocabulary.
    Raises ConfigError, UsageError.
    """
    tokenizer = load_tokenizer(teacher)
    check_vocabularies(student, student_reader.tokenizer, teacher, tokenizer)
    reader, model = loaded(teacher, tokenizer, config)
    vocabulary = min(written(tokenizer, model), written(tokenizer, student_model))
    return reader, lesson(teacher, model, config, vocabulary)


def loaded(teacher: str, tokenizer: Any, config: TeacherConfig) -> tuple[Reader, Any]:
    """The teacher as a reader of sequences, and its model. Raises ConfigError, UsageError."""
    compute = Compute.of(config)
    model = load_model(teacher, device=compute.device, dtype=compute.dtype)
    check_head(teacher, model)
    return Reader(tokenizer, (model.generation_config, model.config)), model


def written(tokenizer: Any, model: Any) -> int:
    """The rows of a model's head that are tokens, without what pads it beyond the tokenizer."""
    rows: int = model.get_output_embeddings().weight.shape[0]
    return min(last_id(tokenizer) + 1, rows)


def open_store(
    folder: Path,
    samples: Sequence[Completion],
    student: str,
    reader: Reader,
    head_rows: int,
    teacher: str | None,
) -> SignalStore:
    """The store of signals in `folder`, if it fits. Raises ConfigError, DataError, RunDirError."""
    store = SignalStore.open(folder)
    if store.info.tokenizer_sha256 != tokenizer_sha256(reader.tokenizer) or head_rows < store.info.vocabulary:
        raise ConfigError(
            f"The signals in {folder} are of a tokenizer of {store.info.vocabulary:,} tokens, and the "
            f"student '{student}' has another one; train one with the teacher's tokenizer, or use black_box"
        )
    if store.info.end_of_turn != (end := end_of_turn(reader)):
        names = reader.tokenizer.convert_ids_to_tokens([store.info.end_of_turn, end])
        raise ConfigError(
            f"The signals in {folder} end with {names[0]!r}, and the student '{student}' ends its turns with "
            f"{names[1]!r}; give it the teacher's chat template, or learn from a live teacher"
        )
    if teacher is not None and weights_sha256(local_weights(teacher)) != store.info.teacher_sha256:
        raise ConfigError(
            f"The signals in {folder} are of another teacher than '{teacher}'; leave out --teacher to learn "
            "from them, or leave out signals to learn from it"
        )
    if not any(text_key(sample) in store for sample in samples):
        raise DataError(
            f"The signals in {folder} are about other texts than the data: not one of its {len(samples)} "
            f"samples is among their {len(store)}; make them anew with kdbench signals --data"
        )
    return store


def check_vocabularies(student: str, student_tokenizer: Any, teacher: str, teacher_tokenizer: Any) -> None:
    """Raise ConfigError where the two do not give every token the same id.

    Heads padded to different sizes are no hindrance: only the tokenizers are compared.
    """
    ours, theirs = student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    if ours == theirs:
        return
    raise ConfigError(
        "A teacher's distribution is compared over one vocabulary, but the student "
        f"'{student}' has {len(ours):,} tokens and the teacher '{teacher}' has {len(theirs):,}, of which "
        f"{len(ours.items() & theirs.items()):,} are the same; use black_box, or a student with the "
        "teacher's tokenizer"
    )


class Distillation:
    """A divergence from a teacher's signal: how the loss is made, wherever the signal comes from."""

    def __init__(self, config: DistillConfig, vocabulary: int) -> None:
        self._objective = objective_of(config)
        self._token_scaling = config.token_scaling
        self._vocabulary = vocabulary

    def loss(self, batch: dict[str, Any], hidden: Tensor, head: Head, said: Signal) -> LossSums:
        """Sums over the batch's rows: student `hidden` [N, H], and what the teacher said there."""
        return distillation_loss(
            hidden,
            head.cut(self._vocabulary),
            said,
            batch["targets"],
            objective=self._objective,
            weights=self._weights(batch, said),
        )

    @torch.no_grad()
    def _weights(self, batch: dict[str, Any], said: Signal) -> Tensor:
        weights: Tensor = batch["weights"]
        if self._token_scaling is None:
            return weights
        targets = batch["targets"]
        chunks = (slice(i, i + CHUNK_ROWS) for i in range(0, len(targets), CHUNK_ROWS))
        unsure = torch.cat([said.cross_entropy(rows, targets[rows]) for rows in chunks])
        lengths = [len(one.completion) for one in batch["sequences"]]
        return weights * token_scaled(unsure, lengths, self._token_scaling)


class StoredTeacher(Distillation):
    """What the teacher said before, read from a store: no teacher is loaded."""

    def __init__(self, store: SignalStore, config: DistillConfig, device: str) -> None:
        super().__init__(config, store.info.vocabulary)
        self._store = store
        self._device = device

    def prepare(self, sequences: Sequence[TokenSequence]) -> None:
        """Nothing to prepare: all of it is there."""

    def read(self, batch: dict[str, Any]) -> Signal:
        """What was put down about the batch's rows, in order."""
        return self._store.signal([one.text for one in batch["sequences"]], self._device)


class TeacherModel:
    """The teacher's model reads what the student learns; of the data's sequences its states are kept.

    They are kept if all that `prepare` is given fit into `teacher_cache_mb`, on its device. The teacher reads
    them in fixed companies, whatever the order of the training: what it says of a sequence then does not
    depend on when it is asked, to the last bit.
    """

    def __init__(self, name: str, model: Any, config: TeacherConfig, vocabulary: int) -> None:
        self.name = name
        self.model = model.requires_grad_(requires_grad=False)
        self.vocabulary = vocabulary
        self._head = head_of(model).cut(vocabulary)
        self._room = config.teacher_cache_mb * 2**20
        self._company: dict[int, list[TokenSequence]] = {}
        self._kept: dict[int, Seen] = {}

    def prepare(self, sequences: Sequence[TokenSequence]) -> None:
        """These may be asked for again and again; each call makes companies of its own."""
        size = sum(map(self._numbers, sequences)) * self._head.weight.element_size()
        if size > self._room:
            return
        self._room -= size
        for company in cut(sequences, _READ_AT_ONCE):
            self._company |= {one.key: company for one in company if one.key is not None}

    def read(self, batch: dict[str, Any]) -> HiddenStates:
        """What the teacher says at the batch's rows, in order."""
        return HiddenStates(torch.cat([one.hidden for one in self._seen(batch["sequences"])]), self._head)

    def _numbers(self, sequence: TokenSequence) -> int:
        """How many are kept of a sequence."""
        return sequence.compared * self._head.weight.shape[1]

    def _seen(self, sequences: list[TokenSequence]) -> Sequence[Seen]:
        if not all(one.key in self._company for one in sequences):
            return self._look(sequences)
        for one in sequences:
            assert one.key is not None
            if one.key not in self._kept:
                company = self._company[one.key]
                read = zip(company, self._look(company), strict=True)
                self._kept |= {member.key: seen.copy() for member, seen in read if member.key is not None}
        return [self._kept[one.key] for one in sequences if one.key is not None]

    def _look(self, sequences: Sequence[TokenSequence]) -> Sequence[Seen]:
        return [Seen(hidden) for hidden in teacher_states(self.name, self.model, sequences)]


class LiveTeacher(TeacherModel, Distillation):
    """The divergence from what the teacher's model says."""

    def __init__(self, name: str, model: Any, config: DistillConfig, vocabulary: int) -> None:
        TeacherModel.__init__(self, name, model, config, vocabulary)
        Distillation.__init__(self, config, vocabulary)
