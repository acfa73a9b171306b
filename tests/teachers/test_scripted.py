"""The scripted teacher: the same bytes for the same request, as long as asked, wrong only when told to."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.config import build
from kdbench.errors import ConfigError, EmptyReply, TeacherUnavailable, UsageError
from kdbench.jobs._teachers import connect
from kdbench.records import Message
from kdbench.teacher import Reply, Request, Sampling, read_reply
from kdbench.teachers.scripted import LONGEST, Config, Mistakes, ScriptedTeacher
from kdbench.textstats import (
    contains_word,
    ends_properly,
    has_loop,
    is_refusal,
    paragraph_count,
    sentences,
    words,
)

FREE = Sampling(temperature=1.0, max_tokens=2000)
REQUEST = 'Write 3 to 5 paragraphs with the noun "kite", the verb "listen" and the adjective "windy".'


def request(text: str = REQUEST, seed: int = 0, sampling: Sampling = FREE) -> Request:
    return Request((Message(role="user", content=text),), sampling, seed=seed)


def raw(asked: Request, config: Config | None = None) -> bytes:
    return asyncio.run(ScriptedTeacher(config).ask(asked))


def ask(asked: Request, config: Config | None = None) -> Reply:
    return read_reply(raw(asked, config))


def test_a_request_has_one_reply_and_every_part_of_it_counts() -> None:
    assert raw(request()) == raw(request())
    others = [
        request(seed=1),
        request(REQUEST + " "),
        request(sampling=FREE.model_copy(update={"top_p": 0.9})),
    ]
    assert len({raw(r) for r in [request(), *others]}) == 4


def test_a_greedy_reply_does_not_depend_on_the_seed() -> None:
    greedy = Sampling(temperature=0.0, max_tokens=2000)
    assert raw(request(seed=1, sampling=greedy)) == raw(request(seed=2, sampling=greedy))


def test_stories_vary() -> None:
    texts = [ask(request(seed=i)).text for i in range(300)]
    assert len(set(texts)) == 300
    assert len({text.split(".")[0] for text in texts}) > 100


@given(
    st.lists(st.from_regex(r"[a-z]{3,12}", fullmatch=True), min_size=3, max_size=3), st.integers(0, 2**31 - 1)
)
def test_every_word_is_used_and_the_story_ends_without_a_loop(chosen: list[str], seed: int) -> None:
    noun, verb, adjective = chosen
    for length in ("1 sentence", "2 sentences", "3 sentences", "5 short sentences", "4 paragraphs"):
        text = ask(request(f'A story of {length} with "{noun}", "{verb}", "{adjective}".', seed)).text
        assert all(word in words(text) for word in chosen), (length, text)
        assert ends_properly(text)
        assert not has_loop(text)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9, LONGEST])
def test_it_writes_as_many_sentences_as_asked(count: int) -> None:
    for seed in range(20):
        text = ask(request(f'Write {count} sentences with "kite", "listen", "windy".', seed)).text
        assert paragraph_count(text) == 1
        # A question or a cry in quotes ends a sentence of its own.
        assert len(sentences(text)) - text.count('?"') - text.count('!"') <= count <= len(sentences(text))


def test_it_writes_as_many_paragraphs_as_asked() -> None:
    counts = Counter(paragraph_count(ask(request(seed=i)).text) for i in range(200))
    assert set(counts) == {3, 4, 5}
    assert paragraph_count(ask(request("Write 1 paragraph.")).text) == 1
    assert paragraph_count(ask(request("Write 20 paragraphs.")).text) == 20
    assert paragraph_count(ask(request("Tell me a story.")).text) == 4


def test_more_than_the_script_holds_is_cut_down_to_its_longest_story() -> None:
    text = ask(request("Write 99 sentences.")).text
    assert not has_loop(text)
    assert ends_properly(text)


def test_max_tokens_cuts_the_story_and_says_so() -> None:
    reply = ask(request(sampling=Sampling(max_tokens=12)))
    assert reply.finish_reason == "length"
    assert len(reply.text.split(" ")) == 12
    assert ask(request()).finish_reason == "stop"


def test_usage_counts_words() -> None:
    reply = ask(request())
    assert reply.usage.prompt_tokens == len(REQUEST.split())
    assert reply.usage.completion_tokens == len(reply.text.split())


def test_each_mistake_shows() -> None:
    def made(**rates: float) -> Reply:
        return ask(request(seed=3), Config(mistakes=Mistakes(**rates)))

    assert not any(contains_word(made(missing_words=1.0).text, w) for w in ("kite", "listen", "windy"))
    cut = made(cut_off=1.0)
    assert cut.finish_reason == "length"
    assert not ends_properly(cut.text)
    assert has_loop(made(loop=1.0).text)
    assert is_refusal(made(refusal=1.0).text)
    with pytest.raises(EmptyReply):
        made(empty=1.0)


def test_mistakes_come_at_their_rates_and_leave_the_rest_as_it_is() -> None:
    config = Config(mistakes=Mistakes(cut_off=0.3, refusal=0.2))
    replies = [ask(request(seed=i), config) for i in range(1000)]
    cut = sum(r.finish_reason == "length" for r in replies)
    refused = sum(is_refusal(r.text) for r in replies)
    assert 230 < cut < 370
    assert 140 < refused < 260


def test_other_mistakes_are_another_identity() -> None:
    same = {ScriptedTeacher().identity, ScriptedTeacher(Config(latency=1, unavailable=0.5)).identity}
    assert len(same) == 1
    assert ScriptedTeacher(Config(mistakes=Mistakes(loop=0.1))).identity not in same


def test_unavailable_calls_fail_at_their_rate_and_a_retry_may_work() -> None:
    async def outcomes() -> Counter[bool]:
        teacher = ScriptedTeacher(Config(unavailable=0.5))
        seen: Counter[bool] = Counter()
        for _ in range(400):
            try:
                await teacher.ask(request())
                seen[True] += 1
            except TeacherUnavailable:
                seen[False] += 1
        return seen

    assert 140 < asyncio.run(outcomes())[True] < 260


def test_latency_is_waited() -> None:
    async def waited() -> float:
        teacher = ScriptedTeacher(Config(latency=0.05))
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await teacher.ask(request())
        return loop.time() - begun

    assert asyncio.run(waited()) >= 0.049


def test_it_is_connected_by_name_alone() -> None:
    assert connect("scripted").identity == ScriptedTeacher().identity
    with pytest.raises(UsageError, match="write 'scripted'"):
        connect("scripted:big")


def test_impossible_rates_are_refused() -> None:
    with pytest.raises(ConfigError, match="mistakes"):
        build(Config, {"mistakes": {"loop": 0.6, "empty": 0.6}}, "teacher scripted")
    with pytest.raises(ConfigError, match=r"loop = 1\.5"):
        build(Config, {"mistakes": {"loop": 1.5}}, "teacher scripted")
