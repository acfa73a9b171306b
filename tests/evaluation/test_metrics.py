"""The metrics over generations, on texts whose scores can be told by eye; and the choice of metrics."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from kdbench import plugins
from kdbench.errors import ConfigError, UnknownPlugin, UsageError
from kdbench.evaluation import (
    Generation,
    Subject,
    TokenScores,
    _metrics,
    accuracy,
    agreement,
    perplexity,
    rouge_l,
    speed,
    story_rules,
)
from kdbench.records import Completion, Message

GOOD = "The happy cats ran home. Then they slept all day."


def sample(text=GOOD, fields='{"words": ["cat", "run", "happy"]}', number=0):
    return Completion(
        id=f"x-{number}",
        prompt=(Message(role="user", content="A story"),),
        completion=(Message(role="assistant", content=text),),
        fields=fields,
    )


def made(text, finish_reason="stop", tokens=10, seconds=0.5):
    return Generation("x", text, tokens, finish_reason, seconds)


def subject(generations, samples=None, scores=None):
    samples = samples or tuple(sample(number=i) for i in range(len(generations)))
    return Subject("s", tuple(samples), tuple(generations), 135, 540, seed=0, token_scores=lambda: scores)


def values(module, given, **config):
    return {s.metric: s for s in module.measure(given, module.Config(**config))}


def test_story_rules_each_count_what_they_say():
    loop = "The happy cat ran. " * 12
    found = values(
        story_rules,
        subject(
            [
                made(GOOD),
                made("The happy dog ran home."),
                made("The happy cat ran and"),
                made(GOOD, "length"),
                made(loop),
            ]
        ),
    )
    assert found["rules_words"].value == 4 / 5
    assert found["rules_ends"].value == 3 / 5
    assert found["rules_no_loop"].value == 4 / 5
    assert found["rules_all"].value == 1 / 5
    assert found["rules_all"].n == 5
    assert 0 <= found["rules_all"].low <= 1 / 5 <= found["rules_all"].high <= 1


def test_samples_without_words_are_judged_by_the_other_rules():
    found = values(story_rules, subject([made("No cat here.")], [sample(fields="{}")]))
    assert "rules_words" not in found
    assert found["rules_all"].value == 1


def test_distinct_counts_pairs_over_all_texts_together():
    found = values(story_rules, subject([made("a b c"), made("a b d")]))
    assert found["distinct_2"].value == 3 / 4
    assert found["distinct_2"].higher_is_better is None
    assert "distinct_1" in values(story_rules, subject([made("a a")]), distinct=1)


def test_rouge_l_is_one_for_the_same_text_and_compares_stems():
    assert values(rouge_l, subject([made(GOOD)]))["rouge_l"].value == 1
    assert values(rouge_l, subject([made("Nothing alike")]))["rouge_l"].value == 0
    pair = subject([made("cats jumped")], [sample("cat jumps")])
    assert values(rouge_l, pair)["rouge_l"].value == 1
    assert values(rouge_l, pair, stem=False)["rouge_l"].value == 0
    # Longest common subsequence "a c" of "a b c" and "a c d e": precision 2/4, recall 2/3.
    half = subject([made("aa cc dd ee")], [sample("aa bb cc")])
    assert values(rouge_l, half)["rouge_l"].value == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))


def test_speed_is_all_tokens_over_all_seconds():
    found = values(speed, subject([made("a", tokens=30, seconds=1), made("b", tokens=10, seconds=3)]))
    assert found["tokens_per_second"].value == 10
    assert found["parameters"].value == 135
    assert found["bytes"].value == 540


def test_perplexity_is_of_all_tokens_not_a_mean_of_stories():
    scores = TokenScores(tokens=np.array([1.0, 9.0]), nll=np.array([9.0, 1.0]))
    found = values(perplexity, subject([], [sample(), sample(number=1)], scores))["perplexity"]
    assert found.value == pytest.approx(np.e)
    assert found.higher_is_better is False


def test_perplexity_of_a_broken_model_is_still_a_number():
    scores = TokenScores(tokens=np.array([1.0, 1.0]), nll=np.array([2000.0, 2000.0]))
    assert np.isfinite(
        values(perplexity, subject([], [sample(), sample(number=1)], scores))["perplexity"].high
    )


def test_agreement_without_a_teacher_says_so():
    scores = TokenScores(tokens=np.array([1.0]), nll=np.array([2.0]))
    found = values(agreement, subject([], [sample()], scores))
    assert {s.note for s in found.values()} == {"no teacher"}


def test_all_metrics_are_found_and_say_what_they_need():
    assert plugins.names("metrics") == [
        "accuracy",
        "agreement",
        "perplexity",
        "rouge_l",
        "speed",
        "story_rules",
    ]
    chosen = _metrics.choose(None, {"rouge_l": {"stem": False}}, "smollm2")
    assert chosen["rouge_l"].config.stem is False
    assert chosen["agreement"].needs == {"logits", "teacher"}


def test_choosing_metrics_wrongly_is_one_sentence():
    with pytest.raises(UnknownPlugin, match=r"No metric named 'perplexty'\. Did you mean 'perplexity'"):
        _metrics.choose(["perplexty"], {}, None)
    with pytest.raises(ConfigError, match=r"no metric 'rouge'\. Did you mean 'rouge_l'"):
        _metrics.choose(None, {"rouge": {}}, None)
    with pytest.raises(ConfigError, match=r"no key 'stems'\. Did you mean 'stem'"):
        _metrics.choose(None, {"rouge_l": {"stems": True}}, None)
    with pytest.raises(UsageError, match="--teacher"):
        _metrics.choose(["agreement"], {}, None)
    assert "agreement" not in _metrics.choose(None, {}, None)


def asked(answer, number=0, **fields):
    return Completion(
        id=f"q-{number}",
        prompt=(Message(role="user", content="How many?"),),
        completion=(Message(role="assistant", content=f"The answer is {answer}."),),
        answer=answer,
        fields=json.dumps(fields),
    )


def test_accuracy_reads_the_marked_answer_and_asks_the_question_s_verifier():
    samples = [asked("1,200", i, verifier="numeric") for i in range(4)]
    texts = [
        "Let me see. The answer is $1200.",
        "The answer is 1201.",
        "It is 1200.",
        "The answer is 1200.00",
    ]
    found = values(accuracy, subject([made(t) for t in texts], samples))
    assert found["accuracy"].value == 0.5
    assert found["answered"].value == 0.75
    assert found["accuracy"].n == 4
    assert found["accuracy"].low <= 0.5 <= found["accuracy"].high
    assert set(found) == {"accuracy", "answered"}


def test_accuracy_of_each_kind_where_there_are_several():
    samples = [asked("2", 0, kind="sum"), asked("B", 1, kind="pick", verifier="choice", choices=["x", "y"])]
    found = values(accuracy, subject([made("The answer is 2."), made("The answer is (A).")], samples))
    assert (found["accuracy_sum"].value, found["accuracy_pick"].value) == (1.0, 0.0)


def test_accuracy_of_programs_is_that_of_what_they_print():
    samples = [asked("4", i, verifier="numeric") for i in range(3)]
    texts = ["```python\nprint(2 + 2)\n```", "```python\nprint(5)\n```", "```python\nwhile True: pass\n```"]
    found = values(
        accuracy, subject([made(t) for t in texts], samples), read="program", limits={"seconds": 1}
    )
    assert found["accuracy"].value == pytest.approx(1 / 3)
    assert found["answered"].value == pytest.approx(2 / 3)


def test_accuracy_is_measured_inside_a_notebook_s_event_loop_too():
    async def cell():
        return values(accuracy, subject([made("The answer is 4.")], [asked("4", verifier="numeric")]))

    assert asyncio.run(cell())["accuracy"].value == 1.0


def test_accuracy_of_the_whole_text():
    found = values(accuracy, subject([made(" 4 ")], [asked("4", verifier="numeric")]), read="text")
    assert found["accuracy"].value == 1.0


def test_accuracy_is_left_out_where_nothing_has_a_gold_answer(caplog):
    assert values(accuracy, subject([made(GOOD)])) == {}
