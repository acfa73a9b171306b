"""What a teacher is: something that answers a request with the raw bytes of a chat completion.

    Request(messages=(Message(role="user", content="2+2?"),), sampling=Sampling(temperature=0.0))
    -> b'{"choices":[{"message":{"role":"assistant","content":"4"},"finish_reason":"stop"}],"usage":{...}}'
    -> Reply(text="4", finish_reason="stop", usage=Usage(9, 1))

Every backend speaks the same raw format, OpenAI's chat-completion JSON, because the raw bytes are
what the call log keeps: `read_reply` can be mended later and replayed over calls already paid for.
A local backend adds `token_ids` to the choice (as vLLM does): re-tokenising a reply does not always
give back the ids that were sampled. A teacher that is told to (`top_logprobs` in its settings) also hands
over what it said while it wrote, in vLLM's form, which `read_handed_over` reads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import Field

from kdbench.config import StrictConfig
from kdbench.errors import CallRefused, EmptyReply
from kdbench.records import Message

Capability = Literal["chat", "complete", "score", "logprobs", "contrast", "attribute"]


class Sampling(StrictConfig):
    """How a reply is drawn; part of the call's key, so every change of it is a new call."""

    temperature: float = Field(0.7, ge=0, le=2, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(512, ge=1, description="longest reply, in tokens")
    stop: tuple[str, ...] = Field((), max_length=4)


@dataclass(frozen=True, slots=True)
class Request:
    """One chat request. `seed` is what a sampling backend draws this reply from."""

    messages: tuple[Message, ...]
    sampling: Sampling
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, as the teacher counts them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """One parsed reply. `model` is what the server says it is, recorded but never keyed.

    `call` is the key of the call in the log, where it went through one.
    """

    text: str
    finish_reason: str  # "stop", "length", "content_filter", ...
    usage: Usage
    reasoning: str | None = None
    token_ids: tuple[int, ...] | None = None
    model: str = ""
    call: str = ""

    @property
    def message(self) -> Message:
        """The reply as an assistant's message."""
        return Message(role="assistant", content=self.text, reasoning=self.reasoning)


@dataclass(frozen=True, slots=True)
class Drawn:
    """One sampled token, its log-probability, and those of the likeliest tokens there, as (token, nats).

    Raw: of the unscaled logits, at temperature 1 and over the whole vocabulary, however it was sampled.
    """

    token: int
    log_prob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class HandedOver:
    """What a teacher said while it wrote: the prompt as it read it, every token with its end token."""

    prompt: tuple[int, ...]
    drawn: tuple[Drawn, ...]


class Teacher(Protocol):
    """A backend. `identity` names model and endpoint, or hashes local weights; it keys the log."""

    identity: str
    capabilities: frozenset[Capability]
    preferred_concurrency: int  # calls in flight that keep this backend busy

    async def ask(self, request: Request) -> bytes:
        """Send one request, once; the raw chat completion as it came.

        Raises kdbench.errors.TeacherError (Retryable or CallRefused) or TeacherUnusable; never
        retries, never lets a key or a header into a message.
        """
        ...

    async def close(self) -> None:
        """Let go of connections and threads."""
        ...


def read_reply(raw: bytes) -> Reply:
    """Parse a raw chat completion.

    Thinking is kept apart from the answer wherever it stands: `reasoning_content`, `reasoning` or an
    inline <think> block. Raises EmptyReply for a reply without text, CallRefused for bytes that are
    no chat completion (some servers answer 200 with an error inside).
    """
    try:
        body: dict[str, Any] = json.loads(raw)
        choice = body["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
    except (ValueError, LookupError, TypeError, AttributeError) as exc:
        raise CallRefused(f"The teacher's answer is no chat completion: {raw[:120]!r}") from exc
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if reasoning is None:
        reasoning, text = split_thinking(text)
    usage = body.get("usage") or {}
    reply = Reply(
        text=text,
        reasoning=reasoning,
        finish_reason=choice.get("finish_reason") or "stop",
        usage=Usage(usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0),
        token_ids=tuple(choice["token_ids"]) if choice.get("token_ids") is not None else None,
        model=body.get("model") or "",
    )
    if not text.strip() and reply.finish_reason != "length":
        raise EmptyReply("The teacher answered without any text")
    return reply


def split_thinking(text: str) -> tuple[str | None, str]:
    """(thinking, answer) of a text that may open with a <think> block, closed or cut off."""
    head = text.lstrip()
    if not head.startswith("<think>"):
        return None, text
    thinking, closed, answer = head[len("<think>") :].partition("</think>")
    return thinking.strip(), answer.strip() if closed else ""


def chat_completion(
    text: str,
    *,
    model: str,
    finish_reason: str,
    usage: Usage,
    token_ids: tuple[int, ...] | None = None,
    handed_over: HandedOver | None = None,
) -> bytes:
    """The raw form of a reply made by a backend in this process."""
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish_reason,
    }
    if token_ids is not None:
        choice["token_ids"] = list(token_ids)
    if handed_over is not None:
        choice["logprobs"] = {"content": [_as_content(drawn) for drawn in handed_over.drawn]}
    body: dict[str, Any] = {
        "object": "chat.completion",
        "model": model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        },
    }
    if handed_over is not None:
        body["prompt_token_ids"] = list(handed_over.prompt)
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


_BY_ID = "token_id:"  # how vLLM writes a token where it is told to name it by its id


def read_handed_over(raw: bytes) -> HandedOver | None:
    """What a raw chat completion hands over beside its text; None where it is not all there.

    The form is vLLM's under `logprobs`, `return_tokens_as_token_ids` and `return_token_ids`: "token_id:N" in
    the choice's logprobs, and `prompt_token_ids`.
    """
    try:
        body = json.loads(raw)
        drawn = tuple(_read_content(entry) for entry in body["choices"][0]["logprobs"]["content"])
        prompt = tuple(int(token) for token in body["prompt_token_ids"])
    except (ValueError, LookupError, TypeError):
        return None
    return HandedOver(prompt, drawn)


def _read_content(entry: dict[str, Any]) -> Drawn:
    top = tuple((_token_id(one["token"]), float(one["logprob"])) for one in entry["top_logprobs"])
    return Drawn(_token_id(entry["token"]), float(entry["logprob"]), top)


def _token_id(written: str) -> int:
    before, mark, number = written.partition(_BY_ID)
    if before or not mark:
        raise ValueError(written)
    return int(number)


def _as_content(drawn: Drawn) -> dict[str, Any]:
    return {
        **_as_log_prob(drawn.token, drawn.log_prob),
        "top_logprobs": [_as_log_prob(token, log_prob) for token, log_prob in drawn.top],
    }


def _as_log_prob(token: int, log_prob: float) -> dict[str, Any]:
    # Nine digits hold a float32 to the last bit; JSON has no infinity, and vLLM writes -9999 for it.
    return {"token": f"{_BY_ID}{token}", "logprob": float(f"{max(log_prob, -9999.0):.9g}")}
