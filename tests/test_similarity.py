import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from kdbench.similarity import RougePool, ngram_overlap, rouge_l

GOOGLE = RougeScorer(["rougeL"], use_stemmer=False)
# Few words, so that random texts have something in common.
sentences = st.lists(
    st.sampled_from(["a", "cat", "sat", "on", "the", "mat", "and", "2", "dogs"]), max_size=12
).map(" ".join)


def by_google(a, b):
    return GOOGLE.score(a, b)["rougeL"].fmeasure


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("write a short poem about the ocean", "write a poem about the sea", 0.769),
        ("explain why the sea is salty", "write a poem about the sea", 0.333),
        ("The CAT, sat!", "the cat sat", 1.0),
        ("cats", "cat", 0.0),
        ("", "", 0.0),
        ("море", "море", 0.0),
    ],
)
def test_rouge_l_of_known_pairs(a, b, expected):
    assert round(rouge_l(a, b), 3) == expected


@given(st.one_of(sentences, st.text()), st.one_of(sentences, st.text()))
@example("İstanbul K 10²", "istanbul k 10")
def test_rouge_l_is_that_of_rouge_score(a, b):
    assert rouge_l(a, b) == pytest.approx(by_google(a, b), abs=1e-12)
    assert rouge_l(a, b) == rouge_l(b, a)


@given(st.lists(sentences, max_size=8), sentences, st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0]))
@example(["", "a cat"], "", 0.7)
def test_a_pool_finds_the_first_of_the_nearest_texts(texts, text, threshold):
    pool = RougePool()
    for member in texts:
        pool.add(member)
    scores = [rouge_l(text, member) for member in texts]
    if not texts:
        assert pool.nearest(text) is None
        assert pool.too_close(text, threshold) is None
        return
    best = max(scores)
    found = pool.nearest(text)
    assert found[0] == best
    if best > 0:
        assert found[1] == texts[scores.index(best)]
    assert pool.too_close(text, threshold) == (found if best >= threshold else None)


def test_a_score_at_the_threshold_is_too_close():
    for common, length in itertools.combinations(range(1, 40), 2):
        pool = RougePool()
        pool.add(" ".join(f"a{i}" if i < common else f"b{i}" for i in range(length)))
        text = " ".join(f"a{i}" if i < common else f"c{i}" for i in range(length))
        assert pool.too_close(text, common / length) is not None, (common, length)
        assert pool.too_close(text, common / length + 1e-12) is None, (common, length)


def test_the_pool_gives_texts_back_as_they_were_added():
    pool = RougePool()
    pool.add("Explain why the sea is salty.")
    pool.add("Write a poem about the sea!")
    score, text = pool.too_close("Write a short poem about the ocean.", 0.7)
    assert (round(score, 3), text) == (0.769, "Write a poem about the sea!")
    assert pool.too_close("Explain how cheese is made", 0.7) is None


def test_unknown_words_of_a_query_are_like_no_word_of_the_pool():
    pool = RougePool()
    pool.add("alpha")
    assert pool.too_close("beta", 0.1) is None
    pool.add("gamma")
    assert pool.nearest("beta")[0] == 0.0


def test_ngram_overlap_is_the_share_of_runs_in_both():
    assert ngram_overlap("The cat sat down.", "the cat sat up", 2) == 2 / 4
    assert ngram_overlap("a b a b", "a b", 2) == 1 / 2
    assert ngram_overlap("a b c", "a b c", 3) == 1.0
    assert ngram_overlap("a b c", "d e f", 1) == 0.0
    assert ngram_overlap("a b", "a b", 3) == 0.0


@given(sentences, sentences, st.integers(1, 4))
def test_ngram_overlap_is_a_symmetric_share(a, b, n):
    overlap = ngram_overlap(a, b, n)
    assert overlap == ngram_overlap(b, a, n)
    assert 0 <= overlap <= 1
    assert ngram_overlap(a, a, n) == float(len(a.replace("2", " ").split()) >= n)
