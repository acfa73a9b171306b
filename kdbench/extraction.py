"""The answer, or the program, cut out of a teacher's reply.

    split_answer("48 / 2 = 24, and 48 + 24 = 72.\\nSo the answer is **72**.")
    # Solution(reasoning="48 / 2 = 24, and 48 + 24 = 72.", answer="72")

    code_block("Here it is:\\n```python\\nprint(48 + 24)\\n```")          # "print(48 + 24)"

An answer is marked by the words of the prompt ("The answer is", in any case, with or without a colon), by
`#### 72` on the last line (GSM8K), by `\\boxed{72}` (MATH) or by `<answer>72</answer>`. A reply that marks
two different answers has changed its mind and is turned down: nothing says which one its reasoning backs.
"""

from __future__ import annotations

import re
import textwrap
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kdbench.errors import Rejected

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"^####(?!#)[ \t]*(\S.*)\s*\Z", re.MULTILINE)
_BOXED = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_LINE = re.compile(r"(?:(?!</answer>).)*", re.IGNORECASE)
_LEAD = r"(?:(?:so|thus|therefore|hence|finally|then)\b,?\s+)?"
# A full stop ends the answer unless it belongs to an initial or a title: "U. S. Grant", "Dr. Seuss".
_SENTENCE_END = re.compile(
    r"(?<![\s.][A-Za-z])(?<!^[A-Za-z])(?<!\bDr)(?<!\bMr)(?<!\bMs)(?<!\bSt)(?<!\bMrs)[.!?]['\")*_]*\s+(?=\W*[A-Z])"
)
_WRAPPED = re.compile(
    r"(?P<mark>\*{1,3}|`+)(?P<a>.+)(?P=mark)|_(?P<b>[^_]|[^_].*[^_])_|\${1,2}(?P<c>[^$]+)\${1,2}|\\\((?P<d>.+)\\\)"
    r"|\\\[(?P<e>.+)\\\]",
    re.DOTALL,
)
# What may stand between two marks of one closing line: "The answer is 72.\n#### 72".
_BETWEEN = re.compile(r"(?:\W|</answer>)*")
_OPENING = re.compile(r"(?:[\s*$#]|\\\[|\\\()+\Z")
_FENCE = re.compile(
    r"^[ \t]*(?P<fence>`{3,})[ \t]*(?P<language>[\w+-]*)[^\n`]*\n"
    r"(?P<code>.*?)(?:^[ \t]*(?P=fence)`*[ \t]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Solution:
    """What a reply reasons before its answer, which may be nothing, and the bare answer."""

    reasoning: str
    answer: str


@dataclass(frozen=True, slots=True)
class _Mark:
    """An answer as it is marked from `start` to `end` of the reply."""

    start: int
    end: int
    answer: str


def split_answer(
    text: str, marker: str = "The answer is", same: Callable[[str, str], bool] | None = None
) -> Solution:
    """The reasoning and the answer of a reply.

    An answer that is said several times counts as one: it is cut where it is said last, so that a check
    between the first time and the last stays in the reasoning. What follows the last mark is dropped.
    `same` judges whether two answers are one (default: equal but for case and spacing).

    Raises kdbench.errors.Rejected: "no_answer" where none is marked, "two_answers" where two are that
    differ.
    """
    marks = list(_outermost(_marks(text, marker)))
    if not marks:
        raise Rejected("no_answer", text.strip()[-80:])
    last = marks[-1]
    for mark in marks:
        if not (same or _alike)(mark.answer, last.answer):
            raise Rejected("two_answers", f"{mark.answer} / {last.answer}")
    start = last.start
    for mark in reversed(marks[:-1]):
        if not _BETWEEN.fullmatch(text, mark.end, start):
            break
        start = mark.start
    return Solution(_OPENING.sub("", text[:start]).strip(), last.answer)


def _alike(a: str, b: str) -> bool:
    return a.casefold().split() == b.casefold().split()


def _marks(text: str, marker: str) -> Iterator[_Mark]:
    yield from _worded(text, marker)
    for pattern in (_TAG, _HASHES):
        for match in pattern.finditer(text):
            yield _Mark(match.start(), match.end(), _bare(match[1]))
    for match in _BOXED.finditer(text):
        if (end := _closing_brace(text, match.end())) is not None:
            yield _Mark(match.start(), end + 1, _bare(text[match.end() : end]))


def _outermost(found: Iterator[_Mark]) -> Iterator[_Mark]:
    """The marks in order; one inside another, as in "The answer is \\boxed{72}.", is one with it."""
    outer: _Mark | None = None
    for mark in sorted((m for m in found if m.answer), key=lambda m: (m.start, -m.end)):
        if outer is not None and mark.start < outer.end:
            outer = _Mark(outer.start, mark.end, mark.answer)
            continue
        if outer is not None:
            yield outer
        outer = mark
    if outer is not None:
        yield outer


def _worded(text: str, marker: str) -> Iterator[_Mark]:
    """Answers after the marker's words: to the end of the sentence, of the line, or to the next marker."""
    words = r"\s+".join(map(re.escape, marker.removesuffix(":").split()))
    said = list(
        re.finditer(
            rf"(?P<emphasis>\*{{0,3}})(?<!\w){_LEAD}{words}(?![\w'’])"
            r"(?:\*\*)?\s*:?(?:\*\*(?=\s))?\s*(?:(?:\\\[|\$\$)\s*)?",
            text,
            re.IGNORECASE,
        )
    )
    for i, match in enumerate(said):
        line = _LINE.match(text, match.end(), said[i + 1].start() if i + 1 < len(said) else len(text))
        assert line is not None  # it matches the empty string
        sentence = _SENTENCE_END.split(line[0], maxsplit=1)[0]
        answer = _bare(_bare(sentence).removesuffix(match["emphasis"]))
        yield _Mark(match.start(), match.end() + len(sentence), answer)


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for match in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return None


def _bare(answer: str) -> str:
    """The answer without the full stop, emphasis and formula signs around it."""
    before = None
    while answer != before:
        before = answer
        answer = answer.strip().rstrip(".")
        if wrapped := _WRAPPED.fullmatch(answer):
            answer = next(inner for inner in wrapped.group("a", "b", "c", "d", "e") if inner is not None)
    return answer


def code_block(text: str) -> str:
    """The Python program of a reply: its only fenced block, or the whole reply if it is a program.

    Blocks marked as Python count before unmarked ones, which may be output; blocks of another language
    do not count, nor does the same program a second time. A block that is never closed, because the
    reply was cut off, ends with the reply.

    Raises kdbench.errors.Rejected: "no_program" or "two_programs".
    """
    fences = list(_FENCE.finditer(text))
    if not fences:
        program = textwrap.dedent(text).strip()
        if not program or not _compiles(program):
            raise Rejected("no_program", text.strip()[:80])
        return program
    programs = _programs(fences, ("python", "py", "python3")) or _programs(fences, ("",))
    if not programs:
        raise Rejected("no_program", f"{len(fences)} fenced blocks, none of Python")
    if len(programs) > 1:
        raise Rejected("two_programs", f"{len(programs)} different blocks")
    return programs[0]


def _programs(fences: list[re.Match[str]], languages: tuple[str, ...]) -> list[str]:
    """The distinct programs in the blocks of these languages."""
    code = (textwrap.dedent(f["code"]).strip() for f in fences if f["language"].lower() in languages)
    return list(dict.fromkeys(program for program in code if program))


def _compiles(program: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a teacher's odd escapes are no business of the user's terminal
        try:
            compile(program, "<reply>", "exec")
        except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
            return False
    return True
