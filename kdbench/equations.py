"""Which calculations a piece of reasoning makes: they tell distinct reasoning paths apart.

    text = "Each has 48/2 = <<48/2=24>>24 clips, so both have 48+24 = <<48+24=72>>72."
    [e.is_valid for e in equations(text)]                           # [True, True]
    path_key(text)                                                  # "48/2=24|48+24=72"
    path_key("Half is 48 / 2 = 24, so all in all 48 + 24 = 72.")    # the same path

Rejection-sampling fine-tuning (RFT, arXiv 2308.01825) keeps a reply if every equation in it holds, and one
of all the replies that make the same calculations in the same order. Rules are those of the authors' code,
which reads calculator annotations alone; here prose is read where there are none.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from rapidfuzz.distance import Levenshtein

_TOLERANCE = Fraction(1, 1000)
_LONGEST = 200  # characters of an expression, which bounds the recursion
_MOST_BITS = 4096  # of a power: 9**9**9 would fill the memory

_SIGNS = str.maketrans("×⋅·÷−–\u00a0\u202f", "***/--  ") | {ord("^"): "**"}
_LATEX = (("\\times", "*"), ("\\cdot", "*"), ("\\div", "/"))
_TIMES = re.compile(r"(?<=[0-9)%])[ \t]*[xX][ \t]*(?=[0-9($.])")
_BOLD = re.compile(r"(?<![\w)*])\*\*(?=[0-9($])")
_ANNOTATION = re.compile(r"<<([^<>]*)>>")
_NUMBER = r"[$€£]?(?:[0-9]+(?:,[0-9]{3}(?![0-9]))*+(?:\.[0-9]+)?|\.[0-9]+)%?"
_OPERAND = rf"(?:-(?=[0-9($€£.])|[( \t])*+{_NUMBER}[) \t]*+"
_SIDE = rf"{_OPERAND}(?:(?:\*\*|[-+*/]){_OPERAND})*+"
_CHAIN = re.compile(rf"(?<![\w.)($€£])(?<![0-9],)(?=[-(0-9$€£.]){_SIDE}(?:={_SIDE})+")
# Beside these a chain is part of something with an unknown: "a + 4 + 2 = 6", "4 + 2 = 3x". After a word a
# dash is no minus, and a slash before a word begins a unit: "Cost - 5 * 3 = $15/hour".
_UNKNOWN_BEFORE = re.compile(r"(?:[\w)][ \t]*(?:\*\*|[+*/])|(?:\b\w|\))[ \t]*-)[ \t]*\Z")
_UNKNOWN_AFTER = re.compile(r"[xyzn]\b|[ \t]*(?:[+*][ \t]*[\w(]|[-/][ \t]*(?:\w\b|\())")
_NO_SIGN = re.compile(r"[\s$€£]|,(?=[0-9]{3}(?![0-9]))")
_CALCULATES = re.compile(r"[0-9)%][-+*/]")
_LEADING = re.compile(r"\(*(-?[0-9.]+%?)")
_PERCENT = re.compile(r"([0-9.]+)%")
_ZEROS = re.compile(r"(?<![0-9.])0+(?=[0-9])")
_ARITHMETIC = re.compile(r"[0-9.+\-*/()]+")
_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True, slots=True)
class Equation:
    """One calculation, in plain signs and without spaces, currency signs and thousands commas."""

    expression: str
    result: str

    @property
    def is_valid(self) -> bool:
        """Whether the expression is worth the result within 1e-3; False if one cannot be evaluated.

        A percentage is hundredths; as a result it may be meant either way (5/20 = 25%, 5/20*100 = 25%).
        """
        value = _evaluate(self.expression)
        results = (_evaluate(self.result), _evaluate(self.result.replace("%", "")))
        return value is not None and any(r is not None and abs(value - r) < _TOLERANCE for r in results)


def equations(text: str) -> tuple[Equation, ...]:
    """The calculator annotations (`<<48/2=24>>`) of a text or, where it has none, those in its prose.

    Every step of a chain is an equation. A step may be meant as mathematics (2 + 3*4 = 2 + 12 = 14) or as
    a running total (2 + 3 = 5 + 1 = 6, which says 2+3=5 and 5+1=6): it is read so that it holds, if it
    does in either way. Prose with an unknown in it is no calculation and is left out. Never raises.
    """
    plain = text.translate(_SIGNS)
    for latex, sign in _LATEX:
        plain = plain.replace(latex, sign)
    plain = _TIMES.sub("*", plain)
    annotated = _ANNOTATION.findall(plain)
    if annotated:
        return tuple(step for a in annotated for step in _steps(_NO_SIGN.sub("", a).split("=")))
    found = (step for line in plain.splitlines() if "=" in line for step in _in_prose(_BOLD.sub("", line)))
    return tuple(step for step in found if _CALCULATES.search(step.expression))


def _in_prose(line: str) -> Iterator[Equation]:
    for match in _CHAIN.finditer(line):
        if _UNKNOWN_BEFORE.search(line[: match.start()]) or _UNKNOWN_AFTER.match(line, match.end()):
            continue
        sides = _NO_SIGN.sub("", match[0]).split("=")
        # Brackets around the whole: "(2 + 3 = 5)".
        sides[0] = sides[0][max(0, sides[0].count("(") - sides[0].count(")")) :]
        sides[-1] = sides[-1][: len(sides[-1]) - max(0, sides[-1].count(")") - sides[-1].count("("))]
        if all(side.count("(") == side.count(")") for side in sides):
            yield from _steps(sides)


def _steps(sides: Sequence[str]) -> Iterator[Equation]:
    if len(sides) == 1:  # an annotation that says no result
        yield Equation(sides[0], "")
    for left, right in pairwise(sides):
        step = Equation(left, right)
        if not step.is_valid and (leading := _LEADING.match(right)):
            total = Equation(left, leading[1])
            step = total if total.is_valid else step
        yield step


def _evaluate(expression: str) -> Fraction | None:
    plain = _ZEROS.sub("", _PERCENT.sub(r"(\1/100)", expression))
    if len(plain) > _LONGEST or not _ARITHMETIC.fullmatch(plain):
        return None
    try:
        return _value(ast.parse(plain, mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant():
            return Fraction(str(node.value))
        case ast.UnaryOp(op=ast.USub()):
            return -_value(node.operand)
        case ast.BinOp(op=ast.Pow()):
            return _power(_value(node.left), _value(node.right))
        case ast.BinOp() if type(node.op) in _OPERATIONS:
            return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("no arithmetic")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    bits = max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent)
    if exponent.denominator != 1 or bits > _MOST_BITS:
        raise ValueError("too large, or a root")
    return Fraction(base**exponent.numerator)


def path_key(text: str) -> str:
    """The equations of a text in one line: texts that share it reason alike; "" if there are none."""
    return "|".join(f"{e.expression}={e.result}" for e in equations(text))


def pick_distinct(texts: Sequence[str]) -> list[int]:
    """The indices of texts with distinct paths, one each, ordered by where a path comes first.

    Of two texts on one path the later replaces the earlier if its edit distances to the texts kept for
    the other paths have the larger sum, as they are at that moment: RFT's way to keep varied wordings.
    """
    kept: dict[str, int] = {}
    for index, text in enumerate(texts):
        key = path_key(text)
        rival = kept.setdefault(key, index)
        others = [texts[i] for other, i in kept.items() if other != key]
        if _total_distance(text, others) > _total_distance(texts[rival], others):
            kept[key] = index
    return list(kept.values())


def _total_distance(text: str, others: Sequence[str]) -> int:
    return sum(Levenshtein.distance(text, other) for other in others)
