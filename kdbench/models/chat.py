"""Chats as token ids: the prompt a model sees, and the tokens that end its turn.

    prompt_ids(tokenizer, [Message(role="user", content="Hi")])
      teacher, its own template: <|im_start|>system\\nYou are a ...<|im_end|>\\n<|im_start|>user\\nHi...
      student, ours:             <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n

Two traps of SmolLM2's template: it puts in a system message nobody wrote, and a newline after the
end marker that no teacher generates. A student of ours therefore gets a template of its own, and its
turn is learnt up to and with the end marker, never from the template's own rendering of the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kdbench.errors import CallRefused, UsageError
from kdbench.models.loading import first_line
from kdbench.records import Message

_END = "<|im_end|>"
# ChatML, as SmolLM2 and Qwen speak it, without a default system message.
_CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
# For a tokenizer without ChatML's marks: plain text, the turn ended by the tokenizer's EOS.
_PLAIN = (
    "{%- for message in messages -%}"
    "{{- message['role'] + ':\\n' + message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}{{- '\\n\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'assistant:\\n' -}}{%- endif -%}"
)


def prompt_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of a chat up to where the assistant begins, rendered and tokenised in one go.

    Raises UsageError for a tokenizer without a chat template, CallRefused for messages that the
    template turns down.
    """
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "This model's tokenizer has no chat template, so it takes no messages; use an instruct model"
        )
    turns = [{"role": m.role, "content": m.content} for m in messages]
    try:
        ids = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except TemplateError as exc:
        raise CallRefused(f"The model's chat template refuses these messages: {first_line(exc)}") from exc
    return [int(i) for i in ids]


def end_ids(tokenizer: Any, *configs: Any) -> tuple[int, ...]:
    """The tokens that end an assistant's turn: EOS of the tokenizer and of the given model configs.

    `configs` are a model's `generation_config` and `config`, in any order. Sorted, without doubles;
    empty for a model that names none, which then only stops at max_tokens.
    """
    named = [getattr(config, "eos_token_id", None) for config in configs]
    named.append(tokenizer.eos_token_id)
    return tuple(sorted({i for entry in named for i in _as_ids(entry)}))


def _as_ids(entry: Any) -> Iterable[int]:
    if entry is None:
        return ()
    return (int(entry),) if isinstance(entry, int) else tuple(int(i) for i in entry)


def student_chat_template(tokenizer: Any) -> str:
    """The chat template of a student that kdbench builds: no default system message.

    ChatML where the tokenizer has its marks as single tokens, else plain text with the tokenizer's EOS
    at the end of the assistant's turn. Raises UsageError for a tokenizer without EOS.
    """
    vocabulary = tokenizer.get_vocab()
    if "<|im_start|>" in vocabulary and tokenizer.eos_token == _END:
        return _CHATML
    if tokenizer.eos_token is None:
        raise UsageError(
            "The teacher's tokenizer names no end-of-sequence token, so a student could never stop"
        )
    return _PLAIN
