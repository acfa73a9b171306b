"""The letter of a multiple-choice answer: "(b)", "B) Paris", "the answer is B", "Paris" -> "B"."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kdbench.verify._exact import DENIAL, plain
from kdbench.verify._exact import read as exact

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BARE = re.compile(r"[\s\"'`*_(\[]*([A-Za-z])[\s\"'`*_)\].,:!]*")
_PREAMBLE = re.compile(r"\b(?:answer|option|choice|letter)\b(?:\s+is\b)?\s*:?\s*", re.IGNORECASE)
_FIRST = re.compile(
    r"[(\[]?([A-Za-z])(?:[)\]]|[.:](?!\S)|\s*[,/&;\n]|\s-\s|\s+(?:is|because|since|as|and|or)\b)\s*(.*)",
    re.DOTALL,
)
# A letter in the text is a label in brackets, after such a word or in a list. "A" and "I" may be words.
_LABELS = re.compile(
    r"(?<!\w)[(\[]([A-Za-z])[)\]]|\b(?i:option|choice|letter|answer|answer is)\s*:?\s*([A-Z])\b(?!')"
    r"|(?:\b(?:both|either|or|and|is)\s+|[,/&]\s*)"
    r"([B-HJ-Z]|[AI](?=[).:,/&]|\s+(?:and|or)\b|\W*$)|[a-z](?=\)))(?![\w'])"
)


def read(answer: str, choices: Sequence[str]) -> str | None:
    """The letter, in upper case; None if the answer names none of the choices, or two."""
    text, letters = plain(answer), _LETTERS[: len(choices) or None]
    options = {exact(option): letter for option, letter in zip(choices, letters, strict=False)}
    preamble = _PREAMBLE.search(text)
    rest = text[preamble.end() :] if preamble else text
    for part in (text, rest):
        if bare := _BARE.fullmatch(part):
            return bare[1].upper() if bare[1].upper() in letters else None
        if exact(part) in options:
            return options[exact(part)]
    rest = rest.replace("**", "").strip()
    found = {label.upper() for groups in _LABELS.findall(rest) for label in groups if label}
    if first := _FIRST.match(rest):  # "B) Paris": the text must not be that of another option
        found |= {first[1].upper(), options.get(exact(first[2]), first[1].upper())}
    return found.pop() if len(found) == 1 and found <= set(letters) and not DENIAL.search(text) else None
