"""A vocabulary that grows: old ids stay, domain words become tokens, and it stops where it gains no more."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.errors import UsageError
from kdbench.models.growing import (
    grow,
    grow_embeddings,
    learn_merges,
    log_likelihood,
    with_merges,
    word_counts,
)
from tests.support import byte_llama, tiny_llama, trained_bpe

pytestmark = pytest.mark.medium

STEMS = ["angio", "tensin", "cardio", "myo", "pathy", "hyper", "glyc", "emia", "naïve", "猫", "xx"]
DOMAIN = [
    " ".join(
        f"{STEMS[(n * k) % len(STEMS)]}{STEMS[(n + k * k) % len(STEMS)]} of the {STEMS[n % 7]}"
        for k in range(1, 9)
    )
    for n in range(40)
]


@pytest.fixture(scope="module")
def grown():
    """(the old tokenizer, its growth on the domain's text, the new tokenizer)"""
    tokenizer = trained_bpe.tokenizer(size=400)
    growth = grow(tokenizer, DOMAIN, step=20)
    return tokenizer, growth, with_merges(tokenizer, growth.merges)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def naive_merges(cut, count, taken, min_count):
    """BPE as one would write it: all pairs counted anew for every merge."""
    words, taken, merges = [(list(parts), times) for parts, times in cut], set(taken), []
    while len(merges) < count:
        pairs = Counter()
        for parts, times in words:
            for pair in pairwise(parts):
                pairs[pair] += times
        allowed = {p: n for p, n in pairs.items() if p[0] + p[1] not in taken and n >= min_count}
        if not allowed:
            break
        best = min(allowed, key=lambda p: (-allowed[p], p))
        merges.append(best)
        taken.add(best[0] + best[1])
        for parts, _ in words:
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == best:
                    parts[i : i + 2] = [best[0] + best[1]]
                i += 1
    return merges


@settings(max_examples=150, deadline=None)
@given(
    words=st.lists(st.tuples(st.text("abc", min_size=1, max_size=9), st.integers(1, 4)), max_size=12),
    count=st.integers(1, 25),
    taken=st.sets(st.text("abc", min_size=2, max_size=3), max_size=3),
    min_count=st.integers(1, 3),
)
def test_merges_are_those_of_counting_anew_each_time(words, count, taken, min_count):
    cut = [(list(word), times) for word, times in words]
    assert learn_merges(cut, count, taken, min_count) == naive_merges(cut, count, taken, min_count)


def test_old_tokens_keep_their_ids_and_new_ones_come_after(grown):
    old, growth, new = grown
    before, after = old.get_vocab(), new.get_vocab()
    assert {token: after[token] for token in before} == before
    added = sorted(after[token] for token in after.keys() - before.keys())
    assert added == list(range(len(before), len(before) + len(growth.merges)))
    assert [after[a + b] for a, b in growth.merges] == added
    assert growth.rounds[-1].vocabulary == len(new) == len(after)
    assert new.all_special_ids == old.all_special_ids
    assert new.chat_template == old.chat_template


@settings(max_examples=100, deadline=None)
@given(text=st.one_of(st.text(max_size=60), st.lists(st.sampled_from(STEMS), max_size=8).map("".join)))
def test_any_text_is_written_back_in_no_more_tokens(grown, text):
    old, _, new = grown
    assert new.decode(ids(new, text), clean_up_tokenization_spaces=False) == text
    assert len(ids(new, text)) <= len(ids(old, text))


@settings(max_examples=50, deadline=None)
@given(text=st.lists(st.sampled_from([*STEMS, " ", "the "]), max_size=8).map("".join))
def test_a_text_is_cut_as_before_and_then_merged(grown, text):
    """Every new token is a whole number of the tokens that stood there: its row is the mean of theirs."""
    old, _, new = grown
    pieces = [i for token in ids(new, text) for i in ids_of(old, new.convert_ids_to_tokens(token))]
    assert pieces == ids(old, text)


def ids_of(tokenizer, token):
    return [piece.id for piece in tokenizer.backend_tokenizer.model.tokenize(token)]


def test_the_domain_takes_fewer_tokens_and_each_new_one_is_used(grown):
    old, growth, new = grown
    lengths = [sum(len(ids(t, text)) for text in DOMAIN) for t in (old, new)]
    assert lengths[1] < 0.6 * lengths[0]
    assert any(new.convert_tokens_to_string([a + b]).strip() == "cardio" for a, b in growth.merges)


def test_likelihood_rises_until_a_round_gains_one_percent_or_less(grown):
    _, growth, _ = grown
    values = [one.log_likelihood for one in growth.rounds]
    assert values == sorted(values)
    gains = [(before - now) / before for before, now in pairwise(values)]
    assert len(gains) > 3
    assert all(gain > 0.01 for gain in gains[:-1])
    assert [one.vocabulary for one in growth.rounds][:3] == [400, 420, 440]


@pytest.mark.parametrize("tolerance", [0.05, 0.2, 0.9])
def test_a_larger_tolerance_stops_earlier_at_the_first_round_below_it(grown, tolerance):
    old, growth, _ = grown
    found = grow(old, DOMAIN, step=20, tolerance=tolerance)
    values = [one.log_likelihood for one in growth.rounds]
    gains = [(before - now) / before for before, now in pairwise(values)]
    first = next(i for i, gain in enumerate(gains) if gain <= tolerance)
    assert found.rounds == growth.rounds[: first + 2]
    assert found.merges == growth.merges[: 20 * (first + 1)]


def test_the_likelihood_is_the_papers():
    """Two documents, tokens a a a b: 3 log 3/4 + log 1/4, halved."""
    cut = [(["a", "a"], 1), (["a"], 1), (["b"], 1)]
    assert log_likelihood(cut, 2) == pytest.approx((3 * math.log(3 / 4) + math.log(1 / 4)) / 2)


def test_rounds_are_measured_on_the_text_as_the_grown_tokenizer_cuts_it(grown):
    _, growth, new = grown
    counts = Counter(i for text in DOMAIN for i in ids(new, text))
    total = counts.total()
    expected = sum(n * math.log(n / total) for n in counts.values()) / len(DOMAIN)
    assert growth.rounds[-1].log_likelihood == pytest.approx(expected)


def test_special_tokens_in_a_text_are_no_words():
    tokenizer = trained_bpe.tokenizer(size=400)
    words = word_counts(tokenizer, ["<|im_start|>user<|im_end|>the cat"])
    assert words == {"user": 1, "the": 1, "Ġcat": 1}


def test_rare_words_are_left_and_one_word_gains_nothing():
    tokenizer = trained_bpe.tokenizer(size=400)
    assert grow(tokenizer, ["zzqj vvkw"], step=50).merges == ()
    assert grow(tokenizer, ["zzqj vvkw"], step=50, min_count=1).merges
    with pytest.raises(
        UsageError, match="grows from the words of domain text, and the texts given have none"
    ):
        grow(tokenizer, [""])


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_means_of_the_old_pieces_rows(grown, tied, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    old, growth, new = grown
    model = byte_llama.model(vocab_size=400, tie_word_embeddings=tied)
    before = model.get_input_embeddings().weight.detach().clone(), model.lm_head.weight.detach().clone()
    text = "once upon a time the cat ran"
    logits = model(torch.tensor([ids(old, text)])).logits
    state = torch.random.get_rng_state()
    grow_embeddings(model, old, new)
    assert torch.equal(torch.random.get_rng_state(), state)
    model.save_pretrained(tmp_path)
    new.save_pretrained(tmp_path)
    loaded, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    assert loaded.config.vocab_size == len(tokenizer) == len(new)
    assert tokenizer.get_vocab() == new.get_vocab()
    assert ids(tokenizer, DOMAIN[0]) == ids(new, DOMAIN[0])
    after = loaded.get_input_embeddings().weight, loaded.lm_head.weight
    for rows, were in zip(after, before, strict=True):
        assert torch.equal(rows[:400], were)
        for a, b in growth.merges:
            pieces = ids_of(old, a + b)
            assert len(pieces) > 1
            row = rows[new.get_vocab()[a + b]]
            torch.testing.assert_close(row, torch.stack([were[i] for i in pieces]).mean(0))
    assert torch.equal(after[0], after[1]) == tied
    assert ids(new, text) == ids(old, text)
    torch.testing.assert_close(loaded(torch.tensor([ids(new, text)])).logits[..., :400], logits)


def test_rows_that_padded_the_model_are_used_first(grown):
    old, growth, new = grown
    model = byte_llama.model(vocab_size=400 + len(growth.merges) + 7)
    grow_embeddings(model, old, new)
    rows = model.get_input_embeddings().weight
    assert rows.shape[0] == 400 + len(growth.merges) + 7
    last = growth.merges[-1]
    expected = rows[ids_of(old, last[0] + last[1])].mean(0)
    assert (rows[400 + len(growth.merges) - 1] - expected).abs().max() < 1e-6


def test_an_added_token_after_the_vocabulary_keeps_its_id():
    """As in Qwen: added tokens have the last ids, and the vocabulary goes on after them."""
    tokenizer = trained_bpe.tokenizer(size=400)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    assert tokenizer.convert_tokens_to_ids("<|tool|>") == 400
    growth = grow(tokenizer, DOMAIN, step=10, tolerance=0.9)
    new = with_merges(tokenizer, growth.merges)
    assert new.convert_tokens_to_ids("<|tool|>") == 400
    assert ids(new, "<|tool|>")[0] == 400
    assert min(new.get_vocab()[a + b] for a, b in growth.merges) == 401
    assert new.decode(ids(new, DOMAIN[1])) == DOMAIN[1]


def test_whole_words_that_are_looked_up_without_merges():
    tokenizer = trained_bpe.tokenizer(size=400, ignore_merges=True)
    growth = grow(tokenizer, DOMAIN, step=50)
    new = with_merges(tokenizer, growth.merges)
    for text in DOMAIN[:5]:
        assert new.decode(ids(new, text)) == text
        assert len(ids(new, text)) < len(ids(tokenizer, text))


def test_tokenizers_of_another_kind_are_refused():
    with pytest.raises(UsageError, match="is of the kind WordLevel, and only BPE goes on from its merges"):
        grow(tiny_llama.tokenizer(), DOMAIN)
    spec = json.loads(trained_bpe.inner())
    spec["pre_tokenizer"] = {"type": "Whitespace"}
    with pytest.raises(UsageError, match="does not work on the bytes of words; leave `grow` out"):
        with_merges(trained_bpe.tokenizer(spec=json.dumps(spec)), [("a", "b")])
