import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.voting import Vote, is_settled, majority

ballots = st.lists(st.sampled_from(["1", "2", "3", None]), max_size=9)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["18", "17", None, "18"], Vote("18", 2, 4, 0.5)),
        (["7"], Vote("7", 1, 1, 1.0)),
        ([None, "7", None], Vote("7", 1, 3, 1 / 3)),
        ([None, None], None),
        ([], None),
    ],
)
def test_the_most_frequent_answer_wins(answers, expected):
    assert majority(answers) == expected


def test_a_tie_goes_to_the_answer_that_reached_its_count_first():
    assert majority(["a", "b"]).answer == "a"
    assert majority(["a", "b", "b", "a"]).answer == "b"
    assert majority(["a", "b", "a", "b"]).answer == "a"


@given(ballots)
def test_the_vote_says_how_many_agree(answers):
    vote = majority(answers)
    counts = Counter(a for a in answers if a is not None)
    if not counts:
        assert vote is None
        return
    assert vote.count == counts[vote.answer] == max(counts.values())
    assert vote.total == len(answers)
    assert vote.share == vote.count / vote.total
    assert 0 < vote.share <= 1


@given(ballots, st.randoms())
def test_order_decides_ties_alone(answers, rng):
    vote = majority(answers)
    shuffled = list(answers)
    rng.shuffle(shuffled)
    other = majority(shuffled)
    if vote is None:
        assert other is None
        return
    assert (other.count, other.share) == (vote.count, vote.share)
    counts = Counter(a for a in answers if a is not None)
    if list(counts.values()).count(vote.count) == 1:
        assert other == vote


@given(st.lists(st.sampled_from(["1", "2", None]), max_size=6), st.integers(0, 4))
def test_a_vote_is_settled_if_and_only_if_no_votes_to_come_change_the_winner(answers, still_to_come):
    def winner(given):
        vote = majority(given)
        return vote and vote.answer

    # "new" stands for any answer that nobody gave yet.
    futures = itertools.product(["1", "2", "new", None], repeat=still_to_come)
    stays = all(winner([*answers, *future]) == winner(answers) for future in futures)
    assert is_settled(answers, still_to_come) == stays
