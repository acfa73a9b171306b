"""What went wrong at an OpenAI-compatible server, as one of kdbench's errors and without any secret.

    429, Retry-After: 2   -> RateLimited(retry_after=2.0)     401 -> TeacherUnusable
    500, broken connection -> TeacherUnavailable              400 -> CallRefused, with the server's words

The texts of HTTP clients and servers can carry the key; every text passes through `clean` first.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from kdbench.errors import (
    CallRefused,
    KdbenchError,
    RateLimited,
    TeacherTimeout,
    TeacherUnavailable,
    TeacherUnusable,
)

if TYPE_CHECKING:
    from openai import APIStatusError


def without_credentials(url: str) -> str:
    """The URL without user, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@dataclass(frozen=True, slots=True)
class Translator:
    """Turns foreign errors of one endpoint into kdbench's; `key` is what no message may hold."""

    url: str
    model: str
    key: str | None
    timeout: float

    @property
    def where(self) -> str:
        """The endpoint, as it may be shown."""
        return without_credentials(self.url)

    def timed_out(self) -> TeacherTimeout:
        """The error of a reply that did not come in time."""
        return TeacherTimeout(f"No reply from {self.where} within {self.timeout:g} s")

    def refused(self, exc: APIStatusError) -> KdbenchError:
        """The error of an HTTP status of 400 and above."""
        return self._by_status(exc.status_code, self._said(exc.response.content), exc.response.headers)

    def broken(self, exc: BaseException) -> KdbenchError:
        """The error of a connection that failed."""
        import aiohttp

        # The transport reports any broken connection as a time-out, so look at what lies below.
        below = (e for e in reversed(list(_causes(exc))) if isinstance(e, aiohttp.ClientError | OSError))
        found = next(below, exc)
        why = self.clean(str(found)) or type(found).__name__
        return TeacherUnavailable(f"No connection to {self.where} ({why}); is the server running?")

    def error_inside(self, raw: bytes) -> KdbenchError | None:
        """The error of a reply that came as 200 but holds one, as some routers send it; else None."""
        try:
            error = json.loads(raw)["error"]
        except (ValueError, LookupError, TypeError):
            return None
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) and 400 <= code < 600 else 400
        return self._by_status(status, self._said(raw), {})

    def clean(self, text: str) -> str:
        """One short line of a foreign text, without the key or what the URL hides."""
        parts = urlsplit(self.url)
        for secret in (self.key, parts.password, parts.query):
            if secret:
                text = text.replace(secret, "[hidden]")
        return " ".join(text.split())[:200]

    def _by_status(self, status: int, said: str, headers: Mapping[str, str]) -> KdbenchError:
        words = f" ({said})" if said else ""
        answered = f"{self.where} answered {status}{words}"
        if status == 429:
            return RateLimited(answered, retry_after(headers))
        if status == 408:
            return TeacherTimeout(answered)
        if status >= 500:
            return TeacherUnavailable(answered)
        if status in (401, 403):
            way = "check the key in OPENAI_API_KEY" if self.key else "it wants a key: set OPENAI_API_KEY"
            return TeacherUnusable(f"{answered}; {way}")
        if status == 404:
            way = f"check the model '{self.model}' and the base URL, which usually ends in /v1"
            return TeacherUnusable(f"{answered}; {way}")
        return CallRefused(answered)

    def _said(self, raw: bytes) -> str:
        """The server's own short message out of an error's body."""
        text = raw.decode("utf-8", "replace")
        try:
            body: Any = json.loads(text)
        except ValueError:
            body = None
        for name in ("error", "message", "detail"):
            if isinstance(body, dict) and name in body:
                body = body[name]
        return self.clean(body if isinstance(body, str) else re.sub(r"<[^>]*>", " ", text))


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The pause a server asks for, in seconds: retry-after-ms, or Retry-After as seconds or a date."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) / unit
        except (LookupError, ValueError):
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (LookupError, ValueError):
        return None
