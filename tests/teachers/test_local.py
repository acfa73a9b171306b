"""The local teacher: many callers, one batch, each reply its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from kdbench.config import build
from kdbench.errors import CallRefused, ConfigError, MissingExtra, TeacherUnavailable, UsageError
from kdbench.models.weights import weights_sha256
from kdbench.records import Message
from kdbench.teacher import Request, Sampling, read_reply
from kdbench.teachers.local import SCHEMES, Config, connect
from tests.support import byte_llama

medium = pytest.mark.medium


@pytest.fixture(scope="module")
def ref(tmp_path_factory):
    return byte_llama.save(tmp_path_factory.mktemp("byte_llama"))


def request(text="Hi", seed=0, **sampling):
    settings = {"temperature": 1.0, "max_tokens": 24, **sampling}
    return Request((Message(role="user", content=text),), Sampling(**settings), seed)


def ask_all(ref, requests, **config):
    async def run():
        teacher = connect(f"hf:{ref}", Config(device="cpu", **config))
        try:
            return await asyncio.gather(*(teacher.ask(r) for r in requests), return_exceptions=True)
        finally:
            await teacher.close()

    return asyncio.run(run())


@medium
def test_replies_are_the_same_alone_and_in_company(ref):
    requests = [request(f"Tell me {'more ' * (i % 5)}of {i}", seed=i) for i in range(30)]
    together = ask_all(ref, requests, batch=8)
    assert together == [ask_all(ref, [r], batch=1)[0] for r in requests]
    assert len(set(together)) == 30


@medium
def test_a_reply_carries_its_ids_and_usage(ref):
    (raw,) = ask_all(ref, [request("Hi", max_tokens=7)])
    reply = read_reply(raw)
    tokenizer = byte_llama.tokenizer()
    assert reply.text == tokenizer.decode(reply.token_ids, skip_special_tokens=True)
    assert reply.usage.completion_tokens == len(reply.token_ids) == 7
    prompt = (
        "<|im_start|>system\nYou are tiny<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert reply.usage.prompt_tokens == len(tokenizer(prompt).input_ids)
    assert reply.finish_reason == "length"
    assert reply.model == f"hf:{ref}"


@medium
def test_a_short_reply_does_not_wait_for_a_long_one(ref):
    async def run():
        teacher = connect(f"hf:{ref}", Config(device="cpu", batch=2))
        long = asyncio.create_task(teacher.ask(request(seed=1, max_tokens=400, temperature=0)))
        for seed in range(5):
            await teacher.ask(request(seed=seed, max_tokens=2))
        assert not long.done()
        await long
        await teacher.close()

    asyncio.run(run())


@medium
def test_a_cancelled_request_frees_its_place(ref, tmp_path):
    endless_ref = byte_llama.save(tmp_path, max_position_embeddings=10**9)
    endless = request(max_tokens=10**9, temperature=0)

    async def run():
        teacher = connect(f"hf:{endless_ref}", Config(device="cpu", batch=1))
        started, queued = (asyncio.create_task(teacher.ask(endless)) for _ in range(2))
        await asyncio.sleep(0.3)
        started.cancel()
        queued.cancel()
        async with asyncio.timeout(60):  # it would take for ever
            raw = await teacher.ask(request(max_tokens=3, seed=5))
        await teacher.close()
        return read_reply(raw)

    assert asyncio.run(run()).text == read_reply(ask_all(ref, [request(max_tokens=3, seed=5)])[0]).text


@medium
def test_a_prompt_that_does_not_fit_is_refused_alone(ref):
    fits, too_long = ask_all(ref, [request("Hi"), request("x" * 600)])
    assert isinstance(fits, bytes)
    assert isinstance(too_long, CallRefused)
    assert "takes 512" in str(too_long)


@medium
def test_weights_that_cannot_be_loaded_fail_every_caller(ref, tmp_path):
    import shutil

    torn = tmp_path / "torn"
    shutil.copytree(ref, torn)
    (torn / "model.safetensors").write_bytes(b"torn")
    outcomes = ask_all(torn, [request(), request()])
    assert all(isinstance(o, UsageError) and "cannot be loaded" in str(o) for o in outcomes)


@medium
def test_closing_ends_the_thread_and_the_callers(ref):
    async def run():
        teacher = connect(f"hf:{ref}", Config(device="cpu"))
        await teacher.ask(request(max_tokens=1))
        left = asyncio.create_task(teacher.ask(request(max_tokens=480, temperature=0)))
        await asyncio.sleep(0.1)
        await teacher.close()
        with pytest.raises(TeacherUnavailable, match="closed"):
            await left
        with pytest.raises(TeacherUnavailable, match="closed"):
            await teacher.ask(request())

    before = threading.active_count()
    asyncio.run(run())
    assert not [t for t in threading.enumerate() if t.name.startswith("teacher ")]
    assert threading.active_count() <= before + 1


@medium
def test_it_outlives_an_event_loop(ref):
    teacher = connect(f"hf:{ref}", Config(device="cpu"))
    first = asyncio.run(teacher.ask(request()))
    assert asyncio.run(teacher.ask(request())) == first
    asyncio.run(teacher.close())


@medium
def test_a_connected_teacher_loads_nothing_until_it_is_asked(ref):
    code = (
        "import sys; from kdbench.teachers.local import Config, connect\n"
        f"teacher = connect({f'hf:{ref}'!r}, Config())\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
        "print(teacher.identity)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    from pathlib import Path

    assert done.stdout.strip() == weights_sha256(Path(ref))


@medium
def test_smollm2_answers():
    async def run():
        teacher = connect("smollm2", Config(device="cpu"))
        raw = await teacher.ask(request("What is the capital of France?", temperature=0, max_tokens=20))
        await teacher.close()
        return read_reply(raw)

    assert "Paris" in asyncio.run(run()).text


def test_it_knows_its_schemes_and_its_appetite(tmp_path):
    assert SCHEMES == ("hf", "smollm2")
    with pytest.raises(ConfigError, match="batch = 0"):
        build(Config, {"batch": 0}, "teacher smollm2")


def test_no_such_weights():
    with pytest.raises(UsageError, match="hf download no/such"):
        connect("hf:no/such", Config())


def test_without_torch(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"teacher smollm2 needs .* pip install 'kdbench\[train\]'"):
        connect("smollm2", Config())
