"""Which tokens a student reads and learns, and what is held out."""

from __future__ import annotations

import itertools
import logging
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from kdbench.errors import NothingLeft
from kdbench.models.rows import padded
from kdbench.models.sequences import Reader, TokenSequence, encode, end_of_turn, split
from kdbench.records import Message
from kdbench_trainers._batches import BatchOrder, collate, cut
from tests.trainers.tiny import story, tokenizer

pytestmark = pytest.mark.medium

# SmolLM2's habits: a system message nobody wrote, and a newline after the end marker.
WITH_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|> system be kind <|im_end|> newline {% endif %}"
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> newline {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def learnt(sequence):
    """The (read, learnt) tokens at the rows that bear loss, as the trainer gathers them."""
    batch = collate([sequence])
    return batch["input_ids"][batch["rows"]].tolist(), batch["targets"].tolist()


@pytest.mark.parametrize("template", [WITH_SYSTEM, None])
def test_only_the_completion_and_its_end_marker_are_learnt(template):
    tok = tokenizer(template=template) if template else tokenizer()
    (sequence,) = encode([story(1)], Reader(tok), None, 100)
    read, targets = learnt(sequence)
    answer = tok(story(1).text)["input_ids"]
    assert targets == [*answer, tok.eos_token_id]  # kept although the tokenizer also pads with it
    assert read == [tok.convert_tokens_to_ids("assistant"), *answer]
    assert tok.convert_tokens_to_ids("newline") not in targets
    assert tok.convert_tokens_to_ids("system") not in targets


def test_a_completion_cut_off_at_its_limit_gets_no_end_marker():
    tok = tokenizer()
    (sequence,) = encode([story(1, finish_reason="length")], Reader(tok), None, 100)
    assert list(sequence.completion) == tok(story(1).text)["input_ids"]


def test_the_end_marker_is_the_one_the_template_writes_not_any_eos():
    """Gemma ends a turn with <end_of_turn> and a text with <eos>."""
    tok = tokenizer(template="{% for m in messages %}{{ m['role'] }} {{ m['content'] }} sun {% endfor %}"
                             "{% if add_generation_prompt %}assistant {% endif %}")  # fmt: skip

    class Config:
        eos_token_id = [tok.eos_token_id, tok.convert_tokens_to_ids("sun")]

    assert end_of_turn(Reader(tok, (Config(),))) == tok.convert_tokens_to_ids("sun")
    assert end_of_turn(Reader(tok)) == tok.eos_token_id


def test_teacher_reads_its_own_prompt_in_its_own_template_and_the_same_completion():
    student, teacher = tokenizer(), tokenizer(template=WITH_SYSTEM)
    long_prompt = (Message(role="user", content="write a happy story about the sad dog"),)
    (sequence,) = encode([story(1, teacher_prompt=long_prompt)], Reader(student), Reader(teacher), 100)
    assert "sad dog" in teacher.decode(sequence.teacher_prompt)
    assert "be kind" in teacher.decode(sequence.teacher_prompt)
    assert "sad dog" not in student.decode(sequence.prompt)
    inputs = padded([sequence.teacher_prompt + sequence.completion], [len(sequence.completion)])
    rows = inputs["rows"][0].nonzero().flatten()
    assert tuple(inputs["input_ids"][0][rows + 1].tolist()) == sequence.completion


def test_too_long_samples_are_left_out_and_counted(caplog):
    tok = tokenizer()
    samples = [story(n, words=n) for n in (3, 4, 20, 30)]
    with caplog.at_level(logging.WARNING, "kdbench"):
        kept = encode(samples, Reader(tok), None, 20)
    assert len(kept) == 2
    assert "2 of 4 samples left out: longer than 20 tokens (max_length; raise it to keep them)" in caplog.text
    with pytest.raises(NothingLeft, match="2: longer than 5 tokens"):
        encode(samples[:2], Reader(tok), None, 5)


def test_a_models_window_bounds_its_sequences():
    class Config:
        eos_token_id = None
        max_position_embeddings = 18

    tok, samples = tokenizer(), [story(n, words=n) for n in (3, 20)]
    assert len(encode(samples, Reader(tok, (Config(),)), None, 100)) == 1
    with pytest.raises(NothingLeft, match="longer than 18 tokens \\(the model's window\\)"):
        encode(samples[1:], Reader(tok), Reader(tok, (Config(),)), 100)


def test_empty_and_weightless_samples_are_left_out(caplog):
    kept = encode([story(1), story(2, words=0), story(3, weight=0.0)], Reader(tokenizer()), None, 99)
    assert [s.group for s in kept] == ["s1"]
    assert "1 of 2 samples left out" in caplog.text or "1 of 3 samples left out" in caplog.text


def sequences(groups):
    return [TokenSequence(i, group, (1, 2), (3,)) for i, group in enumerate(groups)]


def test_a_group_is_never_cut_and_the_split_follows_the_seed():
    members = sequences([f"q{i % 10}" for i in range(40)])
    train, validation = split(members, 0.2, seed=5)
    assert {s.group for s in train}.isdisjoint(s.group for s in validation)
    assert len({s.group for s in validation}) == 2
    assert len(train) + len(validation) == 40
    assert split(members, 0.2, seed=5) == (train, validation)
    assert any(split(members, 0.2, seed=n)[1] != validation for n in range(5))


def test_split_keeps_something_to_train_on():
    assert split(sequences("aaa"), 0.9, 0)[1] == []
    train, validation = split(sequences("ab"), 0.01, 0)
    assert (len(train), len(validation)) == (1, 1)
    assert split(sequences("ab"), 0, 0)[1] == []


def test_right_padding_positions_and_mask():
    batch = collate([TokenSequence(0, "a", (5, 6), (7,)), TokenSequence(1, "b", (5, 6, 8), (9, 2))])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0, 0], [5, 6, 8, 9, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4]] * 2
    assert batch["rows"].tolist() == [[False, True, False, False, False], [False, False, True, True, False]]
    assert batch["targets"].tolist() == [7, 9, 2]


def test_every_sample_comes_once_before_any_comes_again():
    order = list(BatchOrder(10, batch=4, steps=5, seed=1))
    flat = [i for micro in order for i in micro]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]


@given(
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=7),
    most=st.integers(1, 7),
    on_cpu=st.booleans(),
)
def test_micro_batches_are_the_cheapest_of_all_ways_to_cut(lengths, most, on_cpu):
    members = [TokenSequence(n, "a", (1,) * (length - 1), (2,)) for n, length in enumerate(lengths)]
    parts = cut(members, most, on_cpu=on_cpu)
    flat = [one.length for part in parts for one in part]
    assert flat == sorted(lengths, reverse=True)
    assert sorted(one.key for part in parts for one in part) == list(range(len(lengths)))

    def cost(pieces):
        if any(len(piece) * piece[0] > most * max(lengths) for piece in pieces):
            return math.inf
        return sum(len(piece) * piece[0] + (384 if on_cpu else 4096) for piece in pieces)

    ways = []
    for marks in itertools.product([False, True], repeat=len(flat) - 1):
        pieces = [[flat[0]]]
        for new, length in zip(marks, flat[1:], strict=True):
            if new:
                pieces.append([])
            pieces[-1].append(length)
        ways.append(cost(pieces))
    assert cost([[one.length for one in part] for part in parts]) == min(ways)


def test_padding_is_saved_where_it_costs_more_than_another_pass():
    def padding(longest):
        lengths = [longest // 20 + n * longest // 16 for n in range(16)]
        members = [TokenSequence(n, "a", (1,) * (length - 1), (2,)) for n, length in enumerate(lengths)]
        parts = cut(members, 4)
        slots = sum(len(part) * part[0].length for part in parts)
        return len(parts), 1 - sum(lengths) / slots

    few, padded = padding(400)
    many, saved = padding(8000)
    assert few <= 5 < many
    assert saved < 0.1 < padded
    assert cut([], 4) == []


def test_a_batch_may_come_several_times_in_a_row():
    plain = list(BatchOrder(10, batch=4, steps=3, seed=1))
    order = BatchOrder(10, batch=4, steps=5, seed=1, repeats=2)
    assert list(order) == [plain[0], plain[0], plain[1], plain[1], plain[2]]
    assert [order.seen(step) for step in range(6)] == [0, 4, 4, 8, 8, 12]


def test_processes_share_out_each_steps_batch():
    whole = list(BatchOrder(11, batch=6, steps=3, seed=1))
    parts = [list(BatchOrder(11, batch=6, steps=3, seed=1, rank=r, world=2)) for r in (0, 1)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert [share for pair in zip(*shares, strict=True) for share in pair] == batch
