"""The number in an answer: "$1,200.00 per month" -> 1200, "1 1/2 cups" -> 3/2, "3 or 4" -> None."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

from kdbench.verify._exact import DENIAL, plain

_LATEX_SIGNS = re.compile(r"\{(,)\}|\\[$%!,;:()\[\] ]")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_MINUS = re.compile(r"\b(?:minus|negative)\s+(?=[$€£¥₹\d.])", re.IGNORECASE)
# Left unread, beside formulas: "2 dozen", "2 and a half", and "- 5", which may be -5 or an item of a list.
_UNCLEAR = re.compile(r"\\|√|π|∞|\bdozen|\bhalf\b|^\W*-\s", re.IGNORECASE)
# "48 / 2 = 24" and "x = 5" say one number; "6, because 2 + 3 = 5" says two.
_RESULT = re.compile(r"(?:[^\d=]*|[\s\d+\-*/×÷x()^.,$%]*)=([^=]*)")
_DIGITS = r"(?:\d{1,3}(?:(?:,\d{3})+|(?:[ ]\d{3})+)(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"""(?:(?<![\w)%.])(?P<sign>[-+])(?=[$€£¥₹\d.]))?   # "10-5" has no negative number in it
    (?:[$€£¥₹]\s?(?P<inner>-)?)?
    (?<![\w.^])                                          # not the 2 of "m2" and "m^2"
    (?:(?P<whole>\d+)\s+(?=\d+/\d))?                     # 1 1/2
    (?P<digits>{_DIGITS})
    (?:e(?P<exponent>[-+]?\d+)|\s*[x×*]\s*10\s*\^\s*\{{?(?P<power>[-+]?\d+)\}}?)?
    (?:\s?/\s?(?P<divisor>\d+(?:\.\d+)?))?
    (?:\s*(?P<scale>hundred|thousand|million|billion|trillion)s?\b)?
    (?P<attached>(?:\w|\^|\.(?=\d))*)""",
    re.VERBOSE | re.IGNORECASE,
)
# "5kg", "3rd" and "20cm2" are a number with its unit; "5k", "5M" and "5B" may be scaled, "5x" has an unknown.
# In "5²" and "2½" the last sign is part of the number.
_UNIT = re.compile(r"(?!(?:[kKMBxyzni]|pi)$)[^\W\d_¹²³⁰-⁹¼-¾⅐-⅞]*|[a-z]*m\^?[23²³]")
_JOINED = re.compile(r"[\s\-+*/^:x×÷·,]*")
_SCALES = {None: 1, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_LONGEST = 400  # characters of a number
_LARGEST = 10**200
_PLACES = 12


def read(answer: str) -> Fraction | None:
    """The one number that the answer says, once or several times; None if there is none or more."""
    text = re.sub(r"(?<=\d)\s*(?=\\[dt]?frac)", " ", plain(answer))
    text = _LATEX_SIGNS.sub(lambda m: m[1] or "", _LATEX_FRACTION.sub(r"\1/\2", text))
    text = _MINUS.sub("-", re.sub(r"\\(?:times|cdot)", "×", text))
    if result := _RESULT.fullmatch(text):
        text = result[1]
    if _UNCLEAR.search(text) or DENIAL.search(text):
        return None
    found = list(_NUMBER.finditer(text))
    if any(_JOINED.fullmatch(text, a.end(), b.start()) for a, b in pairwise(found)):  # "2 + 2", "3:3"
        return None
    values = {_value(match) for match in found}
    return values.pop() if len(values) == 1 else None


def _value(match: re.Match[str]) -> Fraction | None:
    digits, divisor = re.sub("[, ]", "", match["digits"]), match["divisor"] or "1"
    exponent = match["exponent"] or match["power"] or "0"
    if not _UNIT.fullmatch(match["attached"]) or len(match[0]) > _LONGEST or abs(int(exponent)) > _LONGEST:
        return None
    if Fraction(divisor) == 0:
        return None
    value = Fraction(f"{digits}e{exponent}") / Fraction(divisor) + int(match["whole"] or 0)
    value *= _SCALES[match["scale"] and match["scale"].lower()]
    if max(value.numerator, value.denominator) > _LARGEST:
        return None
    return -value if "-" in (match["sign"], match["inner"]) else value


def written(value: Fraction) -> str:
    """An integer, a decimal of up to twelve places or, where that is not exact, a fraction."""
    scaled = value * 10**_PLACES
    if value.denominator == 1 or scaled.denominator != 1:
        return str(value)
    whole, places = divmod(abs(scaled.numerator), 10**_PLACES)
    return f"{'-' if value < 0 else ''}{whole}.{places:0{_PLACES}d}".rstrip("0")


def equal(answer: Fraction | None, gold: Fraction | None) -> bool:
    """Whether both can be read and are equal, or within 1e-6 of the gold where one is no integer."""
    if answer is None or gold is None:
        return False
    if answer.denominator == gold.denominator == 1:
        return answer == gold
    return abs(answer - gold) <= abs(gold) / 10**6
