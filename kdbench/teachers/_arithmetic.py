"""Arithmetic for the oracle: find a problem in a text and work it out, one operation a step.

    problem = find_problem("Calculate ( 56 + -33 ) - 84.")
    [step.equation for step in solve(problem, random.Random(0))]     # ["56 - 33 = 23", "23 - 84 = -61"]

Numbers are exact fractions. The order of the steps is drawn, and every order is valid: of a sum any two
terms may come first, as in 5 + 3 = 8, 8 - 9 = -1 for 5 - 9 + 3.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

_TYPED = str.maketrans("×·÷−–", "**/--")
_NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+")
_BEGINS = re.compile(r"(?<![\w.,)])-?[\d.(]")
_SOLVED = re.compile(r"[ \t]*=[ \t]*[-(]?\d")
_SPACE = re.compile(r"[ \t]*")
_DEEPEST = 50  # brackets within brackets
_PLACES = 12  # decimal places beyond which a number is written as a fraction


@dataclass(frozen=True, slots=True)
class Number:
    """A number; `name` is the variable that holds it in a program, "" for one of the problem's own."""

    value: Fraction
    name: str = ""

    @property
    def in_code(self) -> str:
        """The number as Python writes it, safe on either side of an operator."""
        return self.name or _bracketed(self.value)


@dataclass(slots=True)
class Group:
    """A sum of terms or a product of factors, each (whether it is subtracted or divided by, what it is)."""

    is_sum: bool
    parts: list[tuple[bool, Node]]

    def numbers(self) -> list[int]:
        """The places of the parts that are plain numbers."""
        return [i for i, (_, part) in enumerate(self.parts) if isinstance(part, Number)]

    def is_ready(self) -> bool:
        """Whether a step can be taken here."""
        return len(self.numbers()) > 1 or (len(self.parts) == 1 and isinstance(self.parts[0][1], Number))


Node = Number | Group


@dataclass(frozen=True, slots=True)
class Step:
    """One operation on two numbers and its result, which is not the true one where the step slipped."""

    left: Number
    sign: str
    right: Number
    result: Number
    slipped: bool = False

    @property
    def equation(self) -> str:
        """The step in writing, such as "5 - 9 = -4"."""
        sign, right = self.sign, self.right.value
        if sign in "+-" and right < 0:  # 5 - -3 is written 5 + 3
            sign, right = "-+"[sign == "-"], -right
        return f"{written(self.left.value)} {sign} {_bracketed(right)} = {written(self.result.value)}"


@dataclass(frozen=True, slots=True)
class Slip:
    """At which step the result is off, and by how much."""

    at: int
    by: int


def written(value: Fraction) -> str:
    """An integer, a decimal or, where that would not end, a fraction."""
    scaled = value * 10**_PLACES
    if value.denominator == 1 or scaled.denominator != 1:
        return str(value)
    whole, places = divmod(abs(scaled.numerator), 10**_PLACES)
    return f"{'-' if value < 0 else ''}{whole}.{places:0{_PLACES}d}".rstrip("0")


def _bracketed(value: Fraction) -> str:
    text = written(value)
    return f"({text})" if value < 0 or "/" in text else text


# --- reading


def find_problem(text: str) -> Node | None:
    """The last expression of a text that has an operator and a value and is not solved there already."""
    found = [node for node in _expressions(text.translate(_TYPED)) if _has_value(node)]
    return found[-1] if found else None


def _expressions(text: str) -> Iterator[Node]:
    reader, place = _Reader(text), 0
    while begin := _BEGINS.search(text, place):
        node, place = reader.chain("+-", begin.start(), 0) or (None, begin.start() + 1)
        ended = not text[place : place + 1].isalnum() and not _SOLVED.match(text, place)
        if isinstance(node, Group) and ended:
            yield node


def _has_value(problem: Node) -> bool:
    try:
        return bool(solve(problem, random.Random(0)))  # noqa: S311 - not for secrets
    except ZeroDivisionError:
        return False


class _Reader:
    """Recursive descent: each method gives what it read and where that ends, or None."""

    def __init__(self, text: str) -> None:
        self._text = text

    def chain(self, signs: str, place: int, depth: int) -> tuple[Node, int] | None:
        """A sum of products (`signs` "+-") or a product of factors ("*/")."""
        first = self._part(signs, place, depth)
        if first is None:
            return None
        parts, end = [(False, first[0])], first[1]
        while self._text[(at := self._skip(end)) : at + 1] in set(signs):
            part = self._part(signs, self._skip(at + 1), depth)
            if part is None:
                break
            parts.append((self._text[at] == signs[1], part[0]))
            end = part[1]
        return (parts[0][1] if len(parts) == 1 else Group(signs == "+-", parts)), end

    def _part(self, signs: str, place: int, depth: int) -> tuple[Node, int] | None:
        return self.chain("*/", place, depth) if signs == "+-" else self._factor(place, depth)

    def _factor(self, place: int, depth: int) -> tuple[Node, int] | None:
        if depth > _DEEPEST:
            return None
        if self._text.startswith("-", place):
            factor = self._factor(place + 1, depth + 1)
            return factor and (_negative(factor[0]), factor[1])
        if self._text.startswith("(", place):
            inner = self.chain("+-", self._skip(place + 1), depth + 1)
            if inner is None or not self._text.startswith(")", end := self._skip(inner[1])):
                return None
            return inner[0], end + 1
        number = _NUMBER.match(self._text, place)
        return number and (Number(Fraction(number[0].replace(",", ""))), number.end())

    def _skip(self, place: int) -> int:
        space = _SPACE.match(self._text, place)
        assert space is not None  # it matches the empty string
        return space.end()


def _negative(node: Node) -> Node:
    return Number(-node.value) if isinstance(node, Number) else Group(True, [(True, node)])


# --- working out


def solve(problem: Node, rng: random.Random, slip: Slip | None = None) -> list[Step]:
    """The steps to the result, in one valid order; half of the orders drawn go from left to right.

    Equal states of `rng` give equal orders, with a slip or without. Raises ZeroDivisionError.
    """
    steps: list[Step] = []
    from_left = rng.random() < 0.5
    root = Group(True, [(False, _copied(problem))])
    while isinstance(root.parts[0][1], Group):
        ready = [group for group in _groups(root) if group.is_ready()]
        group = ready[0] if from_left else rng.choice(ready)
        places = group.numbers()
        if len(places) > 1:
            places = places[:2] if from_left else sorted(rng.sample(places, 2))
        off = slip.by if slip is not None and slip.at == len(steps) else 0
        step, inverted = _step(group, places, f"step_{len(steps) + 1}", off)
        steps.append(step)
        group.parts[places[0]] = (inverted, step.result)
        for place in places[1:]:
            del group.parts[place]
        _collapse(root)
    return steps


def _step(group: Group, places: list[int], name: str, off: int) -> tuple[Step, bool]:
    """The operation on these parts of a group, and whether its result is still to be subtracted."""
    taken = [
        (inverted, part) for inverted, part in (group.parts[i] for i in places) if isinstance(part, Number)
    ]
    if len(taken) == 1:  # the minus before a bracket
        taken = [(False, Number(Fraction(0))), *taken]
    (inverted, left), (other, right) = taken
    forward, back = "+-" if group.is_sum else "*/"
    if inverted and not other:
        left, right = right, left
    sign = forward if inverted == other else back
    result = Number(_OPERATIONS[sign](left.value, right.value) + off, name)
    return Step(left, sign, right, result, slipped=off != 0), inverted and other


_OPERATIONS = {
    "+": Fraction.__add__, "-": Fraction.__sub__, "*": Fraction.__mul__, "/": Fraction.__truediv__,
}  # fmt: skip


def _copied(node: Node) -> Node:
    if isinstance(node, Number):
        return node
    return Group(node.is_sum, [(inverted, _copied(part)) for inverted, part in node.parts])


def _groups(group: Group) -> Iterator[Group]:
    """Every group, inner ones before those around them."""
    for _, part in group.parts:
        if isinstance(part, Group):
            yield from _groups(part)
    yield group


def _collapse(group: Group) -> None:
    """Put the number in place of every group that has come down to it."""
    for i, (inverted, part) in enumerate(group.parts):
        if isinstance(part, Group):
            _collapse(part)
            if len(part.parts) == 1 and not part.parts[0][0]:
                group.parts[i] = (inverted, part.parts[0][1])
