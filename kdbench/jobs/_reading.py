"""A teacher reads completions, in fixed companies, for the signal store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdbench.errors import RunFailed, UsageError
from kdbench.losses.divergences import Divergence, log_probabilities, with_gradient
from kdbench.losses.heads import Head, head_of
from kdbench.losses.signals import top_k
from kdbench.models.loading import load_model, load_tokenizer, pick_device
from kdbench.models.rows import check_head, teacher_states
from kdbench.models.sequences import Reader, TokenSequence, encode, end_of_turn, last_id
from kdbench.records import Completion
from kdbench.signal_store import Entry, StoreInfo, tokenizer_sha256

if TYPE_CHECKING:
    from kdbench.jobs.signals_job import SignalsConfig

COMPANY = 8  # texts that are read together
MEASURED = 2_000  # tokens, roughly, on which the loss against dense is measured
_CHUNK = 256


class TeacherReader:
    """One teacher, ready to read. Raises UsageError, ConfigError for one that cannot."""

    def __init__(self, teacher: str, settings: SignalsConfig, weights: str) -> None:
        self._name = teacher
        self._settings = settings
        tokenizer = load_tokenizer(teacher)
        device = pick_device() if settings.device == "auto" else settings.device
        dtype = settings.dtype if settings.dtype != "auto" else None
        self._model = load_model(teacher, device=device, dtype=dtype).requires_grad_(requires_grad=False)
        check_head(teacher, self._model)
        self._reader = Reader(tokenizer, (self._model.generation_config, self._model.config))
        whole = head_of(self._model)
        self.head: Head = whole.cut(min(last_id(tokenizer) + 1, whole.vocabulary))
        if settings.kind == "top_k" and settings.k > self.head.vocabulary:
            raise UsageError(
                f"k = {settings.k}, and the teacher has {self.head.vocabulary:,} tokens; lower k"
            )
        self.info = StoreInfo(
            kind=settings.kind,
            width=self.head.weight.shape[1] if settings.kind == "hidden" else settings.k,
            vocabulary=self.head.vocabulary,
            teacher_sha256=weights,
            tokenizer_sha256=tokenizer_sha256(tokenizer),
            end_of_turn=end_of_turn(self._reader),
            scale=self.head.scale,
            cap=self.head.cap,
        )

    def companies(self, samples: Sequence[Completion]) -> list[list[TokenSequence]]:
        """The samples' texts, each once, the longest first, in companies that are read together."""
        sequences = encode(samples, self._reader, self._reader, self._settings.max_length)
        once = list({one.text: one for one in sequences}.values())
        once.sort(key=lambda one: -one.length)
        return [once[i : i + COMPANY] for i in range(0, len(once), COMPANY)]

    def read(self, company: Sequence[TokenSequence]) -> list[Entry]:
        """What the teacher says of a company. Raises RunFailed where that is no number."""
        return [
            Entry(one.text, one.group, one.completion, self._columns(hidden))
            for one, hidden in zip(company, teacher_states(self._name, self._model, company), strict=True)
        ]

    def lost(self, sequences: Sequence[TokenSequence]) -> float:
        """Mean KL(exact || stored) in nats per token, over some of the sequences, spread over all of them."""
        total, count = 0.0, 0
        tokens = sum(len(one.completion) for one in sequences)
        for one in sequences[:: max(1, tokens // MEASURED)]:
            (hidden,) = teacher_states(self._name, self._model, [one])
            for part in torch.split(hidden, _CHUNK):
                exact = log_probabilities(self.head.logits(part))
                total += float(with_gradient(Divergence("forward_kl"), self._stored(part), exact)[0].sum())
                count += len(part)
        return max(total, 0.0) / count

    def _stored(self, hidden: Tensor) -> Tensor:
        """The log-probabilities that can be had from what is put down."""
        if self._settings.kind == "hidden":
            return log_probabilities(self.head.logits(hidden.half().to(hidden.dtype)))
        signal = top_k(self.head.logits(hidden), self._settings.k)
        others = self.head.vocabulary - self._settings.k
        left = (1 - signal.log_probs.exp().sum(-1, keepdim=True)).clamp_min(torch.finfo(torch.float32).eps)
        even = (left / max(others, 1)).log().expand(-1, self.head.vocabulary)
        return even.scatter(-1, signal.ids, signal.log_probs)

    def _columns(self, hidden: Tensor) -> tuple[Tensor, ...]:
        if self._settings.kind == "hidden":
            halved = hidden.half()
            if not bool(halved.isfinite().all()):
                raise RunFailed(
                    f"Hidden states of the teacher '{self._name}' are too large for 16 bits; put down its "
                    "likeliest tokens instead: --set kind=top_k"
                )
            return (halved,)
        parts = [top_k(self.head.logits(part), self._settings.k) for part in torch.split(hidden, _CHUNK)]
        return torch.cat([part.ids for part in parts]), torch.cat([part.log_probs for part in parts])
