"""Lists out of replies: what a small model writes is read as it stands or turned down with a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kdbench.errors import Rejected
from kdbench.lists import labelled_entries, numbered_items

LABELS = ("Input", "Output")


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("1. Name a bird.\n2. Name a fish.", ["Name a bird.", "Name a fish."]),
        ("Sure, here they are:\n\n9) Name a bird.\n10) Name a fish.", ["Name a bird.", "Name a fish."]),
        ("**1.** Name a bird.\n**2.** Name a fish.", ["Name a bird.", "Name a fish."]),
        ("Task 1: Name a bird.\nTask 2: Name a fish.", ["Name a bird.", "Name a fish."]),
        ("### 1. Name a bird.\n### 2. Name a fish.", ["Name a bird.", "Name a fish."]),
        ("1. **Birds**: name\n   one.\n2. Name a fish.", ["Birds: name one.", "Name a fish."]),
        ("1. Name\n   1. a bird\n   2. a fish\n2. Stop.", ["Name 1. a bird 2. a fish", "Stop."]),
        ("  1. Name a bird.\n  2. Name a fish.", ["Name a bird.", "Name a fish."]),
        ("1. Name a bird.\n\n2. Name a fish.\n\nI hope they help!", ["Name a bird.", "Name a fish."]),
        ("1. Name a bird.\n2.\n3. Name a fish.", ["Name a bird.", "Name a fish."]),
        ("1. Name a bird.\r\n2. Name a fish.\r\n", ["Name a bird.", "Name a fish."]),
        ("1. It was in\n1999 that it began.", ["It was in 1999 that it began."]),
    ],
)
def test_items_of_a_numbered_list(text: str, items: list[str]) -> None:
    assert numbered_items(text) == items


@pytest.mark.parametrize(
    "text", ["", "Name a bird.", "- Name a bird.\n- Name a fish.", "1.\n2.", "1.5 birds"]
)
def test_a_reply_without_a_numbered_list_is_turned_down(text: str) -> None:
    with pytest.raises(Rejected, match="no_list: no numbered list in"):
        numbered_items(text)


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("Input: 2 + 2\nOutput: 4", [("2 + 2", "4")]),
        ("Example 1\nInput: a\nOutput: b\n\nExample 2:\nInput: c\nOutput: d", [("a", "b"), ("c", "d")]),
        ("**Input:** a\n**Output**: b\n---\n**Input 2:** c\n**Output 2:** d", [("a", "b"), ("c", "d")]),
        ("1. Input: a\n   Output: b\n2. Input: c\n   Output: d", [("a", "b"), ("c", "d")]),
        ("INPUT: a\noutput: b", [("a", "b")]),
        ("Input:\na\n\nb\nOutput:\nc\n}\n", [("a\n\nb", "c\n}")]),
        ("Here you go. Output: none\nInput: a: b\nOutput: c", [("a: b", "c")]),
        ("Input: a\nOutput:", [("a", "")]),
        ("Inputs: x\nInput: a\nOutput: the Input: b", [("a", "the Input: b")]),
    ],
)
def test_entries_with_labelled_parts(text: str, entries: list[tuple[str, str]]) -> None:
    assert [tuple(one.values()) for one in labelled_entries(text, LABELS) if isinstance(one, dict)] == entries


def test_an_entry_that_lacks_a_part_or_has_one_twice_is_malformed_and_leaves_the_others_alone() -> None:
    text = "Input: a\nInput: b\nOutput: c\nOutput: d\nInput: e\nOutput: f"
    lacking, twice, good = labelled_entries(text, LABELS)
    assert isinstance(lacking, Rejected)
    assert isinstance(twice, Rejected)
    assert str(lacking) == "malformed: no 'Output:' after 'Input: a'"
    assert str(twice) == "malformed: more than one 'Output:' after 'Input: b'"
    assert good == {"Input": "e", "Output": "f"}


def test_a_reply_without_the_first_label_is_turned_down() -> None:
    with pytest.raises(Rejected, match="no_list: no line begins with 'Input:' in: Output: 4"):
        labelled_entries("Output: 4", LABELS)


LINES = st.lists(
    st.sampled_from(
        ["1. ", "2) ", "  3. ", "**4.**", "Task 5:", "Input:", "**Output 2:** ", "Label", "---", ""]
    ).flatmap(lambda start: st.text(max_size=12).map(lambda rest: start + rest)),
    max_size=12,
).map("\n".join)


@given(st.one_of(st.text(), LINES))
@example("Inpuſt: x")
@example("ıNPUT: a\nOutput: b")
@example("1. \x00\x85")
def test_any_text_gives_a_list_or_one_of_two_reasons(text: str) -> None:
    items = tried(numbered_items, text)
    if isinstance(items, Rejected):
        assert items.reason == "no_list"
    else:
        assert items
        assert all(item == " ".join(item.split()) != "" for item in items)
    entries = tried(labelled_entries, text, LABELS)
    if isinstance(entries, Rejected):
        assert entries.reason == "no_list"
        return
    assert entries
    for entry in entries:
        if isinstance(entry, Rejected):
            assert entry.reason == "malformed"
        else:
            assert tuple(entry) == LABELS
            assert all(part == part.strip() for part in entry.values())


def tried(parse: Callable[..., Any], *given: Any) -> Any:
    try:
        return parse(*given)
    except Rejected as exc:
        return exc


WORDS = st.lists(st.sampled_from(["sea", "salt", "ship", "why", "ocean"]), min_size=1, max_size=6).map(
    " ".join
)


@given(st.lists(WORDS, min_size=1, max_size=9), st.integers(1, 30))
def test_a_well_formed_list_is_read_back(texts: list[str], first: int) -> None:
    assert numbered_items("\n".join(f"{i}. {text}" for i, text in enumerate(texts, start=first))) == texts


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6))
def test_well_formed_entries_are_read_back(pairs: list[tuple[str, str]]) -> None:
    text = "\n\n".join(f"Example {i}\nInput: {a}\nOutput: {b}" for i, (a, b) in enumerate(pairs, start=1))
    assert labelled_entries(text, LABELS) == [{"Input": a, "Output": b} for a, b in pairs]
