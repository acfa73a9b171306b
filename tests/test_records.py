"""Samples: strict on disk, equal after a round trip, and loadable by `datasets` whatever the mix."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kdbench.errors import DataError
from kdbench.jsonl import JsonlWriter, read_rejections, read_samples
from kdbench.records import SAMPLE, Completion, Message, Origin, Preference, Rejection, Text, from_row, to_row

messages = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant"]),
    content=st.text(),
    reasoning=st.none() | st.text(),
)
origins = st.none() | st.builds(Origin, seed=st.integers(0, 2**40), calls=st.lists(st.text()).map(tuple))
common = {"id": st.text(), "group": st.none() | st.text(), "weight": st.floats(0, 10), "origin": origins}
turns = st.lists(messages, min_size=1, max_size=3).map(tuple)
samples = st.one_of(
    st.builds(
        Completion, prompt=turns, completion=messages.map(lambda m: (m,)), teacher_prompt=st.none() | turns,
        answer=st.none() | st.text(), **common,
    ),
    st.builds(Text, text=st.text(), **common),
    st.builds(Preference, prompt=turns, chosen=turns, rejected=turns, **common),
)  # fmt: skip


@given(samples)
def test_a_sample_survives_json_and_arrow_rows(sample: Completion | Text | Preference) -> None:
    assert SAMPLE.validate_json(sample.model_dump_json()) == sample
    assert from_row(to_row(sample)) == sample


def test_unknown_fields_and_long_completions_are_refused() -> None:
    turn = Message(role="assistant", content="x")
    with pytest.raises(ValidationError):
        Completion(prompt=(turn,), completion=(turn, turn))
    with pytest.raises(ValidationError):
        SAMPLE.validate_python({"kind": "text", "text": "x", "colour": "red"})
    with pytest.raises(ValidationError):
        Text(text="x", fields="[1]")


def test_rejections_keep_the_text_they_turned_down(tmp_path: Path) -> None:
    rejection = Rejection(reason="loop", sample=Text(text="so and so and so"))
    with JsonlWriter(tmp_path / "r.jsonl") as writer:
        writer.write(rejection)
    assert list(read_rejections(tmp_path / "r.jsonl")) == [rejection]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"kind": "text", "te', "cut off"),
        ('{"kind": "text", "te\n', "not valid JSON"),
        ('{"kind": "poem", "text": "x"}\n', "is not a sample"),
        ('{"kind": "text", "text": 5}\n', "is not a sample: text.text"),
        ("[1, 2]\n", "is not a sample"),
    ],
)
def test_a_torn_or_foreign_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"kind": "text", "text": "fine"}\n' + line)
    read = read_samples(path)
    assert next(read) == Text(text="fine")
    with pytest.raises(DataError, match=words) as caught:
        next(read)
    assert "samples.jsonl:2" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Cannot read"):
        list(read_samples(tmp_path / "absent.jsonl"))
