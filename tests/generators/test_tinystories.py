"""The TinyStories recipe: its prompt, its filters one by one, best of n, and the scripted teacher on it."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdbench
from kdbench.config import build
from kdbench.engine import Seed
from kdbench.errors import ConfigError, Rejected
from kdbench.evaluation.story_rules import words_of
from kdbench.jsonl import read_rejections, read_samples
from kdbench.prompts import Prompts
from kdbench.records import Completion, Message, Rejection
from kdbench.teacher import Reply, Request, Sampling, Usage, read_reply
from kdbench.teachers.scripted import ScriptedTeacher
from kdbench.textstats import missing_words, paragraph_count
from kdbench_generators import tinystories
from kdbench_generators.tinystories import PARTS, Config, Filters, Plan
from tests.support.teachers import EchoTeacher, reply

PROMPTS = Prompts("tinystories")
PLAN = Plan(("kite", "listen", "windy"), ())
GOOD = (
    "One windy day a little girl took her kite to the hill. The kite flew up and up until it was very small. "
    '"Come back!" she called, but the kite did not listen. Then her father helped her to pull the string. '
    "Slowly the kite came down, and they went home for supper."
)
AGAIN = "All night the girl had a dream: the kite flew up and up until it was very small."


def judged(text: str, finish_reason: str = "stop", **filters: Any) -> Completion | Rejection:
    prompt = tinystories.ask_for(PLAN, Config(), PROMPTS)
    answer = Reply(text, finish_reason, Usage())
    return tinystories.judge(answer, prompt, (prompt,), PLAN, Filters(**filters))


def reason(text: str, finish_reason: str = "stop", **filters: Any) -> str | None:
    outcome = judged(text, finish_reason, **filters)
    return outcome.reason if isinstance(outcome, Rejection) else None


def render(plan: Plan, **config: Any) -> str:
    return tinystories.ask_for(plan, Config(**config), PROMPTS).content


def test_the_prompt_of_paragraphs() -> None:
    assert "a short story of 3 to 5 paragraphs" in render(PLAN)
    assert "a short story of 2 paragraphs" in render(PLAN, paragraphs=(2, 2))
    assert "should also" not in render(PLAN)


def test_the_prompt_of_a_short_story() -> None:
    assert render(Plan(("owl", "find", "honest"), ("bad ending",)), sentences=3) == (
        "Write a story in 3 short sentences for a small child. "
        "It is about an honest owl and somebody who wants to find.\n"
        'Use the words "owl", "find" and "honest".\n'
        "It should also be like this:\n"
        "- bad ending: it ends badly"
    )
    assert "in 1 short sentence for a small child. It is about a windy kite" in render(PLAN, sentences=1)


def test_every_feature_has_its_wording() -> None:
    lines = render(Plan(PLAN.words, tinystories.FEATURES)).splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("- ")] == [
        f"- {f}" for f in tinystories.FEATURES
    ]


def test_the_prompt_of_a_fixed_seed() -> None:
    plan = tinystories.draw_plan(random.Random("0/0"), Config())
    assert plan == Plan(("chipmunk", "admire", "little"), ("dialogue", "moral value"))
    assert render(plan) == (
        "Please write a short story of 3 to 5 paragraphs for a very small child. "
        "Use only simple words that a three-year-old is likely to understand.\n"
        'The story must use the noun "chipmunk", the verb "admire" and the adjective "little".\n'
        "It should also be like this:\n"
        "- dialogue: somebody in it talks to somebody else\n"
        "- moral value: there is something good to learn from it\n"
        "Write nothing but the story, without a title, and remember: only simple words."
    )


def test_features_are_a_random_subset_no_larger_than_asked() -> None:
    plans = [tinystories.draw_plan(random.Random(i), Config()) for i in range(2000)]
    assert len({p.features for p in plans}) == 2 ** len(tinystories.FEATURES)
    few = [tinystories.draw_plan(random.Random(i), Config(max_features=2)).features for i in range(500)]
    assert {len(f) for f in few} == {0, 1, 2}
    assert all(list(f) == sorted(f, key=tinystories.FEATURES.index) for f in few)
    assert all(
        not tinystories.draw_plan(random.Random(i), Config(feature_chance=0)).features for i in range(50)
    )


def test_features_may_be_narrowed_and_a_name_that_is_none_is_said() -> None:
    named = build(Config, {"features": ["conflict", "dialogue", "conflict"]}, "config")
    drawn = {tinystories.draw_plan(random.Random(i), named).features for i in range(100)}
    assert drawn == {(), ("dialogue",), ("conflict",), ("dialogue", "conflict")}
    with pytest.raises(ConfigError, match="there is no feature 'romance'; there are dialogue, plot twist"):
        build(Config, {"features": ["romance"]}, "config")


def test_all_features_named_are_the_stories_of_none_named() -> None:
    all_of_them = Config(features=tuple(reversed(tinystories.FEATURES)))
    assert (
        all_of_them == build(Config, {"features": list(reversed(tinystories.FEATURES))}, "config") == Config()
    )
    assert all_of_them.model_dump(mode="json") == Config().model_dump(mode="json")
    assert "features" not in Config().model_dump(mode="json")


def test_the_vocabulary_is_as_large_as_said_and_each_word_is_in_one_list() -> None:
    lists = tinystories.vocabulary()
    assert {part: len(lists[part]) for part in PARTS} == {"noun": 800, "verb": 400, "adjective": 300}
    every = [word for part in PARTS for word in lists[part]]
    assert len(set(every)) == 1500
    assert all(word.isascii() and word.isalpha() and word.islower() for word in every)
    assert set(every) <= tinystories.within_reach()


def test_nothing_unfit_for_a_small_child_is_in_the_lists() -> None:
    review = (Path(__file__).parents[2] / "generators" / "vocabulary_review.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in review if "\t" in line and not line.startswith("#")]
    dropped = {word for decision, words in rows if decision == "drop" for word in words.split()}
    offensive = {word for decision, words in rows if decision == "offensive" for word in words.split()}
    lists = tinystories.vocabulary()
    assert not (dropped | offensive) & {word for part in PARTS for word in lists[part]}
    assert not offensive & tinystories.within_reach()
    assert {"gun", "kill", "beer", "god", "sexy"} <= dropped


def test_common_words_are_the_most_frequent() -> None:
    config = Config(common_words=1)
    plan = tinystories.draw_plan(random.Random(3), config)
    assert plan.words == tuple(tinystories.vocabulary()[part][0] for part in PARTS)
    assert tinystories.draw_plan(random.Random(3), Config()).words != plan.words


def test_a_good_story_is_kept_with_what_the_recipe_knows() -> None:
    sample = judged(GOOD)
    assert isinstance(sample, Completion)
    assert sample.text == GOOD
    assert json.loads(sample.fields) == {"words": ["kite", "listen", "windy"], "features": []}
    assert sample.teacher_prompt is None


@pytest.mark.parametrize(
    ("expected", "text", "filters", "eased"),
    [
        ("missing_words", GOOD.replace("windy", "sunny"), {}, {"require_words": False}),
        ("too_short", GOOD, {"min_words": 70}, {"min_words": 50}),
        ("too_long", GOOD, {"max_words": 45}, {"max_words": 70}),
        (
            "hard_words",
            GOOD.replace("supper", "infrastructure"),
            {"max_hard_share": 0.01},
            {"max_hard_share": 0.02},
        ),
        ("loop", f"{GOOD} {AGAIN}", {"max_repeated": 0.05}, {"max_repeated": 0.3}),
    ],
)
def test_each_filter_turns_down_a_text_that_passes_once_it_is_eased(
    expected: str, text: str, filters: dict[str, Any], eased: dict[str, Any]
) -> None:
    assert reason(text, **filters) == expected
    assert reason(text, **eased) is None


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("cut_off", f"{GOOD} And then she"),
        ("loop", f"{GOOD} {'They slept in the house. ' * 3}"),
        ("refusal", f"I'm sorry, but I can't write that. {GOOD}"),
        ("prompt_echoed", f"{render(PLAN)} {GOOD}"),
        ("markup", f"{GOOD}\n\n## The end\nGood night."),
        ("markup", f"1. {GOOD}"),
        ("too_short", "**The Kite**"),
        ("too_short", ""),
    ],
)
def test_a_good_story_with_one_fault_is_turned_down_for_that(expected: str, text: str) -> None:
    assert reason(GOOD) is None
    assert reason(text) == expected


def test_inflections_of_the_words_count() -> None:
    assert (
        reason(GOOD.replace("kite", "kites").replace("not listen", "listening").replace("windy", "windiest"))
        is None
    )
    assert reason(GOOD.replace("listen", "listener")) == "missing_words"


def test_a_reply_that_ran_into_max_tokens_is_cut_off_even_after_a_whole_sentence() -> None:
    assert reason(GOOD, finish_reason="length") == "cut_off"


def test_names_are_not_hard_words() -> None:
    named = GOOD.replace("a little girl", "the girl Zamirela").replace("her father", "old Brumbo")
    assert tinystories.hard_words(named + " It was Zamirela's kite.") == []
    assert tinystories.hard_words("Quickly the happiest kitten jumped over two ponies' stables.") == []
    assert tinystories.hard_words("The infrastructure was a infrastructure.") == ["infrastructure"] * 2


@pytest.mark.parametrize(
    "text",
    [
        "Sure! Here is a story:\n\n" + GOOD,
        "Here's a short story for a small child:\n" + GOOD,
        "**The Kite**\n\n" + GOOD,
        "# The Kite\n" + GOOD,
        "Title: The Kite\n\n" + GOOD,
        "Sure, here you go:\n\nThe Windy Kite\n\n" + GOOD + "\n\n",
    ],
)
def test_preamble_and_title_do_not_belong_to_the_story(text: str) -> None:
    assert tinystories.story_of(text) == GOOD


@pytest.mark.parametrize("text", [GOOD, GOOD.replace(". ", ".\n\n"), "Okay was the name of a dog. " + GOOD])
def test_a_story_without_either_stays_as_it_is(text: str) -> None:
    assert tinystories.story_of(text) == text


def test_a_rejection_carries_what_was_turned_down() -> None:
    outcome = judged(GOOD.replace("windy", "sunny").replace("kite", "ball"))
    assert isinstance(outcome, Rejection)
    assert outcome.detail == "kite, windy"
    assert isinstance(outcome.sample, Completion)
    assert "sunny" in outcome.sample.text


def test_the_student_never_sees_the_example() -> None:
    config = Config(example=True, sentences=5, sampling=Sampling(max_tokens=400))
    asked: list[tuple[Message, ...]] = []

    class Noting:
        async def chat(self, messages: tuple[Message, ...], sampling: Sampling) -> Reply:
            asked.append(tuple(messages))
            return read_reply(await ScriptedTeacher().ask(Request(tuple(messages), sampling)))

    seed = Seed(0, random.Random("0/0"))
    (sample,) = asyncio.run(tinystories.generate(seed, {"teacher": Noting()}, config, PROMPTS))  # type: ignore[arg-type]
    assert isinstance(sample, Completion)
    assert sample.teacher_prompt == asked[0]
    assert [m.role for m in asked[0]] == ["user", "assistant", "user"]
    assert sample.prompt == asked[0][2:]


@pytest.mark.parametrize("sentences", [None, 5])
def test_the_examples_pass_the_filters_themselves(sentences: int | None) -> None:
    config = Config(sentences=sentences)
    asked, shown = tinystories.example(config, PROMPTS)
    plan = Plan(tinystories.EXAMPLE_WORDS, ())
    assert tinystories.find_fault(shown.content, asked.content, plan, Filters(min_words=20)) is None
    if sentences is None:
        assert 3 <= paragraph_count(shown.content) <= 5


def test_best_of_n_asks_again_until_a_story_passes(tmp_path: Path) -> None:
    texts = [GOOD + " And then", "I'm sorry, but I can't help."]

    def answer(request: Request, number: int) -> bytes:
        if number <= 2:
            return reply(texts[number - 1])
        return reply(tell(request))

    teacher = EchoTeacher(answer)
    run = kdbench.generate("tinystories", teacher=teacher, n=1, out=tmp_path / "r", config={"draws": 4})
    (sample,) = read_samples(run / "samples.jsonl")
    assert sample.id.endswith("-0-2")
    assert sample.origin is not None
    assert len(set(sample.origin.calls)) == 3
    assert [r.reason for r in read_rejections(run / "rejected.jsonl")] == ["cut_off", "refusal"]


def test_a_truncated_draw_is_one_of_the_tries(tmp_path: Path) -> None:
    def answer(request: Request, number: int) -> bytes:
        return reply("Once there was", "length") if number == 1 else reply(tell(request))

    run = kdbench.generate(
        "tinystories", teacher=EchoTeacher(answer), n=1, out=tmp_path / "r", config={"draws": 2}
    )
    assert [s.id[-4:] for s in read_samples(run / "samples.jsonl")] == ["-0-1"]
    assert [r.reason for r in read_rejections(run / "rejected.jsonl")] == ["truncated"]


def tell(request: Request) -> str:
    """A story that passes, made from the words of the request."""
    noun, verb, adjective = (part.split('"')[0] for part in request.messages[-1].content.split('"')[1::2])
    return GOOD.replace("kite", noun).replace("listen", verb).replace("windy", adjective)


def test_the_scripted_teacher_passes_the_default_filters_on_every_seed(tmp_path: Path) -> None:
    run = kdbench.generate("tinystories", teacher="scripted", n=600, out=tmp_path / "r")
    samples = list(read_samples(run / "samples.jsonl"))
    assert len(samples) == 600
    assert list(read_rejections(run / "rejected.jsonl")) == []
    for sample in samples:
        assert isinstance(sample, Completion)
        assert not missing_words(sample.text, json.loads(sample.fields)["words"], PARTS)
        assert 3 <= paragraph_count(sample.text) <= 5


@settings(deadline=None)
@given(
    st.integers(0, 2**63),
    st.builds(
        Config,
        sentences=st.one_of(st.none(), st.integers(5, 27)),
        paragraphs=st.sampled_from([(3, 5), (3, 3), (4, 9)]),
        example=st.booleans(),
        feature_chance=st.sampled_from([0.0, 0.5, 1.0]),
        filters=st.just(Filters(min_words=25)),
    ),
)
def test_the_scripted_teacher_passes_whatever_is_asked(seed: int, config: Config) -> None:
    class Scripted:
        async def chat(self, messages: tuple[Message, ...], sampling: Sampling) -> Reply:
            return read_reply(
                await ScriptedTeacher().ask(Request(tuple(messages), sampling, seed=seed % 2**31))
            )

    drawn = Seed(0, random.Random(seed))
    outcomes = asyncio.run(tinystories.generate(drawn, {"teacher": Scripted()}, config, PROMPTS))  # type: ignore[arg-type]
    assert [type(o) for o in outcomes] == [Completion], outcomes


SUMMARY = "A girl flies a kite, cannot get it back, and her father lends a hand."


def instructed(
    summary: str, *, seed: int = 0, reason: str = "stop", **config: Any
) -> tuple[Completion | Rejection, list[str]]:
    """The outcome of one seed whose teacher tells a good story and sums it up so, and what was asked."""
    asked: list[str] = []

    class Telling:
        async def chat(self, messages: list[Message], sampling: Sampling) -> Reply:
            asked.append(messages[-1].content)
            if len(asked) == 1:
                return Reply(tell(Request(tuple(messages), sampling)), "stop", Usage())
            if reason == "length":
                raise Rejected("truncated", "cut off after 96 tokens")
            return Reply(summary, reason, Usage())

    drawn = Seed(seed, random.Random(f"0/{seed}"))
    built = build(Config, {"instruct": True, **config}, "recipe tinystories")
    (outcome,) = asyncio.run(tinystories.generate(drawn, {"teacher": Telling()}, built, PROMPTS))  # type: ignore[arg-type]
    return outcome, asked


def with_summary() -> int:
    """The first seed whose prompt has a summary."""
    for seed in range(100):
        rng = random.Random(f"0/{seed}")
        if "Summary" in tinystories.draw_block(rng, tinystories.draw_plan(rng, Config())).parts:
            return seed
    raise AssertionError("no prompt has a summary")


def test_an_instruct_prompt_says_what_the_story_must_have_and_nothing_else() -> None:
    seen, places = set(), set()
    for seed in range(200):
        sample, asked = instructed(SUMMARY, seed=seed)
        assert isinstance(sample, Completion), sample
        fields = tinystories.InstructFields.model_validate_json(sample.fields)
        lines = sample.prompt[0].content.splitlines()
        said = {
            "Summary": fields.summary,
            "Features": ", ".join(fields.features),
            "Words": ", ".join(fields.words),
            "Random sentence": fields.random_sentence,
        }
        assert lines == [*(f"{part}: {said[part]}" for part in fields.parts), "Story:"]
        assert [part for part in said if not said[part]] == [p for p in said if p not in fields.parts]
        assert fields.words in ((), fields.story_words)
        assert fields.features in ((), fields.story_features)
        if fields.random_sentence is not None:
            places.add(tinystories.sentences_of(sample.text).index(fields.random_sentence))
        assert len(asked) == 1 + ("Summary" in fields.parts)
        assert sample.teacher_prompt is not None
        assert sample.teacher_prompt[-1].content == asked[0]
        seen.add(fields.parts)
    assert places == set(range(len(tinystories.sentences_of(GOOD))))
    assert len(seen) > 40  # of the 64 orders of non-empty subsets of four parts


def test_what_an_instruct_prompt_has_is_a_random_non_empty_subset() -> None:
    for features, subsets in (((), 7), (("dialogue",), 15)):
        plan = Plan(PLAN.words, features)
        blocks = [tinystories.draw_block(random.Random(i), plan) for i in range(3000)]
        counts = Counter(frozenset(block.parts) for block in blocks)
        assert len(counts) == subsets
        assert frozenset() not in counts
        assert all(count > 0.7 * 3000 / subsets for count in counts.values())
        assert features or not any("Features" in parts for parts in counts)


def test_the_plain_variant_and_instruct_ask_for_the_same_stories() -> None:
    for seed in range(20):
        rng = random.Random(f"0/{seed}")
        plan = tinystories.draw_plan(rng, Config())
        assert instructed(SUMMARY, seed=seed)[1][0] == render(plan)


@pytest.mark.parametrize("shown", ["Summary: {}", "**Summary:** {}", "Here is a summary:\n\n{}", "{}\n"])
def test_a_summary_is_taken_without_its_label(shown: str) -> None:
    sample, _ = instructed(shown.format(SUMMARY), seed=with_summary())
    assert isinstance(sample, Completion)
    assert f"Summary: {SUMMARY}\n" in f"{sample.prompt[0].content}\n"


@pytest.mark.parametrize(
    ("expected", "summary", "eased"),
    [
        ("summary_too_short", "The Windy Kite", {"min_summary_words": 3}),
        ("summary_too_long", SUMMARY, {"max_summary_words": 20}),
        ("summary_copied", "The {0} flew up and up until it was very small.", {"max_copied": 1.0}),
        ("summary_loop", "She ran and ran and ran and ran and ran and ran.", None),
        ("summary_other_language", "Ein Mädchen lässt ihren Drachen steigen, und ihr Vater hilft.", None),
        ("no_summary", "I'm sorry, but I can't help with that.", None),
    ],
)
def test_a_bad_summary_turns_the_story_down(
    expected: str, summary: str, eased: dict[str, Any] | None
) -> None:
    seed = with_summary()
    noun = tinystories.draw_plan(random.Random(f"0/{seed}"), Config()).words[0]
    tight = {"max_summary_words": 10} if expected == "summary_too_long" else {}
    outcome, _ = instructed(summary.format(noun), seed=seed, filters=tight)
    assert isinstance(outcome, Rejection)
    assert outcome.reason == expected
    assert isinstance(outcome.sample, Completion)
    if eased is not None:
        assert isinstance(instructed(summary.format(noun), seed=seed, filters=eased)[0], Completion)


def test_a_summary_that_is_cut_off_turns_the_story_down() -> None:
    outcome, _ = instructed(SUMMARY, seed=with_summary(), reason="length")
    assert isinstance(outcome, Rejection)
    assert (outcome.reason, outcome.detail) == ("no_summary", "truncated: cut off after 96 tokens")


def test_a_reparse_has_no_summary_for_a_story_that_the_filters_now_let_in(tmp_path: Path) -> None:
    def answer(request: Request, number: int) -> bytes:
        if request.messages[-1].content.startswith("Here is"):
            return reply(SUMMARY)
        return reply(GOOD if request.seed % 2 else tell(request))

    for words in (True, False):
        run = kdbench.generate(
            "tinystories", teacher=EchoTeacher(answer), n=60, max_candidates=60, out=tmp_path / "r",
            config={"instruct": True, "filters": {"require_words": words}}, reparse=not words,
        )  # fmt: skip
        reasons = Counter(r.reason for r in read_rejections(run / "rejected.jsonl"))
        samples = list(read_samples(run / "samples.jsonl"))
        assert set(reasons) == ({"missing_words"} if words else {"not_in_log"})
        assert len(samples) + reasons.total() == 60
    assert len(samples) > 30
    assert all(isinstance(r.sample, Completion) for r in read_rejections(run / "rejected.jsonl"))


@given(
    st.lists(
        st.sampled_from(["She ran. ", '"Come here!" he said. ', "Mr. Fox slept.\n\n", "so they", "Yes! "])
    )
)
def test_sentences_stand_in_the_story_letter_for_letter_and_in_order(pieces: list[str]) -> None:
    story = "".join(pieces)
    place = 0
    for sentence in tinystories.sentences_of(story):
        place = story.index(sentence, place) + len(sentence)
        assert sentence[-1] in ".!?"
        assert "\n" not in sentence


def test_what_is_a_sentence() -> None:
    story = (
        '"Come back!" she called, but Mr. Fox did not listen. "No!" Then he ran home. '
        '"Is it you?" Tim asked.\n\nHe said, "I won." The end came soon.'
    )
    assert tinystories.sentences_of(story) == [
        '"Come back!" she called, but Mr. Fox did not listen.',
        "Then he ran home.",
        '"Is it you?" Tim asked.',
        'He said, "I won."',
        "The end came soon.",
    ]


def test_the_rules_metric_holds_only_what_the_prompt_says_against_a_student() -> None:
    for seed in range(30):
        sample, _ = instructed(SUMMARY, seed=seed)
        assert isinstance(sample, Completion)
        named = "Words:" in sample.prompt[0].content
        assert len(words_of(sample)) == (3 if named else 0)


def test_changed_filters_are_told_apart_from_changed_requests() -> None:
    with pytest.raises(ConfigError, match="min_words must not be above max_words"):
        build(Config, {"filters": {"min_words": 50, "max_words": 40}}, "recipe tinystories")
    with pytest.raises(ConfigError, match="fewest <= most"):
        build(Config, {"paragraphs": [5, 3]}, "recipe tinystories")
    with pytest.raises(ConfigError, match=r"feature_chance = 1\.5"):
        build(Config, {"feature_chance": 1.5}, "recipe tinystories")
    with pytest.raises(ConfigError, match=r"no key 'filters\.min_word'"):
        build(Config, {"filters": {"min_word": 5}}, "recipe tinystories")


def test_it_imports_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import kdbench_generators.tinystories as t; t.vocabulary()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
