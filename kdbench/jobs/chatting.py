"""`kdbench chat`: talk to a model in the terminal, or let a script talk to it.

    $ kdbench chat runs/white_box
    > Write a short story about a cat.
    Once upon a time there was a cat ...          (as it is made; Ctrl-C ends the reply)
    > /reset                                      (forget all that)
    > /exit                                       (or Ctrl-D, or Ctrl-C)

    $ printf 'Hi\\nAnd again?\\n' | kdbench chat runs/white_box --temperature 0
    Hello!
    Hello again!

Where stdin is no terminal, every line of it is a message of one conversation, and every reply is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

from kdbench.config import build
from kdbench.errors import KdbenchError, MissingExtra, UsageError
from kdbench.teacher import Sampling

if TYPE_CHECKING:
    from kdbench.models.conversation import Conversation, Spoken

RESET, EXIT = "/reset", "/exit"


def chat(
    model: str,
    *,
    lines: Iterable[str] | None = None,
    out: TextIO | None = None,
    system: str | None = None,
    temperature: float = 0.7,
    max_tokens: int = 512,
    seed: int = 0,
) -> list[str]:
    """Talk to a model; all replies, in order.

    `model` is a model reference: a train or student run, a folder of weights, smollm2. `lines` are the user's
    messages; without them they come from stdin, a terminal or not. Replies are written to `out`, by default
    stdout. Raises UsageError for a model that cannot chat, ConfigError, MissingExtra.
    """
    try:
        from kdbench.models.conversation import Conversation
    except ModuleNotFoundError as exc:
        raise MissingExtra("train", "chatting with a model") from exc
    from kdbench.models.loading import load_model, load_tokenizer

    sampling = build(Sampling, {"temperature": temperature, "max_tokens": max_tokens}, "chat")
    talk = Conversation(load_model(model), load_tokenizer(model), sampling, system=system, seed=seed)
    place = out or sys.stdout
    if lines is None and sys.stdin.isatty():
        return _interact(talk, place)
    return _read(talk, sys.stdin if lines is None else lines, place)


def _interact(talk: Conversation, out: TextIO) -> list[str]:
    """Ask for messages until the user leaves; a mistake is said, and the conversation goes on."""
    import readline as _  # noqa: F401 - gives input() its arrow keys

    replies: list[str] = []
    out.write(f"Ctrl-C ends a reply; {RESET} forgets what was said; {EXIT} leaves.\n")
    while True:
        try:
            message = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            out.write("\n")
            return replies
        if message == EXIT:
            return replies
        try:
            spoken = _answer(talk, message, out)
        except KdbenchError as exc:
            out.write(f"{exc}\n")
            continue
        if spoken is not None:
            replies.append(spoken.text)
            out.write(" [stopped]\n" if spoken.stopped else "\n")


def _read(talk: Conversation, lines: Iterable[str], out: TextIO) -> list[str]:
    """Answer line by line; the first mistake ends it, and so does Ctrl-C."""
    replies: list[str] = []
    for line in lines:
        if line.strip() == EXIT:
            break
        spoken = _answer(talk, line.strip(), out)
        if spoken is not None:
            replies.append(spoken.text)
            out.write("\n")
            if spoken.stopped:
                raise KeyboardInterrupt
    return replies


def _answer(talk: Conversation, message: str, out: TextIO) -> Spoken | None:
    """The reply to a message, written as it is made; None for an empty line and for /reset.

    Raises UsageError for a command that does not exist.
    """
    if message == RESET:
        talk.reset()
        return None
    if message.startswith("/") and message[1:].isalpha():  # not a path, nor a sentence about one
        raise UsageError(f"No command '{message}'; there are {RESET} and {EXIT}")

    def show(piece: str) -> None:
        out.write(piece)
        out.flush()

    return talk.reply(message, show) if message else None
