"""What is learnt of each sample, decoded and held against its text.

sample s3: "Once upon a time"     learnt: "Once upon a time<|im_end|>"        right
                                  learnt: "Once upon a time<|im_end|>\\n"      the template's newline
                                  learnt: "assistant\\nOnce upon a time..."    the prompt's end
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdbench.checks.case import Case, alone, decoded
from kdbench.checks.findings import Finding, about, shortened
from kdbench.models.sequences import end_of_turn

MASKS = "masks"


def check_masks(case: Case) -> list[Finding]:
    """Every learnt token is one of the answer or the end of turn; nothing of prompt or template."""
    tokenizer, end = case.student.tokenizer, end_of_turn(case.student)
    wrong: dict[str, str] = {}
    lossy: dict[str, str] = {}
    for name, sample, sequence in case.learnt():
        expected = alone(tokenizer, sample.text)
        ids = list(sequence.completion)
        if ids[-1:] == [end] and (expected[-1:] != [end] or len(ids) > len(expected)):
            ids = ids[:-1]
        if decoded(tokenizer, ids) != decoded(tokenizer, expected):
            wrong[name] = _difference(tokenizer, ids, expected, end)
        elif (back := _squeezed(decoded(tokenizer, expected))) != (text := _squeezed(sample.text)):
            at = next((i for i, (a, b) in enumerate(zip(back, text, strict=False)) if a != b), len(back))
            lossy[name] = f"{shortened(text[at : at + 20])} becomes {shortened(back[at : at + 20])}"
    return [
        *about(
            MASKS, "error", "where other tokens are learnt than those of the answer and its end", wrong,
            way_out="learn the answer's own tokens and the end of turn, not the template's rendering of them",
        ),
        *about(
            MASKS, "warning", "with text that the student's tokenizer cannot write", lossy,
            way_out="take a student whose tokenizer knows it, or clean the data of it",
        ),
    ]  # fmt: skip


def _squeezed(text: str) -> str:
    """Without white space, which some tokenizers do not give back."""
    return "".join(text.split())


def _difference(tokenizer: Any, ids: Sequence[int], expected: Sequence[int], end: int) -> str:
    """What is learnt that should not be, or is not and should."""
    ids, expected = list(ids), list(expected)
    if ids[: len(expected)] == expected:
        extra = [token for token in ids[len(expected) :] if token != end]
        return f"{shortened(decoded(tokenizer, extra))} after the answer"
    if expected == ids[len(ids) - len(expected) :]:
        return f"{shortened(decoded(tokenizer, ids[: len(ids) - len(expected)]))} before the answer"
    if expected[: len(ids)] == ids:
        return f"only {len(ids)} of its {len(expected)} tokens"
    if expected[-len(ids) :] == ids:
        return f"only the last {len(ids)} of its {len(expected)} tokens"
    at = next(i for i, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b)
    learnt, answer = (shortened(decoded(tokenizer, one[at : at + 8])) for one in (ids, expected))
    return f"{learnt} where the answer has {answer}"
