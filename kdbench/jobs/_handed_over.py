"""What a teacher handed over while it wrote, from the call logs of its runs into a signal store.

    samples.jsonl   prompt, "Once upon a time ...", origin.calls = [..., "9f3c..."]
    calls.sqlite    9f3c... -> its tokens, with the likeliest at each of them, and the prompt's tokens
    the store       9f3c's tokens and top k, under the name of prompt and text

A sample qualifies where its text is exactly what its last call's tokens decode to and where that call was
asked its teacher's prompt, token by token: what a teacher says of a text depends on what it was asked. The
tokens stored are those that it drew; none is made by tokenising the text again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from kdbench.calls import finished_logs
from kdbench.checks.case import reader_of
from kdbench.errors import DataError, NothingLeft, UsageError
from kdbench.models.chat import end_ids
from kdbench.models.sequences import end_of_turn, is_cut_off, last_id, teacher_ids, text_key
from kdbench.progress import Meter
from kdbench.records import Completion
from kdbench.signal_store import Entry, StoreInfo, StoreWriter, tokenizer_sha256
from kdbench.teacher import Drawn, HandedOver, read_handed_over

log = logging.getLogger("kdbench")
Get = Callable[[bytes], bytes | None]  # the raw reply of a call's key
_NOTHING = "their teacher handed no log-probabilities over"


def copy(
    folder: Path,
    samples: Sequence[Completion],
    logs: Sequence[Path],
    *,
    identity: str,
    tokenizer: str,
    k: int | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write what the call logs hold of the samples; (what the store is, what came of it) for run.json.

    `identity` is the teacher's and `tokenizer` a model that has its tokenizer; `k` None stores all that was
    handed over. Raises DataError, NothingLeft, UsageError.
    """
    with finished_logs(logs) as get:
        choice = _Choice(tokenizer)
        choice.choose(samples, get)
        k = choice.width(k, logs)
        info = choice.info(identity, k)
        writer = StoreWriter(folder, "top_k", k)
        writer.keep(0)  # quickly done: a run that was cut off begins anew
        tokens, inside = 0, 0.0
        with Meter("signals", len(choice.kept)) as meter, writer:
            for number, sample in enumerate(choice.kept, start=1):
                one = _entry(sample, k, get)
                writer.add([one])
                tokens += len(one.tokens)
                inside += float(one.columns[1].exp().sum())
                meter.update(number, f"top_k of {identity}", last=number == len(choice.kept))
    return info.model_dump(), {
        "texts": len(choice.kept),
        "tokens": tokens,
        "bytes_per_token": info.bytes_per_token(),
        "rest": max(0.0, 1 - inside / tokens),
        "log_bytes": sum(path.stat().st_size for path in logs),
        "left_out": dict(choice.left_out),
    }


class _Choice:
    """Which samples qualify, each text once, and how many others there are of which reason."""

    def __init__(self, tokenizer: str) -> None:
        self.kept: list[Completion] = []
        self.left_out: Counter[str] = Counter()
        self._most = 0
        self._reader = reader_of(tokenizer)
        self._ends = end_ids(self._reader.tokenizer, *self._reader.configs)
        self._end = end_of_turn(self._reader)
        heads = [config.vocab_size for config in self._reader.configs if hasattr(config, "vocab_size")]
        self._vocabulary = min([last_id(self._reader.tokenizer) + 1, *heads])

    def choose(self, samples: Sequence[Completion], get: Get) -> None:
        """Look at every sample and its last reply."""
        found: dict[str, Completion] = {}
        widths: list[int] = []
        for sample in samples:
            said = _said(sample, get)
            reason = said if isinstance(said, str) else self._why_not(sample, said)
            if reason is not None:
                self.left_out[reason] += 1
            elif isinstance(said, HandedOver):
                widths.append(_width(said.drawn))
                found.setdefault(text_key(sample), sample)
        self.kept = list(found.values())
        self._most = min(widths, default=0)
        for reason, count in self.left_out.items():
            log.warning("%d of %d samples left out: %s", count, len(samples), reason)

    def width(self, k: int | None, logs: Sequence[Path]) -> int:
        """The k to store. Raises DataError, NothingLeft where no sample qualifies, UsageError."""
        where = ", ".join(str(path.parent) for path in logs)
        if set(self.left_out) == {_NOTHING} and not self.kept:
            raise DataError(
                f"The teacher of {where} handed no log-probabilities over; generate with --teacher-set "
                "top_logprobs=20 (local weights or a vLLM server), or let a teacher read the data: --teacher"
            )
        if not self.kept:
            reasons = "".join(f"; {count}: {reason}" for reason, count in self.left_out.items())
            raise NothingLeft(f"No sample of {where} can be stored from its call log{reasons}")
        if k is not None and k > self._most:
            raise UsageError(f"k = {k}, and the {self._most} likeliest tokens were handed over; lower k")
        return k or self._most

    def info(self, identity: str, k: int) -> StoreInfo:
        """What the store holds."""
        return StoreInfo(
            kind="top_k",
            width=k,
            vocabulary=self._vocabulary,
            teacher_sha256=identity.partition(" with ")[0],  # what follows is what it was told to hand over
            tokenizer_sha256=tokenizer_sha256(self._reader.tokenizer),
            end_of_turn=self._end,
        )

    def _why_not(self, sample: Completion, said: HandedOver) -> str | None:
        tokens = [drawn.token for drawn in said.drawn]
        written = tokens[:-1] if tokens[-1] in self._ends else tokens
        if sample.text != self._reader.tokenizer.decode(written, skip_special_tokens=True):
            return "their text is not what the teacher's tokens decode to"
        if said.prompt != tuple(teacher_ids(sample, self._reader)):
            return "their teacher was asked something else than their prompt"
        if tokens[len(written) :] != ([] if is_cut_off(sample) else [self._end]):
            return "they do not end with the token that ends a turn"
        named = {*tokens, *(token for drawn in said.drawn for token, _ in drawn.top)}
        if max(named) >= self._vocabulary:
            return "they name tokens that the tokenizer does not have"
        return None


def _said(sample: Completion, get: Get) -> HandedOver | str:
    """What the sample's last call handed over, or why there is nothing."""
    if sample.origin is None or not sample.origin.calls:
        return "no call made them"
    raw = get(bytes.fromhex(sample.origin.calls[-1]))
    if raw is None:
        return "the call that made them is not in the run's call log"
    said = read_handed_over(raw)
    return said if said is not None and _width(said.drawn) > 0 else _NOTHING


def _width(drawn: Sequence[Drawn]) -> int:
    """How many of the likeliest tokens are known at each of these.

    vLLM puts the sampled token first, and then the likeliest up to the number asked for: where it stands out
    of turn, the last of them may be missing.
    """
    width = min((len(one.top) for one in drawn), default=0)
    in_turn = all(one.top[0][1] >= max(at for _, at in one.top) for one in drawn if one.top)
    return width if in_turn else width - 1


def _entry(sample: Completion, k: int, get: Get) -> Entry:
    """A sample that was chosen, with ids [N, k] and log-probabilities [N, k], likeliest first."""
    said = _said(sample, get)
    assert isinstance(said, HandedOver)
    rows = [sorted(drawn.top, key=lambda one: -one[1])[:k] for drawn in said.drawn]
    ids = torch.tensor([[token for token, _ in row] for row in rows])
    log_probs = torch.tensor([[log_prob for _, log_prob in row] for row in rows])
    tokens = tuple(drawn.token for drawn in said.drawn)
    return Entry(text_key(sample), sample.group or sample.id, tokens, (ids, log_probs))
