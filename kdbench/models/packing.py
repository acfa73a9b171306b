"""Plain text to token sequences: documents end to end, cut into windows of equal length.

    documents  [a b c d e] [f g]     window of 5 tokens, | the end-of-sequence token

    read    | a b c d        d e | f g
    learnt    a b c d          e | f g |

A window begins with the last token of the one before, which is its prompt: so every token is learnt once,
and every one after something. Documents follow one another as in the pre-training of most models, without
a wall between them; the token that ends them says where one is over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from kdbench.errors import UsageError
from kdbench.models.sequences import Reader, TokenSequence, choose_groups, split
from kdbench.records import Text


@dataclass(frozen=True, slots=True)
class _Document:
    """A text, or a piece of one, as tokens."""

    group: str
    ids: tuple[int, ...]


def windows(
    texts: Sequence[Text],
    reader: Reader,
    limit: int,
    validation_share: float,
    seed: int,
    held_out: Collection[str] | None = None,
) -> tuple[list[TokenSequence], list[TokenSequence]]:
    """(train, validation): windows of up to `limit` tokens of the texts that are not, and that are, held out.

    Whole groups of documents are held out, those of `held_out` or as `choose_groups` chooses them; of a
    single one, pieces as long as a window. Texts of different weight do not share a window, and empty ones
    are passed over.
    Raises UsageError where the tokenizer has no end-of-sequence token.
    """
    found: tuple[list[TokenSequence], list[TokenSequence]] = ([], [])
    end = _end(reader)
    by_weight = {
        weight: list(_documents([one for one in texts if one.weight == weight], reader, end))
        for weight in sorted({one.weight for one in texts if one.weight > 0})
    }
    if held_out is None:
        groups = {one.group for documents in by_weight.values() for one in documents}
        if len(groups) == 1:
            by_weight = {weight: list(_pieces(found, limit - 1)) for weight, found in by_weight.items()}
            groups = {one.group for documents in by_weight.values() for one in documents}
        held_out = choose_groups(groups, validation_share, seed)
    for weight, documents in by_weight.items():
        for part, chosen in zip(found, split(documents, validation_share, seed, held_out), strict=True):
            part.extend(_packed(chosen, end, limit, weight))
    return found


def document_group(text: Text, number: int) -> str:
    """The name of a document's group; `number` stands in where it has neither group nor id."""
    return text.group or text.id or f"text {number}"


def _end(reader: Reader) -> int:
    if reader.tokenizer.eos_token_id is None:
        raise UsageError(
            "The tokenizer names no end-of-sequence token, so nothing could mark the end of a document; "
            "set eos_token in its tokenizer_config.json"
        )
    return int(reader.tokenizer.eos_token_id)


def _documents(texts: Iterable[Text], reader: Reader, end: int) -> Iterator[_Document]:
    for number, one in enumerate(texts):
        ids = reader.tokenizer(one.text, add_special_tokens=False, verbose=False)["input_ids"]
        if ids:
            yield _Document(document_group(one, number), (*ids, end))


def _pieces(documents: Iterable[_Document], length: int) -> Iterator[_Document]:
    for number, one in enumerate(documents):
        for start in range(0, len(one.ids), length):
            yield _Document(f"{one.group} {number}/{start}", one.ids[start : start + length])


def _packed(documents: Iterable[_Document], end: int, limit: int, weight: float) -> Iterator[TokenSequence]:
    stream = [end, *(token for one in documents for token in one.ids)]
    for number, start in enumerate(range(0, len(stream) - 1, limit - 1)):
        ids = stream[start : start + limit]
        yield TokenSequence(
            key=None, group=f"window {number}", prompt=(ids[0],), completion=tuple(ids[1:]), weight=weight
        )
