"""Charts as inline SVG: no script, coloured by the page's style sheet, readable in print.

    line_chart([Series("train", points, 3), Series("validation", points, 3, dots=True)], x="step", y="loss")
    histogram([52, 61, 140], bins=range(0, 200, 20))          bars([("missing_words", 171)])

Every function gives Markup in which all names are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """One line: (x, y) points, and the number of its colour. `dots` marks every point."""

    name: str
    points: Sequence[Point]
    color: int
    dots: bool = False


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where data coordinates land in the picture."""

    width: int
    height: int
    left: int
    bottom: int
    x: tuple[float, float]
    y: tuple[float, float]
    top: int = 10
    right: int = 10

    def at(self, x: float, y: float) -> Point:
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return (
            self.left + across * (self.width - self.left - self.right),
            self.height - self.bottom - up * (self.height - self.bottom - self.top),
        )


def line_chart(series: Sequence[Series], *, x: str, y: str, width: int = 520, height: int = 260) -> Markup:
    """Lines over common axes, the value axis from zero where that costs little room."""
    values = [(px, py) for one in series for px, py in one.points if math.isfinite(py)]
    if not values:
        return Markup()
    xs, ys = [v[0] for v in values], [v[1] for v in values]
    low, high = min(ys), max(ys)
    low = 0.0 if 0 < low < 0.5 * high else low
    frame = _Frame(width, height, 48, 38, (min(xs), max(xs)), (low, high + 0.05 * (high - low or 1)))
    parts = [_axes(frame, x, y), *(_line(frame, one, width) for one in series)]
    return _svg(width, height, f"{y} over {x}", parts)


def _line(frame: _Frame, series: Series, width: int) -> Markup:
    spots = [frame.at(x, y) for x, y in series.points if math.isfinite(y)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in _thinned(spots, 2 * width))
    line = Markup('<polyline class="line c{}{}" points="{}"/>').format(
        series.color, " strong" if series.dots else "", path
    )
    if not series.dots:
        return line
    dots = (
        Markup(
            '<circle class="dot c{}" cx="{:.1f}" cy="{:.1f}" r="3"><title>{} {:g}: {:.4g}</title></circle>'
        ).format(series.color, *frame.at(x, y), series.name, x, y)
        for x, y in series.points
        if math.isfinite(y)
    )  # fmt: skip
    return line + Markup().join(dots)


def _thinned(spots: Sequence[Point], most: int) -> Sequence[Point]:
    """A long training has more points than a screen has dots."""
    return spots[:: max(1, math.ceil(len(spots) / most))]


def histogram(
    values: Sequence[float],
    *,
    edges: Sequence[float],
    top: float,
    color: int,
    x: str,
    width: int = 250,
    height: int = 130,
) -> Markup:
    """Shares of values between edges; `top` is the value axis' end, so that pictures compare."""
    counts = [sum(low <= v < high for v in values) for low, high in pairwise(edges)]
    total = len(values) or 1
    frame = _Frame(width, height, 36, 32, (edges[0], edges[-1]), (0, 100 * top))
    parts = [_axes(frame, x, "", lines=2, percent=True)]
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        left, up = frame.at(low, 100 * count / total)
        right, down = frame.at(high, 0)
        parts.append(
            Markup(
                '<rect class="fill c{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                "<title>{:g} to {:g} words: {} stories</title></rect>"
            ).format(color, left + 0.5, up, right - left - 1, down - up, low, high - 1, count)
        )
    return _svg(width, height, f"histogram of {x}", parts)


def bars(rows: Sequence[tuple[str, float]], *, color: int, width: int = 520) -> Markup:
    """Horizontal bars with their names and counts."""
    row, left = 24, 130
    most = max((value for _, value in rows), default=0) or 1
    total = sum(value for _, value in rows) or 1
    parts = []
    for number, (name, value) in enumerate(rows):
        y, length = number * row, value / most * (width - left - 110)
        bar = Markup('<rect class="fill c{}" x="{}" y="{}" width="{:.1f}" height="16" rx="2"/>')
        text = Markup('<text x="{:.1f}" y="{}" class="label{}">{}</text>')
        share = f"{value:,.0f} ({value / total:.0%})"
        parts += [
            text.format(left - 8, y + 15, " end", name),
            bar.format(color, left, y + 3, length),
            text.format(left + length + 6, y + 15, "", share),
        ]
    return _svg(width, row * len(rows), "counts by reason", parts)


def columns(values: Sequence[float], kept: frozenset[int], *, x: str, y: str, width: int = 520) -> Markup:
    """Upright bars, those in `kept` in colour and the rest pale."""
    height = 200
    frame = _Frame(width, height, 48, 38, (-0.5, len(values) - 0.5), (0, 1.05 * max(values)))
    parts = [_axes(frame, x, y, integers=True)]
    for number, value in enumerate(values):
        left, up = frame.at(number - 0.4, value)
        right, down = frame.at(number + 0.4, 0)
        fate = "kept" if number in kept else "removed"
        parts.append(
            Markup(
                '<rect class="fill {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                "<title>layer {}: {:.4f}, {}</title></rect>"
            ).format(
                "c0" if number in kept else "pale", left, up, right - left, down - up, number, value, fate
            )
        )
    return _svg(width, height, f"{y} by {x}", parts)


def _axes(
    frame: _Frame, x: str, y: str, *, lines: int = 4, integers: bool = False, percent: bool = False
) -> Markup:
    parts, sign = [], "%" if percent else ""
    for value in ticks(*frame.y, lines):
        left, height = frame.at(frame.x[0], value)
        parts.append(
            Markup(
                '<line class="grid" x1="{:.1f}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
                '<text class="tick end" x="{:.1f}" y="{:.1f}">{}</text>'
            ).format(
                left, frame.width - frame.right, height, height, left - 6, height + 4, f"{value:g}{sign}"
            )
        )
    for value in ticks(*frame.x, 5):
        if integers and value != int(value):
            continue
        across, down = frame.at(value, frame.y[0])
        parts.append(
            Markup('<text class="tick middle" x="{:.1f}" y="{:.1f}">{:g}</text>').format(
                across, down + 15, value
            )
        )
    middle = (frame.left + frame.width - frame.right) / 2
    parts.append(
        Markup('<text class="tick middle" x="{:.1f}" y="{}">{}</text>').format(middle, frame.height - 4, x)
    )
    half = (frame.top + frame.height - frame.bottom) / 2
    parts.append(
        Markup('<text class="tick middle" transform="translate(11 {:.1f}) rotate(-90)">{}</text>').format(
            half, y
        )
    )
    return Markup().join(parts)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers within [low, high], about so many of them."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    size = 10 ** math.floor(math.log10(rough))
    step = next(f * size for f in (1, 2, 5, 10) if f * size >= 0.8 * rough)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _svg(width: int, height: int, title: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, escape(title), Markup().join(parts)
    )
