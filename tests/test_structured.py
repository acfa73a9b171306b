"""Structured replies: parsed out of whatever stands around them, mended once, else turned down."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

import kdbench
from kdbench.asking import Teachers
from kdbench.engine import Outcome, Seed
from kdbench.errors import Rejected
from kdbench.jsonl import read_rejections, read_samples
from kdbench.prompts import Prompts
from kdbench.records import Completion, Message
from kdbench.structured import ask_structured, parse, schema_of
from kdbench.teacher import Request, Sampling
from tests.support.teachers import ScriptTeacher


class Verdict(BaseModel):
    score: int = Field(ge=1, le=5)
    why: str = ""


PROMPTS = Prompts("any")


async def judged(seed: Seed, teachers: Teachers) -> list[Outcome]:
    ask = Message(role="user", content=f"Judge number {seed.index}.")
    found = await ask_structured(teachers["teacher"], [ask], Verdict, Sampling(), PROMPTS)
    answer = Message(role="assistant", content=found.value.model_dump_json())
    return [
        Completion(prompt=(ask,), completion=(answer,), fields=json.dumps({"replies": len(found.replies)}))
    ]


def run(out: Path, *replies: str) -> tuple[list[Any], list[Any], list[Request]]:
    """One seed whose teacher gives these replies, one after the other."""
    asked: list[Request] = []

    def script(request: Request) -> str:
        asked.append(request)
        return replies[len(request.messages) // 2]

    kdbench.generate(judged, teacher=ScriptTeacher(script), n=1, max_candidates=1, out=out)
    return list(read_samples(out / "samples.jsonl")), list(read_rejections(out / "rejected.jsonl")), asked


def test_the_schema_is_asked_for_and_a_fitting_reply_is_taken(tmp_path: Path) -> None:
    samples, _, asked = run(tmp_path / "r", 'Sure! ```json\n{"score": 4, "why": "a } in it"}\n``` Done.')
    assert json.loads(samples[0].text) == {"score": 4, "why": "a } in it"}
    assert len(asked) == 1
    assert '"maximum": 5' in asked[0].messages[0].content
    assert asked[0].messages[0].content.startswith("Judge number 0.")


@pytest.mark.parametrize("broken", ['{"score": 9}', "four", '{"score": 4', '{"grade": 4}'])
def test_a_reply_that_does_not_fit_is_shown_back_once(tmp_path: Path, broken: str) -> None:
    samples, _, asked = run(tmp_path / "r", broken, '{"score": 3}')
    assert json.loads(samples[0].text)["score"] == 3
    assert json.loads(samples[0].fields) == {"replies": 2}
    assert [m.role for m in asked[1].messages] == ["user", "assistant", "user"]
    assert asked[1].messages[1].content == broken
    assert "cannot be used" in asked[1].messages[2].content


def test_a_second_misfit_turns_the_seed_down(tmp_path: Path) -> None:
    with pytest.raises(kdbench.errors.NothingLeft):
        run(tmp_path / "r", '{"score": 9}', '{"score": 0}')
    (rejection,) = read_rejections(tmp_path / "r" / "rejected.jsonl")
    assert rejection.reason == "unstructured"
    assert "score: Input should be greater than or equal to 1" in rejection.detail
    assert rejection.origin is not None
    assert len(rejection.origin.calls) == 2


@given(st.text(), st.integers(1, 5), st.text())
def test_an_object_is_found_in_any_text_around_it(before: str, score: int, after: str) -> None:
    text = before.replace("{", "") + json.dumps({"score": score}) + after
    assert parse(text, Verdict).score == score


@given(st.text() | st.text(alphabet='{}[]":,0123 \n\\'))
def test_no_text_makes_the_parser_fail_in_another_way(text: str) -> None:
    with suppress(Rejected):
        assert 1 <= parse(text, Verdict).score <= 5


def test_deep_nesting_is_no_crash() -> None:
    with pytest.raises(Rejected):
        parse('{"a":' * 100_000, Verdict)


def test_a_field_called_title_is_not_lost_with_the_titles() -> None:
    class Book(BaseModel):
        title: str

    schema = schema_of(Book)
    assert "title" in schema["properties"]
    assert "title" not in schema
    assert "title" not in schema["properties"]["title"]
