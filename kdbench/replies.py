"""What no recipe wants: a refusal, the prompt said again, a loop, another language.

find_fault("I'm sorry, but I can't help with that.", prompt="What is 2 + 3?")   # ("refusal", ...)
find_fault("2 + 3 = 5. The answer is 5.", prompt="What is 2 + 3?")               # None
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from kdbench.textstats import echoes_prompt, has_loop, is_refusal, ngrams, words

# A language is another one only where it is likely and the prompt's own is all but ruled out:
# sums, names and code look like many languages.
_LIKELY, _RULED_OUT = 0.5, 0.01
_NO_LETTERS = re.compile(r"[\W\d_]+")
_FEWEST_LETTERS = 24


def find_fault(text: str, prompt: str, *, quotes: bool = False) -> tuple[str, str] | None:
    """(reason, detail) of what makes a reply useless to every recipe; None for a reply worth reading.

    An explanation `quotes` its question: it says the prompt again only where half of it and more is that.
    Reasons: "empty", "refusal", "prompt_echoed", "loop", "other_language".
    """
    if not text.strip():
        return "empty", ""
    if is_refusal(text):
        return "refusal", text.strip()[:80]
    if echoes_prompt(text, prompt) and not (quotes and _own_share(text, prompt) > 0.5):
        return "prompt_echoed", ""
    if has_loop(text):
        return "loop", ""
    if (language := other_language(text, prompt)) is not None:
        return "other_language", language
    return None


def _own_share(text: str, prompt: str) -> float:
    """The share of a text's four-word runs that the prompt lacks."""
    said, asked = ngrams(words(text), 4), set(ngrams(words(prompt), 4))
    return sum(gram not in asked for gram in said) / len(said) if said else 1.0


def other_language(text: str, prompt: str) -> str | None:
    """The ISO 639 code of a text's language where it is clearly not the prompt's, else None.

    By py3langid, which is sure of itself from about a sentence on; a shorter text passes.
    """
    if min(_letters(text), _letters(prompt)) < _FEWEST_LETTERS:
        return None
    own, sure = _rank(prompt)[0]
    found, likely = _rank(text)[0]
    clear = min(sure, likely) >= _LIKELY and dict(_rank(text)).get(own, 0.0) <= _RULED_OUT
    return found if clear and found != own else None


def _letters(text: str) -> int:
    bare = _NO_LETTERS.sub("", text)
    # A Chinese or Japanese sign stands for several letters.
    return len(bare) + 3 * sum(ord(sign) > 0x2E7F for sign in bare)


@lru_cache(maxsize=256)
def _rank(text: str) -> list[tuple[str, float]]:
    return [(str(language), float(share)) for language, share in _identifier().rank(text)]


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
