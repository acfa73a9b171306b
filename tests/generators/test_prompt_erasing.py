"""The prompt_erasing recipe: what is erased, how a strategy is chosen, measuring, and its table."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kdbench
from kdbench.config import build, dump_yaml, load_yaml
from kdbench.errors import ConfigError, DataError, KdbenchError, NothingLeft, UsageError
from kdbench.jsonl import read_rejections, read_samples
from kdbench.prompts import Prompts
from kdbench.questions import Question
from kdbench.records import Completion
from kdbench.teacher import Request
from kdbench_generators import _strategies, prompt_erasing
from kdbench_generators._strategies import STRATEGIES, Score, StrategyName
from kdbench_generators.prompt_erasing import Config, Filters
from tests.generators.cases import prompt_erasing as case
from tests.generators.cases import prompt_erasing__measure as measure_case
from tests.support.teachers import ScriptTeacher

TASK = {"task": {name: case.TASK[name] for name in ("chain_sum", "products")}}
PROMPTS = Prompts("prompt_erasing")
CAUTIOUS = PROMPTS.render("cautious")
PER_KIND: dict[str, Any] = {"per_kind": {"chain_sum": "step_by_step", "products": "guess_and_check"}}


def config(**values: Any) -> Config:
    return build(Config, {"questions": TASK, **values}, "recipe prompt_erasing")


def right(request: Request) -> str:
    return case.followed(request, offset=0)


def generate(out: Path, teacher: ScriptTeacher | None = None, *, n: int = 8, **values: Any) -> Path:
    given = {key: values.pop(key) for key in ("cache", "max_candidates", "resume") if key in values}
    return kdbench.generate(
        "prompt_erasing", teacher=teacher or ScriptTeacher(right), n=n, out=out,
        config={"questions": TASK, **values}, **given,
    )  # fmt: skip


def completions(run: Path) -> list[Completion]:
    return [sample for sample in read_samples(run / "samples.jsonl") if isinstance(sample, Completion)]


def fields(sample: Completion) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sample.fields)
    return found


def lines_of(strategy: str) -> set[str]:
    text = PROMPTS.render(strategy, question=Question("?"), marker="The answer is")
    return set(text.splitlines())


def table(path: Path, **best: str) -> Path:
    score = {"right": 1, "n": 2, "accuracy": 0.5, "interval": [0.1, 0.9]}
    kinds = {kind: {"best": name, "strategies": {name: score}} for kind, name in best.items()}
    path.write_text(dump_yaml({"format": 1, "kinds": kinds}))
    return path


# What the student sees.


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_word_of_the_strategy_is_left_in_an_erased_prompt(strategy: str, tmp_path: Path) -> None:
    for sample in completions(generate(tmp_path / "r", strategy=strategy, n=6)):
        shown = "\n".join(message.content for message in sample.prompt)
        assert not any(line in shown for line in lines_of(strategy))
        assert sample.teacher_prompt is not None
        assert all(line in sample.teacher_prompt[0].content for line in lines_of(strategy))
        assert [message.role for message in sample.prompt] == ["system", "user"]
        assert sample.prompt[0].content == CAUTIOUS != sample.teacher_prompt[0].content
        assert sample.prompt[1] == sample.teacher_prompt[1]
        assert sample.prompt[1].content.startswith(("State", "Solve"))


def test_the_cautious_message_is_the_same_for_all_kinds_and_strategies(tmp_path: Path) -> None:
    samples = completions(generate(tmp_path / "r", n=20, **PER_KIND))
    assert {(fields(sample)["kind"], fields(sample)["strategy"]) for sample in samples} == {
        ("chain_sum", "step_by_step"),
        ("products", "guess_and_check"),
    }
    assert {sample.prompt[0].content for sample in samples} == {CAUTIOUS}


def test_every_strategy_has_words_of_its_own() -> None:
    closing = set(PROMPTS.render("closing", question=Question("?"), marker="The answer is").splitlines())
    own = [lines_of(strategy) - closing for strategy in STRATEGIES]
    assert len({frozenset(lines) for lines in own}) == len(STRATEGIES) == 7
    assert all(own)


def test_the_answer_is_asked_for_by_the_marker_and_by_letter_where_there_are_choices() -> None:
    plain = PROMPTS.render("direct", question=Question("?"), marker="Result:")
    assert "says: Result: X." in plain
    assert "letter" not in plain
    assert "letter" in PROMPTS.render("direct", question=Question("?", choices=("a", "b")), marker="Result:")


def test_the_three_arms_share_their_replies_where_their_strategies_agree(tmp_path: Path) -> None:
    teacher = ScriptTeacher(right)
    kept = generate(tmp_path / "kept", teacher, erase="kept", **PER_KIND)
    asked = teacher.asked
    erased = generate(tmp_path / "erased", teacher, cache=[kept], **PER_KIND)
    assert teacher.asked == asked
    for a, b in zip(completions(kept), completions(erased), strict=True):
        assert a.completion == b.completion
        assert a.teacher_prompt is None
        assert a.prompt == b.teacher_prompt
        assert b.prompt[0].content == CAUTIOUS
        assert (fields(a)["erase"], fields(b)["erase"]) == ("kept", "erased")


def test_a_random_strategy_goes_with_the_kind_and_is_erased_too(tmp_path: Path) -> None:
    def assigned(seed: int) -> dict[str, str | None]:
        drawn = config(erase="random", assignment_seed=seed)
        return {kind: prompt_erasing.strategy_for(kind, drawn) for kind in ("chain_sum", "products")}

    every = [assigned(seed) for seed in range(200)]
    assert {found["products"] for found in every} == set(STRATEGIES)
    assert any(found["products"] != found["chain_sum"] for found in every)
    samples = completions(generate(tmp_path / "r", erase="random", assignment_seed=3, n=20))
    assert {(fields(s)["kind"], fields(s)["strategy"]) for s in samples} == set(assigned(3).items())
    assert {sample.prompt[0].content for sample in samples} == {CAUTIOUS}


# How a strategy is chosen.


def test_a_kind_without_a_strategy_is_turned_down_unpaid_or_takes_the_default(tmp_path: Path) -> None:
    teacher = ScriptTeacher(right)
    only: dict[str, Any] = {"per_kind": {"products": "direct"}}
    run = generate(tmp_path / "r", teacher, n=4, max_candidates=8, **only)
    rejected = list(read_rejections(run / "rejected.jsonl"))
    assert {r.reason for r in rejected} == {"no_strategy"}
    assert all("'chain_sum'" in r.detail and r.origin is not None and not r.origin.calls for r in rejected)
    run = generate(tmp_path / "d", teacher, n=4, default_strategy="explain_then_answer", **only)
    assert {(fields(s)["kind"], fields(s)["strategy"]) for s in completions(run)} == {
        ("chain_sum", "explain_then_answer"),
        ("products", "direct"),
    }


def test_a_table_is_followed_and_narrowed_by_what_is_offered(tmp_path: Path) -> None:
    score = {"n": 10, "interval": [0.0, 1.0]}
    found = {
        "step_by_step": {"right": 9, "accuracy": 0.9, **score},
        "direct": {"right": 5, "accuracy": 0.5, **score},
        "guess_and_check": {"right": 6, "accuracy": 0.6, **score},
    }
    path = tmp_path / "t.yaml"
    path.write_text(
        dump_yaml({"format": 1, "kinds": {"products": {"best": "step_by_step", "strategies": found}}})
    )

    def chosen(kind: str = "products", **values: Any) -> str | None:
        return prompt_erasing.strategy_for(kind, config(strategy_table=path, **values))

    assert chosen() == "step_by_step"
    assert chosen(strategies=["direct", "guess_and_check"]) == "guess_and_check"
    assert chosen(strategies=["extract_generate"]) is None
    assert chosen("chain_sum") is None
    assert chosen("chain_sum", default_strategy="direct") == "direct"


def test_a_table_that_is_measured_anew_is_read_anew(tmp_path: Path) -> None:
    path = table(tmp_path / "t.yaml", products="direct")
    before = prompt_erasing.strategy_for("products", config(strategy_table=path))
    table(path, products="explain_then_answer")
    after = prompt_erasing.strategy_for("products", config(strategy_table=path))
    assert (before, after) == ("direct", "explain_then_answer")


def test_the_tables_content_and_not_its_place_decides_ids_and_reuse(tmp_path: Path) -> None:
    values = {"chain_sum": "step_by_step", "products": "direct"}
    first, other = table(tmp_path / "a.yaml", **values), tmp_path / "elsewhere.yaml"
    shutil.copy(first, other)
    one = generate(tmp_path / "one", strategy_table=str(first))
    two = generate(tmp_path / "two", strategy_table=str(other))
    assert (one / "samples.jsonl").read_bytes() == (two / "samples.jsonl").read_bytes()
    generate(one, strategy_table=str(other), resume=True)
    table(first, chain_sum="step_by_step", products="guess_and_check")
    three = generate(tmp_path / "three", strategy_table=str(first))
    ids = {sample.id for sample in completions(one)}
    assert not ids & {sample.id for sample in completions(three)}
    with pytest.raises(UsageError, match="was made with a different source"):
        generate(one, strategy_table=str(first), resume=True)
    inputs = json.loads((three / "run.json").read_text())["inputs"]
    assert len(inputs["strategy_table"]["sha256"]) == 64


# What is kept.


@pytest.mark.parametrize(
    ("text", "filters", "expected"),
    [
        ("2 + 3 = 5. The answer is 5.", {}, None),
        ("2 + 3 = 6. The answer is 6.", {}, "wrong_answer"),
        ("2 + 3 = 6. The answer is 6.", {"keep": "all"}, None),
        ("2 + 3 = 5.", {}, "no_answer"),
        ("2 + 3 = 5.", {"require_answer": False}, "wrong_answer"),
        ("2 + 3 = 5.", {"require_answer": False, "keep": "all"}, None),
        ("The answer is 5. No: the answer is 6.", {"keep": "all"}, "two_answers"),
        ("I'm sorry, but I can't help with that.", {"keep": "all", "require_answer": False}, "refusal"),
    ],
)
def test_what_is_turned_down(
    text: str, filters: dict[str, Any], expected: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"question": "2 + 3 = ?", "answer": "5", "kind": "sum"}) + "\n")
    values = {
        "questions": {"file": str(file), "verifier": "numeric"},
        "strategy": "direct",
        "filters": filters,
    }
    teacher = ScriptTeacher(lambda request: text)
    if expected is None:
        (sample,) = completions(generate(tmp_path / "r", teacher, n=1, **values))
        assert (sample.text, sample.answer) == (text, "5")
        return
    with pytest.raises(NothingLeft, match=f"{expected} 1"):
        generate(tmp_path / "r", teacher, n=1, **values)
    (rejection,) = read_rejections(tmp_path / "r" / "rejected.jsonl")
    assert isinstance(rejection.sample, Completion)
    assert rejection.sample.text == text


def test_a_question_without_gold_is_kept_unchecked_but_cannot_be_measured(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"question": "2 + 3 = ?"}) + "\n")
    values: dict[str, Any] = {"questions": {"file": str(file), "columns": {"answer": None}}}
    teacher = ScriptTeacher(lambda request: "The answer is 6.")
    (sample,) = completions(generate(tmp_path / "r", teacher, n=1, strategy="direct", **values))
    assert fields(sample)["correct"] is None
    with pytest.raises(NothingLeft, match="no_gold 1"):
        generate(tmp_path / "m", teacher, n=7, measure_strategies=True, **values)
    assert teacher.asked == 1


@given(st.sampled_from([True, False, None]), st.booleans(), st.sampled_from(["gold", "all"]), st.booleans())
def test_the_filters_keep_exactly_what_they_say(
    correct: bool | None, marked: bool, keep: Any, require: bool
) -> None:
    from kdbench.errors import Rejected

    unmarked = None if marked else Rejected("no_answer")
    fault = prompt_erasing.find_unwanted(correct, unmarked, Filters(keep=keep, require_answer=require))
    kept = (marked or not require) and (keep == "all" or correct is not False)
    assert (fault is None) is kept


def test_several_draws_are_several_samples_with_origins_of_their_own(tmp_path: Path) -> None:
    samples = completions(generate(tmp_path / "r", n=12, samples=3, **PER_KIND))
    assert Counter(sample.group for sample in samples).most_common(1)[0][1] == 3
    calls = [sample.origin.calls for sample in samples if sample.origin is not None]
    assert len(set(calls)) == 12
    assert all(len(one) == 1 for one in calls)


def test_extracting_may_say_the_whole_text_again(tmp_path: Path) -> None:
    context = "The old mill by the river was built of oak and slate in the year 1812 by two brothers."
    file = tmp_path / "q.jsonl"
    file.write_text(
        json.dumps({"question": "When was it built?", "context": context, "answer": "1812"}) + "\n"
    )
    teacher = ScriptTeacher(lambda request: f"Extract: {context}\nThe answer is 1812.")
    source: dict[str, Any] = {"questions": {"file": str(file)}}
    assert completions(generate(tmp_path / "r", teacher, n=1, strategy="extract_generate", **source))
    with pytest.raises(NothingLeft, match="prompt_echoed"):
        generate(tmp_path / "s", teacher, n=1, strategy="step_by_step", **source)


# Measuring.


def test_measuring_asks_everything_with_everything_and_names_the_best(tmp_path: Path) -> None:
    run = kdbench.generate(
        "prompt_erasing", teacher=ScriptTeacher(measure_case.attempt), n=420, out=tmp_path / "m",
        config=measure_case.CONFIG,
    )  # fmt: skip
    found = prompt_erasing.read_table(run / "strategies.yaml").kinds
    assert {kind: scores.best for kind, scores in found.items()} == {
        "chain_sum": "step_by_step",
        "products": "guess_and_check",
    }
    for kind, scores in found.items():
        assert list(scores.strategies) == list(STRATEGIES)
        assert len({score.n for score in scores.strategies.values()}) == 1
        samples = [s for s in completions(run) if fields(s)["kind"] == kind]
        for name, score in scores.strategies.items():
            correct = [fields(s)["correct"] for s in samples if fields(s)["strategy"] == name]
            assert abs(sum(correct) - score.right) <= 1  # the last question may be cut short by -n
            assert score.right < score.n
    following = generate(tmp_path / "r", strategy_table=str(run / "strategies.yaml"))
    assert {(fields(s)["kind"], fields(s)["strategy"]) for s in completions(following)} == {
        ("chain_sum", "step_by_step"),
        ("products", "guess_and_check"),
    }


def test_what_is_measured_counts_useless_replies_as_wrong_and_leaves_the_last_cut_question_out(
    tmp_path: Path,
) -> None:
    def script(request: Request) -> str:
        system = request.messages[0].content
        if "straight away" in system:
            return "I see" + ScriptTeacher.CUT
        if "Guess:" in system:
            return "I'm sorry, but I can't help with that."
        return case.followed(request, offset=1 if "Step 1:" in system else 0)

    run = generate(tmp_path / "m", ScriptTeacher(script), n=13, measure_strategies=True)
    found = load_yaml(run / "strategies.yaml")
    # Five samples and two rejections a question: 13 samples end in the third question, which is left out.
    assert found["format"] == 1
    assert list(found["kinds"]) == ["chain_sum", "products"]
    got = {name: (one["right"], one["n"]) for name, one in found["kinds"]["products"]["strategies"].items()}
    assert got == {
        "direct": (0, 1), "step_by_step": (0, 1), "recall_then_generate": (1, 1),
        "recall_reason_generate": (1, 1), "extract_generate": (1, 1), "explain_then_answer": (1, 1),
        "guess_and_check": (0, 1),
    }  # fmt: skip
    assert found["kinds"]["products"]["best"] == "recall_then_generate"
    assert {r.reason for r in read_rejections(run / "rejected.jsonl")} == {"truncated", "refusal"}
    wrong = [s for s in completions(run) if fields(s)["strategy"] == "step_by_step"]
    assert [fields(s)["correct"] for s in wrong] == [False, False, False]
    assert all(s.teacher_prompt is None and s.prompt[0].content != CAUTIOUS for s in completions(run))


def test_a_measuring_run_too_short_for_one_question_says_so(tmp_path: Path) -> None:
    with pytest.raises(NothingLeft, match="No question was answered with all 7 strategies: raise -n"):
        generate(tmp_path / "m", n=6, measure_strategies=True)
    generate(tmp_path / "m", n=14, measure_strategies=True, resume=True)
    assert set(load_yaml(tmp_path / "m" / "strategies.yaml")["kinds"]) == {"chain_sum", "products"}


def test_of_equal_strategies_the_simplest_is_best() -> None:
    scores: dict[StrategyName, Score] = {
        "guess_and_check": Score.of(5, 10),
        "direct": Score.of(5, 10),
        "step_by_step": Score.of(4, 10),
    }
    assert _strategies.simplest_best(scores) == "direct"
    assert (
        _strategies.simplest_best({**scores, "explain_then_answer": Score.of(6, 10)}) == "explain_then_answer"
    )


def test_wilsons_interval_agrees_with_known_values() -> None:
    # Newcombe 1998, Statistics in Medicine 17, Table I: method 3.
    for counts, known in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
    }.items():
        assert _strategies.wilson(*counts) == pytest.approx(known, abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_holds_the_share_and_is_symmetric(counts: tuple[int, int]) -> None:
    right, n = counts
    low, high = _strategies.wilson(right, n)
    assert 0 <= low <= right / n + 1e-12
    assert right / n - 1e-12 <= high <= 1
    assert _strategies.wilson(n - right, n) == pytest.approx((1 - high, 1 - low))


def test_the_command_line_has_a_flag_for_measuring(tmp_path: Path) -> None:
    def kdb(*words: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "kdbench.cli",
            "generate",
            *words,
            "-n",
            "7",
            "--teacher",
            "scripted",
        ]
        return subprocess.run([*command, "--dry-run", "--measure-strategies"], capture_output=True, text=True)

    shown = kdb("prompt_erasing", "--set", "questions.task.chain_sum={}")
    assert shown.returncode == 0, shown.stderr
    assert "straight away" in shown.stdout
    other = kdb("tinystories")
    assert other.returncode == 2
    assert "no key 'measure_strategies'" in other.stderr


# Mistakes.


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"strategy": "step_by_stepp"},
            "or 'guess_and_check' (did you mean 'step_by_step'?)",
        ),
        ({"per_kind": {"products": "gues_and_check"}}, "(did you mean 'guess_and_check'?)"),
        ({"strategies": ["direct", "dirct"], "strategy": "direct"}, "(did you mean 'direct'?)"),
        (
            {"strategy": "direct", "default_strategy": "magic"},
            "default_strategy = \"magic\": input should be 'direct', 'step",
        ),
        ({}, "needs exactly one of strategy, strategy_table and per_kind; has none (--measure-strategies"),
        ({"strategy": "direct", "per_kind": {"a": "direct"}}, "has strategy and per_kind"),
        ({"strategy": "direct", "measure_strategies": True}, "leave out strategy"),
        ({"strategy": "direct", "erase": "random"}, "leave out strategy"),
        ({"strategy": "direct", "strategies": ["step_by_step"]}, "'direct' is not among the strategies"),
        ({"measure_strategies": True, "strategies": ["direct", "direct"]}, "names one of them twice"),
        ({"measure_strategies": True, "samples": 2}, "leave out samples"),
        ({"strategy": "direct", "samples": 2, "sampling": {"temperature": 0}}, "would all be equal"),
        ({"strategy": "direct", "erase": "erase"}, "erase = \"erase\": input should be 'erased'"),
        ({"strategy": "direct", "filters": {"keep": "golden"}}, "filters.keep"),
        ({"strategy": "direct", "feature": 1}, "no key 'feature'"),
    ],
)
def test_a_mistake_in_the_config_is_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "alue error" not in str(caught.value)


GOOD = {"right": 1, "n": 2, "accuracy": 0.5, "interval": [0.1, 0.9]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format: 2\nkinds: {}\n", "is no strategy table of format 1 (its format: 2); make it anew"),
        ("kinds: {}\n", "(its format: None)"),
        ("", "(its format: None)"),
        ("- a\n", "must be a mapping"),
        ("format: 1\nkinds: [", "is not valid YAML"),
        ("format: 1\nkinds: {}\n", "kinds"),
        (
            dump_yaml({"format": 1, "kinds": {"a": {"best": "direkt", "strategies": {"direct": GOOD}}}}),
            "'direct'?",
        ),
        (dump_yaml({"format": 1, "kinds": {"a": {"best": "direct", "strategies": {}}}}), "strategies"),
        (dump_yaml({"format": 1, "kinds": {"a": {"best": "direct"}}}), "'kinds.a.strategies' is missing"),
    ],
)
def test_a_broken_table_is_one_sentence_before_anything_is_asked(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(text)
    teacher = ScriptTeacher(right)
    with pytest.raises(KdbenchError) as caught:
        generate(tmp_path / "r", teacher, strategy_table=str(path))
    assert message in str(caught.value)
    assert "t.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert not teacher.asked
    assert not (tmp_path / "r").exists()


def test_a_table_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"No strategy table at .*none\.yaml; make one with --measure-strategies"
    ):
        generate(tmp_path / "r", strategy_table=str(tmp_path / "none.yaml"))
    assert not (tmp_path / "r").exists()


def test_a_teacher_that_cannot_chat_is_refused(tmp_path: Path) -> None:
    class Mute(ScriptTeacher):
        capabilities = frozenset({"score"})

    with pytest.raises(UsageError, match="Teacher mute cannot 'chat', which the role 'teacher' needs"):
        generate(tmp_path / "r", Mute(right, identity="mute"), strategy="direct")


def test_too_few_samples_are_kept_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = generate(tmp_path / "r", n=8, max_candidates=8, per_kind={"products": "direct"})
    assert len(completions(run)) == 4
    assert "4 of 8 samples: the 8 seeds of this run are used up; the samples are kept" in caplog.text
