"""The engine's guarantees, through `kdbench.generate`: order, retries, rejections, limits, flat dispatch."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path

import pytest

import kdbench
from kdbench.asking import Teachers, origin_of
from kdbench.engine import Outcome, Seed, Settled, make_seeds, run_seeds
from kdbench.errors import (
    CallRefused,
    NothingLeft,
    RateLimited,
    Rejected,
    TeacherTimeout,
    TeacherUnavailable,
    TeacherUnusable,
    TooManyErrors,
)
from kdbench.jsonl import read_rejections, read_samples
from kdbench.ledger import LimitReached
from kdbench.records import Completion, Rejection
from kdbench.rundir import is_done, read_info
from kdbench.teacher import Request, Sampling
from tests.support.recipes import SAMPLING, chain, one_call, user
from tests.support.teachers import Answer, EchoTeacher, reply


def samples_bytes(run: Path) -> bytes:
    return (run / "samples.jsonl").read_bytes() + (run / "rejected.jsonl").read_bytes()


def stats(run: Path) -> dict:
    return read_info(run)["stats"]


@pytest.mark.parametrize("concurrency", [1, 7, 100])
def test_concurrency_does_not_change_a_byte(tmp_path: Path, concurrency: int) -> None:
    one = kdbench.generate(one_call, teacher=EchoTeacher(), n=60, out=tmp_path / "one", concurrency=1)
    teacher = EchoTeacher(longest_wait=0.005)
    other = kdbench.generate(one_call, teacher=teacher, n=60, out=tmp_path / "n", concurrency=concurrency)
    assert samples_bytes(one) == samples_bytes(other)
    assert teacher.most_in_flight <= concurrency
    assert len(list(read_samples(other / "samples.jsonl"))) == 60


def test_samples_are_named_and_in_seed_order(tmp_path: Path) -> None:
    run = kdbench.generate(one_call, teacher=EchoTeacher(longest_wait=0.01), n=30, out=tmp_path / "r")
    samples = list(read_samples(run / "samples.jsonl"))
    seeds = [s.origin.seed for s in samples if s.origin]
    assert seeds == sorted(seeds)
    assert len({s.id for s in samples}) == 30
    assert all(s.id.endswith(f"-{s.origin.seed}-0") for s in samples if s.origin)
    assert all(s.origin and len(s.origin.calls) == 1 and s.origin.prompt_tokens == 10 for s in samples)


def test_one_slow_seed_holds_up_nobody() -> None:
    """The first seed waits until forty others have run; a batch barrier would never let them."""
    finished = 0
    enough = asyncio.Event()

    async def run(seed: Seed) -> Settled:
        nonlocal finished
        if seed.index == 0:
            await enough.wait()
        finished += 1
        if finished == 40:
            enough.set()
        return Settled(seed.index, (), ())

    async def collect() -> list[int]:
        stream = run_seeds(run, make_seeds(0, 50), concurrency=4, window=64)
        return [settled.seed async for settled in stream]

    assert asyncio.run(asyncio.wait_for(collect(), 20)) == list(range(50))


def test_the_window_bounds_what_waits() -> None:
    started = 0

    async def run(seed: Seed) -> Settled:
        nonlocal started
        started += 1
        if seed.index == 0:
            await asyncio.sleep(0.05)
        return Settled(seed.index, (), ())

    async def first() -> int:
        stream = run_seeds(run, make_seeds(0, 1000), concurrency=8, window=20)
        async for _ in stream:
            break
        seen = started
        await stream.aclose()
        return seen

    assert asyncio.run(first()) == 20


def test_little_is_generated_beyond_n(tmp_path: Path) -> None:
    teacher = EchoTeacher()
    run = kdbench.generate(one_call, teacher=teacher, n=200, out=tmp_path / "r", concurrency=50)
    assert len(teacher.requests) <= 1.15 * stats(run)["seeds"] + 10


def test_seeds_used_up_before_n_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = kdbench.generate(one_call, teacher=EchoTeacher(), n=50, max_candidates=20, out=tmp_path / "r")
    assert 0 < stats(run)["accepted"] < 20
    assert is_done(run)


def test_nothing_left_says_why(tmp_path: Path) -> None:
    async def reject_all(seed: Seed, teachers: Teachers) -> list[Outcome]:
        return [Rejection(reason="dull")]

    with pytest.raises(NothingLeft, match=r"5 seeds \(dull 5\)"):
        kdbench.generate(reject_all, teacher=EchoTeacher(), n=5, max_candidates=5, out=tmp_path / "r")
    assert not is_done(tmp_path / "r")
    assert len(list(read_rejections(tmp_path / "r" / "rejected.jsonl"))) == 5


@pytest.mark.parametrize(
    "error", [RateLimited("429", 0.0), TeacherTimeout("slow"), TeacherUnavailable("503")]
)
def test_what_can_be_retried_is_retried(tmp_path: Path, error: Exception) -> None:
    failed: set[str] = set()

    def flaky(request: Request, number: int) -> bytes:
        text = request.messages[-1].content
        if number > 3 and text not in failed:
            failed.add(text)
            raise error
        return reply(f"{text} -> {request.seed}")

    calm = kdbench.generate(one_call, teacher=EchoTeacher(), n=20, out=tmp_path / "calm")
    run = kdbench.generate(one_call, teacher=EchoTeacher(flaky), n=20, out=tmp_path / "r", first_wait=0.0)
    assert samples_bytes(run) == samples_bytes(calm)
    assert stats(run)["retries"] == len(failed) > 10


def test_retry_after_is_honoured_by_every_call(tmp_path: Path) -> None:
    """After one 429 no request leaves before the pause is over."""
    loop_times: list[float] = []

    def limited(request: Request, number: int) -> bytes:
        loop_times.append(asyncio.get_running_loop().time())
        if number == 1:
            raise RateLimited("slow down", retry_after=0.3)
        return reply("fine")

    kdbench.generate(
        chain, teacher=EchoTeacher(limited), n=3, out=tmp_path / "r", concurrency=2, first_wait=0.0
    )
    sent_with_the_first = [t for t in loop_times if t - loop_times[0] < 0.3]
    assert len(sent_with_the_first) <= 2  # what was in flight already


def test_retries_are_capped_and_the_row_is_rejected(tmp_path: Path) -> None:
    def sometimes_down(request: Request, number: int) -> bytes:
        if request.messages[-1].content.startswith("question 3 "):
            raise TeacherUnavailable("503")
        return reply("fine")

    teacher = EchoTeacher(sometimes_down)
    run = kdbench.generate(
        one_call, teacher=teacher, n=12, out=tmp_path / "r", retries=2, first_wait=0.0, concurrency=2
    )
    rows = [r for r in read_rejections(run / "rejected.jsonl") if r.reason == "teacher_unavailable"]
    assert [r.origin.seed for r in rows if r.origin] == [3]
    asked = [r for r in teacher.requests if r.messages[-1].content.startswith("question 3 ")]
    assert len(asked) == 3


def test_one_refused_row_is_one_rejection(tmp_path: Path) -> None:
    def picky(request: Request, number: int) -> bytes:
        if request.messages[-1].content.startswith("question 4 "):
            raise CallRefused("context too long")
        return reply("fine")

    run = kdbench.generate(one_call, teacher=EchoTeacher(picky), n=15, out=tmp_path / "r")
    refused = [r for r in read_rejections(run / "rejected.jsonl") if r.reason == "call_refused"]
    assert [(r.origin.seed, r.detail) for r in refused if r.origin] == [(4, "context too long")]
    assert stats(run)["accepted"] == 15


def test_a_bug_in_a_recipe_is_one_rejection_too(tmp_path: Path) -> None:
    async def buggy(seed: Seed, teachers: Teachers) -> list[Outcome]:
        if seed.index == 2:
            raise KeyError("oops")
        return await one_call(seed, teachers)

    run = kdbench.generate(buggy, teacher=EchoTeacher(), n=8, out=tmp_path / "r")
    failed = [r for r in read_rejections(run / "rejected.jsonl") if r.reason == "failed"]
    assert [r.detail for r in failed] == ["KeyError: 'oops'"]


def test_max_errors_stops_with_a_clear_message(tmp_path: Path) -> None:
    def refusing(request: Request, number: int) -> bytes:
        raise CallRefused("no such parameter")

    teacher = EchoTeacher(refusing)
    with pytest.raises(TooManyErrors, match=r"--max-errors 3.*no such parameter.*--resume"):
        kdbench.generate(one_call, teacher=teacher, n=50, out=tmp_path / "r", max_errors=3, concurrency=1)
    assert len(teacher.requests) == 4
    assert read_info(tmp_path / "r")["status"] == "failed"


def test_a_teacher_that_never_answers_ends_the_run_soon(tmp_path: Path) -> None:
    def down(request: Request, number: int) -> bytes:
        raise TeacherUnavailable("Cannot connect to 127.0.0.1:1")

    teacher = EchoTeacher(down)
    with pytest.raises(TeacherUnusable, match=r"never answered.*127\.0\.0\.1:1"):
        kdbench.generate(one_call, teacher=teacher, n=5, out=tmp_path / "r", first_wait=0.0, concurrency=1)
    assert len(teacher.requests) == 3


def test_an_unusable_teacher_ends_the_run_at_once(tmp_path: Path) -> None:
    def refuses_the_key(request: Request, number: int) -> bytes:
        raise TeacherUnusable("The key is refused")

    with pytest.raises(TeacherUnusable, match="key is refused"):
        kdbench.generate(one_call, teacher=EchoTeacher(refuses_the_key), n=5, out=tmp_path / "r")


def test_empty_replies_are_rejected_and_not_asked_again(tmp_path: Path) -> None:
    def sometimes_empty(request: Request, number: int) -> bytes:
        return reply("" if request.messages[-1].content.startswith("question 1 ") else "fine")

    kdbench.generate(one_call, teacher=EchoTeacher(sometimes_empty), n=10, out=tmp_path / "r")
    again = EchoTeacher(sometimes_empty)
    run = kdbench.generate(one_call, teacher=again, n=10, out=tmp_path / "r", resume=True)
    assert [r.reason for r in read_rejections(run / "rejected.jsonl")].count("empty_reply") == 1
    assert again.requests == []


def cut_off(request: Request, number: int) -> bytes:
    return reply("Once upon", "stop" if request.sampling.max_tokens > 50 else "length")


def test_truncated_replies_are_rejected_kept_or_retried_once(tmp_path: Path) -> None:
    async def two_seeds(seed: Seed, teachers: Teachers) -> list[Outcome]:
        answer = await teachers["teacher"].chat([user(f"q{seed.index}")], SAMPLING)
        return [Completion(prompt=(user("q"),), completion=(answer.message,))]

    with pytest.raises(NothingLeft, match="truncated 2"):
        kdbench.generate(two_seeds, teacher=EchoTeacher(cut_off), n=2, max_candidates=2, out=tmp_path / "a")
    kept = kdbench.generate(
        two_seeds, teacher=EchoTeacher(cut_off), n=2, out=tmp_path / "b", on_truncated="keep"
    )
    assert [s.origin.finish_reason for s in read_samples(kept / "samples.jsonl") if s.origin] == [
        "length"
    ] * 2
    teacher = EchoTeacher(cut_off)
    kdbench.generate(two_seeds, teacher=teacher, n=2, out=tmp_path / "c", on_truncated="retry")
    assert sorted(r.sampling.max_tokens for r in teacher.requests) == [50, 50, 100, 100]
    again = EchoTeacher(cut_off)
    kdbench.generate(two_seeds, teacher=again, n=2, out=tmp_path / "c", on_truncated="retry", resume=True)
    assert again.requests == []  # a truncated reply is paid for once


def test_equal_requests_of_a_seed_get_draws_of_their_own(tmp_path: Path) -> None:
    async def twice(seed: Seed, teachers: Teachers) -> list[Outcome]:
        hot = [await teachers["teacher"].chat([user("same")], SAMPLING) for _ in range(2)]
        cold = [await teachers["teacher"].chat([user("same")], Sampling(temperature=0)) for _ in range(2)]
        return [Completion(prompt=(user("same"),), completion=(r.message,)) for r in hot + cold]

    teacher = EchoTeacher()
    run = kdbench.generate(twice, teacher=teacher, n=8, max_candidates=2, out=tmp_path / "r", concurrency=1)
    texts = [s.text for s in read_samples(run / "samples.jsonl") if isinstance(s, Completion)]
    assert len(set(texts)) == 4 + 1  # four hot draws over two seeds, one greedy answer for all
    assert len(teacher.requests) == 5


def test_limits_stop_cleanly_and_resume_goes_on(tmp_path: Path) -> None:
    prices = {"prompt": 1e6, "completion": 0}  # ten dollars a call
    with pytest.raises(LimitReached, match=r"--max-cost 45"):
        kdbench.generate(
            one_call,
            teacher=EchoTeacher(),
            n=20,
            out=tmp_path / "r",
            prices=prices,
            max_cost=45,
            concurrency=1,
        )
    assert read_info(tmp_path / "r")["status"] == "limit reached"
    with pytest.raises(LimitReached, match="--max-tokens-total 200"):
        kdbench.generate(
            one_call, teacher=EchoTeacher(), n=20, out=tmp_path / "r", max_tokens_total=200, concurrency=1,
            resume=True,
        )  # fmt: skip
    teacher = EchoTeacher()
    run = kdbench.generate(one_call, teacher=teacher, n=20, out=tmp_path / "r", resume=True)
    calm = kdbench.generate(one_call, teacher=EchoTeacher(), n=20, out=tmp_path / "calm")
    assert samples_bytes(run) == samples_bytes(calm)
    assert stats(run)["replayed_calls"] >= 6


def test_tokens_and_cost_are_counted(tmp_path: Path) -> None:
    run = kdbench.generate(
        one_call, teacher=EchoTeacher(), n=10, out=tmp_path / "r", concurrency=1,
        prices={"prompt": 2.0, "completion": 6.0},
    )  # fmt: skip
    counted = stats(run)
    calls = counted["calls"]
    assert counted["prompt_tokens"] == 10 * calls
    assert counted["completion_tokens"] == 20 * calls
    assert counted["cost"] == pytest.approx(calls * (10 * 2 + 20 * 6) / 1e6)


def test_generate_runs_inside_a_running_loop(tmp_path: Path) -> None:
    async def notebook() -> Path:
        return kdbench.generate(one_call, teacher=EchoTeacher(), n=3, out=tmp_path / "r")

    assert is_done(asyncio.run(notebook()))


def test_a_user_s_recipe_file_with_its_own_template(tmp_path: Path) -> None:
    (tmp_path / "haiku.py").write_text(
        "from kdbench.records import Completion\n"
        "from kdbench.teacher import Sampling\n"
        "async def generate(seed, teachers, prompts):\n"
        "    ask = prompts.user('poem', topic=seed.rng.choice(['rain', 'snow']))\n"
        "    reply = await teachers['teacher'].chat([ask], Sampling())\n"
        "    return [Completion(prompt=(ask,), completion=(reply.message,))]\n"
    )
    (tmp_path / "poem.j2").write_text("A haiku about {{ topic }}.")
    run = kdbench.generate(tmp_path / "haiku.py", teacher=EchoTeacher(), n=4, out=tmp_path / "r")
    lines = (run / "samples.jsonl").read_text().splitlines()
    prompts = {json.loads(line)["prompt"][0]["content"] for line in lines}
    assert prompts <= {"A haiku about rain.", "A haiku about snow."}
    own = [name for name in read_info(run)["templates"] if not name.startswith("shared/")]
    assert own == ["haiku/poem.j2"]


def test_draws_come_back_in_order_and_a_bad_one_leaves_the_others_alone(tmp_path: Path) -> None:
    async def five(seed: Seed, teachers: Teachers) -> list[Outcome]:
        found = await teachers["teacher"].draws([user("say a number")], SAMPLING, 5)
        return [
            Rejection(reason=one.reason)
            if isinstance(one, Rejected)
            else Completion(
                prompt=(user("say a number"),), completion=(one.message,), origin=origin_of(seed.index, one)
            )
            for one in found
        ]

    order: list[int] = []

    async def answer(request: Request, number: int) -> bytes:
        order.append(request.seed)
        await asyncio.sleep(0.01 * (5 - number))  # the last one asked is the first one home
        if number == 2:
            return reply("", "stop")
        if number == 4:
            return reply("cut", "length")
        return reply(f"{request.seed}")

    run = kdbench.generate(five, teacher=EchoTeacher(answer), n=3, out=tmp_path / "r", max_candidates=1)
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    rejected = [json.loads(line) for line in (run / "rejected.jsonl").read_text().splitlines()]
    assert [int(s["completion"][0]["content"]) for s in samples] == [order[0], order[2], order[4]]
    assert len(set(order)) == 5
    assert [r["reason"] for r in rejected] == ["empty_reply", "truncated"]
    assert [r["id"].rsplit("-", 1)[1] for r in rejected] == ["1", "3"]
    assert [len(s["origin"]["calls"]) for s in samples] == [1, 1, 1]
    assert len({s["origin"]["calls"][0] for s in samples}) == 3
    assert [len(r["origin"]["calls"]) for r in rejected] == [5, 5]


def test_different_requests_of_a_seed_are_asked_at_once_and_answered_in_their_order(tmp_path: Path) -> None:
    async def three(seed: Seed, teachers: Teachers) -> list[Outcome]:
        requests = [[user(word)] for word in ("one", "two", "three")]
        found = await teachers["teacher"].each(requests, SAMPLING)
        texts = ["cut" if isinstance(one, Rejected) else one.text for one in found]
        return [Completion(prompt=(user("all"),), completion=(user(" ".join(texts)),))]

    async def answer(request: Request, number: int) -> bytes:
        await asyncio.sleep(0.01 * (3 - number))
        text = request.messages[-1].content
        return reply(text.upper(), "length" if text == "two" else "stop")

    teacher = EchoTeacher(answer)
    run = kdbench.generate(three, teacher=teacher, n=1, out=tmp_path / "r", max_candidates=1)
    (sample,) = read_samples(run / "samples.jsonl")
    assert isinstance(sample, Completion)
    assert sample.text == "ONE cut THREE"
    assert teacher.most_in_flight == 3


def test_longer_tries_of_several_draws_do_not_depend_on_who_comes_home_first(tmp_path: Path) -> None:
    async def four(seed: Seed, teachers: Teachers) -> list[Outcome]:
        found = await teachers["teacher"].draws([user(f"say {seed.index}")], SAMPLING, 4)
        return [
            Completion(prompt=(user("q"),), completion=(r.message,))
            for r in found
            if not isinstance(r, Rejected)
        ]

    def answer_after(waits: list[float]) -> Answer:
        async def answer(request: Request, number: int) -> bytes:
            await asyncio.sleep(waits[number % 4])
            cut = request.sampling.max_tokens == SAMPLING.max_tokens
            return reply(f"{request.seed}", "length" if cut else "stop")

        return answer

    runs = [
        kdbench.generate(
            four, teacher=EchoTeacher(answer_after(waits)), n=8, out=tmp_path / str(i), on_truncated="retry"
        )
        for i, waits in enumerate(([0.0, 0.01, 0.02, 0.03], [0.03, 0.02, 0.01, 0.0]))
    ]
    assert samples_bytes(runs[0]) == samples_bytes(runs[1])


def test_a_draw_that_was_never_made_is_no_bad_draw_in_a_replay(tmp_path: Path) -> None:
    async def three(seed: Seed, teachers: Teachers) -> list[Outcome]:
        found = await teachers["teacher"].draws([user(f"say {seed.index}")], SAMPLING, 3)
        return [Completion(prompt=(user("q"),), completion=(user(f"{len(found)}"),))]

    run = kdbench.generate(three, teacher=EchoTeacher(), n=2, out=tmp_path / "r", max_candidates=2)
    with sqlite3.connect(run / "calls.sqlite") as log:  # as after an interruption
        log.execute("DELETE FROM calls WHERE key = (SELECT key FROM calls WHERE seed = 1 LIMIT 1)")
    log.close()
    kdbench.generate(three, teacher=EchoTeacher(), n=2, out=run, max_candidates=2, reparse=True)
    assert [r.reason for r in read_rejections(run / "rejected.jsonl")] == ["not_in_log"]
    assert len(list(read_samples(run / "samples.jsonl"))) == 1


def test_calls_in_flight_are_bounded_however_many_draws_a_seed_asks_for(tmp_path: Path) -> None:
    async def many(seed: Seed, teachers: Teachers) -> list[Outcome]:
        found = await teachers["teacher"].draws([user(f"{seed.index}")], SAMPLING, 20)
        return [
            Completion(prompt=(user("q"),), completion=(r.message,))
            for r in found
            if not isinstance(r, Rejected)
        ]

    teacher = EchoTeacher(longest_wait=0.005)
    kdbench.generate(many, teacher=teacher, n=100, out=tmp_path / "r", concurrency=3)
    assert teacher.most_in_flight == 3


def test_a_limit_holds_for_draws_that_wait_for_their_turn(tmp_path: Path) -> None:
    async def many(seed: Seed, teachers: Teachers) -> list[Outcome]:
        await teachers["teacher"].draws([user(f"{seed.index}")], SAMPLING, 50)
        return []

    teacher = EchoTeacher()
    with pytest.raises(LimitReached):
        kdbench.generate(
            many,
            teacher=teacher,
            n=1,
            out=tmp_path / "r",
            concurrency=2,
            max_tokens_total=100,
            max_candidates=5,
        )
    assert len(teacher.requests) <= 5  # 30 tokens each: four calls pass the limit, one more may be on its way
