"""Samples that teach nothing or the wrong thing, and those that are left out.

2 of 300 samples (1%) left out as too long: s7 (1,310 tokens; at most 1,024, max_length), s9; raise max_length
1 sample with an answer that is the prompt again: s4 ('Write a story'); leave them out
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from kdbench.checks.case import Case, alone
from kdbench.checks.findings import Finding, about, counted, shortened
from kdbench.models.chat import prompt_ids
from kdbench.models.sequences import Reader, is_cut_off, sequence_limit, teacher_ids

SAMPLES, LEFT_OUT = "samples", "left out"
_MANY = 0.1  # share of answers cut off from which it is no accident

_WAYS_OUT = {
    "empty": "leave them out of the data, or ask the teacher for these again",
    "weight": "give them a weight above 0",
    "max_length": "raise max_length",
    "window": "shorten them, or take a model with a longer window",
    "signals": "make the signals anew from these samples, with a longer max_length",
}


def check_samples(case: Case) -> list[Finding]:
    """Weights that are no numbers, blank answers, answers that repeat their prompt, answers cut off."""
    weights: dict[str, str] = {}
    blank: dict[str, str] = {}
    echoes: dict[str, str] = {}
    cut_off: dict[str, str] = {}
    for number, sample in enumerate(case.samples):
        name, text = case.name(number), sample.text.strip()
        if not math.isfinite(sample.weight):
            weights[name] = f"weight {sample.weight}"
        if not text and sample.text:
            blank[name] = shortened(sample.text)
        if text and text in {message.content.strip() for message in sample.prompt}:
            echoes[name] = shortened(text)
        if is_cut_off(sample):
            cut_off[name] = "finish_reason length"
    return [
        *about(SAMPLES, "error", "with a weight that is no number", weights, way_out=_WAYS_OUT["weight"]),
        *about(
            SAMPLES, "warning", "with nothing but white space to learn", blank, way_out=_WAYS_OUT["empty"]
        ),
        *about(
            SAMPLES, "warning", "with an answer that is the prompt again", echoes, way_out="leave them out"
        ),
        *_cut_off(case, cut_off),
    ]


def _cut_off(case: Case, cut_off: dict[str, str]) -> list[Finding]:
    share = len(cut_off) / max(len(case.samples), 1)
    if share < _MANY:
        return []
    text = f"({share:.0%}) were cut off at their token limit, so that their end is not learnt"
    return about(SAMPLES, "warning", text, cut_off, way_out="generate with more max_tokens")


def check_left_out(case: Case) -> list[Finding]:
    """Which samples are not trained on, and why; an error where that is all of them."""
    kept = {one.sample for one in case.sequences}
    reasons: defaultdict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for number, sample in enumerate(case.samples):
        if number in kept:
            continue
        fits = _fits(case, number)
        if not all(alone(reader.tokenizer, sample.text) for reader in case.tokenizing.values()):
            reason, value = ("whose completion is empty", "empty"), shortened(sample.text)
        elif sample.weight <= 0:
            reason, value = ("whose weight is not above 0", "weight"), f"weight {sample.weight:g}"
        elif long := next((one for one in fits if one.length > one.limit), None):
            value = f"{long.length:,} tokens; at most {long.limit:,}, {long.whose}"
            reason = ("as too long", long.key)
        else:
            value = f"{fits[0].length:,} tokens"
            reason = ("of which the stored signals know nothing", "signals")
        reasons[reason][case.name(number)] = value
    total = len(case.samples)
    return [
        Finding(
            LEFT_OUT, "warning" if kept else "error",
            f"{len(values):,} of {counted(total)} ({len(values) / total:.0%}) left out {why}",
            tuple(values), next(iter(values.values())), _WAYS_OUT[way],
        )
        for (why, way), values in reasons.items()
    ]  # fmt: skip


class _Fit(NamedTuple):
    """How long a sample is in someone's tokens, and may be."""

    length: int
    limit: int
    whose: str  # what sets the limit, in words
    key: str  # of the way out


def _fits(case: Case, number: int) -> list[_Fit]:
    """The longer prompt and the answer, with its end; for each reader by itself if its tokens are its own."""
    sample = case.samples[number]
    prompts = {
        "student": len(prompt_ids(case.student.tokenizer, sample.prompt)),
        "teacher": len(teacher_ids(sample, case.teacher)),
    }
    if not case.two_tokenizers:
        prompts["student"] = max(prompts.values())
    return [
        _Fit(
            prompts[who] + len(alone(reader.tokenizer, sample.text)) + (not is_cut_off(sample)),
            *_limit(case.max_length, {who: reader} if case.two_tokenizers else case.readers),
        )
        for who, reader in case.tokenizing.items()
    ]


def _limit(max_length: int, readers: Mapping[str, Reader]) -> tuple[int, str, str]:
    """The most tokens, what sets that in words, and the way out."""
    limits = {who: sequence_limit(max_length, reader)[0] for who, reader in readers.items()}
    who = min(limits, key=limits.__getitem__)
    if limits[who] == max_length:
        return max_length, "max_length", "max_length"
    return limits[who], f"the {who}'s window", "window"
