"""The chain_of_thought recipe: which paths are kept, the vote, the formats, and names that stay."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdbench
from kdbench.config import build
from kdbench.equations import equations, path_key
from kdbench.errors import ConfigError, NothingLeft, UsageError
from kdbench.jsonl import read_rejections, read_samples
from kdbench.prompts import Prompts
from kdbench.questions import Question
from kdbench.reasoning import ARITHMETIC
from kdbench.records import Completion, Message
from kdbench.teacher import Request, Sampling, read_reply
from kdbench.teachers.oracle import Config as Oracle
from kdbench.teachers.oracle import OracleTeacher
from kdbench_generators import chain_of_thought
from kdbench_generators.chain_of_thought import Config, Fields, Filters, FormatName
from kdbench_generators.chain_of_thought import Path as Draw
from tests.support.teachers import EchoTeacher, ScriptTeacher, reply

TASK = {"task": {"chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}}}
FOUR = ["few_shot_cot", "few_shot_direct", "zero_shot_cot", "zero_shot_direct"]
CRATES = {"question": "A crate holds 12 bottles. How many bottles are in 5 crates?", "answer": "60"}
BARE = {"keep": "all", "distinct": False, "valid_equations": False}


def config(**values: Any) -> Config:
    return build(Config, {"questions": TASK, **values}, "recipe chain_of_thought")


def asked_of(rows: Iterable[dict[str, Any]], folder: Path, verifier: str = "numeric") -> dict[str, Any]:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"file": str(path), "verifier": verifier}


def run(out: Path, teacher: Any, *, n: int = 100, tried: int = 20, **values: Any) -> Path:
    values = {"questions": TASK, **values}
    settings = {key: values.pop(key) for key in ("reparse", "on_truncated", "resume") if key in values}
    return kdbench.generate(
        "chain_of_thought", teacher=teacher, n=n, out=out, config=values, max_candidates=tried, **settings
    )


def says(*texts: str) -> EchoTeacher:
    """A teacher that gives these replies, one after the other and from the beginning again."""
    return EchoTeacher(lambda _, number: reply(texts[(number - 1) % len(texts)]))


def kept(out: Path) -> list[Completion]:
    return [sample for sample in read_samples(out / "samples.jsonl") if isinstance(sample, Completion)]


def fields(sample: Completion) -> Fields:
    return Fields.model_validate_json(sample.fields)


def reasons(out: Path) -> Counter[str]:
    return Counter(rejection.reason for rejection in read_rejections(out / "rejected.jsonl"))


def crates(folder: Path, *texts: str, **values: Any) -> Path:
    """A run over one question that is answered so."""
    values["questions"] = values.get("questions") or asked_of([CRATES], folder)
    values = {"samples": len(texts), **values}
    return run(folder / "run", says(*texts), tried=1, **values)


# --- the filters, on what the oracle says


def drawn(question: Question, count: int, seed: int, error_rate: float, no_marker: float) -> list[Draw]:
    """So many draws of an oracle that errs, read as the recipe reads them."""
    oracle = OracleTeacher(Oracle(error_rate=error_rate, no_marker=no_marker))
    asked = chain_of_thought.conversation("zero_shot_cot", question, config(), Prompts("chain_of_thought"), 0)
    paths = []
    for draw in range(count):
        answering = oracle.ask(Request(asked, Sampling(), seed=seed + draw))
        with pytest.raises(StopIteration) as answered:  # it has nothing to wait for, so it needs no loop
            answering.send(None)
        said = read_reply(answered.value.value)
        paths.append(chain_of_thought.read(said, "teacher", draw, asked[-1].content, question, config()))
    return paths


SUMS = st.lists(st.integers(0, 99), min_size=2, max_size=4).map(
    lambda numbers: Question(
        " - ".join(map(str, numbers)) + " =", str(2 * numbers[0] - sum(numbers)), verifier="numeric"
    )
)
FILTERS = st.builds(
    Filters,
    keep=st.just("gold"),
    valid_equations=st.booleans(),
    distinct=st.booleans(),
    max_per_question=st.one_of(st.none(), st.integers(1, 4)),
)
# Some of them are the share of a vote itself: so many must agree, not more.
SHARES = st.one_of(
    st.none(), st.floats(0, 1), st.builds(lambda n, m: n / (n + m), st.integers(1, 4), st.integers(0, 4))
)
RATES = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))


@settings(deadline=None)  # the first reply loads the language model
@given(SUMS, st.integers(1, 9), st.integers(0, 10**6), RATES, RATES, FILTERS)
def test_with_gold_only_right_paths_are_kept_at_any_rate_of_errors(
    question: Question, count: int, seed: int, error_rate: float, no_marker: float, filters: Filters
) -> None:
    paths = drawn(question, count, seed, error_rate, no_marker)
    ballot = chain_of_thought.hold_vote(paths, question)
    left = chain_of_thought.sift(paths, question, ballot.vote, filters)
    assert all(question.is_correct(path.answer) for path in left)
    right = [path for path in paths if path.answer and question.is_correct(path.answer)]
    assert bool(left) == bool(right), "the oracle's right paths hold, so that one of them is always kept"
    assert [path for path in paths if path.fault is None] == left
    wrong = {path.fault and path.fault[0] for path in paths if path.answer and path not in right}
    assert wrong <= {"wrong_answer"}
    if filters.max_per_question is not None:
        assert len(left) <= filters.max_per_question
    elif not filters.distinct:
        assert left == right
    if filters.distinct:
        keys = [path_key(path.text) for path in left]
        assert len(set(keys)) == len(keys)


@settings(deadline=None)  # the first reply loads the language model
@given(SUMS, st.integers(1, 9), st.integers(0, 10**6), RATES, RATES, SHARES)
def test_the_vote_never_keeps_a_path_that_disagrees_with_it(
    question: Question, count: int, seed: int, error_rate: float, no_marker: float, min_share: float | None
) -> None:
    paths = drawn(question, count, seed, error_rate, no_marker)
    vote, right = chain_of_thought.hold_vote(paths, question)
    filters = Filters(keep="majority", min_share=min_share, distinct=False, valid_equations=False)
    left = chain_of_thought.sift(paths, question, vote, filters)
    if vote is None:
        assert not any(path.answer for path in paths)
        assert (left, right) == ([], None)
        return
    assert vote.total == count
    assert right == question.is_correct(vote.answer)
    agreeing = [path for path in paths if path.answer and question.canonical(path.answer) == vote.answer]
    assert len(agreeing) == vote.count
    assert left == (agreeing if vote.count / count >= (min_share or 0) else [])


# --- the filters, one by one


GOOD = "One crate holds 12, so 12 * 5 = 60. The answer is 60."
OTHER = "5 crates of 10 are 10 * 5 = 50, and 50 + 10 = 60. The answer is 60."


@pytest.mark.parametrize(
    ("expected", "text", "eased"),
    [
        ("wrong_answer", "12 + 5 = 17. The answer is 17.", {"keep": "all"}),
        ("invalid_equation", "12 * 5 = 70, no, rather less. The answer is 60.", {"valid_equations": False}),
        ("same_path", "Five times: 12 * 5 = 60. The answer is 60.", {"distinct": False}),
    ],
)
def test_each_filter_turns_down_a_path_that_passes_once_it_is_eased(
    expected: str, text: str, eased: dict[str, Any], tmp_path: Path
) -> None:
    (strict := tmp_path / "strict").mkdir()
    (easy := tmp_path / "easy").mkdir()
    out = crates(strict, GOOD, text)
    assert [sample.text for sample in kept(out)] == [GOOD]
    (rejection,) = read_rejections(out / "rejected.jsonl")
    assert rejection.reason == expected
    assert isinstance(rejection.sample, Completion)
    assert rejection.sample.text == text
    assert [sample.text for sample in kept(crates(easy, GOOD, text, filters=eased))] == [GOOD, text]


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("no_answer", "12 * 5 = 60."),
        ("two_answers", f"{GOOD} No: The answer is 17."),
        ("refusal", "I'm sorry, but I can't help with that."),
        ("empty_reply", ""),
        ("loop", "We count them one by one. " * 4 + "The answer is 60."),
        (
            "other_language",
            "Man muss nur zwölf Flaschen fünfmal nehmen und zusammenzählen: The answer is 60.",
        ),
    ],
)
def test_what_is_no_path_is_turned_down_whatever_the_filters(
    expected: str, text: str, tmp_path: Path
) -> None:
    out = crates(tmp_path, text, OTHER, filters=BARE, student_formats=["few_shot_cot", "zero_shot_cot"])
    assert reasons(out) == {expected: 1}, "once, not in each format"
    assert len(kept(out)) == 2


def test_a_cut_off_path_is_none_even_where_the_policy_keeps_it(tmp_path: Path) -> None:
    teacher = ScriptTeacher(lambda request: "12 * 5 = 60. The answer is 6" + ScriptTeacher.CUT)
    for policy in ("reject", "keep"):
        with pytest.raises(NothingLeft):
            run(tmp_path / policy, teacher, tried=2, samples=2, on_truncated=policy)
        assert reasons(tmp_path / policy) == {"truncated": 4}


def test_paths_without_equations_are_the_same_only_if_they_say_the_same(tmp_path: Path) -> None:
    texts = [
        "Cork floats. The answer is cork.",
        "Cork  floats.\nThe answer is cork.",
        "Wood too. The answer is cork.",
    ]
    source = asked_of([{"question": "Name what floats.", "answer": "cork"}], tmp_path, "exact")
    out = crates(tmp_path, *texts, questions=source)
    assert [sample.text for sample in kept(out)] == [texts[0], texts[2]]
    assert reasons(out) == {"same_path": 1}


def test_equations_that_hold_are_within_a_thousandth(tmp_path: Path) -> None:
    out = crates(
        tmp_path, "60 / 7 = 8.571, and 12 * 5 = 60. The answer is 60.", "60 / 7 = 8.57. The answer is 60."
    )
    assert [rejection.detail for rejection in read_rejections(out / "rejected.jsonl")] == ["60/7=8.57"]


def test_max_per_question_favours_no_teacher(tmp_path: Path) -> None:
    texts = {"teacher": "12 * 5 = 60. The answer is 60.", "teacher_2": "5 * 12 = 60. The answer is 60."}

    def teacher(role: str) -> EchoTeacher:
        return EchoTeacher(lambda *_: reply(texts[role]), identity=role)

    teachers = {role: teacher(role) for role in texts}
    filters = {**BARE, "max_per_question": 3}
    source = asked_of([CRATES], tmp_path)
    out = run(tmp_path / "r", teachers, questions=source, samples=2, teachers=2, filters=filters)
    assert [(fields(s).teacher, fields(s).draw) for s in kept(out)] == [
        ("teacher", 0),
        ("teacher_2", 0),
        ("teacher", 1),
    ]
    assert reasons(out) == {"surplus": 1}


# --- the vote


def test_min_share_is_the_least_that_passes(tmp_path: Path) -> None:
    for min_share, left in ((0.5, 1), (0.51, 0)):
        (folder := tmp_path / str(left)).mkdir()
        filters = {"keep": "majority", "min_share": min_share}
        with pytest.raises(NothingLeft) if left == 0 else nullcontext():
            crates(folder, GOOD, "The answer is 17.", filters=filters)
        assert reasons(folder / "run") == ({"outvoted": 1} if left else {"outvoted": 1, "low_share": 1})


def test_equal_answers_are_counted_in_one_form_and_unreadable_ones_in_the_total(tmp_path: Path) -> None:
    said = ["The answer is 17.", "The answer is 60.0 bottles.", "The answer is $60.", "The answer is 2 + 2."]
    texts = [*said, "It is 60."]
    out = crates(tmp_path, *texts, filters={"keep": "majority"})
    assert [sample.text for sample in kept(out)] == texts[1:3]
    assert {sample.answer for sample in kept(out)} == {"60"}
    assert {(fields(s).vote_share, fields(s).voted_right) for s in kept(out)} == {(0.4, True)}
    assert reasons(out) == {"outvoted": 2, "no_answer": 1}


def test_several_teachers_vote_together(tmp_path: Path) -> None:
    bad = EchoTeacher(lambda *_: reply("The answer is 99."), identity="bad")
    teachers = {"teacher": "oracle", "teacher_2": bad, "teacher_3": "oracle"}
    out = run(
        tmp_path / "r", teachers, tried=5, samples=2, teachers=3, filters={**BARE, "keep": "majority"}
    )  # fmt: skip
    assert {fields(sample).teacher for sample in kept(out)} == {"teacher", "teacher_3"}
    assert {fields(sample).vote_share for sample in kept(out)} == {4 / 6}
    assert reasons(out) == {"outvoted": 10}


def test_a_vote_needs_no_gold_answer(tmp_path: Path) -> None:
    source = asked_of([{"question": CRATES["question"]}], tmp_path)
    out = crates(tmp_path, GOOD, OTHER, "The answer is 17.", questions=source, filters={"keep": "majority"})
    assert [(sample.answer, fields(sample).voted_right) for sample in kept(out)] == [("60", None)] * 2


def test_a_vote_may_be_wrong_and_says_so_where_gold_is_known(tmp_path: Path) -> None:
    out = crates(
        tmp_path, "12 + 5 = 17. The answer is 17.", "The answer is 17.", GOOD, filters={"keep": "majority"}
    )
    assert {(sample.answer, fields(sample).voted_right) for sample in kept(out)} == {("17", False)}


def test_more_draws_make_truer_labels(tmp_path: Path) -> None:
    """The vote of an oracle that errs in a third of its replies, as LMSI has it."""
    accuracy = {}
    for samples in (1, 9):
        filters = {"keep": "majority", "valid_equations": False, "max_per_question": 1}
        teacher = OracleTeacher(Oracle(error_rate=0.35))
        out = run(tmp_path / str(samples), teacher, n=100, tried=100, samples=samples, filters=filters)
        found = [fields(sample) for sample in kept(out)]
        accuracy[samples] = sum(one.voted_right is True for one in found) / len(found)
        paths = [next(iter(s.text.split("answer is ")[1:])).strip(".") == s.answer for s in kept(out)]
        assert all(paths), "each kept path says what was voted"
    assert 0.5 < accuracy[1] < 0.8
    assert accuracy[9] > 0.95


def test_an_oracle_that_errs_gives_right_samples_alone(tmp_path: Path) -> None:
    out = run(tmp_path / "r", OracleTeacher(Oracle(error_rate=0.5, no_marker=0.1)), samples=6, tried=30)
    samples = kept(out)
    assert len(samples) > 30
    for sample in samples:
        assert sample.text.removesuffix(".").endswith(f"answer is {sample.answer}")
        assert all(one.is_valid for one in equations(sample.text))
    found = reasons(out)
    assert set(found) == {"wrong_answer", "same_path", "no_answer"}
    assert 0.3 < found["wrong_answer"] / (30 * 6) < 0.6


# --- formats


def test_the_prompt_of_a_real_seed(tmp_path: Path) -> None:
    out = run(tmp_path / "r", "oracle", n=1, tried=1)
    (sample, *_) = kept(out)
    (message,) = sample.prompt
    assert message.content == (
        "State the final answer to the following arithmetic problem: 0 - 4 - 8 =\n\n"
        "Think it through step by step, and write down every calculation. "
        "Then close with a sentence of this form: The answer is X."
    )
    assert sample.teacher_prompt is None
    assert sample.answer == "-12"
    assert sample.origin is not None
    assert len(sample.origin.calls) == 1


def test_four_formats_of_one_question(tmp_path: Path) -> None:
    out = crates(tmp_path, GOOD, OTHER, shots=2, student_shots=3, student_formats=FOUR)
    by_format: dict[FormatName, list[Completion]] = {}
    for sample in kept(out):
        by_format.setdefault(fields(sample).format, []).append(sample)
    assert {name: [s.text for s in found] for name, found in by_format.items()} == {
        "few_shot_cot": [GOOD, OTHER],
        "zero_shot_cot": [GOOD, OTHER],
        "few_shot_direct": ["60"],
        "zero_shot_direct": ["60"],
    }
    turns = {name: [m.role for m in found[0].prompt] for name, found in by_format.items()}
    assert turns["few_shot_cot"] == turns["few_shot_direct"] == ["user", "assistant"] * 3 + ["user"]
    assert turns["zero_shot_cot"] == turns["zero_shot_direct"] == ["user"]
    direct = by_format["few_shot_direct"][0].prompt
    assert [m.content for m in direct if m.role == "assistant"] == [one.answer for one in ARITHMETIC[:3]]
    shown = by_format["few_shot_cot"][0].prompt
    assert shown[1].content == f"{ARITHMETIC[0].reasoning}\nThe answer is {ARITHMETIC[0].answer}."
    for sample in kept(out):
        assert sample.teacher_prompt is not None
        assert [m.role for m in sample.teacher_prompt] == ["user", "assistant"] * 2 + ["user"]
        assert sample.teacher_prompt[-1].content.endswith(
            "Reason step by step, then close with: The answer is X."
        )


def test_what_the_student_sees_as_the_teacher_did_is_kept_once(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    same = crates(tmp_path, GOOD, shots=2, student_shots=2, student_formats=["few_shot_cot"])
    assert [sample.teacher_prompt for sample in kept(same)] == [None]


def test_the_bare_answer_is_that_of_most_kept_paths_as_it_was_written(tmp_path: Path) -> None:
    texts = ["The answer is 17.", "The answer is **60 bottles**.", "The answer is 60."]
    out = crates(tmp_path, *texts, filters=BARE, student_formats=["zero_shot_direct"])
    (sample,) = kept(out)
    assert sample.text == "60 bottles"
    assert fields(sample).draw == 1


def test_without_a_kept_path_there_is_no_bare_answer(tmp_path: Path) -> None:
    with pytest.raises(NothingLeft):
        crates(tmp_path, "The answer is 17.", "Hm.", student_formats=["zero_shot_cot", "zero_shot_direct"])
    found = {one.reason: one.detail for one in read_rejections(tmp_path / "run" / "rejected.jsonl")}
    assert found["no_path"] == "1 wrong_answer, 1 no_answer"


def test_the_question_is_never_its_own_demonstration(tmp_path: Path) -> None:
    source = asked_of([{"question": ARITHMETIC[0].question, "answer": "21"}], tmp_path)
    out = crates(tmp_path, "6 * 4 - 3 = 21. The answer is 21.", questions=source, shots=6)
    (sample,) = kept(out)
    assert sample.teacher_prompt is not None
    asked = [message.content for message in sample.teacher_prompt if message.role == "user"]
    assert sum(ARITHMETIC[0].question in text for text in asked) == 1
    assert len(asked) == 6, "the five others, and the question itself"


def test_demonstrations_of_the_users_own_with_choices(tmp_path: Path) -> None:
    own = {
        "question": "Which floats?",
        "choices": ["lead", "cork"],
        "reasoning": "Cork is light.",
        "answer": "B",
    }
    rows = [{"question": "Which sinks?", "choices": ["iron", "wood"], "answer": "A"}]
    out = crates(
        tmp_path, "Iron is heavy. The answer is (A).",
        questions=asked_of(rows, tmp_path, "choice"), shots=1, demonstrations=[own],
    )  # fmt: skip
    (sample,) = kept(out)
    assert sample.teacher_prompt is not None
    assert sample.teacher_prompt[0].content.startswith("Which floats?\n(A) lead\n(B) cork\n\nReason")
    assert sample.teacher_prompt[1].content == "Cork is light.\nThe answer is B."
    assert sample.teacher_prompt[2].content.startswith("Which sinks?\n(A) iron\n(B) wood\n\nReason")


def test_the_marker_is_asked_for_and_read(tmp_path: Path) -> None:
    out = crates(tmp_path, "12 * 5 = 60. Answer: 60", "12 * 5 = 60, so it is 60.", marker="Answer:")
    assert [sample.text for sample in kept(out)] == ["12 * 5 = 60. Answer: 60"]
    assert kept(out)[0].prompt[0].content.endswith("of this form: Answer: X.")
    assert reasons(out) == {"no_answer": 1}


def test_thinking_stays_in_the_message(tmp_path: Path) -> None:
    out = crates(
        tmp_path, f"<think>12 + 5? No.</think>\n{GOOD}", student_formats=["zero_shot_cot", "zero_shot_direct"]
    )
    worked, bare = kept(out)
    assert worked.completion == (Message(role="assistant", content=GOOD, reasoning="12 + 5? No."),)
    assert bare.completion == (Message(role="assistant", content="60"),)


# --- the run


@pytest.mark.parametrize("formats", [["zero_shot_cot"], FOUR])
def test_changed_filters_rename_nothing_and_cost_nothing(formats: list[str], tmp_path: Path) -> None:
    calls: list[Request] = []

    class Counting(OracleTeacher):
        async def ask(self, request: Request) -> bytes:
            calls.append(request)
            return await super().ask(request)

    teacher = Counting(Oracle(error_rate=0.4, no_marker=0.1))
    values: dict[str, Any] = {"n": 10**6, "tried": 12, "samples": 5, "student_formats": formats}
    out = run(tmp_path / "r", teacher, filters=BARE, **values)
    everything = {sample.id: (sample.text, fields(sample).format) for sample in kept(out)}
    made = len(calls)
    for filters in (
        {},
        {"keep": "majority"},
        {**BARE, "max_per_question": 1},
        {"keep": "gold", "distinct": False},
    ):
        run(out, teacher, filters=filters, reparse=True, **values)
        for sample in kept(out):
            text, name = everything[sample.id]
            assert (sample.text, fields(sample).format) == (text, name) or name.endswith("direct")
        assert 0 < len(kept(out)) < len(everything)
    assert len(calls) == made == 12 * 5


def test_the_same_teacher_in_two_roles_gives_twice_the_draws(tmp_path: Path) -> None:
    out = run(
        tmp_path / "r", {"teacher": "oracle", "teacher_2": "oracle"}, n=12, tried=3, samples=2, teachers=2,
        filters=BARE,
    )  # fmt: skip
    calls = [call for sample in kept(out) if sample.origin is not None for call in sample.origin.calls]
    assert len(set(calls)) == len(calls) == 12


@pytest.mark.parametrize(
    ("row", "reason"), [({"answer": None}, "no_gold"), ({"answer": "about 3 or 4"}, "gold_unreadable")]
)
def test_a_question_that_cannot_be_checked_is_paid_for_with_nothing(
    row: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    teacher = says(GOOD)
    with pytest.raises(NothingLeft):
        run(tmp_path / "r", teacher, questions=asked_of([{"question": "How many?", **row}], tmp_path))
    assert reasons(tmp_path / "r") == {reason: 1}
    assert teacher.requests == []


def test_each_role_needs_a_teacher(tmp_path: Path) -> None:
    assert list(chain_of_thought.roles(config(teachers=3))) == ["teacher", "teacher_2", "teacher_3"]
    with pytest.raises(UsageError, match="role 'teacher_2'"):
        run(tmp_path / "r", "oracle", teachers=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"samples": 0}, "samples = 0: input should be greater than or equal to 1"),
        ({"sampling": {"temperature": 0}}, "samples above 1 need sampling.temperature above 0"),
        ({"filters": {"min_share": 0.5}}, "min_share is of the vote: set keep to majority"),
        ({"filters": {"keep": "most"}}, r"filters.keep = \"most\""),
        ({"student_formats": []}, "student_formats"),
        ({"student_formats": ["zero_shot_cot", "zero_shot_cot"]}, "student_formats names a format twice"),
        ({"shots": 7}, "shots is 7, but there are only 6 demonstrations"),
        (
            {
                "student_formats": ["few_shot_cot"],
                "demonstrations": [{"question": "1 + 1", "reasoning": "1 + 1 = 2.", "answer": "2"}],
            },
            "student_shots is 4, but there are only 1 demonstrations",
        ),
        ({"demonstrations": [{"question": "1 + 1"}]}, "demonstrations.0.reasoning' is missing"),
    ],
)
def test_a_config_that_cannot_be_is_refused_in_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        config(**values)


def test_a_greedy_draw_may_be_the_only_one(tmp_path: Path) -> None:
    out = run(tmp_path / "r", "oracle", n=3, tried=3, samples=1, sampling={"temperature": 0})
    assert len(kept(out)) == 3
