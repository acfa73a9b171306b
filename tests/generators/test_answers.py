"""The answers recipe: what is asked, how draws are scored, which are kept, and bad settings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kdbench
from kdbench.config import build
from kdbench.errors import ConfigError, UsageError
from kdbench.jsonl import read_rejections, read_samples
from kdbench.questions import Question
from kdbench.records import Completion
from kdbench.similarity import rouge_l
from kdbench.teacher import Reply, Request, Usage
from kdbench_generators import answers
from kdbench_generators.answers import Config, Draw, Filters
from tests.support.teachers import ScriptTeacher

ASKED = "Why do kettles whistle when water boils?"
TEXTS = [
    "Steam is pushed through a small hole in the lid.",
    "The steam is pushed out through a small hole, and the air sings.",
    "Steam is pushed out through a very small hole in the lid.",
    "Because they are fond of music.",
]


def write(folder: Path, *rows: dict[str, Any]) -> dict[str, Any]:
    file = folder / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return {"file": str(file)}


def saying(texts: list[str]) -> Callable[[Request], str]:
    """A script that says these texts in the order in which it is asked, over and over."""
    asked = Counter[str]()

    def say(request: Request) -> str:
        asked["times"] += 1
        return texts[(asked["times"] - 1) % len(texts)]

    return say


def run(
    folder: Path, *rows: dict[str, Any], texts: list[str] = TEXTS, judge: Any = None, **config: Any
) -> tuple[list[Completion], list[tuple[str, str]]]:
    """The samples, and (reason, detail) of the rejections, of one run over these questions."""
    teachers = {"teacher": ScriptTeacher(saying(texts))}
    if judge is not None:
        teachers["judge"] = ScriptTeacher(judge)
    out = kdbench.generate(
        "answers", teacher=teachers, n=100, max_candidates=len(rows) or 1, concurrency=1, out=folder / "run",
        config={"questions": write(folder, *(rows or [{"question": ASKED}])), **config},
    )  # fmt: skip
    samples = [one for one in read_samples(out / "samples.jsonl") if isinstance(one, Completion)]
    return samples, [(r.reason, r.detail) for r in read_rejections(out / "rejected.jsonl")]


def fields(sample: Completion) -> answers.Fields:
    return answers.Fields.model_validate_json(sample.fields)


def test_teacher_and_student_see_the_same(tmp_path: Path) -> None:
    seen: list[Request] = []

    def say(request: Request) -> str:
        seen.append(request)
        return TEXTS[0]

    questions = write(tmp_path, {"question": "Which is hot?", "choices": ["ice", "steam"], "answer": "B"})
    out = kdbench.generate(
        "answers", teacher=ScriptTeacher(say), n=1, out=tmp_path / "run",
        config={"questions": questions, "system": "Answer in one sentence."},
    )  # fmt: skip
    (sample,) = read_samples(out / "samples.jsonl")
    assert isinstance(sample, Completion)
    assert [m.role for m in sample.prompt] == ["system", "user"]
    assert sample.prompt[0].content == "Answer in one sentence."
    assert sample.prompt[1].content == "Which is hot?\n(A) ice\n(B) steam"
    assert sample.prompt == seen[0].messages
    assert sample.teacher_prompt is None
    assert (sample.text, sample.answer) == (TEXTS[0], "B")
    assert sample.group is not None
    assert fields(sample).choices == ("ice", "steam")


def test_without_a_scorer_every_sound_draw_is_kept(tmp_path: Path) -> None:
    texts = [TEXTS[0], "", "I'm sorry, but I can't help with that.", TEXTS[1] + ScriptTeacher.CUT, TEXTS[3]]
    samples, rejected = run(tmp_path, texts=texts, samples=5)
    assert [(s.text, fields(s).draw, fields(s).draws) for s in samples] == [
        (TEXTS[0], 0, 5),
        (TEXTS[3], 4, 5),
    ]
    assert all(fields(s).score is None for s in samples)
    assert [reason for reason, _ in rejected] == ["empty_reply", "refusal", "truncated"]
    assert len({call for s in samples if s.origin for call in s.origin.calls}) == 2


def test_the_best_by_length(tmp_path: Path) -> None:
    samples, rejected = run(tmp_path, samples=4, scorer="longest", filters={"keep": "best"})
    assert [(s.text, fields(s).score) for s in samples] == [(TEXTS[1], 13)]
    assert rejected == [("not_best", f"{n}; draw 1 has 13") for n in (10, 12, 6)]


def test_consensus_is_the_mean_rouge_l_to_the_others_by_hand() -> None:
    assert answers.consensus(["a b c", "a b c", "a b d"]) == pytest.approx([5 / 6, 5 / 6, 2 / 3])
    assert answers.consensus(["alone"]) == [0.0]
    assert answers.consensus([]) == []


def test_the_best_by_consensus(tmp_path: Path) -> None:
    samples, _ = run(tmp_path, samples=4, scorer="consensus", filters={"keep": "best"})
    gains = [sum(rouge_l(a, b) for b in TEXTS if b is not a) / 3 for a in TEXTS]
    assert [(s.text, fields(s).score) for s in samples] == [(TEXTS[2], pytest.approx(max(gains)))]


def test_faulty_draws_have_no_say_in_the_consensus(tmp_path: Path) -> None:
    bad = ["I'm sorry, but I can't help with that."] * 3
    samples, _ = run(tmp_path, texts=[*TEXTS[:3], *bad], samples=6, scorer="consensus")
    assert [fields(s).score for s in samples] == pytest.approx(answers.consensus(TEXTS[:3]))


def test_ties_go_to_the_earliest_draw(tmp_path: Path) -> None:
    texts = ["A short one.", TEXTS[0], "Steam is pushed through a tiny hole in the lid."]
    samples, _ = run(tmp_path, texts=texts, samples=3, scorer="longest", filters={"keep": "best"})
    assert [fields(s).draw for s in samples] == [1]


def test_the_best_is_the_best_of_what_the_filters_leave(tmp_path: Path) -> None:
    samples, rejected = run(tmp_path, samples=4, scorer="longest", filters={"keep": "best", "max_words": 12})
    assert [s.text for s in samples] == [TEXTS[2]]
    assert ("too_long", "13 words") in rejected


def test_correct_draws_by_the_questions_verifier(tmp_path: Path) -> None:
    texts = [
        "12 bottles, 5 times: 60. The answer is 60.",
        "The answer is 17.",
        "60",
        "I add them. The answer is $60.00",
        "The answer is 60. No, wait: the answer is 61.",
    ]
    rows = [{"question": "A crate holds 12 bottles. How many are in 5 crates?", "answer": "60"}]
    questions = {**write(tmp_path, *rows), "verifier": "numeric"}
    out = kdbench.generate(
        "answers", teacher=ScriptTeacher(saying(texts)), n=9, max_candidates=1, concurrency=1,
        out=tmp_path / "run",
        config={"questions": questions, "samples": 5, "scorer": "correct", "filters": {"min_score": 1}},
    )  # fmt: skip
    assert [json.loads(s.fields)["draw"] for s in read_samples(out / "samples.jsonl")] == [0, 2, 3]
    rejected = [(r.reason, r.detail) for r in read_rejections(out / "rejected.jsonl")]
    assert rejected == [("low_score", "0"), ("low_score", "0")]


def test_a_response_that_marks_two_answers_is_wrong_even_where_its_whole_text_would_be_right() -> None:
    text = "The answer is red. The answer is blue."
    assert not answers.is_right(text, Question(text="?", answer=text), "The answer is")
    assert answers.is_right("red", Question(text="?", answer="Red."), "The answer is")
    assert answers.is_right("I say: red", Question(text="?", answer="red"), "I say")


def test_a_question_without_gold_cannot_be_scored_by_it(tmp_path: Path) -> None:
    rows = [{"question": "2 + 3?", "answer": "5"}, {"question": ASKED, "answer": None}]
    teacher = ScriptTeacher(saying(["5"]))
    out = kdbench.generate(
        "answers", teacher=teacher, n=9, max_candidates=2, out=tmp_path / "run",
        config={"questions": write(tmp_path, *rows), "scorer": "correct"},
    )  # fmt: skip
    assert [r.reason for r in read_rejections(out / "rejected.jsonl")] == ["no_gold"]
    assert teacher.asked == 1


def test_a_judge_scores_each_sound_draw(tmp_path: Path) -> None:
    seen: list[str] = []

    def judge(request: Request) -> str:
        seen.append(request.messages[0].content)
        if "music" in request.messages[0].content:
            return "Not good."
        score = 5 if "very small" in request.messages[0].content else 2
        return json.dumps({"remark": "Clear.", "score": score})

    texts = [*TEXTS, "I'm sorry, but I can't help with that."]
    samples, rejected = run(
        tmp_path, texts=texts, samples=5, scorer="judge", judge=judge, filters={"min_score": 3}
    )
    assert [(s.text, fields(s).score, fields(s).remark) for s in samples] == [(TEXTS[2], 5, "Clear.")]
    assert [reason for reason, _ in rejected] == ["low_score", "low_score", "unscored", "refusal"]
    assert len(seen) == 5  # three that it scores, one that it is asked twice about, none for the refusal
    assert all(ASKED in ask for ask in seen)
    assert samples[0].origin is not None
    assert len(samples[0].origin.calls) == 2


def test_changed_filters_need_no_call_not_even_of_the_judge(tmp_path: Path) -> None:
    def judge(request: Request) -> str:
        return json.dumps({"remark": "", "score": 2 if "music" in request.messages[0].content else 4})

    first, _ = run(
        tmp_path, samples=4, scorer="judge", judge=judge, filters={"min_score": 4, "min_words": 12}
    )
    out = kdbench.generate(
        "answers", teacher={"teacher": ScriptTeacher(saying([""])), "judge": ScriptTeacher(saying([""]))},
        n=100, max_candidates=1, out=tmp_path / "run", reparse=True,
        config={"questions": {"file": str(tmp_path / "questions.jsonl")}, "samples": 4, "scorer": "judge"},
    )  # fmt: skip
    again = list(read_samples(out / "samples.jsonl"))
    assert [json.loads(s.fields)["score"] for s in again] == [4, 4, 4, 2]
    assert {s.id for s in first} < {s.id for s in again}


def test_the_judge_is_needed_only_where_it_scores(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no role 'judge'"):
        run(tmp_path, judge=saying(["{}"]))
    with pytest.raises(UsageError, match="needs a teacher for the role 'judge'"):
        run(tmp_path, scorer="judge")


@pytest.mark.parametrize(
    ("question", "text", "reason"),
    [
        (
            "Translate into German: The kettle stands on the stove, and soon the water will be hot.",
            "Der Kessel steht auf dem Herd, und bald wird das Wasser heiß sein.",
            "other_language",
        ),
        (
            "Mend the commas: The kettle stands on the stove and soon the water will be hot enough for tea.",
            "The kettle stands on the stove, and soon the water will be hot enough for tea.",
            "prompt_echoed",
        ),
    ],
)
def test_tasks_that_repeat_or_translate_their_prompt(
    tmp_path: Path, question: str, text: str, reason: str
) -> None:
    for own_words in (True, False):
        (tmp_path / str(own_words)).mkdir()
        samples, rejected = run(
            tmp_path / str(own_words), {"question": question}, {"question": ASKED}, texts=[text, TEXTS[0]],
            filters={"own_words": own_words},
        )  # fmt: skip
        assert len(samples) == (1 if own_words else 2)
        assert [found for found, _ in rejected] == [reason] * own_words


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"filters": {"keep": "best"}}, "filters.keep = best needs a scorer; set scorer to longest"),
        ({"filters": {"min_score": 3}}, "filters.min_score needs a scorer"),
        ({"scorer": "consensus"}, "scorer consensus compares draws; set samples to 2 or more"),
        ({"samples": 2, "sampling": {"temperature": 0}}, "samples above 1 need sampling.temperature above 0"),
        ({"filters": {"min_words": 9, "max_words": 8}}, "min_words must not be above max_words"),
        ({"scorer": "longst"}, "'none', 'longest', 'consensus', 'correct' or 'judge'"),
        ({"samples": 0}, "samples = 0"),
        ({"filters": {"keep_best": True}}, "no key 'filters.keep_best'. Did you mean 'keep'?"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Config, {"questions": {"file": "q.jsonl"}, **config}, "recipe answers")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_questions_must_come_from_somewhere() -> None:
    with pytest.raises(ConfigError, match="key 'questions' is missing"):
        build(Config, {}, "recipe answers")


words_and_score = st.tuples(st.integers(1, 12), st.integers(0, 4))


@given(
    st.lists(words_and_score, max_size=6),
    st.integers(1, 6),
    st.integers(6, 12),
    st.integers(0, 4),
    st.booleans(),
)
def test_what_is_kept_has_passed_and_of_the_best_there_is_one(
    drawn: list[tuple[int, int]], least: int, most: int, min_score: int, best: bool
) -> None:
    texts = [" ".join(f"w{chr(97 + i)}" for i in range(count)) for count, _ in drawn]
    draws = [
        Draw(i, Reply(text, "stop", Usage()), text, score=float(score))
        for i, (text, (_, score)) in enumerate(zip(texts, drawn, strict=True))
    ]
    filters = Filters(keep="best" if best else "all", min_words=least, max_words=most, min_score=min_score)
    answers.sift(draws, ASKED, filters)
    passing = [i for i, (count, score) in enumerate(drawn) if least <= count <= most and score >= min_score]
    kept = [draw.number for draw in draws if draw.fault is None]
    if best:
        assert kept == sorted(passing, key=lambda i: (-drawn[i][1], i))[:1]
    else:
        assert kept == passing
