"""Whether student and teacher speak of the same tokens, and which rows of their heads are compared.

student 49,152 tokens, head 49,280; teacher 49,152 tokens, head 49,152; compared over the first 49,152

Heads may be padded to different sizes (Qwen2.5: 151,936 and 152,064 rows over one tokenizer): then both are
cut to the tokenizer's size, never filled up. A method that compares models of different tokenizers
(`two_tokenizers`) needs no token in common, and where all of them are, there is a better one.
"""

from __future__ import annotations

from kdbench.checks.case import Case
from kdbench.checks.findings import Finding, about
from kdbench.models.sequences import Reader, TokenSequence

VOCABULARIES = "vocabularies"


def check_vocabularies(case: Case) -> list[Finding]:
    """The same token by every id where distributions are compared, and a row of the head for every token."""
    found = [finding for who in case.tokenizing for finding in _too_small(case, who)]
    if case.teacher is None:
        return found
    if case.two_tokenizers:
        return [*found, *(_same_tokens(case) or _aligned(case))]
    return [*found, *(_other_tokens(case) or _compared(case, case.teacher))]


def head_rows(reader: Reader) -> int | None:
    """Rows of a model's head, as its config has them."""
    for config in reader.configs[::-1]:
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        if rows := getattr(text, "vocab_size", None):
            return int(rows)
    return None


def _too_small(case: Case, who: str) -> list[Finding]:
    """Ids beyond a model's embeddings end a training in an error deep down."""
    rows = head_rows(case.tokenizing[who])
    if rows is None:
        return []
    beyond = {
        case.name(one.sample): f"id {highest}, head of {rows:,} rows"
        for one in case.sequences
        if (highest := max(_read_by(who, one))) >= rows
    }
    return about(
        VOCABULARIES, "error", f"with tokens that the {who} has no embedding for", beyond,
        way_out=f"resize the {who}'s embeddings to its tokenizer, or give it the tokenizer it was made with",
    )  # fmt: skip


def _read_by(who: str, one: TokenSequence) -> tuple[int, ...]:
    return one.prompt + one.completion if who == "student" else one.teacher_prompt + one.teacher_completion


def _same_tokens(case: Case) -> list[Finding]:
    if not case.same_vocabulary:
        return []
    return [
        Finding(
            VOCABULARIES, "error", "Student and teacher have the same tokenizer, and the method does not "
            "look at which token has which probability", way_out="use white_box, which does",
        )
    ]  # fmt: skip


def _aligned(case: Case) -> list[Finding]:
    sizes = [
        f"{who} {len(reader.tokenizer):,} tokens, head {head_rows(reader) or len(reader.tokenizer):,}"
        for who, reader in case.readers.items()
    ]
    tokens = sum(len(one.completion) for one in case.sequences)
    compared = sum(one.compared for one in case.sequences)
    text = f"{'; '.join(sizes)}; compared at {compared:,} of {tokens:,} learnt tokens"
    return [Finding(VOCABULARIES, "ok", text)]


def _other_tokens(case: Case) -> list[Finding]:
    if case.teacher is None or case.same_vocabulary:
        return []
    ours, theirs = case.student.tokenizer.get_vocab(), case.teacher.tokenizer.get_vocab()
    return [
        Finding(
            VOCABULARIES, "error", "Student and teacher have different tokenizers",
            value=f"{len(ours):,} and {len(theirs):,} tokens, {len(ours.items() & theirs.items()):,} alike",
            way_out="use black_box, or a student with the teacher's tokenizer",
        )
    ]  # fmt: skip


def _compared(case: Case, teacher: Reader) -> list[Finding]:
    size, vocabulary = len(teacher.tokenizer), teacher.tokenizer.get_vocab()
    heads = [head_rows(case.student) or size, head_rows(teacher) or size]
    compared = min(size, *heads)
    text = (
        f"student {size:,} tokens, head {heads[0]:,}; teacher {size:,} tokens, head {heads[1]:,}; compared "
        f"over the first {compared:,}"
    )
    cut = sorted((i, token) for token, i in vocabulary.items() if i >= compared)
    if not cut:
        return [Finding(VOCABULARIES, "ok", text)]
    way_out = "give both models heads for all tokens of the tokenizer, or use black_box"
    learnt = {
        case.name(one.sample): f"id {highest}; {text}"
        for one in case.sequences
        if (highest := max(one.completion)) >= compared
    }
    whole = f"{len(cut):,} of the tokenizer's tokens lie beyond the rows that are compared"
    return about(
        VOCABULARIES, "error", "that teach tokens beyond the rows that are compared", learnt, way_out=way_out
    ) or [
        Finding(VOCABULARIES, "warning", whole, value=f"{cut[0][1]!r} ({cut[0][0]}); {text}", way_out=way_out)
    ]
