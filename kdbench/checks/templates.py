"""Whether student and teacher read the same chat, and the answer the same tokens within it.

teacher   <|im_start|>system\\nYou are a helpful AI assistant ...<|im_end|>\\n<|im_start|>user\\nHi
student   <|im_start|>user\\nHi                           "system\\nYou are ... " is what it never sees
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdbench.checks.case import Case, alone, decoded, whole_chat
from kdbench.checks.findings import Finding, about, shortened
from kdbench.errors import CallRefused
from kdbench.models.chat import prompt_ids
from kdbench.models.sequences import Reader, TokenSequence
from kdbench.records import Message

TEMPLATES = "chat templates"


def check_templates(case: Case) -> list[Finding]:
    """A BOS twice, prompts that differ without the sample's saying so, answers that change in the chat."""
    return [*_doubled_bos(case), *_other_prompts(case), *_changed_answers(case)]


def _prompt(who: str, sequence: TokenSequence) -> tuple[int, ...]:
    return sequence.prompt if who == "student" else sequence.teacher_prompt


def _doubled_bos(case: Case) -> list[Finding]:
    found: list[Finding] = []
    for who, reader in case.readers.items():
        bos = reader.tokenizer.bos_token_id
        doubled = {
            name: f"{reader.tokenizer.bos_token!r} ({bos})"
            for name, _, sequence in case.learnt()
            if bos is not None and _prompt(who, sequence)[:2] == (bos, bos)
        }
        found += about(
            TEMPLATES, "error", f"that the {who} reads with its BOS twice", doubled,
            way_out=f"take bos_token out of the {who}'s chat template, or write it there once",
        )  # fmt: skip
    return found


def _other_prompts(case: Case) -> list[Finding]:
    """The same messages should be the same tokens in both templates, whichever of them each one reads."""
    system: dict[str, str] = {}
    other: dict[str, str] = {}
    if case.same_vocabulary:
        for name, sample, sequence in case.learnt():
            messages = sample.teacher_prompt or sample.prompt
            ids = sequence.prompt if sample.teacher_prompt is None else _read(case.student, messages)
            if ids is not None and ids != sequence.teacher_prompt:
                parts = _apart(ids, sequence.teacher_prompt)
                ours, theirs = (decoded(case.student.tokenizer, part) for part in parts)
                has_system = any(message.role == "system" for message in messages)
                if not ours.strip() and "system" in theirs and not has_system:
                    system[name] = shortened(theirs.strip())
                else:
                    other[name] = f"student {shortened(ours)}, teacher {shortened(theirs)}"
    return [
        *about(
            TEMPLATES, "warning", "before which the teacher's chat template puts a default system message "
            "that the student never sees", system,
            way_out="leave it so if the student is to do without, else give the samples a system message of "
            "their own or the student the teacher's chat template",
        ),
        *about(
            TEMPLATES, "warning", "whose prompt is made of other tokens for the student than for the teacher",
            other,
            way_out="give the student the teacher's chat template",
        ),
    ]  # fmt: skip


def _read(reader: Reader, messages: Sequence[Message]) -> tuple[int, ...] | None:
    """A prompt as a reader's template has it, or None where that refuses it."""
    try:
        return tuple(prompt_ids(reader.tokenizer, messages))
    except CallRefused:
        return None


def _apart(one: Sequence[int], other: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """What is left of two sequences without what they begin and end with in common."""
    shorter = min(len(one), len(other))
    begin = next((i for i in range(shorter) if one[i] != other[i]), shorter)
    most = shorter - begin
    end = next((i for i in range(most) if one[-1 - i] != other[-1 - i]), most)
    return one[begin : len(one) - end], other[begin : len(other) - end]


def _changed_answers(case: Case) -> list[Finding]:
    """The answer inside the whole chat has the tokens that it has alone, as it is learnt and written."""
    found: list[Finding] = []
    for who, reader in case.readers.items():
        if who == "teacher" and not (case.same_vocabulary or case.two_tokenizers):
            continue
        changed: dict[str, str] = {}
        for name, sample, sequence in case.learnt():
            prompt = sample.prompt if who == "student" else sample.teacher_prompt or sample.prompt
            chat = whole_chat(reader.tokenizer, (*prompt, *sample.completion))
            if chat is not None:
                ids = [*_prompt(who, sequence), *alone(reader.tokenizer, sample.text)]
                if chat[: len(ids)] != ids:
                    changed[name] = _tokens(reader.tokenizer, ids, chat, len(_prompt(who, sequence)))
        found += about(
            TEMPLATES, "warning", f"whose tokens in the {who}'s whole chat differ from the prompt and the "
            "answer alone", changed,
            way_out=f"mend the {who}'s chat template: it changes or trims what it is given, or a token there "
            "reaches over the border between prompt and answer",
        )  # fmt: skip
    return found


def _tokens(tokenizer: Any, ids: Sequence[int], chat: Sequence[int], begin: int) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(ids, chat, strict=False)) if a != b), min(len(ids), len(chat))
    )
    ours, theirs = (tokenizer.convert_ids_to_tokens(list(one[at : at + 3])) for one in (ids, chat))
    where = f"answer token {at - begin}" if at >= begin else f"prompt token {at}"
    return f"{where}: {' '.join(ours)!r} alone, {' '.join(theirs)!r} in the chat"
