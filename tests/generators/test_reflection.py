"""The reflection recipe: the path that verdicts lead along, what each step shows, and what must not leak."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdbench
from kdbench.config import build
from kdbench.engine import Seed
from kdbench.errors import ConfigError, NothingLeft, Rejected, UsageError
from kdbench.jobs._playing import Played, Scripted, play
from kdbench.jobs._recipes import load_recipe
from kdbench.jsonl import read_rejections, read_samples
from kdbench.prompts import _shipped
from kdbench.questions import Question
from kdbench.records import Completion, Rejection
from kdbench.teacher import Request
from kdbench_generators.reflection import PATHS, Config, solution_of
from tests.generators.cases import reflection as case
from tests.support.teachers import ScriptTeacher

TASK = case.CONFIG["questions"]
SUM = Question("What is 20 + 40?", "60", verifier="numeric")
OPEN = Question("Why is the sky blue?", verifier="exact")
RIGHT = "Add the tens: 20 + 40 = 60. The answer is 60."
WRONG = "Add the tens: 20 + 40 = 50. The answer is 50."
Outcome = Completion | Rejection


def parts(solution: str) -> str:
    return f"Reflection: the tens were added wrongly.\nCorrect solution: {solution}"


def played(*replies: str, question: Question = SUM, judge: list[str] | None = None, **values: Any) -> Played:
    """One question, with these replies of the teacher and of the judge."""
    values = {"questions": TASK, "judge": "verifier" if judge is None else "model", **values}
    recipe = load_recipe("reflection", values)
    teachers = {"teacher": Scripted(replies), "judge": Scripted(judge or [])}
    [one] = asyncio.run(play(recipe, [Seed(0, random.Random(0), question)], teachers))
    return one


def outcome(*replies: str, **values: Any) -> Outcome:
    found = played(*replies, **values).outcomes
    assert found is not None, "more was asked than there are replies"
    [one] = found
    assert isinstance(one, Outcome)
    return one


def sample_of(one: Outcome) -> Completion:
    sample = one.sample if isinstance(one, Rejection) else one
    assert isinstance(sample, Completion)
    return sample


def fields(one: Outcome) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sample_of(one).fields)
    return found


def reason(one: Outcome) -> str:
    return one.reason if isinstance(one, Rejection) else ""


def generate(out: Path, teacher: ScriptTeacher, *, n: int = 8, **values: Any) -> Path:
    names = ("reparse", "max_candidates", "prompts")
    driven = {key: values.pop(key) for key in names if key in values}
    return kdbench.generate(
        "reflection", teacher=teacher, n=n, out=out, config={"questions": TASK, **values}, **driven
    )


# The path.

REPLIES = {  # what a step says -> the verdict on it
    RIGHT: True,
    WRONG: False,
    "It is about as much as three scores.": False,
    "The answer is 50. No, the answer is 60.": False,
}
USELESS = ("I'm sorry, but I can't help with that.", "", "20 and 40 and " * 12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([*REPLIES, *USELESS]), min_size=3, max_size=3))
def test_the_path_is_what_the_verdicts_imply(said: list[str]) -> None:
    verdicts = [REPLIES.get(text) for text in said]
    one = outcome(said[0], *(parts(text) for text in said[1:]))
    if verdicts[0] is None:  # nothing to reflect on
        assert reason(one) in ("refusal", "empty_reply", "loop")
        return
    right = verdicts.index(True) if True in verdicts else None
    if right is None:
        assert reason(one) == "never_right"
        assert fields(one)["verdicts"] == verdicts
        return
    assert isinstance(one, Completion)
    assert fields(one)["path"] == PATHS[right]
    assert fields(one)["attempts"] == right + 1
    assert fields(one)["verdicts"] == verdicts[: right + 1]
    assert one.text == RIGHT
    assert one.answer == "60"


def test_whatever_the_teacher_says_a_kept_solution_is_right(tmp_path: Path) -> None:
    run = generate(tmp_path / "r", ScriptTeacher(case.tell), n=40)
    paths = set()
    for sample in read_samples(run / "samples.jsonl"):
        assert isinstance(sample, Completion)
        assert sample.answer is not None
        assert sample.text.endswith(f"The answer is {sample.answer}.")
        paths.add(fields(sample)["path"])
    assert paths == set(PATHS)


def test_a_question_that_was_never_right_shows_its_last_solution() -> None:
    last = WRONG.replace("50", "70")
    one = outcome(WRONG, parts(WRONG.replace("50", "90")), parts(last))
    assert isinstance(one, Rejection)
    assert one.detail == "solved: wrong_answer 50; reflected: wrong_answer 90; told: wrong_answer 70"
    assert sample_of(one).text == last
    one = outcome(WRONG, "I see my error.", "Reflection: so it is.")
    assert isinstance(one, Rejection)
    assert sample_of(one).text == WRONG
    assert one.detail.count("no_solution_block") == 2
    assert fields(one)["verdicts"] == [False, None, None]


def test_a_reply_that_is_cut_off_goes_on_to_the_next_step(tmp_path: Path) -> None:
    def tell(request: Request) -> str:
        if (step := case.step_of(request)) == "solved":
            return case.solution(request, 1)
        return case.parts(case.solution(request)) + ScriptTeacher.CUT * (step == "reflected")

    for number, policy in enumerate(("reject", "keep")):
        run = kdbench.generate(
            "reflection", teacher=ScriptTeacher(tell), n=2, out=tmp_path / str(number), on_truncated=policy,
            config={"questions": TASK},
        )  # fmt: skip
        for sample in read_samples(run / "samples.jsonl"):
            assert isinstance(sample, Completion)
            assert (fields(sample)["path"], fields(sample)["verdicts"]) == ("told", [False, None, True])


# What is shown, and what is learnt.


def test_the_answer_is_shown_in_the_last_step_alone() -> None:
    found = played(WRONG, parts(WRONG), parts(RIGHT))
    asked = [one.messages for one in found.said]
    assert [len(messages) for messages in asked] == [1, 3, 5]
    assert ["60" in messages[-1].content for messages in asked] == [False, False, True]
    assert asked[1][:2] == asked[2][:2]
    assert [asked[1][1].content, asked[2][3].content] == [WRONG, parts(WRONG)]
    for messages in asked[1:]:
        assert "\nReflection: " in messages[-1].content
        assert "\nCorrect solution: " in messages[-1].content
        assert "The answer is X" in messages[-1].content


def test_a_step_that_gave_nothing_is_not_shown_again() -> None:
    asked = [one.messages for one in played(WRONG, "I see no error.", parts(RIGHT)).said]
    assert [len(messages) for messages in asked] == [1, 3, 3]
    assert asked[1][:2] == asked[2][:2]


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_the_student_sees_the_question_and_the_solution_and_nothing_else(wrong: int) -> None:
    said = [WRONG, parts(WRONG)][:wrong]
    one = outcome(*said, RIGHT if wrong == 0 else parts(RIGHT))
    assert isinstance(one, Completion)
    assert [(m.role, m.content) for m in one.prompt] == [("user", SUM.text)]
    assert one.text == RIGHT
    assert one.group == SUM.group
    assert one.teacher_prompt is not None
    assert len(one.teacher_prompt) == 1 + 2 * wrong
    assert one.origin is None  # all calls of the seed: the engine's own


def test_only_thinking_that_saw_no_more_than_the_question_is_kept() -> None:
    one = outcome(f"<think>20 and 40.</think>{RIGHT}")
    assert sample_of(one).completion[0].reasoning == "20 and 40."
    two = outcome(WRONG, f"<think>They say 50 is wrong.</think>{parts(RIGHT)}")
    assert sample_of(two).completion[0].reasoning is None
    assert sample_of(two).text == RIGHT


@pytest.mark.parametrize(
    ("text", "solution"),
    [
        (f"Reflection: I slipped.\nCorrect solution: {RIGHT}", RIGHT),
        (f"Sure!\n\n**Reflection:** I slipped.\n\n**Correct Solution:**\n{RIGHT}", RIGHT),
        (f"## Reflection\nI slipped.\n\n## Corrected solution\n\n{RIGHT}\n", RIGHT),
        (f"1. Reflection: I slipped.\n2. **Correct solution**: {RIGHT}", RIGHT),
        (
            "Reflection: my first\ncorrect solution attempt was none.\nCorrect solution: It is 60.\nSo 60.",
            "It is 60.\nSo 60.",
        ),
        (f"Correct solution: {RIGHT}", None),
        (f"Reflection: {RIGHT}", None),
        (RIGHT, None),
        (f"Correct solution: {RIGHT}\nReflection: I slipped.", None),
        (f"Reflection: a\nCorrect solution: {WRONG}\nCorrect solution: {RIGHT}", None),
        ("Reflection: I slipped.\nCorrect solution:\n", None),
    ],
)
def test_the_solution_is_cut_out_of_a_reply_of_two_parts(text: str, solution: str | None) -> None:
    if solution is None:
        with pytest.raises(Rejected, match="no_solution_block"):
            solution_of(text)
    else:
        assert solution_of(text) == solution


# Leaks.

LEAKS = (
    "As the given answer says, 20 + 40 = 60.",
    "The real answer shows that 20 + 40 = 60.",
    "The provided correct answer is 60, so 20 + 40 = 60.",
    "This agrees with the right answer.",
    "We were told the answer, and 20 + 40 = 60.",
    "Given that the correct answer is 60, we add the tens.",
    "20 + 40 is the answer you gave, 60.",
    "20 + 40 = 60, which matches the\ncorrect answer.",
)
NO_LEAKS = (
    "Of the given answer choices the last fits: 20 + 40 = 60.",
    "The final answer is given by 20 + 40 = 60.",
    "It is the answer given by adding the tens.",
    "We are given 20 and 40, and their sum is 60.",
    "We are told that there are 20 and 40. The right sum is 60.",
    "Tom gave the answer to his teacher: 20 + 40 = 60.",
)


@pytest.mark.parametrize("text", LEAKS)
def test_a_told_solution_that_speaks_of_the_answer_it_was_given_is_turned_down(text: str) -> None:
    leaky = f"{text} The answer is 60."
    one = outcome(WRONG, parts(WRONG), parts(leaky))
    assert reason(one) == "leaks_answer"
    assert sample_of(one).text == leaky
    assert reason(outcome(WRONG, parts(WRONG), parts(leaky), filters={"no_leaks": False})) == ""
    # Who was shown no answer can only speak of the question's.
    assert reason(outcome(WRONG, parts(leaky))) == ""
    assert reason(outcome(leaky)) == ""


@pytest.mark.parametrize("text", NO_LEAKS)
def test_talk_of_what_the_question_gives_is_no_leak(text: str) -> None:
    assert reason(outcome(WRONG, parts(WRONG), parts(f"{text} The answer is 60."))) == ""


# Filters.


def test_filters_choose_among_paths_and_cost_no_call(tmp_path: Path) -> None:
    teacher = ScriptTeacher(case.tell)
    many: dict[str, Any] = {"n": 50, "max_candidates": 30}
    run = generate(tmp_path / "all", teacher, **many)
    asked = teacher.asked

    def paths() -> dict[str, tuple[str, str]]:
        found = [*read_samples(run / "samples.jsonl"), *read_rejections(run / "rejected.jsonl")]
        return {
            one.id: (reason(one), fields(one)["path"] if isinstance(one, Completion) or one.sample else "")
            for one in found
            if isinstance(one, Outcome)
        }

    before = paths()
    few = {"keep_paths": ["reflected"], "no_leaks": False}
    generate(run, teacher, **many, filters=few, reparse=True)
    after = paths()
    assert teacher.asked == asked
    assert set(before) == set(after)
    for name, (why, path) in before.items():
        right = why in ("", "leaks_answer")
        expected = why if not right else "" if path == "reflected" else "path_not_kept"
        assert after[name] == (expected, path)
    fresh = ScriptTeacher(case.tell)
    generate(tmp_path / "few", fresh, **many, filters=few)
    assert fresh.asked == asked


def test_a_replay_says_where_a_call_was_never_made(tmp_path: Path) -> None:
    shutil.copytree(_shipped() / "reflection", tmp_path / "prompts" / "reflection")
    teacher = ScriptTeacher(lambda request: case.parts(case.solution(request, len(request.messages) == 1)))
    run = generate(tmp_path / "r", teacher, n=2)
    with open(tmp_path / "prompts" / "reflection" / "reflect.j2", "a") as file:
        file.write("Be brief.")
    with pytest.raises(NothingLeft, match="not_in_log 2"):
        generate(run, teacher, n=2, prompts=tmp_path / "prompts", reparse=True)


# The judge.


def test_a_model_judges_where_it_is_asked_to() -> None:
    found = played("It is sixty.", judge=['{"correct": true}'])
    assert [one.role for one in found.said] == ["teacher", "judge"]
    [ask] = found.said[1].messages
    assert "It is sixty." in ask.content
    assert SUM.text in ask.content
    assert "known to be: 60" in ask.content
    assert found.said[1].sampling.temperature == 0
    assert found.outcomes is not None
    [one] = found.outcomes
    assert isinstance(one, Completion)
    # Its word counts, whatever a verifier would say.
    wrong = outcome(RIGHT, parts(RIGHT), parts(RIGHT), judge=['{"correct": false}'] * 3)
    assert reason(wrong) == "never_right"
    assert isinstance(wrong, Rejection)
    assert wrong.detail == "solved: judged_wrong; reflected: judged_wrong; told: judged_wrong"


def test_a_judge_gets_one_chance_to_mend_its_verdict() -> None:
    one = outcome("It is sixty.", judge=["Right!", '{"correct": 1}'])
    assert isinstance(one, Completion)
    unjudged = outcome("It is sixty.", judge=["Right!", "I said it is right!"])
    assert reason(unjudged) == "unjudged"
    assert sample_of(unjudged).text == "It is sixty."
    late = outcome(WRONG, parts("Sixty."), judge=['{"correct": false}', "", "Hm."])
    assert reason(late) == "unjudged"
    assert fields(late)["verdicts"] == [False, None]


def test_without_gold_a_model_may_judge_and_nothing_is_told() -> None:
    found = played(
        "It reflects the sea.", parts("Blue light is scattered more."), question=OPEN,
        judge=['{"correct": false}', '{"correct": true}'],
    )  # fmt: skip
    assert "known to be" not in found.said[1].messages[0].content
    assert found.outcomes is not None
    [one] = found.outcomes
    assert isinstance(one, Completion)
    assert one.text == "Blue light is scattered more."
    assert one.answer is None
    given_up = outcome("The sea.", parts("The sea!"), question=OPEN, judge=['{"correct": false}'] * 2)
    assert reason(given_up) == "never_right"
    assert fields(given_up)["attempts"] == 2


def test_the_role_of_the_judge_is_needed_only_where_a_model_judges(tmp_path: Path) -> None:
    only = {"teacher": ScriptTeacher(case.tell)}
    kdbench.generate("reflection", teacher=only, n=1, out=tmp_path / "v", config={"questions": TASK})
    with pytest.raises(UsageError, match="judge"):
        kdbench.generate(
            "reflection", teacher=only, n=1, out=tmp_path / "m", config={"questions": TASK, "judge": "model"}
        )


def test_a_question_that_cannot_be_judged_costs_no_call(tmp_path: Path) -> None:
    rows = [{"question": "What is 1 + 1?", "answer": None}, {"question": "And 1 + 2?", "answer": "3 or 4"}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    teacher = ScriptTeacher(case.tell)
    with pytest.raises(NothingLeft):
        generate(
            tmp_path / "r", teacher, questions={"file": str(tmp_path / "q.jsonl"), "verifier": "numeric"}
        )
    rejected = [one.reason for one in read_rejections(tmp_path / "r" / "rejected.jsonl")]
    assert rejected == ["no_gold", "gold_unreadable"]
    assert teacher.asked == 0


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"judge": "gold"}, r'judge = "gold"'),
        ({"filters": {"keep_paths": []}}, r"filters\.keep_paths"),
        ({"filters": {"keep_paths": ["guessed"]}}, r"guessed"),
        ({"marker": ""}, "marker"),
    ],
)
def test_a_config_that_cannot_work_is_one_sentence(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        build(Config, {"questions": TASK, **values}, "recipe reflection")
