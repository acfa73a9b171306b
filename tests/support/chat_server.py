"""A real HTTP server on loopback that speaks chat completions over any Teacher, and fails on demand.

with ChatServer(teacher) as server:
    server.faults.append(status(429, {"Retry-After": "2"}))     # the next request gets this
    ... POST server.url + "/chat/completions" ...
    server.bodies, server.most_in_flight

Over a teacher with `top_logprobs`, asked for log-probabilities, it answers in vLLM's form.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Awaitable, Callable

from aiohttp import web

from kdbench.errors import CallRefused
from kdbench.records import Message
from kdbench.teacher import Request, Sampling, Teacher

Fault = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ChatServer:
    """Serves in a thread and an event loop of its own, so that any client may call it."""

    def __init__(
        self, teacher: Teacher, *, key: str | None = None, model: str = "tiny", tokenizer=None
    ) -> None:
        self.teacher = teacher
        self.faults: deque[Fault] = deque()
        self.bodies: list[dict] = []
        self.most_in_flight = 0
        self._key = key
        self._model = model
        self._tokenizer = tokenizer  # for log-probabilities: writes tokens where no ids are asked for
        self._in_flight = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> ChatServer:
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=60)

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self.teacher.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            body = await request.json()
            self.bodies.append(body)
            if self.faults:
                return await self.faults.popleft()(request)
            return await self._answer(request, body)
        finally:
            self._in_flight -= 1

    async def _answer(self, request: web.Request, body: dict) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self._key is not None and given != self._key:
            return _error(401, f"Incorrect API key provided: {given}")
        if body["model"] != self._model:
            return _error(404, f"The model `{body['model']}` does not exist")
        sampling = Sampling(
            temperature=body["temperature"],
            top_p=body.get("top_p", 1.0),
            max_tokens=body["max_tokens"],
            stop=body.get("stop", ()),
        )
        messages = tuple(Message(**m) for m in body["messages"])
        try:
            raw = await self.teacher.ask(Request(messages, sampling, body["seed"]))
        except CallRefused as exc:
            return _error(400, str(exc))
        if self._tokenizer is not None:
            raw = as_vllm(raw, body, self._tokenizer)
        return web.Response(body=raw, content_type="application/json")


def as_vllm(raw: bytes, body: dict, tokenizer) -> bytes:
    """The reply of a teacher with `top_logprobs` as a vLLM server (chat_completion/serving.py) writes it.

    The sampled token comes first, then the likeliest, up to the number asked for; all with bytes. The
    reply's tokens and their number include the end token.
    """
    reply = json.loads(raw)
    (choice,) = reply["choices"]
    content = choice.pop("logprobs")["content"]
    ids = [int(entry["token"].removeprefix("token_id:")) for entry in content]
    prompt = reply.pop("prompt_token_ids")
    reply["usage"] |= {"completion_tokens": len(ids), "total_tokens": len(ids) + len(prompt)}
    choice |= {"token_ids": None, "logprobs": None, "stop_reason": None}
    if body.get("return_token_ids"):
        choice["token_ids"], reply["prompt_token_ids"] = ids, prompt
    if body.get("logprobs"):

        def written(one: dict) -> dict:
            token, log_prob = one["token"], one["logprob"]
            if not body.get("return_tokens_as_token_ids"):
                token = tokenizer.decode([int(token.removeprefix("token_id:"))])
            return {"token": token, "logprob": log_prob, "bytes": list(token.encode())}

        choice["logprobs"] = {"content": []}
        for entry in content:
            others = [one for one in entry["top_logprobs"] if one["token"] != entry["token"]]
            top = [entry, *others][: body["top_logprobs"]]
            choice["logprobs"]["content"].append(
                {**written(entry), "top_logprobs": [written(one) for one in top]}
            )
    return json.dumps(reply).encode()


def _error(code: int, message: str, headers: dict | None = None) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=code, headers=headers)


def status(code: int, headers: dict | None = None, message: str = "no luck") -> Fault:
    """An error status with the usual body."""

    async def fault(_: web.Request) -> web.StreamResponse:
        return _error(code, message, headers)

    return fault


def body(raw: bytes | dict, code: int = 200) -> Fault:
    """Any bytes as an answer."""

    async def fault(_: web.Request) -> web.StreamResponse:
        data = json.dumps(raw).encode() if isinstance(raw, dict) else raw
        return web.Response(body=data, status=code)

    return fault


def hang(seconds: float = 30) -> Fault:
    """No answer in time."""

    async def fault(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return web.Response()

    return fault


def drop(after: bytes = b"") -> Fault:
    """The connection breaks, before or in the midst of the answer."""

    async def fault(request: web.Request) -> web.StreamResponse:
        if after:
            response = web.StreamResponse(headers={"Content-Length": str(len(after) + 100)})
            await response.prepare(request)
            await response.write(after)
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    return fault
