"""One forward pass of a model over the held-out texts, for every metric that reads logits.

    encoded = encode(samples, tokenizer, teacher_side=False)     # prompt and completion ids per sample
    teacher = TeacherStates.of(model, tokenizer, samples)        # [T, H] per sample, once
    scores  = score(model, encoded, teacher)                     # TokenScores

Hidden states at the completion's positions are kept for the teacher (some 2 KB a token) and never for
a student. Logits exist for CHUNK_ROWS positions at a time, whatever the batch, so memory is flat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.errors import DataError, UsageError
from kdbench.evaluation import TokenScores
from kdbench.losses.divergences import Divergence, log_probabilities, with_gradient
from kdbench.models.chat import prompt_ids
from kdbench.records import Completion

CHUNK_ROWS = 256  # 50 MB of float32 logits at a vocabulary of 49,152
BATCH_TOKENS = 4_096

Head = Callable[[Tensor], Tensor]  # hidden states [N, H] -> logits [N, V]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sample as one model reads it: the prompt, and the completion with the token that ends it."""

    id: str
    prompt: tuple[int, ...]
    completion: tuple[int, ...]


def encode(samples: Sequence[Completion], tokenizer: Any, *, teacher_side: bool) -> list[Encoded]:
    """The samples as token ids, each prompt in the model's own chat template.

    `teacher_side` reads `teacher_prompt` where there is one. A completion that was cut off gets no end
    token: nobody ended it there.
    """
    encoded = []
    for sample in samples:
        asked = sample.teacher_prompt if teacher_side and sample.teacher_prompt else sample.prompt
        ids = [int(i) for i in tokenizer(sample.text, add_special_tokens=False)["input_ids"]]
        cut_off = sample.origin is not None and sample.origin.finish_reason == "length"
        if tokenizer.eos_token_id is not None and not cut_off:
            ids.append(int(tokenizer.eos_token_id))
        if not ids:
            raise DataError(f"Sample {sample.id} has an empty completion; remove it from the held-out data")
        encoded.append(Encoded(sample.id, tuple(prompt_ids(tokenizer, asked)), tuple(ids)))
    return encoded


@dataclass(frozen=True, slots=True)
class TeacherStates:
    """What the teacher said of the held-out texts: hidden states [T, H] per sample, and its head."""

    encoded: list[Encoded]
    hidden: list[Tensor]
    head: Head
    tokenizer: Any

    @classmethod
    def of(cls, model: Any, tokenizer: Any, samples: Sequence[Completion]) -> TeacherStates:
        """Run the teacher once over the samples, its prompts being `teacher_prompt or prompt`."""
        encoded = encode(samples, tokenizer, teacher_side=True)
        head = checked_head(model, encoded[0])
        hidden: list[Tensor] = [torch.empty(0)] * len(encoded)
        for index, rows in hidden_states(model, encoded):
            hidden[index] = rows.cpu()
        return cls(encoded, hidden, head, tokenizer)


def same_tokenizer(teacher: TeacherStates, tokenizer: Any, encoded: Sequence[Encoded]) -> bool:
    """Whether both sides name tokens alike: one vocabulary, and every completion in the same ids."""
    return tokenizer.get_vocab() == teacher.tokenizer.get_vocab() and all(
        ours.completion == theirs.completion for ours, theirs in zip(encoded, teacher.encoded, strict=True)
    )


@torch.inference_mode()
def score(model: Any, tokenizer: Any, encoded: list[Encoded], teacher: TeacherStates | None) -> TokenScores:
    """Sums per sample of -log q, of KL(teacher || model) and of top-1 matches, in float64 sums."""
    head = checked_head(model, encoded[0])
    return _score(hidden_states(model, encoded), head, tokenizer, encoded, teacher)


@torch.inference_mode()
def score_teacher(teacher: TeacherStates) -> TokenScores:
    """The teacher's own scores, from the states it already gave: KL 0 and every top-1 a match."""
    bare = _score(enumerate(teacher.hidden), teacher.head, teacher.tokenizer, teacher.encoded, None)
    return TokenScores(
        bare.tokens, bare.nll, kl=np.zeros_like(bare.nll), top1=bare.tokens.copy(), same_tokenizer=True
    )


def _score(
    states: Iterator[tuple[int, Tensor]] | enumerate[Tensor],
    head: Head,
    tokenizer: Any,
    encoded: list[Encoded],
    teacher: TeacherStates | None,
) -> TokenScores:
    same = None if teacher is None else same_tokenizer(teacher, tokenizer, encoded)
    sums = np.zeros((3, len(encoded)))
    for index, rows in states:
        targets = torch.tensor(encoded[index].completion, device=rows.device)
        theirs = teacher.hidden[index] if teacher is not None and same else None
        for start in range(0, len(rows), CHUNK_ROWS):
            chunk = slice(start, start + CHUNK_ROWS)
            reference = None if theirs is None or teacher is None else (teacher.head, theirs[chunk])
            sums[:, index] += _score_rows(head(rows[chunk]), targets[chunk], reference, len(tokenizer))
    tokens = np.array([len(e.completion) for e in encoded], dtype=np.float64)
    kl, top1 = (sums[1], sums[2]) if same else (None, None)
    return TokenScores(tokens, sums[0], kl=kl, top1=top1, same_tokenizer=same)


def _score_rows(
    logits: Tensor, targets: Tensor, reference: tuple[Head, Tensor] | None, vocabulary: int
) -> list[float]:
    """Sums over the rows [n] of logits [n, V]: -log q(target), KL to the reference, top-1 matches."""
    log_q = log_probabilities(logits)
    nll = -log_q.gather(-1, targets.unsqueeze(-1)).double().sum().item()
    if reference is None:
        return [nll, 0.0, 0.0]
    teacher_head, rows = reference
    theirs = teacher_head(rows).to(logits.device)
    # Heads are padded to different sizes over one tokenizer: compared is what the tokenizer knows.
    real = min(vocabulary, logits.shape[-1], theirs.shape[-1])
    if logits.shape[-1] > real:
        log_q = log_probabilities(logits[:, :real])
    log_p = log_probabilities(theirs[:, :real])
    kl, _ = with_gradient(Divergence("forward_kl"), log_q, log_p)
    return [nll, kl.double().sum().item(), float((log_q.argmax(-1) == log_p.argmax(-1)).sum())]


@torch.inference_mode()
def hidden_states(model: Any, encoded: Sequence[Encoded]) -> Iterator[tuple[int, Tensor]]:
    """(index, last hidden states [T, H] at the positions that predict the completion), batch by batch.

    Sorted by length so that little is padded. Raises DataError for a text beyond the model's window.
    """
    window = getattr(model.config, "max_position_embeddings", None)
    for batch in _batches(encoded):
        rows = [encoded[i].prompt + encoded[i].completion[:-1] for i in batch]
        longest = max(map(len, rows))
        if window is not None and longest > window:
            worst = encoded[max(batch, key=lambda i: len(encoded[i].prompt) + len(encoded[i].completion))]
            raise DataError(
                f"Sample {worst.id} has {longest} tokens and the model reads at most {window}; "
                "remove the sample"
            )
        ids = torch.tensor([row + (0,) * (longest - len(row)) for row in rows], device=model.device)
        mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows], device=model.device)
        hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        for place, index in enumerate(batch):
            begin = len(encoded[index].prompt) - 1
            yield index, hidden[place, begin : begin + len(encoded[index].completion)].clone()


def _batches(encoded: Sequence[Encoded]) -> Iterator[list[int]]:
    lengths = [len(e.prompt) + len(e.completion) for e in encoded]
    batch: list[int] = []
    for index in sorted(range(len(encoded)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def checked_head(model: Any, probe: Encoded) -> Head:
    """The model's output layer as a function of hidden states, checked against the model's own logits.

    Raises UsageError for an architecture that does something to its logits which this does not know.
    """
    layer, cap = model.get_output_embeddings(), getattr(model.config, "final_logit_softcapping", None)

    def head(rows: Tensor) -> Tensor:
        logits: Tensor = layer(rows.to(layer.weight.device))
        return torch.tanh(logits / cap) * cap if cap else logits

    ids = torch.tensor([(probe.prompt + probe.completion)[:16]], device=model.device)
    ours = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0])
    real = model(input_ids=ids, use_cache=False).logits[0]
    # Half precision rounds at about one part in a hundred.
    if not torch.allclose(ours.float(), real.float(), rtol=2e-2, atol=2e-2 * float(real.abs().max())):
        raise UsageError(
            f"The architecture '{model.config.model_type}' changes its logits in a way unknown to kdbench; "
            "evaluate it without the metrics that read logits (perplexity, agreement)"
        )
    return head
