"""Self-Instruct and Alpaca: what is shown and asked, the filters one by one, novelty, seeds of one's own."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kdbench
from kdbench.config import build
from kdbench.errors import ConfigError, DataError, Rejected, RunDirError
from kdbench.jsonl import read_rejections, read_samples
from kdbench.pool import Pool
from kdbench.records import Completion, Message, Origin, Rejection
from kdbench.rundir import read_info
from kdbench.similarity import rouge_l
from kdbench.teacher import Reply, Request, Sampling, Usage
from kdbench_generators import _instructions, self_instruct
from kdbench_generators._instructions import Filters, Instance, find_instance_faults
from kdbench_generators.self_instruct import Config, Fields, SeedTasks, Task, admission, draw_plan
from tests.support.teachers import ScriptTeacher

SEEDS = SeedTasks(None)
SEA = "Write a poem about the sea."
LIST = "1. Tell the two kinds of frog apart.\n2. Why do leaves turn red in autumn?"
LABELS = "Label: tree frog\nInput: It climbs.\n\nLabel: pond frog\nInput: It swims."
PAIR = "Input: none\nOutput: Their green fades and uncovers the red."


def config(**values: Any) -> Config:
    return build(Config, values, "recipe self_instruct")


def task_of(asked: str) -> str:
    return [line.removeprefix("Task: ") for line in asked.splitlines() if line.startswith("Task: ")][-1]


def script(
    listed: str = LIST, kind: str | None = None, labels: str = LABELS, pair: str = PAIR
) -> Callable[[Request], str]:
    """A teacher that says these, by what it is asked; frogs are a matter of classification."""

    def say(request: Request) -> str:
        asked = request.messages[-1].content
        if "Go on with the list" in asked or "Write the tasks" in asked:
            return listed
        if "Is it a classification task? Answer" in asked:
            return kind or ("Yes" if "frog" in task_of(asked) else "No")
        return labels if "first choose a label" in asked else pair

    return say


def run(
    out: Path,
    say: Callable[[Request], str] | None = None,
    *,
    seeds: int = 1,
    generate: dict[str, Any] | None = None,
    **values: Any,
) -> tuple[list[Completion], list[Rejection]]:
    made = kdbench.generate(
        "self_instruct", teacher=ScriptTeacher(say or script()), n=99, out=out, max_candidates=seeds,
        config=values, **(generate or {}),
    )  # fmt: skip
    samples = [one for one in read_samples(made / "samples.jsonl") if isinstance(one, Completion)]
    return samples, list(read_rejections(made / "rejected.jsonl"))


def fields(sample: Any) -> Fields:
    return Fields.model_validate_json(sample.fields)


# Seeds


def test_the_seed_tasks_are_varied_and_pass_the_filters_themselves() -> None:
    tasks = SEEDS.tasks
    assert len(tasks) == 101
    assert sum(task.is_classification for task in tasks) == 31
    assert sum(not task.input for task in tasks) == 35
    for mode in ("self_instruct", "alpaca"):
        for task in tasks:
            assert _instructions.find_instruction_fault(task.instruction, Filters(), mode) is None
            assert find_instance_faults([Instance(task.input, task.output)]) == [None]
    instructions = [task.instruction for task in tasks]
    closest = max(rouge_l(a, b) for i, a in enumerate(instructions) for b in instructions[:i])
    assert closest < 0.6


def test_seeds_of_ones_own_count_by_content_not_by_place(tmp_path: Path) -> None:
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    rows = [
        Task(instruction=f"Say {n} words.", output="So be it.", is_classification=False) for n in "abcdefgh"
    ]
    one.write_text("".join(task.model_dump_json() + "\n" for task in rows))
    shutil.copy(one, other)
    first, _ = run(tmp_path / "run", seeds_file=str(one))
    second, _ = run(tmp_path / "twin", seeds_file=str(other))
    assert [s.id for s in first] == [s.id for s in second]
    assert set(fields(first[0]).demos) == {f"seed {n}" for n in range(1, 9)}
    run(tmp_path / "run", seeds=2, generate={"resume": True}, seeds_file=str(other))

    other.write_text(other.read_text().replace("Say a", "Sing a"))
    with pytest.raises(RunDirError, match="different source"):
        run(tmp_path / "run", seeds=3, generate={"resume": True}, seeds_file=str(other))
    changed, _ = run(tmp_path / "changed", seeds_file=str(other))
    assert {s.id for s in changed}.isdisjoint(s.id for s in first)


def test_bad_seeds_end_in_one_clear_sentence(tmp_path: Path) -> None:
    file = tmp_path / "seeds.jsonl"
    with pytest.raises(DataError, match=r"Cannot read .*seeds\.jsonl: No such file"):
        run(tmp_path / "a", seeds_file=str(file))
    file.write_text("\n")
    with pytest.raises(DataError, match=r"seeds\.jsonl holds no seed task; give at least one"):
        run(tmp_path / "b", seeds_file=str(file))
    file.write_text(
        '{"instruction": "Sing.", "output": "La.", "is_classification": false}\n{"task": "Sing."}\n'
    )
    with pytest.raises(DataError, match=r"seeds\.jsonl:2 is not a seed task: instruction: Field required"):
        run(tmp_path / "c", seeds_file=str(file))


# What is shown and asked


def accepted(number: int, group: str = "") -> Completion:
    made = Fields(instruction=f"Earlier {number}", input="", is_classification=False, demos=())
    return Completion(
        id=f"id-{number}", group=group or f"g{number}", fields=made.model_dump_json(),
        prompt=(Message(role="user", content="x"),), completion=(Message(role="assistant", content="y"),),
    )  # fmt: skip


@given(st.integers(0, 99), st.integers(0, 5), st.integers(1, 8), st.integers(0, 3))
def test_demonstrations_are_seed_tasks_and_a_few_of_the_pool(
    seed: int, earlier: int, demos_seed: int, demos_pool: int
) -> None:
    # Two instances of each instruction: an instruction is shown once at most.
    pool = Pool(1, tuple(accepted(n, f"g{n % earlier}") for n in range(2 * earlier)))
    plan = draw_plan(random.Random(seed), SEEDS, pool, config(demos_seed=demos_seed, demos_pool=demos_pool))
    names = [demo.name for demo in plan.demos]
    assert len(names) == demos_seed + demos_pool == len({demo.instruction for demo in plan.demos})
    assert sum(name.startswith("id-") for name in names) == min(demos_pool, earlier)
    for demo in plan.demos:
        if demo.name.startswith("seed "):
            assert SEEDS.tasks[int(demo.name.removeprefix("seed ")) - 1].instruction == demo.instruction
    for kind in (True, False):
        assert {task.is_classification for task in plan.examples[kind]} == {kind}
        assert set(plan.examples[kind]) <= set(plan.kinds)


def test_classification_tasks_are_output_first_and_others_input_first(tmp_path: Path) -> None:
    seen: list[str] = []

    def say(request: Request) -> str:
        seen.append(request.messages[-1].content)
        return script()(request)

    samples, rejections = run(tmp_path / "r", say)
    assert not rejections
    assert [
        (fields(s).instruction, fields(s).input, s.text, fields(s).is_classification) for s in samples
    ] == [
        ("Tell the two kinds of frog apart.", "It climbs.", "tree frog", True),
        ("Tell the two kinds of frog apart.", "It swims.", "pond frog", True),
        ("Why do leaves turn red in autumn?", "", "Their green fades and uncovers the red.", False),
    ]
    assert [s.prompt[0].content for s in samples[1:]] == [
        "Tell the two kinds of frog apart.\n\nIt swims.",
        "Why do leaves turn red in autumn?",
    ]
    assert samples[0].group == samples[1].group != samples[2].group
    labels_first = next(text for text in seen if "first choose a label" in text)
    assert samples[0].teacher_prompt == (Message(role="user", content=labels_first),)
    assert labels_first.index("\nLabel: ") < labels_first.index("\nInput: ")
    assert task_of(labels_first) == "Tell the two kinds of frog apart."
    shown = {line.removeprefix("Task: ") for line in labels_first.splitlines() if line.startswith("Task: ")}
    kinds = {task.instruction: task.is_classification for task in SEEDS.tasks}
    assert {kinds.get(text) for text in shown - {task_of(labels_first)}} == {True}
    inputs_first = next(text for text in seen if "make up an input to work on" in text)
    assert inputs_first.index("\nInput: ") < inputs_first.index("\nOutput: ")


def test_a_sample_comes_of_the_calls_that_made_it(tmp_path: Path) -> None:
    samples, _ = run(tmp_path / "r")
    calls = [s.origin.calls for s in samples if s.origin]
    assert [len(c) for c in calls] == [3, 3, 3]
    assert calls[0] == calls[1]
    assert len(set(calls[0]) & set(calls[2])) == 1  # the list of both


def test_later_rounds_show_what_earlier_ones_accepted(tmp_path: Path) -> None:
    seen: list[str] = []

    def say(request: Request) -> str:
        asked = request.messages[-1].content
        if "Go on with the list" in asked:
            seen.append(asked)
            return script(f"1. {['Name a frog of Ohio.', 'How do bees sleep at night?'][len(seen) % 2]}")(
                request
            )
        return script()(request)

    generate = {"concurrency": 1}
    samples, _ = run(tmp_path / "r", say, seeds=4, round_size=2, demos_seed=2, generate=generate)
    assert "frog of Ohio" not in seen[0] + seen[1]
    assert all("frog of Ohio" in asked and "bees sleep" in asked for asked in seen[2:])
    assert len({s.group for s in samples}) == 2


def test_alpaca_asks_once_for_whole_tasks(tmp_path: Path) -> None:
    seen: list[str] = []
    told = (
        "Task 4\nInstruction: Put the word into the plural.\nInput: mouse\nOutput: mice\n\n"
        "Task 5\nInstruction: Why do leaves turn red?\nInput: <noinput>\nOutput: Their green fades.\n\n"
        "Task 6\nInstruction: Which music suits a rainy day?\nInput: none\nOutput: A slow waltz.\n\n"
        "Task 7\nInstruction: Name a frog.\nOutput: Kermit"
    )

    def say(request: Request) -> str:
        seen.append(request.messages[-1].content)
        return told

    samples, rejections = run(tmp_path / "r", say, mode="alpaca")
    assert len(seen) == 1
    assert "Write 20 new tasks" in seen[0]
    assert seen[0].count("\nInstruction: ") == 3
    assert [(s.prompt[0].content, s.text) for s in samples] == [
        ("Put the word into the plural.\n\nmouse", "mice"),
        ("Why do leaves turn red?", "Their green fades."),
    ]
    assert {fields(s).is_classification for s in samples} == {None}
    assert [(r.reason, r.detail) for r in rejections] == [
        ("keyword", "music"),
        ("malformed", "no 'Input:' after 'Instruction: Name a frog.'"),
    ]


def test_each_mode_has_defaults_of_its_own_which_the_config_overrides() -> None:
    usual, alpaca = config(), config(mode="alpaca")
    assert (usual.demos_seed, usual.demos_pool, usual.instructions_per_call) == (6, 2, 8)
    assert (usual.sampling.temperature, usual.sampling.top_p) == (0.7, 0.5)
    assert usual.instance_sampling.temperature == 0
    assert (alpaca.demos_seed, alpaca.demos_pool, alpaca.instructions_per_call) == (3, 0, 20)
    assert (alpaca.sampling.temperature, alpaca.sampling.top_p) == (1, 1)
    mine = config(mode="alpaca", demos_seed=5, sampling={"temperature": 0.5})
    assert mine.demos_seed == 5
    assert mine.sampling == alpaca.sampling.model_copy(update={"temperature": 0.5})
    assert config(mode="alpaca", sampling=Sampling()).sampling == Sampling()
    assert Config.model_validate(alpaca.model_dump()) == alpaca


# Replies that are wrong


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({"listed": "I like lists."}, [("no_list", "no numbered list in: I like lists.")]),
        ({"listed": "I cannot create more tasks."}, [("refusal", "I cannot create more tasks.")]),
        ({"listed": LIST[:38] + ScriptTeacher.CUT}, [("truncated", "cut off after 9 tokens")]),
        ({"kind": "It depends."}, [("no_kind", "neither yes nor no: It depends.")] * 2),
        ({"labels": "Toads hop."}, [("no_list", "no line begins with 'Label:' in: Toads hop.")]),
        ({"labels": "I cannot help with that."}, [("refusal", "I cannot help with that.")]),
        ({"labels": ""}, [("empty_reply", "The teacher answered without any text")]),
        ({"pair": "Output: It fades."}, [("no_list", "no line begins with 'Input:' in: Output: It fades.")]),
        ({"pair": "Input: none"}, [("malformed", "no 'Output:' after 'Input: none'")]),
        ({"pair": PAIR + ScriptTeacher.CUT}, [("truncated", "cut off after 10 tokens")]),
    ],
)  # fmt: skip
def test_a_wrong_reply_costs_its_own_instruction_alone(
    wrong: dict[str, str], found: list[tuple[str, str]], tmp_path: Path
) -> None:
    if "listed" in wrong or "kind" in wrong:
        with pytest.raises(kdbench.errors.NothingLeft):
            run(tmp_path / "r", script(**wrong))
        rejections = list(read_rejections(tmp_path / "r" / "rejected.jsonl"))
    else:
        samples, rejections = run(tmp_path / "r", script(**wrong))
        assert len(samples) == (2 if "pair" in wrong else 1)
    assert [(r.reason, r.detail) for r in rejections] == found
    assert all(r.origin is not None for r in rejections)


def test_of_a_list_that_was_cut_off_and_kept_the_last_entry_is_dropped(tmp_path: Path) -> None:
    cut = {"on_truncated": "keep"}
    samples, _ = run(tmp_path / "a", script(LIST + " Is it" + ScriptTeacher.CUT), generate=cut)
    assert {fields(s).instruction for s in samples} == {"Tell the two kinds of frog apart."}
    both_cut = script(labels=LABELS + ScriptTeacher.CUT, pair=PAIR + ScriptTeacher.CUT)
    samples, rejections = run(tmp_path / "b", both_cut, generate=cut)
    assert [s.text for s in samples] == ["tree frog"]
    assert [(r.reason, r.detail) for r in rejections] == [("truncated", "cut off within the first entry")]


def test_no_more_instructions_and_instances_are_taken_than_asked_for(tmp_path: Path) -> None:
    samples, _ = run(tmp_path / "a", instructions_per_call=1, max_instances=1)
    assert [s.text for s in samples] == ["tree frog"]


def test_exact_copies_cost_no_further_call(tmp_path: Path) -> None:
    seed = SEEDS.tasks[0].instruction
    teacher = ScriptTeacher(
        script(f"1. {seed}\n2. Why do leaves turn red in autumn?\n3. Why do  leaves turn red in autumn?")
    )
    kdbench.generate("self_instruct", teacher=teacher, n=9, out=tmp_path / "r", max_candidates=1)
    assert teacher.asked == 3
    rejections = read_rejections(tmp_path / "r" / "rejected.jsonl")
    assert [(r.reason, r.detail) for r in rejections] == [
        ("copied_instruction", seed),
        ("copied_instruction", "Why do leaves turn red in autumn?"),
    ]


@given(st.text(), st.sampled_from(["stop", "length"]))
def test_no_reply_makes_the_parsers_raise_anything_but_a_rejection(text: str, finish: str) -> None:
    reply, ask = Reply(text, finish, Usage()), Message(role="user", content="x")
    parsers: tuple[Callable[[], object], ...] = (
        lambda: self_instruct.bare_tasks(reply, config()),
        lambda: self_instruct.whole_tasks(reply, ask, config()),
        lambda: _instructions.instances_of(reply, True),
        lambda: _instructions.instances_of(reply, False),
    )
    for parse in parsers:
        try:
            assert parse()
        except Rejected as exc:
            reason = exc.reason
        else:
            continue
        assert reason in ("no_list", "truncated", "refusal")
    assert _instructions.says_yes(text) in (True, False, None)


# Filters


def fault(instruction: str, mode: Any = "self_instruct", **filters: Any) -> str | None:
    found = _instructions.find_instruction_fault(instruction, Filters(**filters), mode)
    return found[0] if found else None


def test_each_filter_on_instructions() -> None:
    assert fault(SEA) is None
    assert [fault("Sing " * n) for n in (3, 4)] == ["too_short", None]
    many = [a + b for a in "abcdefghijklm" for b in "nopqrstuvwxyz"][:151]
    assert [fault(" ".join(many)), fault(" ".join(many[:150]))] == ["too_long", None]
    assert fault("Sing a song, please.", min_words=5) == "too_short"
    assert fault("Write a program that sings songs.") == "write_a_program"
    assert fault("Write a programme for the village fair.") is None
    assert fault("Write a program that sings songs.", programs=True) is None
    assert fault("Rewrite a program that sings songs.") is None
    assert fault("- Sing a song for us.") == "odd_start"
    assert fault("Über den Wolken singt wer?") == "odd_start"
    assert fault("Über den Wolken singt wer?", any_start=True) is None
    assert fault("Say it to me again, say it to me again, say it to me again.") == "loop"


@pytest.mark.parametrize("word", _instructions.KEYWORDS["alpaca"])
def test_keywords_are_whole_words_in_any_case(word: str) -> None:
    paper = word in _instructions.KEYWORDS["self_instruct"]
    asked = f"Think of the {word.upper()}, and say more."
    assert fault(asked) == ("keyword" if paper else None)
    assert fault(asked, "alpaca") == "keyword"
    assert fault(f"Think of the x{word}, and say more.", "alpaca") is None
    assert fault(asked, "alpaca", keywords=["c++"]) is None


def test_keywords_may_be_ones_own() -> None:
    assert _instructions.KEYWORDS["alpaca"][-5:] == ("video", "audio", "music", "flowchart", "diagram")
    assert fault("Rewrite it in C++, please do.", keywords=["c++"]) == "keyword"
    assert fault("Show me a graph of it.", keywords=[]) is None
    with pytest.raises(ConfigError, match="keywords must not hold an empty one"):
        config(filters={"keywords": ["map", " "]})


@pytest.mark.parametrize(
    ("pairs", "faults"),
    [
        ([("a", "b"), ("c", "d")], [None, None]),
        ([("a", "")], ["empty_output"]),
        ([("a", "a")], ["output_is_input"]),
        ([("a:", "b")], ["ends_with_colon"]),
        ([("a", "b:")], ["ends_with_colon"]),
        ([("a", "b"), ("a", "c"), ("d", "c")], ["ambiguous_input", "ambiguous_input", None]),
        ([("a", "b"), ("a", "b")], [None, "duplicate_instance"]),
        ([("", "b"), ("", "c"), ("", "c")], [None, None, "duplicate_instance"]),
        # What is wrong by itself contradicts nothing.
        ([("a", "b"), ("a", ""), ("a", "c:")], [None, "empty_output", "ends_with_colon"]),
    ],
)
def test_each_filter_on_instances(pairs: list[tuple[str, str]], faults: list[str | None]) -> None:
    found = find_instance_faults([Instance(*pair) for pair in pairs])
    assert [one[0] if one else None for one in found] == faults


PAIRS = st.lists(
    st.tuples(st.sampled_from(["", "a", "b:"]), st.sampled_from(["", "a", "c", "d:"])), max_size=6
)


@given(PAIRS)
def test_instances_that_are_kept_do_not_contradict_each_other(pairs: list[tuple[str, str]]) -> None:
    instances = [Instance(*pair) for pair in pairs]
    faults = find_instance_faults(instances)
    kept = [one for one, wrong in zip(instances, faults, strict=True) if wrong is None]
    assert len(set(kept)) == len(kept)
    given_inputs = [one.input for one in kept if one.input]
    assert len(set(given_inputs)) == len(given_inputs)
    assert all(one.output and one.output != one.input for one in kept)


def test_outputs_that_no_recipe_wants() -> None:
    found = _instructions.find_output_fault
    french = "Le train part à six heures et demie du quai numéro deux, ne soyez pas en retard."
    asked = "Translate this sentence into French, please, and keep to the time of day."
    assert found("I'm sorry, but I can't help with that.", SEA, Filters()) is not None
    assert found(french, asked, Filters()) is None
    assert (found(french, asked, Filters(any_language=False)) or ("",))[0] == "other_language"


def test_changed_filters_are_applied_to_the_replies_that_are_there(tmp_path: Path) -> None:
    samples, _ = run(tmp_path / "r")
    kept = {s.id for s in samples}
    fewer, rejections = run(tmp_path / "r", generate={"reparse": True}, filters={"keywords": ["frog"]})
    assert [r.reason for r in rejections] == ["keyword", "keyword"]
    assert {s.id for s in fewer} | {r.id for r in rejections} == kept
    assert read_info(tmp_path / "r")["stats"]["calls"] == 0


# Novelty


@pytest.mark.parametrize(
    ("earlier", "instruction", "score"),
    [
        ("Write a poem about the sea", "Write a short poem about the ocean", 0.769),
        ("Write a poem about the sea", "Explain why the sea is salty", 0.333),
    ],
)
def test_rouge_l_as_the_facts_have_it(earlier: str, instruction: str, score: float, tmp_path: Path) -> None:
    assert round(rouge_l(earlier, instruction), 3) == score
    samples, rejections = run(tmp_path / "r", script(f"1. {earlier}\n2. {instruction}"))
    kept = {fields(s).instruction for s in samples}
    assert earlier in kept
    assert (instruction in kept) == (score < 0.7)
    assert [(r.reason, r.detail) for r in rejections] == (
        [("too_similar", f"0.769 to: {earlier}")] if score >= 0.7 else []
    )


def sample_of(instruction: str, seed: int, number: int = 0) -> Completion:
    made = Fields(instruction=instruction, input=str(number), is_classification=False, demos=())
    return Completion(
        id=f"x-{seed}-{number}", group=self_instruct.group_of(instruction), origin=Origin(seed=seed),
        prompt=(Message(role="user", content="x"),), completion=(Message(role="assistant", content="y"),),
        fields=made.model_dump_json(),
    )  # fmt: skip


def test_a_second_instance_is_not_held_against_its_own_instruction() -> None:
    admit = admission(config())
    first, second, other = sample_of(SEA, 3), sample_of(SEA, 3, 1), sample_of(SEA, 4)
    assert admit(first) is first
    assert admit(second) is second
    turned_down = admit(other)
    assert isinstance(turned_down, Rejection)
    assert turned_down.detail == f"1.000 to: {SEA}"
    assert turned_down.sample is other


def test_equal_instructions_in_another_script_are_equal_too() -> None:
    admit = admission(config())
    assert isinstance(admit(sample_of("写一首关于大海的诗", 0)), Completion)
    assert isinstance(admit(sample_of("写一首关于大海的诗", 1)), Rejection)
    assert isinstance(admit(sample_of("海水为什么是咸的?", 1)), Completion)


TEXTS = st.lists(
    st.sampled_from(["write", "a", "poem", "about", "the", "sea", "why", "is", "salt", "two"]),
    min_size=1,
    max_size=7,
).map(" ".join)


@given(st.lists(st.lists(TEXTS, max_size=4), max_size=6), st.sampled_from([0.4, 0.7, 1.0]))
def test_no_two_accepted_instructions_are_as_close_as_the_threshold(
    seeds: list[list[str]], threshold: float
) -> None:
    admit = admission(config(filters={"rouge_threshold": threshold}))
    kept: list[str] = [task.instruction for task in SEEDS.tasks]
    for seed, instructions in enumerate(seeds):
        for text in dict.fromkeys(instructions):
            closest = max(rouge_l(text, other) for other in kept)
            outcomes = [admit(sample_of(text, seed, number)) for number in (0, 1)]
            novel = closest < threshold
            assert [isinstance(one, Completion) for one in outcomes] == [novel, novel]
            if novel:
                kept.append(text)
            else:
                assert isinstance(outcomes[0], Rejection)
                assert outcomes[0].detail.startswith(f"{closest:.3f} to: ")


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="min_words must not be above max_words"):
        config(filters={"min_words": 9, "max_words": 8})
    with pytest.raises(ConfigError, match="demos_seed and demos_pool must not both be 0"):
        config(demos_seed=0, demos_pool=0)
    with pytest.raises(ConfigError, match=r"mode = .*'self_instruct' or 'alpaca'"):
        config(mode=["alpaca"])
    with pytest.raises(ConfigError, match=r"rouge_threshold = 1\.5"):
        config(filters={"rouge_threshold": 1.5})


def test_the_fields_of_a_sample_are_json(tmp_path: Path) -> None:
    samples, _ = run(tmp_path / "r")
    assert set(json.loads(samples[0].fields)) == {"instruction", "input", "is_classification", "demos"}
