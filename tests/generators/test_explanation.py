"""The explanation recipe: which intents fit where, mixing, the two stages, what is turned down."""

from __future__ import annotations

import json
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kdbench
from kdbench.config import build
from kdbench.errors import ConfigError, Rejected, UsageError
from kdbench.jsonl import read_rejections, read_samples
from kdbench.prompts import Prompts
from kdbench.questions import Question
from kdbench.records import Completion
from kdbench.replies import find_fault
from kdbench_generators import explanation
from kdbench_generators.explanation import CHOICE_INTENTS, FITTING, INTENTS, CollectionName, Config, Filters
from tests.support.teachers import EchoTeacher, ScriptTeacher, reply

PLAIN = Question("What floats on water?", answer="cork")
CHOICE = Question("Which one floats on water?", answer="A", choices=("cork", "lead"))
TASK = {"task": {"chain_sum": {"max_terms": 3}}}
LONG = "Count on from the first number, one after the other, as on your fingers."


def config(**values: Any) -> Config:
    return build(Config, {"questions": TASK, **values}, "recipe explanation")


def draw(question: Question, seed: int, **values: Any) -> explanation.Plan:
    return explanation.draw_plan(random.Random(seed), question, config(**values))


def generate(
    out: Path, teacher: Any, *, n: int = 3, max_candidates: int | None = None, **values: Any
) -> Path:
    values = {"questions": TASK, **values}
    return kdbench.generate(
        "explanation", teacher=teacher, n=n, out=out, config=values, max_candidates=max_candidates
    )


def completions(run: Path) -> list[Completion]:
    return [sample for sample in read_samples(run / "samples.jsonl") if isinstance(sample, Completion)]


def test_there_are_sixteen_intents_and_each_but_the_empty_one_has_a_template_of_its_own() -> None:
    assert len(INTENTS) == 16
    assert {intent for fitting in FITTING.values() for intent in fitting} == set(INTENTS)
    texts = [Prompts("explanation").render(intent) for intent in INTENTS if intent != "empty"]
    assert len(set(texts)) == 15
    assert all(len(text) > 40 for text in texts)
    assert {name for name in Prompts("explanation").hashes() if name.startswith("explanation/")} == {
        f"explanation/{intent}.j2" for intent in INTENTS if intent != "empty"
    }


@pytest.mark.parametrize("collection", FITTING)
@pytest.mark.parametrize("question", [PLAIN, CHOICE])
def test_an_intent_is_drawn_from_all_that_fit_and_from_no_other(
    collection: CollectionName, question: Question
) -> None:
    values = {"collections": {question.kind: collection}}
    drawn = {draw(question, seed, **values).intent for seed in range(400)}
    fitting = set(FITTING[collection])
    assert drawn == (fitting if question.choices else fitting - set(CHOICE_INTENTS))


def test_the_intents_on_a_definition_go_with_niv2_alone() -> None:
    definition = {
        "definition_used", "definition_and_input", "teacher_guidelines", "translator", "definition_parts"
    }  # fmt: skip
    assert definition <= set(FITTING["niv2"])
    assert not any(definition & set(fitting) for name, fitting in FITTING.items() if name != "niv2")


def test_a_kind_is_mapped_or_is_a_sub_collection_itself_or_is_other() -> None:
    found = [
        explanation.collection_of(kind, config(collections={"gsm": "cot", "t0": "niv2"}))
        for kind in ("gsm", "flan2021", "t0", "chain_sum", "")
    ]
    assert found == ["cot", "flan2021", "niv2", "other", "other"]


def test_intents_may_be_narrowed_until_none_fits() -> None:
    assert draw(CHOICE, 0, intents=["choice_explained"]).intent == "choice_explained"
    with pytest.raises(Rejected, match="no_fitting_intent: sub-collection other"):
        draw(PLAIN, 0, intents=["choice_explained"])


def test_mixing_keeps_a_question_in_proportion_to_its_share() -> None:
    kept: Counter[str] = Counter()
    mix = {"cot": 1.0, "niv2": 4.0, "t0": 2.0}
    for kind in (*mix, "flan2021"):
        for seed in range(1000):
            with suppress(Rejected):
                draw(Question("?", kind=kind), seed, mix=mix)
                kept[kind] += 1
    assert kept["niv2"] == 1000
    assert 200 < kept["cot"] < 300
    assert 450 < kept["t0"] < 550
    assert kept["flan2021"] == 0


def test_a_question_that_is_not_drawn_costs_no_call(tmp_path: Path) -> None:
    teacher = ScriptTeacher(lambda request: LONG)
    source: dict[str, Any] = {"task": {"chain_sum": {}, "products": {}}}
    run = generate(
        tmp_path / "r", teacher, n=4, questions=source, collections={"products": "t0"}, mix={"other": 1}
    )
    assert {json.loads(sample.fields)["kind"] for sample in completions(run)} == {"chain_sum"}
    assert {r.reason for r in read_rejections(run / "rejected.jsonl")} == {"not_drawn"}
    assert all(r.origin is not None and not r.origin.calls for r in read_rejections(run / "rejected.jsonl"))


def test_the_student_sees_what_the_teacher_saw(tmp_path: Path) -> None:
    teacher = EchoTeacher(lambda request, number: reply(LONG))
    run = generate(tmp_path / "r", teacher, n=30)
    samples = completions(run)
    assert {sample.prompt for sample in samples} <= {request.messages for request in teacher.requests}
    intents = Counter(json.loads(sample.fields)["intent"] for sample in samples)
    assert len(intents) > 4
    for sample in samples:
        roles = ["user"] if json.loads(sample.fields)["intent"] == "empty" else ["system", "user"]
        assert [message.role for message in sample.prompt] == roles
        assert sample.teacher_prompt is None


def test_the_second_stage_has_the_stronger_teacher_and_the_same_prompt(tmp_path: Path) -> None:
    teachers = {
        "teacher": ScriptTeacher(lambda request: LONG, identity="plain"),
        "strong_teacher": ScriptTeacher(lambda request: f"{LONG} And so on.", identity="strong"),
    }
    run = generate(tmp_path / "r", teachers, n=300, strong_share=0.25)
    stages: dict[str | None, dict[int, Completion]] = {}
    for sample in completions(run):
        assert sample.origin is not None
        assert len(sample.origin.calls) == 1
        stage = json.loads(sample.fields)["stage"]
        assert sample.text.endswith("And so on.") is (stage == 2)
        stages.setdefault(sample.id.rsplit("-", 1)[0], {})[stage] = sample
    both = [found for found in stages.values() if len(found) == 2]
    assert all(found[1].prompt == found[2].prompt and found[1].group == found[2].group for found in both)
    assert 0.18 < len(both) / len(stages) < 0.32
    assert teachers["strong_teacher"].asked < teachers["teacher"].asked / 2


def test_a_useless_reply_of_one_teacher_leaves_the_other_its_sample(tmp_path: Path) -> None:
    teachers = {
        "teacher": ScriptTeacher(lambda request: LONG + ScriptTeacher.CUT, identity="plain"),
        "strong_teacher": ScriptTeacher(lambda request: LONG, identity="strong"),
    }
    run = generate(tmp_path / "r", teachers, strong_share=1.0)
    assert [json.loads(sample.fields)["stage"] for sample in completions(run)] == [2, 2, 2]
    assert {r.reason for r in read_rejections(run / "rejected.jsonl")} == {"truncated"}


def test_only_one_teacher_is_needed_without_a_second_stage(tmp_path: Path) -> None:
    assert set(explanation.roles(config())) == {"teacher"}
    teacher = ScriptTeacher(lambda request: LONG)
    with pytest.raises(UsageError, match="needs a teacher for the role 'strong_teacher': --teacher strong"):
        generate(tmp_path / "r", teacher, strong_share=0.1)
    with pytest.raises(UsageError, match="no role 'strong_teacher'"):
        generate(tmp_path / "r", {"teacher": teacher, "strong_teacher": teacher})
    assert not (tmp_path / "r").exists()


def test_a_teacher_that_cannot_chat_is_refused(tmp_path: Path) -> None:
    class Mute(ScriptTeacher):
        capabilities = frozenset({"score"})

    with pytest.raises(UsageError, match="Teacher mute cannot 'chat', which the role 'teacher' needs"):
        generate(tmp_path / "r", Mute(lambda request: LONG, identity="mute"))


def wrong(text: str, correct: bool | None = None, **filters: Any) -> str | None:
    fault = explanation.find_wrong(text, "How many legs do four cats have?", correct, Filters(**filters))
    return fault and fault[0]


def test_each_filter_turns_down_a_text_that_passes_once_it_is_eased() -> None:
    assert wrong(LONG, min_words=20) == "too_short"
    assert wrong(LONG, min_words=5) is None
    assert wrong(LONG, max_words=9) == "too_long"
    assert wrong(LONG, max_words=40) is None
    assert wrong(LONG, False, check_answer=True) == "wrong_answer"
    assert wrong(LONG, False) is None
    assert wrong("I'm sorry, but I can't help with that.") == "refusal"
    french = "Chaque chat a quatre pattes, donc quatre chats en ont seize en tout, comme on le voit."
    assert wrong(french) == "other_language"
    assert wrong(french, any_language=True) is None


@given(
    st.integers(0, 60),
    st.integers(0, 40),
    st.integers(1, 40),
    st.sampled_from([True, False, None]),
    st.booleans(),
)
def test_the_filter_keeps_exactly_what_it_says(
    count: int, few: int, many: int, correct: bool | None, check: bool
) -> None:
    if few > many:
        with pytest.raises(ConfigError, match="min_words must not be above max_words"):
            build(Filters, {"min_words": few, "max_words": many}, "filters")
        return
    text = " ".join(str(number) for number in range(count))
    kept = count > 0 and few <= count <= many and not (check and correct is False)
    assert (wrong(text, correct, min_words=few, max_words=many, check_answer=check) is None) is kept


def test_only_a_marked_answer_with_gold_is_checked() -> None:
    assert explanation.is_right("So it floats. The answer is cork.", PLAIN, "The answer is") is True
    assert explanation.is_right("So it floats. The answer is lead.", PLAIN, "The answer is") is False
    assert explanation.is_right("It is lead.", PLAIN, "The answer is") is None
    assert explanation.is_right("The answer is lead.", Question("?"), "The answer is") is None


def test_an_explanation_may_quote_its_question_but_not_be_it() -> None:
    question = (
        "A farmer has four fields of the same size and sows wheat on one of them, barley on two of them and "
        "nothing at all on the last one. How many of his fields are sown?"
    )
    explained = (
        "He sows wheat on one of them, barley on two of them and nothing at all on the last one, it says. "
        "One and two make three, and the fallow field does not count, since nothing was put into its soil; "
        "so three of the four bear some grain."
    )
    assert find_fault(explained, question) == ("prompt_echoed", "")
    assert find_fault(explained, question, quotes=True) is None
    assert find_fault(f"{question} I wonder.", question, quotes=True) == ("prompt_echoed", "")


def test_a_checked_answer_can_be_let_through_later_for_nothing(tmp_path: Path) -> None:
    wrong_teacher = ScriptTeacher(
        lambda r: LONG if "+" in r.messages[-1].content else f"{LONG} The answer is pi."
    )
    checked: dict[str, Any] = {"filters": {"check_answer": True}}
    run = generate(tmp_path / "r", wrong_teacher, n=4, **checked)
    rejected = list(read_rejections(run / "rejected.jsonl"))
    assert {r.reason for r in rejected} == {"wrong_answer"}
    assert all(isinstance(r.sample, Completion) and r.sample.text.endswith("pi.") for r in rejected)
    asked = wrong_teacher.asked
    again = kdbench.generate(
        "explanation", teacher=wrong_teacher, n=4, out=run, config={"questions": TASK}, reparse=True
    )
    assert wrong_teacher.asked == asked
    assert not list(read_rejections(again / "rejected.jsonl"))
    assert {json.loads(sample.fields)["correct"] for sample in completions(again)} >= {False}


def test_too_few_samples_are_kept_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    teacher = ScriptTeacher(lambda r: LONG if "-" in r.messages[-1].content else "No.")
    run = generate(tmp_path / "r", teacher, n=8, max_candidates=8, filters={"min_words": 5})
    kept = completions(run)
    assert 0 < len(kept) < 8
    assert (
        f"{len(kept)} of 8 samples: the 8 seeds of this run are used up; the samples are kept" in caplog.text
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"intents": ["step_by_stepp"]}, "(did you mean 'step_by_step'?)"),
        ({"intents": []}, "intents"),
        ({"mix": {"flan2022": 1}}, "(did you mean 'flan2021'?)"),
        (
            {"collections": {"gsm": "chain"}},
            "collections.gsm = \"chain\": input should be 'cot', 'niv2', 't0', 'flan2021' or 'other'",
        ),
        ({"mix": {"cot": 0}}, "mix must give at least one sub-collection a share above 0"),
        ({"mix": {"cot": -1}}, "mix.cot = -1: input should be greater than or equal to 0"),
        ({"strong_share": 1.5}, "strong_share = 1.5: input should be less than or equal to 1"),
        ({"filters": {"min_words": 9, "max_words": 8}}, "min_words must not be above max_words"),
        ({"feature": 1}, "no key 'feature'"),
    ],
)
def test_a_mistake_in_the_config_is_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "alue error" not in str(caught.value)
