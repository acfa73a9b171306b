"""Every error kdbench raises on purpose, and the exit code each one ends a command with.

    KdbenchError
    ├── UsageError          exit 2: the user asked for something that cannot be done as asked
    │   ├── ConfigError         a key, a type or a range in a config
    │   ├── UnknownPlugin       no recipe, trainer, teacher, curator or metric of that name
    │   ├── MissingExtra        the command needs an optional part of kdbench
    │   ├── TemplateError       a prompt template that cannot be rendered
    │   ├── DataError           a file that is not what it should be
    │   └── RunDirError         a run directory in use, or of an unknown format
    ├── RunFailed           exit 1: the work was well asked for and went wrong
    │   ├── TooManyErrors       more failing rows than --max-errors allows
    │   ├── NothingLeft         no sample survived
    │   ├── StorageError        the disk is full or broken; what was paid for is kept
    │   └── TeacherUnusable     wrong key, no such model, never reachable: no row can succeed
    └── TeacherError        one call went wrong; the engine turns it into a retry or a rejection
        ├── Retryable           may work in a moment
        │   ├── RateLimited         429, with the pause the server asked for
        │   ├── TeacherTimeout
        │   └── TeacherUnavailable  5xx, broken connection
        ├── CallRefused         4xx: this request will never work
        └── EmptyReply          an answer without text

`Rejected` stands outside the tree: a recipe raises it to turn down its own seed, which is no error.
A message is one sentence that names the thing, the value and the way out.
"""

from __future__ import annotations


class KdbenchError(Exception):
    """Base of everything kdbench raises on purpose; its text is shown to the user as it is."""

    exit_code = 1


class UsageError(KdbenchError):
    """The user asked for something that cannot be done as asked."""

    exit_code = 2


class ConfigError(UsageError):
    """A config names a key that does not exist, or a value of the wrong type or range."""


class UnknownPlugin(UsageError):
    """No plug-in of that name is installed."""


class MissingExtra(UsageError):
    """The command needs an optional dependency that is not installed."""

    def __init__(self, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the extra '{extra}', which is not installed; "
            f"install it with: pip install 'kdbench[{extra}]'"
        )
        self.extra = extra


class TemplateError(UsageError):
    """A prompt template misses a variable, has a syntax error or reaches outside the sandbox."""


class DataError(UsageError):
    """An input file is torn, foreign or of the wrong kind."""


class RunDirError(UsageError):
    """A run directory is in use, missing or of an unknown format."""


class RunFailed(KdbenchError):
    """The run was well asked for and went wrong."""


class TooManyErrors(RunFailed):
    """More rows failed than --max-errors allows."""


class NothingLeft(RunFailed):
    """Every sample was rejected, or none was found."""


class StorageError(RunFailed):
    """A file could not be written; what was paid for until then is kept."""


class TeacherUnusable(RunFailed):
    """The teacher refuses the key, lacks the model or was never reached: no row can succeed."""


class TeacherError(KdbenchError):
    """One call to a teacher went wrong."""


class Retryable(TeacherError):
    """A call that may work in a moment."""


class RateLimited(Retryable):
    """The teacher asked for a pause (HTTP 429); `retry_after` is in seconds, None if not said."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TeacherTimeout(Retryable):
    """No answer came in time."""


class TeacherUnavailable(Retryable):
    """The teacher answered 5xx or the connection broke."""


class CallRefused(TeacherError):
    """The teacher will never answer this request (HTTP 4xx)."""


class EmptyReply(TeacherError):
    """The teacher answered without any text."""


class Rejected(Exception):
    """Raised by a recipe to turn down its seed: `reason` is a short fixed word that is counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
