"""The HTTP teacher against a real server on loopback, over a real (tiny) model, with every fault."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from kdbench.config import build
from kdbench.errors import (
    CallRefused,
    ConfigError,
    EmptyReply,
    RateLimited,
    TeacherTimeout,
    TeacherUnavailable,
    TeacherUnusable,
    UsageError,
)
from kdbench.records import Message
from kdbench.teacher import Request, Sampling, chat_completion, read_reply
from kdbench.teachers import local
from kdbench.teachers._openai_errors import retry_after
from kdbench.teachers.openai_compatible import Config, connect
from tests.support import byte_llama, chat_server
from tests.support.chat_server import ChatServer

medium = pytest.mark.medium
KEY = "sk-very-secret-0123456789"


@pytest.fixture(scope="module")
def ref(tmp_path_factory):
    return byte_llama.save(tmp_path_factory.mktemp("byte_llama"))


@pytest.fixture(scope="module")
def running(ref):
    with ChatServer(local.connect(f"hf:{ref}", local.Config(device="cpu"))) as server:
        yield server


@pytest.fixture
def server(running, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", running.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for proxy in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
    running.faults.clear()
    running.bodies.clear()
    return running


def request(text="Hi", seed=0, **sampling):
    settings = {"temperature": 1.0, "max_tokens": 8, **sampling}
    return Request((Message(role="user", content=text, reasoning="kept back"),), Sampling(**settings), seed)


def ask(*requests, model="tiny", **config):
    """The outcome of each request, asked at once."""

    async def run():
        teacher = connect(f"openai:{model}", Config(**config))
        try:
            return await asyncio.gather(*(teacher.ask(r) for r in requests), return_exceptions=True)
        finally:
            await teacher.close()

    return asyncio.run(run())


def fail(server, fault, **config):
    server.faults.append(fault)
    (outcome,) = ask(request(), **config)
    return outcome


@medium
def test_the_reply_is_handed_on_byte_for_byte(server, ref):
    async def direct():
        teacher = local.connect(f"hf:{ref}", local.Config(device="cpu"))
        raw = await teacher.ask(request(seed=7))
        await teacher.close()
        return raw

    (raw,) = ask(request(seed=7))
    assert raw == asyncio.run(direct())
    assert len(read_reply(raw).token_ids) == 8


@medium
def test_what_is_sent(server):
    ask(request("Hello", seed=3, top_p=0.9, stop=("a", "b")))
    assert server.bodies == [
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Hello"}],
            "temperature": 1.0,
            "max_tokens": 8,
            "seed": 3,
            "top_p": 0.9,
            "stop": ["a", "b"],
        }
    ]


@medium
def test_further_keys_of_the_request(server):
    server.faults.append(chat_server.status(400))
    ask(request(), max_tokens_key="max_completion_tokens", extra_body={"top_k": 5})
    (body,) = server.bodies
    assert (body["max_completion_tokens"], body["top_k"]) == (8, 5)
    assert "max_tokens" not in body
    assert "stop" not in body


@medium
def test_log_probabilities_are_asked_for_by_token_id_and_are_part_of_who_answers(server):
    ask(request(), top_logprobs=20)
    (body,) = server.bodies
    wanted = {
        "logprobs": True, "top_logprobs": 20, "return_tokens_as_token_ids": True, "return_token_ids": True,
    }  # fmt: skip
    assert {key: body.get(key) for key in wanted} == wanted
    plain, more, most = (connect("openai:tiny", Config(top_logprobs=top)).identity for top in (None, 5, 20))
    assert plain == f"tiny at {server.url}"
    assert len({plain, more, most}) == 3
    with pytest.raises(ConfigError, match="top_logprobs = 1"):
        build(Config, {"top_logprobs": 1}, "teacher openai:tiny")


@medium
def test_two_hundred_calls_are_in_flight_at_once(server):
    async def slow(_):
        await asyncio.sleep(1.0)
        from aiohttp import web

        return web.Response(body=chat_completion("ok", model="tiny", finish_reason="stop", usage=read.usage))

    read = read_reply(ask(request())[0])
    server.faults.extend([slow] * 200)
    outcomes = ask(*(request(seed=i) for i in range(200)))
    assert all(isinstance(o, bytes) for o in outcomes)
    assert server.most_in_flight == 200


@medium
@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({}, None),
        ({"Retry-After": "2"}, 2.0),
        ({"retry-after-ms": "1500", "Retry-After": "9"}, 1.5),
        ({"Retry-After": "soon"}, None),
    ],
)
def test_a_rate_limit_says_how_long(server, headers, pause):
    error = fail(server, chat_server.status(429, headers))
    assert isinstance(error, RateLimited)
    assert error.retry_after == pause


def test_a_pause_until_a_date():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 50 < retry_after({"retry-after": later}) <= 60
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "-5"}) == 0
    assert retry_after({"retry-after": "inf"}) is None


@medium
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, CallRefused),
        (401, TeacherUnusable),
        (403, TeacherUnusable),
        (404, TeacherUnusable),
        (408, TeacherTimeout),
        (413, CallRefused),
        (422, CallRefused),
        (500, TeacherUnavailable),
        (503, TeacherUnavailable),
        (529, TeacherUnavailable),
    ],
)
def test_each_status_has_its_error(server, code, kind):
    error = fail(server, chat_server.status(code, message="the\n  server's words"))
    assert type(error) is kind
    assert f"answered {code} (the server's words)" in str(error)
    assert len(server.bodies) == 1, "the engine retries, not the client"


@medium
def test_a_missing_model_is_named(server):
    (error,) = ask(request(), model="gpt-nine")
    assert isinstance(error, TeacherUnusable)
    assert "check the model 'gpt-nine'" in str(error)


@medium
def test_a_prompt_the_model_refuses(server):
    (error,) = ask(request("x" * 600))
    assert isinstance(error, CallRefused)
    assert "takes 512" in str(error)


@medium
def test_a_page_of_html_is_shortened(server):
    page = b"<html><body><h1>Bad Gateway</h1>" + b"<p>nginx</p>" * 500
    error = fail(server, chat_server.body(page, 502))
    assert isinstance(error, TeacherUnavailable)
    assert "Bad Gateway nginx" in str(error)
    assert len(str(error)) < 300


@medium
def test_a_server_that_is_silent(server):
    error = fail(server, chat_server.hang(), timeout=0.3)
    assert isinstance(error, TeacherTimeout)
    assert "within 0.3 s" in str(error)


@medium
@pytest.mark.parametrize("after", [b"", b'{"choices": [{"mess'], ids=["at once", "in mid answer"])
def test_a_connection_that_breaks(server, after):
    error = fail(server, chat_server.drop(after))
    assert isinstance(error, TeacherUnavailable)
    assert "No connection to http://127.0.0.1" in str(error)


@medium
def test_nobody_there(server, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    (error,) = ask(request(), base_url=url)
    assert isinstance(error, TeacherUnavailable)
    assert f"No connection to {url}" in str(error)


@medium
def test_an_error_inside_a_good_status(server):
    def inside(code):
        return chat_server.body({"error": {"message": "upstream", "code": code}})

    assert isinstance(fail(server, inside(429)), RateLimited)
    assert isinstance(fail(server, inside(502)), TeacherUnavailable)
    assert isinstance(fail(server, inside("bad_thing")), CallRefused)


@medium
def test_an_empty_reply_and_no_reply_at_all(server):
    empty = fail(
        server, chat_server.body({"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]})
    )
    with pytest.raises(EmptyReply):
        read_reply(empty)
    with pytest.raises(CallRefused, match="no chat completion"):
        read_reply(fail(server, chat_server.body(b"hello")))


def told(error):
    """All that a log file could get to see of an error."""
    return "".join(traceback.format_exception(error)) + repr(error.__context__) + repr(error.__cause__)


@medium
def test_no_message_holds_the_key(ref, server):
    strict_teacher = local.connect(f"hf:{ref}", local.Config(device="cpu"))
    with ChatServer(strict_teacher, key="another") as strict:
        (error,) = ask(request(), base_url=strict.url)
    assert isinstance(error, TeacherUnusable)
    assert "Incorrect API key provided: [hidden]" in str(error)
    assert KEY not in told(error)
    for code in (400, 404, 429, 500):
        assert KEY not in told(fail(server, chat_server.status(code, message=f"your key {KEY} is odd")))
    assert KEY not in told(fail(server, chat_server.body(f"Bearer {KEY}".encode(), 500)))
    assert KEY not in told(fail(server, chat_server.body({"error": {"message": KEY}})))


@medium
def test_a_server_that_wants_no_key(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert isinstance(ask(request())[0], bytes)


@medium
def test_a_server_that_wants_one(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    error = fail(server, chat_server.status(401))
    assert "set OPENAI_API_KEY" in str(error)


@medium
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("closed_between", [True, False])
def test_one_teacher_in_two_event_loops(server, closed_between):
    teacher = connect("openai:tiny", Config())

    async def once(close):
        raw = await teacher.ask(request())
        if close:
            await teacher.close()
        return raw

    assert asyncio.run(once(closed_between)) == asyncio.run(once(True))
    gc.collect()


def identity(spec="openai:m", **config):
    return connect(spec, Config(**config)).identity


def test_identity_is_model_and_endpoint(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert identity() == "m at https://api.openai.com/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "https://user:pass@host:8000/v1/?key=secret")
    assert identity("openai:org/m:7b") == "org/m:7b at https://host:8000/v1/"
    assert identity(label="lab") == "m at lab"
    assert identity(timeout=5, concurrency=3) == identity()
    assert identity(extra_body={"top_k": 1}) != identity()


@pytest.mark.parametrize(
    ("spec", "url", "said"),
    [
        ("openai:", None, "write openai:MODEL"),
        ("openai:m", "localhost:8000", "is no http"),
        ("openai:m", "ftp://user:pass@host", "'ftp://host' is no http"),
    ],
)
def test_a_teacher_that_cannot_be(monkeypatch, spec, url, said):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UsageError, match=said):
        connect(spec, Config(base_url=url))


def test_config_never_holds_a_key():
    assert not [name for name in Config.model_fields if "key" in name and name != "max_tokens_key"]
    assert "secret" not in json.dumps(Config().model_dump())
