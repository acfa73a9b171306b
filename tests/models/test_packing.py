"""Plain text in windows: every token is learnt once, and no document stands on both sides of the split."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.errors import UsageError
from kdbench.models.packing import windows
from kdbench.models.sequences import Reader
from kdbench.records import Text
from tests.support import tiny_llama

pytestmark = pytest.mark.medium

TOK = tiny_llama.tokenizer()
END = TOK.eos_token_id


def text(number, words, **more):
    return Text(
        id=f"t{number}", text=" ".join(tiny_llama.WORDS[(number + i) % 20] for i in range(words)), **more
    )


def stream(sequences):
    """What the windows hold, end to end; each begins with the last token of the one before."""
    ids = list(sequences[0].prompt)
    for one in sequences:
        assert one.prompt == (ids[-1],)
        ids += one.completion
    return ids


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), limit=st.integers(2, 40))
def test_every_token_and_every_end_is_learnt_once(lengths, limit):
    texts = [text(n, length) for n, length in enumerate(lengths)]
    train, validation = windows(texts, Reader(TOK), limit, 0.0, 0)
    assert validation == []
    expected = [END]
    for one in texts:
        expected += [*TOK(one.text)["input_ids"], END]
    assert stream(train) == expected
    assert all(one.length == limit for one in train[:-1])
    assert 1 < train[-1].length <= limit


def test_whole_documents_and_their_groups_are_held_out():
    texts = [text(n, 7, group=f"g{n // 2}") for n in range(20)]
    train, validation = windows(texts, Reader(TOK), 12, 0.3, 0)
    sides = []
    for part in (train, validation):
        documents, ids = [], stream(part)[1:]
        while ids:
            end = ids.index(END)
            documents.append(tuple(ids[:end]))
            ids = ids[end + 1 :]
        sides.append(documents)
    by_ids = {tuple(TOK(one.text)["input_ids"]): one.group for one in texts}
    groups = [{by_ids[one] for one in side} for side in sides]
    assert len(groups[1]) == 3
    assert not groups[0] & groups[1]
    assert len(sides[0]) == 14


def test_of_one_long_document_pieces_are_held_out():
    train, validation = windows([text(0, 500)], Reader(TOK), 21, 0.2, 0)
    assert sum(len(one.completion) for one in train) == pytest.approx(400, abs=20)
    assert sum(len(one.completion) for one in (*train, *validation)) == 501


def test_texts_of_different_weight_share_no_window_and_empty_ones_are_passed_over():
    texts = [text(0, 5), text(1, 5, weight=2.0), text(2, 5), Text(text=""), text(3, 5, weight=0.0)]
    train, _ = windows(texts, Reader(TOK), 100, 0.0, 0)
    assert [(one.weight, len(one.completion)) for one in train] == [(1.0, 12), (2.0, 6)]


def test_without_an_end_token_there_are_no_documents():
    class NoEnd:
        eos_token_id = None

    with pytest.raises(UsageError, match="names no end-of-sequence token, so nothing could mark the end"):
        windows([text(0, 5)], Reader(NoEnd()), 10, 0.0, 0)


def test_a_group_with_texts_of_two_weights_is_on_one_side():
    words = tiny_llama.WORDS[:6]  # each group has one of its own
    texts = [
        Text(text=" ".join([words[n % 6]] * 5), group=f"g{n % 6}", weight=1.0 + n // 12) for n in range(24)
    ]
    sides = windows(texts, Reader(TOK), 9, 0.3, 3)
    found = [
        set(TOK.decode([t for one in part for t in one.completion]).split()) & set(words) for part in sides
    ]
    assert found[0].isdisjoint(found[1])
    assert found[0] | found[1] == set(words)
    assert {one.weight for one in sides[1]} == {1.0, 2.0}
