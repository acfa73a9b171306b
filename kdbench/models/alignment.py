"""Where two tokenizers stand at the same place of a text, so that what they predict there can be compared.

    text       Once upon a time
    student    Once| upon| a| time| <end>
    teacher    On|ce| up|on| a time| <eos>
    rows       (0, 0) (1, 2) (2, 4) (4, 5)      behind 0, 4, 9 and all 16 characters

Row k predicts token k, so it has read all tokens before: two rows are a pair where these are the same text.
The first rows always are, and so are those that predict the end, where the answer was not cut off. Inside a
character that is cut into several tokens nobody stands. A text that a tokenizer puts a space before, as
SentencePiece's do, begins where it began.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from copy import deepcopy
from itertools import accumulate

from kdbench.errors import ConfigError
from kdbench.models.sequences import (
    Alignment,
    Reader,
    TokenSequence,
    collected,
    end_of_turn,
    ended,
    is_cut_off,
    nothing_to_learn,
    sequence_limit,
    sequence_of,
    too_long,
)
from kdbench.records import Completion

log = logging.getLogger("kdbench")
Span = tuple[int, int]  # the characters of a text, from and to, that a token is made of


def aligned_rows(
    student: Sequence[Span], teacher: Sequence[Span], length: int, *, ends: bool
) -> list[tuple[int, int]]:
    """Pairs of rows of student and teacher that have read the same text, in order.

    `student` and `teacher` are the spans of their tokens of a text of `length` characters, one or more; with
    `ends` another token follows for each, which ends it.
    """
    ours, theirs = _rows(student, length, ends), _rows(teacher, length, ends)
    return [(ours[place], theirs[place]) for place in sorted(ours.keys() & theirs.keys())]


def _rows(spans: Sequence[Span], length: int, ends: bool) -> dict[int, int]:
    """The first row that stands behind each number of characters."""
    rows = {0: 0}
    read = accumulate((end for _, end in spans), max)
    for row, (place, (begin, _)) in enumerate(zip(read, spans[1:], strict=False), start=1):
        if begin >= place:  # else the next token has more of a character that is read in part
            rows.setdefault(place, row)
    if ends:
        rows[length] = len(spans)
    return rows


def encode_aligned(
    samples: Iterable[Completion], student: Reader, teacher: Reader, max_length: int
) -> list[TokenSequence]:
    """Sequences of the samples, as `encode` makes them, for a teacher that has another tokenizer.

    Each reader has prompt and completion in its own tokens, its own end of turn and its own window;
    `max_length` holds for both. Raises ConfigError for a tokenizer that gives no offsets, NothingLeft,
    UsageError.
    """
    ours, theirs = _Side("student", student, max_length), _Side("teacher", teacher, max_length)

    def made(number: int, sample: Completion) -> TokenSequence | str:
        (ids, spans), (teacher_ids, teacher_spans) = ours.read(sample), theirs.read(sample)
        rows = aligned_rows(spans, teacher_spans, len(sample.text), ends=not is_cut_off(sample))
        alignment = Alignment(
            tuple(teacher_ids), tuple(row for row, _ in rows), tuple(row for _, row in rows)
        )
        one = sequence_of(number, sample, student, teacher, ids, alignment)
        return (
            nothing_to_learn(one)
            or ours.refuses(one.length)
            or theirs.refuses(len(one.teacher_prompt + one.teacher_completion))
            or one
        )

    kept = collected(samples, made)
    tokens, compared = sum(len(one.completion) for one in kept), sum(one.compared for one in kept)
    log.info("The teacher is heard at %d of %d tokens (%.0f%%)", compared, tokens, 100 * compared / tokens)
    return kept


class _Side:
    """One of the two readers. Raises ConfigError, UsageError."""

    def __init__(self, name: str, reader: Reader, max_length: int) -> None:
        if not reader.tokenizer.is_fast:
            raise ConfigError(
                f"The {name}'s tokenizer ({type(reader.tokenizer).__name__}) does not say which characters a "
                "token is made of, so it cannot be aligned with another one; take a model with a "
                "tokenizer.json, or use black_box"
            )
        self._name = name
        self._tokenizer = deepcopy(reader.tokenizer)
        self._tokenizer.backend_tokenizer.post_processor = None  # some take the spaces off the spans
        self._end = end_of_turn(reader, name)
        self._limit, self._whose = sequence_limit(max_length, reader)

    def read(self, sample: Completion) -> tuple[list[int], list[Span]]:
        """The completion's tokens, with the end unless it was cut off, and the spans of those of its text."""
        made = self._tokenizer(sample.text, add_special_tokens=False, return_offsets_mapping=True)
        return ended(made["input_ids"], sample, self._end), made["offset_mapping"]

    def refuses(self, length: int) -> str | None:
        """Why so many tokens are too many, if they are."""
        return too_long(length, self._limit, f"the {self._name}'s; {self._whose}")
