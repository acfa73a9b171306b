"""Strict config: every mistake is one sentence that names the key, the value and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field

from kdbench.config import StrictConfig, build, canonical_hash, dump_yaml, load_yaml, parse_yaml, with_sets
from kdbench.errors import ConfigError


class Inner(StrictConfig):
    """A nested config."""

    rate: float = Field(0.5, ge=0, le=1)


class Outer(StrictConfig):
    """A config."""

    name: str = "x"
    count: int = Field(1, ge=1)
    inner: Inner = Inner()


def test_values_arrive_nested() -> None:
    assert build(Outer, {"inner": {"rate": 1}}, "test") == Outer(inner=Inner(rate=1.0))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"nmae": "y"}, ["no key 'nmae'", "Did you mean 'name'?", "count, inner, name"]),
        ({"inner": {"rat": 1}}, ["no key 'inner.rat'", "Did you mean 'rate'?"]),
        ({"count": 0}, ["count = 0", "greater than or equal to 1"]),
        ({"inner": {"rate": 3}}, ["inner.rate = 3", "less than or equal to 1"]),
        ({"count": "many"}, ['count = "many"', "valid integer"]),
        ({"inner": 4}, ["inner = 4"]),
    ],
)
def test_mistakes_name_key_value_and_bounds(values: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Outer, values, "recipe test")
    for word in ["recipe test", *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named() -> None:
    class Needs(StrictConfig):
        path: str

    with pytest.raises(ConfigError, match="key 'path' is missing"):
        build(Needs, {}, "x")


def test_sets_change_one_key_each() -> None:
    before = {"inner": {"rate": 0.1}, "name": "a"}
    after = with_sets(before, ["inner.rate=0.7", "count=3", "words=[a, b]", "x.y.z=true"])
    assert after == {
        "inner": {"rate": 0.7}, "name": "a", "count": 3, "words": ["a", "b"], "x": {"y": {"z": True}},
    }  # fmt: skip
    assert before == {"inner": {"rate": 0.1}, "name": "a"}


@pytest.mark.parametrize("entry", ["count", "=3", "name.sub=1", "a=[1"])
def test_a_set_that_cannot_be_done_says_so(entry: str) -> None:
    with pytest.raises(ConfigError):
        with_sets({"name": "a"}, [entry])


def test_yaml_mistakes_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="written twice"):
        parse_yaml("a: 1\na: 2", "job")
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_yaml("a: [1", "job")
    with pytest.raises(ConfigError, match="must be a mapping"):
        parse_yaml("- 1", "job")
    with pytest.raises(ConfigError, match="Cannot read"):
        load_yaml(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_yaml("a: !!python/object/apply:os.system ['true']", "job")


def test_yaml_merges_a_shared_mapping_and_lets_its_keys_be_replaced() -> None:
    read = parse_yaml("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3", "job")
    assert read["b"] == {"x": 1, "y": 3}


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1, max_size=5), plain, max_size=4))
def test_equal_values_hash_equal_in_any_order(values: dict) -> None:
    reordered = dict(reversed(list(values.items())))
    assert canonical_hash(values) == canonical_hash(reordered)
    assert canonical_hash({**values, "\0new": 1}) != canonical_hash(values)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), plain, max_size=4))
@example({"a": {"\x85": "\u2028"}})
def test_yaml_round_trip(values: dict) -> None:
    assert parse_yaml(dump_yaml(values), "x") == values
