"""Samples to token sequences: what the student reads, and which tokens it learns.

    prompt [user: "Write a story"], completion "Once upon" ->

    ids     <|im_start|> user ... assistant \\n  Once  upon  <|im_end|>
    learnt       -        -         -        -    x     x        x

The end marker is learnt, and nothing after it: the newline that a template may put there is never
part of a sequence. It is not learnt from an answer that was cut off at its token limit. What the
teacher reads may have another prompt (`teacher_prompt`) in the teacher's own template; the completion's
ids are the same, so the two line up token by token. (A teacher with another tokenizer: `alignment`.)
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from kdbench.config import canonical_hash
from kdbench.errors import NothingLeft, UsageError
from kdbench.models.chat import end_ids, prompt_ids
from kdbench.records import Completion, Message

log = logging.getLogger("kdbench")


@dataclass(frozen=True, slots=True)
class Alignment:
    """A completion in the tokens of a teacher with another tokenizer, and where it meets the student.

    Before token `student_rows[i]` of its completion the student has read the same text as the teacher before
    token `teacher_rows[i]` of this one.
    """

    completion: tuple[int, ...]
    student_rows: tuple[int, ...]
    teacher_rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One sample as tokens: prompt ids for both readers; completion ids that they share, or an alignment."""

    key: int | None  # position among the data's sequences, which names it in caches; None: not of the data
    group: str
    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    teacher_prompt: tuple[int, ...] = ()
    weight: float = 1.0
    text: str = ""  # the name of what the teacher reads: `text_key`
    task: str = ""  # one of several that a method weighs against each other
    sample: int | None = None  # position among the samples, those left out included
    alignment: Alignment | None = None  # with a teacher that has tokens of its own; None: the same ids

    @property
    def length(self) -> int:
        """Tokens the student reads."""
        return len(self.prompt) + len(self.completion)

    @property
    def teacher_completion(self) -> tuple[int, ...]:
        """The completion as the teacher reads it."""
        return self.completion if self.alignment is None else self.alignment.completion

    @property
    def compared(self) -> int:
        """Rows at which student and teacher can be compared."""
        return len(self.completion if self.alignment is None else self.alignment.teacher_rows)


@dataclass(frozen=True, slots=True)
class Reader:
    """A model that reads sequences: its tokenizer, and its configs, which name what ends a turn."""

    tokenizer: Any
    configs: tuple[Any, ...] = ()


def text_key(sample: Completion) -> str:
    """The name of what a teacher reads of a sample: its prompt there, the completion, and how that ends."""
    turns = [(turn.role, turn.content) for turn in sample.teacher_prompt or sample.prompt]
    return canonical_hash([turns, sample.text, is_cut_off(sample)])


def encode(
    samples: Iterable[Completion],
    student: Reader,
    teacher: Reader | None,
    max_length: int,
    *,
    stored: Callable[[str], Sequence[int] | None] | None = None,
) -> list[TokenSequence]:
    """Sequences of the samples that fit into `max_length` and the models' windows; the others are counted.

    `stored` gives the completion's tokens by `text_key`, where they were put down before, and they are not
    made anew; samples of which it knows nothing are left out. Raises NothingLeft where none fits,
    UsageError where the student's tokenizer has no end of turn.
    """
    end = end_of_turn(student)
    limit, whose = sequence_limit(max_length, student, teacher)

    def made(number: int, sample: Completion) -> TokenSequence | str:
        if stored is None:
            completion: Sequence[int] | None = completion_ids(sample, student.tokenizer, end)
        else:
            completion = stored(text_key(sample))
        if completion is None:
            return "the stored signals hold nothing about them: other text, or too long for the store"
        sequence = sequence_of(number, sample, student, teacher, completion)
        prompt = max(len(sequence.prompt), len(sequence.teacher_prompt))
        return nothing_to_learn(sequence) or too_long(prompt + len(completion), limit, whose) or sequence

    return collected(samples, made)


def collected(
    samples: Iterable[Completion], made: Callable[[int, Completion], TokenSequence | str]
) -> list[TokenSequence]:
    """What `made` makes of the samples and their numbers, with keys.

    Where that is a reason, the sample is left out and counted. Raises NothingLeft where all are.
    """
    dropped: Counter[str] = Counter()
    kept: list[TokenSequence] = []
    for number, sample in enumerate(samples):
        found = made(number, sample)
        if isinstance(found, str):
            dropped[found] += 1
        else:
            kept.append(replace(found, key=len(kept)))
    for reason, count in dropped.items():
        log.warning("%d of %d samples left out: %s", count, len(kept) + dropped.total(), reason)
    if not kept:
        raise NothingLeft(
            f"No sample can be trained on, out of {dropped.total()}"
            + "".join(f"; {count}: {reason}" for reason, count in dropped.items())
        )
    return kept


def sequence_of(
    number: int,
    sample: Completion,
    student: Reader,
    teacher: Reader | None,
    completion: Sequence[int],
    alignment: Alignment | None = None,
) -> TokenSequence:
    """A sample with its completion's tokens, behind the prompts that student and teacher read."""
    return TokenSequence(
        key=None,
        group=sample.group or sample.id or f"sample {number}",
        prompt=tuple(prompt_ids(student.tokenizer, sample.prompt)),
        completion=tuple(completion),
        teacher_prompt=tuple(teacher_ids(sample, teacher)),
        weight=sample.weight,
        text=text_key(sample),
        sample=number,
        alignment=alignment,
    )


def completion_ids(sample: Completion, tokenizer: Any, end: int) -> list[int]:
    """The completion's tokens, with the end of turn unless it was cut off; none of an empty one."""
    return ended(tokenizer(sample.text, add_special_tokens=False)["input_ids"], sample, end)


def ended(ids: list[int], sample: Completion, end: int) -> list[int]:
    """The tokens of a completion's text with the end of turn, unless it was cut off or is empty."""
    return [*ids, end] if ids and not is_cut_off(sample) else ids


def teacher_ids(sample: Completion, teacher: Reader | None) -> list[int]:
    """The teacher's prompt in its own template; nothing without a teacher."""
    if teacher is None:
        return []
    return prompt_ids(teacher.tokenizer, sample.teacher_prompt or sample.prompt)


def is_cut_off(sample: Completion) -> bool:
    """Whether the answer ended at its token limit."""
    return sample.origin is not None and sample.origin.finish_reason == "length"


def sequence_limit(max_length: int, *readers: Reader | None) -> tuple[int, str]:
    """The most tokens a sequence may have, and what sets it: max_length or a model's window."""
    configs = [config for reader in readers if reader is not None for config in reader.configs]
    windows = [getattr(config, "max_position_embeddings", None) for config in configs]
    window = min((w for w in windows if w), default=max_length)
    if window < max_length:
        return window, "the model's window"
    return max_length, "max_length; raise it to keep them"


def nothing_to_learn(sequence: TokenSequence) -> str | None:
    """Why a sequence teaches nothing, if it does not."""
    if not sequence.completion or not sequence.teacher_completion:
        return "their completion is empty"
    return None if sequence.weight > 0 else "their weight is not above 0"


def too_long(length: int, limit: int, whose: str) -> str | None:
    """Why a sequence of `length` tokens does not fit, if it does not; `limit` as `sequence_limit` has it."""
    return f"longer than {limit} tokens ({whose})" if length > limit else None


def last_id(tokenizer: Any) -> int:
    """The largest id that the tokenizer gives: a vocabulary may have holes, and then more ids than tokens."""
    return max(tokenizer.get_vocab().values())


def end_of_turn(reader: Reader, whose: str = "student") -> int:
    """The token that ends the assistant's turn: the first one of the model's stops that its template writes.

    Falls back to the tokenizer's EOS. Raises UsageError where there is neither.
    """
    stops = end_ids(reader.tokenizer, *reader.configs)
    for token in _after_the_answer(reader.tokenizer):
        if token in stops:
            return token
    if reader.tokenizer.eos_token_id is None:
        raise UsageError(
            f"The {whose}'s tokenizer names no end-of-sequence token, so the student could never learn to "
            "stop; set eos_token in its tokenizer_config.json"
        )
    return int(reader.tokenizer.eos_token_id)


def _after_the_answer(tokenizer: Any) -> Iterator[int]:
    """What the chat template writes from the beginning of an assistant's turn on."""
    question = [Message(role="user", content="a")]
    begin = len(prompt_ids(tokenizer, question))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    yield from tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)[begin:]


class Grouped(Protocol):
    """Something of a group that no split cuts through."""

    @property
    def group(self) -> str:
        """The group's name."""
        ...


GroupedT = TypeVar("GroupedT", bound=Grouped)


def split(
    sequences: Sequence[GroupedT],
    validation_share: float,
    seed: int,
    held_out: Collection[str] | None = None,
) -> tuple[list[GroupedT], list[GroupedT]]:
    """(train, validation): whole groups are held out, those of `held_out` or as `choose_groups` says."""
    if held_out is None:
        held_out = choose_groups((one.group for one in sequences), validation_share, seed)
    train = [one for one in sequences if one.group not in held_out]
    return train, [one for one in sequences if one.group in held_out]


def choose_groups(groups: Iterable[str], validation_share: float, seed: int) -> frozenset[str]:
    """The groups to hold out, by a hash of the seed and the group's name.

    At least one is held out if the share is above 0, and one is always left to train on.
    """
    ordered = sorted(set(groups), key=lambda group: _hash(seed, group))
    wanted = max(1, round(validation_share * len(ordered))) if validation_share > 0 else 0
    held_out = frozenset(ordered[: min(wanted, len(ordered) - 1)])
    if wanted and not held_out:
        log.warning("All samples are of one group, so none is held out for validation")
    return held_out


def _hash(seed: int, group: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{group}".encode()).digest()
