"""Charts: where data lands, round ticks, and names that are no markup."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from kdbench.reporting import _svg


def parsed(picture):
    return ET.fromstring(str(picture))


@given(st.floats(-1e3, 1e3), st.floats(0.01, 1e6), st.integers(1, 12))
def test_ticks_are_within_bounds_and_evenly_spaced(low, size, about):
    found = _svg.ticks(low, low + size, about)
    slack = 1e-6 * (abs(low) + size)
    assert all(low - slack <= t <= low + size + slack for t in found)
    steps = {round((b - a) / size, 6) for a, b in pairwise(found)}
    assert len(steps) <= 1
    assert len(found) <= 2 * about + 2


def test_a_line_falls_where_the_loss_does():
    picture = _svg.line_chart([_svg.Series("train", [(1, 4.0), (2, 2.0), (3, 1.0)], 0)], x="step", y="loss")
    spots = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', picture)[1].split()]
    assert [x for x, _ in spots] == sorted(x for x, _ in spots)
    assert [y for _, y in spots] == sorted(y for _, y in spots)  # down the page: a falling loss
    parsed(picture)


def test_no_number_no_picture_and_a_nan_is_left_out():
    assert not _svg.line_chart([_svg.Series("train", [], 0)], x="x", y="y")
    assert not _svg.line_chart([_svg.Series("train", [(1, math.nan)], 0)], x="x", y="y")
    assert "nan" not in _svg.line_chart([_svg.Series("t", [(1, math.nan), (2, 1.0)], 0)], x="x", y="y")


def test_a_long_training_is_thinned():
    points = [(float(i), 1.0 + i % 7) for i in range(50_000)]
    assert len(_svg.line_chart([_svg.Series("train", points, 0)], x="step", y="loss")) < 50_000


def test_histogram_counts_every_value_once():
    picture = _svg.histogram([1, 5, 9, 10, 19], edges=[0, 10, 20], top=1.0, color=0, x="words")
    titles = [t.text for t in parsed(picture).iter("title")]
    assert titles == ["0 to 9 words: 3 stories", "10 to 19 words: 2 stories"]


def test_bars_are_as_long_as_their_counts_and_names_are_text():
    picture = _svg.bars([("a<b>", 30.0), ("c", 10.0)], color=1)
    root = parsed(picture)
    first, second = [float(r.get("width")) for r in root.iter("rect")]
    assert math.isclose(first, 3 * second, rel_tol=1e-2)
    assert "a<b>" in [t.text for t in root.iter("text")]
    assert "30 (75%)" in [t.text for t in root.iter("text")]


def test_columns_tell_kept_layers_from_removed_ones():
    classes = [
        r.get("class")
        for r in parsed(_svg.columns([0.3, 0.1, 0.2], frozenset({0, 2}), x="x", y="y")).iter("rect")
    ]
    assert classes == ["fill c0", "fill pale", "fill c0"]
