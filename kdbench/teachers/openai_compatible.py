"""Any server that speaks OpenAI's chat completions: `openai:MODEL` (OpenAI, vLLM, llama.cpp, Ollama, ...).

    OPENAI_BASE_URL=http://localhost:8000/v1 OPENAI_API_KEY=... kdbench generate ... --teacher openai:qwen3
    POST /v1/chat/completions {"model": "qwen3", "messages": [...], "seed": 17, ...}  ->  the raw bytes

The answer is handed on as it came: the engine retries, the call log keeps. Raw bytes through the aiohttp
transport are several times faster than parsed replies through the default one. An error is raised outside
the handler that caught its cause, because the texts of HTTP clients and servers can carry the key.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, JsonValue

from kdbench.config import StrictConfig
from kdbench.errors import KdbenchError, UsageError
from kdbench.teacher import Capability, Request, Teacher
from kdbench.teachers._openai_errors import Translator, without_credentials

if TYPE_CHECKING:
    from openai import AsyncOpenAI

SCHEMES = ("openai",)
DEFAULT_URL = "https://api.openai.com/v1"
_CONNECT_SECONDS = 30.0


class Config(StrictConfig):
    """How the server is reached. The key comes from OPENAI_API_KEY only, and no file ever holds it."""

    base_url: str | None = Field(None, description="default: OPENAI_BASE_URL, else OpenAI's own")
    label: str | None = Field(None, description="names the endpoint in call keys; default: its base URL")
    timeout: float = Field(600, gt=0, le=86_400, description="seconds until a reply must be complete")
    concurrency: int = Field(64, ge=1, le=4096, description="calls in flight that keep this server busy")
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="newer OpenAI models want max_completion_tokens"
    )
    top_logprobs: int | None = Field(
        None,
        ge=2,  # vLLM lets the sampled token take the last one's place
        description="have a vLLM server hand over so many log-probabilities for each token it writes",
    )
    extra_body: dict[str, JsonValue] = Field(
        default_factory=dict, description="further keys of the request, such as chat_template_kwargs"
    )

    def further_keys(self) -> dict[str, JsonValue]:
        """The keys of a request that the settings add."""
        if self.top_logprobs is None:
            return self.extra_body
        return {
            "logprobs": True,
            "top_logprobs": self.top_logprobs,
            "return_tokens_as_token_ids": True,
            "return_token_ids": True,
            **self.extra_body,
        }


def connect(spec: str, config: Config) -> Teacher:
    """The teacher `openai:MODEL`. Raises UsageError for a spec without a model or a URL that is none."""
    model = spec.partition(":")[2]
    if not model:
        raise UsageError(f"Teacher '{spec}' names no model; write openai:MODEL")
    url = (config.base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL).rstrip("/")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise UsageError(
            f"The base URL '{without_credentials(url)}' is no http(s) address; set OPENAI_BASE_URL "
            "to one such as http://localhost:8000/v1"
        )
    return OpenAITeacher(model, url, os.environ.get("OPENAI_API_KEY") or None, config)


class OpenAITeacher:
    """A teacher behind HTTP; see `kdbench.teacher.Teacher`."""

    capabilities: frozenset[Capability] = frozenset({"chat"})

    def __init__(self, model: str, url: str, key: str | None, config: Config) -> None:
        self.identity = f"{model} at {config.label or without_credentials(url)}"
        self._further = config.further_keys()
        if self._further:
            # They change the answer, so they are part of who answers.
            self.identity += f" with {json.dumps(self._further, sort_keys=True)}"
        self.preferred_concurrency = config.concurrency
        self._model = model
        self._url = url
        self._key = key
        self._config = config
        self._client: AsyncOpenAI | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._translate = Translator(url, model, key, config.timeout)

    async def ask(self, request: Request) -> bytes:
        """Send one request, once. Raises TeacherError or TeacherUnusable; no message holds the key."""
        answer = await self._post(self._body(request))
        if isinstance(answer, KdbenchError):
            raise answer
        if b'"choices"' not in answer and (error := self._translate.error_inside(answer)):
            raise error
        return answer

    async def close(self) -> None:
        """Close the connections, if they belong to the running loop."""
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.close()

    def _body(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": m.role, "content": m.content} for m in request.messages],
            "temperature": sampling.temperature,
            self._config.max_tokens_key: sampling.max_tokens,
            "seed": request.seed,
        }
        if sampling.top_p < 1:
            body["top_p"] = sampling.top_p
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        return {**body, **self._further}

    async def _post(self, body: dict[str, Any]) -> bytes | KdbenchError:
        """The raw answer, or the error to raise once the foreign one is out of sight."""
        from httpx2 import Response
        from openai import APIConnectionError, APIStatusError

        try:
            async with asyncio.timeout(self._config.timeout):
                response = await self._connected().post("/chat/completions", cast_to=Response, body=body)
                return response.content
        except TimeoutError:
            return self._translate.timed_out()
        except APIStatusError as exc:
            return self._translate.refused(exc)
        except APIConnectionError as exc:
            return self._translate.broken(exc)

    def _connected(self) -> AsyncOpenAI:
        """The client, which is bound to the event loop that first asks."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            from httpx2 import Limits, Timeout
            from openai import AsyncOpenAI, DefaultAioHttpClient

            # The deadline of the whole call is ask's; here only a server that is not there.
            timeout = Timeout(None, connect=_CONNECT_SECONDS)
            # To aiohttp 0 is no limit; the engine bounds the calls in flight.
            limits = Limits(max_connections=0, keepalive_expiry=30)
            self._client = AsyncOpenAI(
                api_key=self._key or "none",  # servers that need no key still get a header
                base_url=self._url,
                max_retries=0,
                timeout=timeout,
                http_client=DefaultAioHttpClient(limits=limits, timeout=timeout),
            )
            self._loop = loop
        return self._client
