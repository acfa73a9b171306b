"""Texts that say the same: 'The "Eiffel Tower".' -> "eiffel tower"."""

from __future__ import annotations

import re
import unicodedata

# "not 5", "it isn't B": an answer that says what the answer is not.
DENIAL = re.compile(r"\bnot\b|n't\b", re.IGNORECASE)

_TYPED = str.maketrans("−–—’‘“”\u00a0\u202f\u2009", "---''\"\"   ")
_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")
_AROUND = re.compile(r"^[\s\"'`*_«»]+|[\s\"'`*_«».,;:!?…]+$")
_BRACKETED = re.compile(r"\(([^()]*)\)|\[([^\[\]]*)\]")
_ARTICLE = re.compile(r"^(?:the|an?)\s+(?=\S)")


def plain(answer: str) -> str:
    """The answer with typewriter quotes, dashes and spaces, and without LaTeX around words."""
    return _LATEX_TEXT.sub(r"\1", answer.translate(_TYPED))


def read(answer: str) -> str:
    """Lower case, without extra spaces, punctuation and quotes around, and leading articles."""
    text, before = " ".join(unicodedata.normalize("NFC", plain(answer).casefold()).split()), None
    while text != before:
        before = text
        text = _ARTICLE.sub("", _AROUND.sub("", text))
        if bracketed := _BRACKETED.fullmatch(text):
            text = bracketed[1] or bracketed[2] or ""
    return text
