"""How answers end: the end of turn is learnt where the teacher ended, and stops the student's generation.

    finished      Once upon a time <|im_end|>      learnt, even if the tokenizer also pads with <|im_end|>
    cut off       Once upon a                      not learnt: the teacher had more to say

A student that learns an end at which its generation does not stop writes on for ever (ms-swift#9526); so does
one that never learns an end, as where padding is masked by the pad token's id, which is the end's, too.
"""

from __future__ import annotations

from kdbench.checks.case import Case, alone, whole_chat
from kdbench.checks.findings import Finding, about
from kdbench.models.chat import end_ids, prompt_ids
from kdbench.models.sequences import end_of_turn, is_cut_off
from kdbench.records import Message

ENDINGS = "end of turn"


def check_endings(case: Case) -> list[Finding]:
    """The end of turn of every sample, and whether student and teacher stop there."""
    return [*_of_samples(case), *_of_student(case), *_of_teacher(case)]


def _of_samples(case: Case) -> list[Finding]:
    tokenizer, end = case.student.tokenizer, end_of_turn(case.student)
    missing: dict[str, str] = {}
    wrongly: dict[str, str] = {}
    inside: dict[str, str] = {}
    shown = _shown(case, end)
    padding = ", which is the pad token, too" if tokenizer.pad_token_id == end else ""
    for name, sample, sequence in case.learnt():
        expected = alone(tokenizer, sample.text)
        if end in expected:
            inside[name] = f"{shown} at token {expected.index(end)}"
        elif not is_cut_off(sample) and end not in sequence.completion:
            last = tokenizer.convert_ids_to_tokens(sequence.completion[-1])
            missing[name] = f"ends with {last!r}, not {shown}{padding}"
        elif is_cut_off(sample) and end in sequence.completion:
            wrongly[name] = f"{shown} after finish_reason length"
    return [
        *about(
            ENDINGS, "error", "with a finished answer whose end of turn is not learnt", missing,
            way_out="add the end of turn after tokenising, and mask padding by length, not by the pad token",
        ),
        *about(
            ENDINGS, "error", "cut off at the token limit with an end of turn that is learnt", wrongly,
            way_out="learn no end from them",
        ),
        *about(
            ENDINGS, "warning", "with an end-of-turn marker inside the answer", inside,
            way_out="clean the data of chat markers",
        ),
    ]  # fmt: skip


def _of_student(case: Case) -> list[Finding]:
    """The end is one that the template writes and that the generation stops at."""
    student, end = case.student, end_of_turn(case.student)
    found: list[Finding] = []
    question = [Message(role="user", content="a")]
    chat = whole_chat(student.tokenizer, [*question, Message(role="assistant", content="b")])
    if chat is not None and end not in chat[len(prompt_ids(student.tokenizer, question)) :]:
        found.append(
            Finding(
                ENDINGS, "warning", "The student's chat template does not end an answer with the end of turn "
                "that is learnt", value=_shown(case, end),
                way_out="name the template's end as eos_token_id in the student's generation_config.json",
            )
        )  # fmt: skip
    # transformers' generate and the servers look there only, not at the tokenizer.
    stops = end_ids(_NoEos, *student.configs[:1])
    if student.configs and end not in stops:
        found.append(
            Finding(
                ENDINGS, "error", "The student's generation does not stop at the end of turn that is learnt",
                value=f"{_shown(case, end)}; generation_config.eos_token_id = {_one_or_list(stops)}",
                way_out=f"set eos_token_id to {_one_or_list((*stops, end))} in its generation_config.json",
            )
        )  # fmt: skip
    return found


class _NoEos:
    """Stands for a tokenizer whose own EOS does not count."""

    eos_token_id = None


def _of_teacher(case: Case) -> list[Finding]:
    """What the teacher ends with is learnt from its distribution, so it has to stop the student."""
    if case.teacher is None or not case.same_vocabulary:
        return []
    theirs, stops = end_of_turn(case.teacher), end_ids(case.student.tokenizer, *case.student.configs)
    if theirs in stops:
        return []
    return [
        Finding(
            ENDINGS, "error", "The teacher ends its turn with a token at which the student does not stop",
            value=f"teacher {_shown(case, theirs)}, student {_shown(case, end_of_turn(case.student))}",
            way_out=f"add {theirs} to eos_token_id in the student's generation_config.json and to its chat "
            "template, or train it with the teacher's template",
        )
    ]  # fmt: skip


def _shown(case: Case, token: int) -> str:
    return f"{case.student.tokenizer.convert_ids_to_tokens(token)!r} ({token})"


def _one_or_list(ids: tuple[int, ...]) -> str:
    return "null" if not ids else str(ids[0]) if len(ids) == 1 else str(list(ids))
