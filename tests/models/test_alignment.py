"""Aligned rows: that both have read the same text, that no such rows are missed, and what is refused."""

from __future__ import annotations

import json
from itertools import pairwise, product

import pytest

pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.errors import ConfigError, NothingLeft
from kdbench.models.alignment import aligned_rows, encode_aligned
from kdbench.models.sequences import Reader, encode
from kdbench.records import Completion, Message, Origin
from tests.support import byte_llama, trained_bpe
from tests.trainers import tiny

pytestmark = pytest.mark.medium


def trimming():
    """Another BPE, whose spans leave out spaces, as RoBERTa's and Llama 3's do; it has a token "\\n "."""
    from tokenizers import processors

    spec = json.loads(trained_bpe.inner(size=320))
    spec["model"]["vocab"]["ĊĠ"] = len(spec["model"]["vocab"])
    spec["model"]["merges"].append(["Ċ", "Ġ"])
    made = trained_bpe.tokenizer(spec=json.dumps(spec))
    made.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return made


READERS = {
    "bytes": Reader(byte_llama.tokenizer()),
    "bpe": Reader(trained_bpe.tokenizer()),
    "trimming": Reader(trimming()),
    "metaspace": Reader(trained_bpe.tokenizer(spec=trained_bpe.metaspace())),
}
PAIRS = [pair for pair in product(READERS, READERS) if pair[0] != pair[1]]
WORDS = [*trained_bpe.PAGE.split(), " ", "  ", "\n", "é", "e\u0301", "猫が", "😀", "👩‍👧", "\t", "ß", "12"]
TEXTS = st.one_of(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map("".join),
    # "▁" is written as the space that it stands for, "\ufffd" as a broken character.
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁\ufffd"), min_size=1, max_size=20),
)


def sample(text, reason="stop", **more):
    return Completion(
        prompt=(Message(role="user", content="Go on"),),
        completion=(Message(role="assistant", content=text),),
        origin=Origin(seed=0, finish_reason=reason),
        **more,
    )


def encoded(text, student, teacher, reason="stop"):
    (one,) = encode_aligned([sample(text, reason)], student, teacher, 4096)
    return one


def read(reader, ids, text):
    """What the tokens say, without the space that is put before every text."""
    said = reader.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    whole = reader.tokenizer.decode(
        reader.tokenizer(text, add_special_tokens=False)["input_ids"], clean_up_tokenization_spaces=False
    )
    return said if whole == text else text[: len(text) - len(whole)] + said if ids else said


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
@settings(max_examples=15, deadline=None)
@given(text=TEXTS, ends=st.booleans())
def test_both_have_read_the_same_text_at_every_pair_and_at_no_other(student, teacher, text, ends):
    student, teacher = READERS[student], READERS[teacher]
    one = encoded(text, student, teacher, "stop" if ends else "length")
    pairs = list(zip(one.alignment.student_rows, one.alignment.teacher_rows, strict=True))
    assert pairs[0] == (0, 0)
    for before, after in pairwise(pairs):
        assert before[0] < after[0]
        assert before[1] < after[1]
    last = len(one.completion) - 1, len(one.teacher_completion) - 1
    assert (last in pairs) or not ends
    ours = [read(student, one.completion[:row], text) for row, _ in pairs]
    assert ours == [read(teacher, one.teacher_completion[:row], text) for _, row in pairs]
    assert all(text.startswith(prefix) for prefix in ours)
    # Whatever both have read is there, once.
    prefixes = []
    for reader, ids in ((student, one.completion), (teacher, one.teacher_completion)):
        all_read = {read(reader, ids[:row], text) for row in range(len(ids))}
        prefixes.append({prefix for prefix in all_read if text.startswith(prefix)})
    assert sorted(prefixes[0] & prefixes[1]) == sorted(ours)


@settings(max_examples=25, deadline=None)
@given(text=st.text(st.characters(max_codepoint=126), min_size=1, max_size=40))
def test_with_one_tokenizer_every_row_is_aligned(text):
    for reader in (READERS["bytes"], READERS["bpe"], READERS["trimming"]):
        one = encoded(text, reader, reader)
        assert one.alignment.completion == one.completion
        assert one.alignment.student_rows == one.alignment.teacher_rows == tuple(range(len(one.completion)))


def test_nobody_stands_inside_a_character():
    one = encoded("a猫b", READERS["bytes"], READERS["bytes"])
    assert len(one.completion) == 6
    assert one.alignment.student_rows == (0, 1, 4, 5)
    overlapping = [(0, 3), (1, 2), (2, 4), (4, 5)]
    assert aligned_rows(overlapping, [(0, 1), (1, 2), (2, 4), (4, 5)], 5, ends=False) == [(0, 0), (3, 3)]


def test_spaces_that_are_taken_off_the_spans_have_been_read_all_the_same():
    one = encoded("a\n  b", READERS["bytes"], READERS["trimming"])
    assert READERS["trimming"].tokenizer.convert_ids_to_tokens(one.teacher_completion[:2]) == ["a", "ĊĠ"]
    assert list(zip(one.alignment.student_rows, one.alignment.teacher_rows, strict=True))[:3] == [
        (0, 0), (1, 1), (3, 2),
    ]  # fmt: skip


def test_the_example_of_the_module():
    student = [(0, 4), (4, 9), (9, 11), (11, 16)]
    teacher = [(0, 2), (2, 4), (4, 7), (7, 9), (9, 16)]
    assert aligned_rows(student, teacher, 16, ends=True) == [(0, 0), (1, 2), (2, 4), (4, 5)]
    assert aligned_rows(student, teacher, 16, ends=False) == [(0, 0), (1, 2), (2, 4)]


def test_of_rows_at_one_place_the_first_counts_and_the_last_at_the_end():
    nothing_at = [(0, 0), (0, 3), (3, 3), (3, 6), (6, 6)]
    assert aligned_rows([(0, 3), (3, 6)], nothing_at, 6, ends=True) == [(0, 0), (1, 2), (2, 5)]


def test_spaces_that_a_tokenizer_leaves_out_are_read_with_the_token_before_or_after_them():
    assert aligned_rows([(0, 3), (4, 7)], [(0, 3), (3, 4), (4, 7)], 7, ends=False) == [(0, 0), (1, 1)]


def test_student_and_teacher_read_their_own_templates_and_end_markers():
    student = Reader(tiny.tokenizer())
    teacher = READERS["bytes"]
    hint = (Message(role="user", content="be kind"),)
    samples = [sample("the cat ran"), sample("the cat ran", teacher_prompt=hint, weight=2.0, group="g")]
    ours = encode_aligned(samples, student, teacher, 4096)
    plain = encode(samples, student, None, 4096)
    assert [(one.key, one.group, one.sample, one.weight) for one in ours] == [
        (one.key, one.group, one.sample, one.weight) for one in plain
    ]
    assert [(one.prompt, one.completion) for one in ours] == [(one.prompt, one.completion) for one in plain]
    (said, _), (said_of_hint, _) = [
        (teacher.tokenizer.decode(one.teacher_prompt), one.teacher_completion) for one in ours
    ]
    assert said == (
        "<|im_start|>system\nYou are tiny<|im_end|>\n<|im_start|>user\nGo on<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert "be kind" in said_of_hint
    assert teacher.tokenizer.decode(ours[0].teacher_completion) == "the cat ran<|im_end|>"
    assert ours[0].alignment.student_rows == (0, 1, 2, 3)
    assert ours[0].alignment.teacher_rows == (0, 3, 7, 11)


def test_what_does_not_fit_is_counted_with_whose_tokens_are_too_many(caplog):
    from types import SimpleNamespace

    window = SimpleNamespace(eos_token_id=2, max_position_embeddings=110)
    student, teacher = Reader(tiny.tokenizer()), Reader(byte_llama.tokenizer(), (window,))
    samples = [sample("the cat"), sample(""), sample("sun", weight=0), sample("the happy dog " * 5)]
    kept = encode_aligned([*samples, sample("a " * 120)], student, teacher, 120)
    assert [one.sample for one in kept] == [0]
    for reason in (
        "1 of 5 samples left out: their completion is empty",
        "1 of 5 samples left out: their weight is not above 0",
        "1 of 5 samples left out: longer than 110 tokens (the teacher's; the model's window)",
        "1 of 5 samples left out: longer than 120 tokens (the student's; max_length; raise it to keep them)",
    ):
        assert reason in caplog.text
    with pytest.raises(NothingLeft, match=r"out of 2; 2: longer than 9 tokens \(the student's; max_length"):
        encode_aligned(samples[::3], student, teacher, 9)


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_a_tokenizer_that_gives_no_offsets_is_refused(whose):
    from transformers import ByT5Tokenizer

    readers = {"student": READERS["bpe"], "teacher": READERS["bytes"], whose: Reader(ByT5Tokenizer())}
    with pytest.raises(
        ConfigError, match=rf"The {whose}'s tokenizer \(ByT5Tokenizer\) .*tokenizer.json, or use"
    ):
        encode_aligned([sample("a cat")], readers["student"], readers["teacher"], 4096)
