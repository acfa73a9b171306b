"""The row cache: rows join with what was prefilled, and leave without disturbing the others."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.medium


def prefilled(rows, columns, first=0, prefix=None):
    """A cache of two layers in which every number is its own."""
    import torch

    from kdbench.models._cache import PrefillCache

    cache = PrefillCache(prefix)
    for layer in range(2):
        keys = first + layer * 10_000 + torch.arange(rows * 3 * columns * 4.0).view(rows, 3, columns, 4)
        cache.update(keys, -keys, layer)
    return cache


def rows_of(cache, layer=0):
    """What attention would see of each row."""
    import torch

    count = len(cache.lengths)
    cache.next_column(torch.device("cpu"))
    keys, values = cache.update(torch.zeros(count, 3, 1, 4), torch.zeros(count, 3, 1, 4), layer)
    assert (keys == -values).all()
    return [keys[i, :, :n].clone() for i, n in enumerate(cache.lengths)]


def test_rows_of_different_lengths_stand_side_by_side():
    from kdbench.models._cache import RowCache

    cache = RowCache()
    first, second = prefilled(2, 5), prefilled(1, 70, first=500)
    cache.add(first, [5, 3])
    cache.add(second, [70])
    for layer in range(2):
        a, b, c = rows_of(cache, layer)
        assert (a == first.keys[layer][0]).all()
        assert (b == first.keys[layer][1, :, :3]).all()
        assert (c == second.keys[layer][0]).all()


def test_a_prefix_stands_before_every_row():
    import torch

    from kdbench.models._cache import Prefix, RowCache

    shared = prefilled(1, 6, first=900)
    prefix = Prefix(range(6), shared.keys, shared.values)
    tails = prefilled(2, 4, prefix=prefix)
    cache = RowCache()
    cache.add(tails, [10, 8])
    a, b = rows_of(cache)
    whole = torch.cat([shared.keys[0].expand(2, -1, -1, -1), tails.keys[0]], dim=2)
    assert (a == whole[0]).all()
    assert (b == whole[1, :, :8]).all()


@pytest.mark.parametrize("gone", [[0], [4], [0, 4], [3, 1], [0, 1, 2, 3, 4], []])
def test_leaving_moves_the_last_rows_into_the_holes(gone):
    from kdbench.models._cache import RowCache
    from kdbench.models.decoding import close_gaps

    cache = RowCache()
    cache.add(prefilled(5, 8), [4, 5, 6, 7, 8])
    before = rows_of(cache)
    names = list(range(5))
    cache.remove(gone)
    close_gaps(names, gone)
    assert sorted(names) == [i for i in range(5) if i not in gone]
    assert len(cache.lengths) == len(names)
    for name, kept in zip(names, rows_of(cache) if names else [], strict=True):
        assert (kept == before[name]).all()


def test_the_cache_narrows_when_the_long_rows_have_left():
    from kdbench.models._cache import RowCache

    cache = RowCache()
    cache.add(prefilled(1, 600), [600])
    cache.add(prefilled(1, 10), [10])
    wide = cache.width
    cache.remove([0])
    (left,) = rows_of(cache)
    assert cache.width < wide / 4
    assert (left == prefilled(1, 10).keys[0][0]).all()
