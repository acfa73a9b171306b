"""What is trained on, as sequences of tokens: completions one by one, plain text packed into windows.

divided(samples, reader, None, config)      # -> (train, validation)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

from kdbench.errors import NothingLeft
from kdbench.models.packing import document_group, windows
from kdbench.models.sequences import (
    Reader,
    TokenSequence,
    choose_groups,
    encode,
    sequence_limit,
    split,
)
from kdbench.records import Completion, Text
from kdbench_trainers._config import Material, TrainConfig


def divided(
    samples: Sequence[Material],
    student: Reader,
    teacher: Reader | None,
    config: TrainConfig,
    stored: Callable[[str], Sequence[int] | None] | None = None,
) -> tuple[list[TokenSequence], list[TokenSequence]]:
    """The sequences to train on and those held out; `stored` as in `encode`.

    A window of plain text has its first token for a prompt, and the teacher reads the same.
    Raises NothingLeft where nothing fits, UsageError where a tokenizer lacks an end token.
    """
    share, seed = config.validation_share, config.seed
    completions = [one for one in samples if isinstance(one, Completion)]
    texts = [one for one in samples if isinstance(one, Text)]
    train: list[TokenSequence] = []
    validation: list[TokenSequence] = []
    held_out = None if config.held_out is None else frozenset(config.held_out)
    if completions or not texts:
        encoded = encode(completions, student, teacher, config.max_length, stored=stored)
        if texts and held_out is None:  # one choice for both kinds: a group may have members of either
            groups = {document_group(one, number) for number, one in enumerate(texts)}
            held_out = choose_groups(groups | {one.group for one in encoded}, share, seed)
        train, validation = split(encoded, share, seed, held_out)
    if texts:
        limit, _ = sequence_limit(config.max_length, student, teacher)
        keys = count(1 + max((one.key or 0 for one in (*train, *validation)), default=-1))
        packed = windows(texts, student, limit, share, seed, held_out)
        for part, found in zip((train, validation), packed, strict=True):
            for one in found:
                prompt = one.prompt if teacher is not None else ()
                part.append(replace(one, key=next(keys), teacher_prompt=prompt))
    if not train:
        raise NothingLeft(f"No text can be trained on: all {len(texts)} are empty or of weight 0")
    return train, validation
