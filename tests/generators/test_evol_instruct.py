"""Evol-Instruct: slots and rounds, lineages, the eliminations one by one, odd replies."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdbench
from kdbench.config import build
from kdbench.errors import ConfigError, DataError, NothingLeft, Rejected, RunDirError, UsageError
from kdbench.jsonl import read_rejections, read_samples
from kdbench.prompts import Prompts
from kdbench.records import Completion, Rejection
from kdbench.rundir import read_info
from kdbench.teacher import Request
from kdbench_generators import evol_instruct
from kdbench_generators.evol_instruct import COPIED, OPERATIONS, STOP_WORDS, Config, Fields, Filters, Turns
from tests.support.teachers import ScriptTeacher, share

INITIAL = ("Name a bird.", "Why is the sky blue?", "Sum up the last century.")
ANSWER = "Nobody would have thought of this answer before."
PROMPTS = Prompts("evol_instruct")


def write(folder: Path, *texts: str) -> dict[str, Any]:
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps({"question": text}) + "\n" for text in texts or INITIAL))
    return {"file": str(file)}


def parent_in(request: Request) -> str | None:
    """The instruction that a request asks to evolve; None for another request."""
    _, opened, rest = request.messages[-1].content.partition("<instruction>\n")
    return rest.partition("\n</instruction>")[0] if opened else None


def script(
    evolve: Callable[[str, Request], str] = lambda parent, request: f"{parent} Say more.",
    judge: Callable[[Request], str] = lambda request: "not equal",
    answer: Callable[[str, Request], str] = lambda instruction, request: ANSWER,
) -> Callable[[Request], str]:
    def say(request: Request) -> str:
        asked = request.messages[-1].content
        if "Are they equal?" in asked:
            return judge(request)
        parent = parent_in(request)
        return answer(asked, request) if parent is None else evolve(parent, request)

    return say


def run(
    out: Path,
    say: Callable[[Request], str] | None = None,
    generate: dict[str, Any] | None = None,
    **config: Any,
) -> tuple[list[Completion], list[Rejection]]:
    out.parent.mkdir(exist_ok=True, parents=True)
    values = config if "questions" in config else {"questions": write(out.parent), **config}
    with suppress(NothingLeft):
        kdbench.generate(
            "evol_instruct", teacher=ScriptTeacher(say or script()), n=999, out=out, config=values,
            **(generate or {}),
        )  # fmt: skip
    samples = [one for one in read_samples(out / "samples.jsonl") if isinstance(one, Completion)]
    return samples, list(read_rejections(out / "rejected.jsonl"))


def fields(sample: Any) -> Fields:
    return Fields.model_validate_json(sample.fields)


def config(**values: Any) -> Config:
    return build(Config, values, "recipe evol_instruct")


# Slots and rounds


def test_each_round_evolves_every_slot_once_and_seeds_end_after_the_last(tmp_path: Path) -> None:
    samples, rejections = run(tmp_path / "r", rounds=2, operations=["deepen"])
    assert not rejections
    assert [(fields(s).round, fields(s).slot, s.prompt[0].content) for s in samples] == [
        (number, slot, text + number * " Say more.")
        for number in range(3)
        for slot, text in enumerate(INITIAL)
    ]
    assert [fields(s).operation for s in samples] == 3 * ["original"] + 6 * ["deepen"]
    assert [fields(s).depth for s in samples] == 3 * [0] + 3 * [1] + 3 * [2]
    assert [fields(s).parent for s in samples] == [None] * 3 + [s.id for s in samples[:6]]
    assert [s.group for s in samples] == 3 * [s.group for s in samples[:3]]
    assert {s.teacher_prompt for s in samples} == {None}


def test_the_end_of_the_rounds_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path / "r", rounds=1)
    assert caplog.text.endswith("the 6 seeds of this run are used up; the samples are kept. "
                                "The recipe has no more of them\n")  # fmt: skip
    caplog.clear()
    run(tmp_path / "s", generate={"max_candidates": 4}, rounds=1)
    assert "4 of 999 samples: the 4 seeds" in caplog.text
    assert "Raise --max-candidates" in caplog.text


def test_originals_may_be_left_out(tmp_path: Path) -> None:
    samples, _ = run(tmp_path / "r", rounds=1, include_originals=False)
    assert [(fields(s).round, fields(s).slot, fields(s).parent) for s in samples] == [
        (1, slot, None) for slot in range(3)
    ]


def test_equal_instructions_have_one_slot_and_there_are_no_more_than_asked_for(tmp_path: Path) -> None:
    source = write(tmp_path, "Name a bird.", "Name  a bird.", "Name a fish.", "Name a worm.")
    turns = Turns(config(questions=source, instructions=3, rounds=1))
    assert [q.text for q in turns.questions] == ["Name a bird.", "Name a fish."]
    assert evol_instruct.round_size(config(questions=source, instructions=3)) == 2
    assert [(t.round, t.slot) for t in turns] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_part_without_instructions_is_named(tmp_path: Path) -> None:
    source = {**write(tmp_path, "Name a bird."), "heldout_share": 1e-9, "part": "heldout"}
    with pytest.raises(DataError, match=r"No initial instruction .* questions\.part"):
        Turns(config(questions=source))


def test_without_questions_the_seed_tasks_are_evolved(tmp_path: Path) -> None:
    turns = Turns(config())
    assert len(turns.questions) == 100
    assert turns.fingerprint["file"] == "seed_instructions.jsonl"
    samples, _ = run(tmp_path / "r", questions=None, instructions=2, rounds=1)
    first = turns.questions[0]
    assert samples[0].prompt[0].content == f"{first.context}\n\n{first.text}"


def test_questions_of_a_task_that_never_ends_are_cut_off_at_the_number_asked_for() -> None:
    turns = Turns(config(questions={"task": {"chain_sum": {}}}, instructions=7))
    assert len(turns.questions) == 7


def test_instructions_count_by_content_not_by_place(tmp_path: Path) -> None:
    samples, _ = run(tmp_path / "a" / "r", rounds=1)
    elsewhere = tmp_path / "b" / "questions.jsonl"
    elsewhere.parent.mkdir()
    shutil.copy(tmp_path / "a" / "questions.jsonl", elsewhere)
    again, _ = run(
        tmp_path / "a" / "r", generate={"resume": True}, rounds=1, questions={"file": str(elsewhere)}
    )
    assert again == samples
    elsewhere.write_text(elsewhere.read_text().replace("bird", "fish"))
    with pytest.raises(RunDirError, match="different source"):
        run(tmp_path / "a" / "r", generate={"resume": True}, rounds=1, questions={"file": str(elsewhere)})


# Operations


def test_operations_are_drawn_uniformly_and_each_has_words_of_its_own(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    def evolve(parent: str, request: Request) -> str:
        asked[request.messages[-1].content.replace(parent, "")] += 1
        return f"Name {request.seed} birds."

    samples, _ = run(tmp_path / "r", script(evolve), rounds=100)
    drawn = Counter(fields(s).operation for s in samples if fields(s).round)
    assert set(drawn) == set(OPERATIONS)
    assert all(30 <= count <= 70 for count in drawn.values())
    assert len(asked) == 5 + len(evol_instruct.FORMATS)
    assert {name.removeprefix("evol_instruct/") for name in PROMPTS.hashes() if name.startswith("evol")} == {
        f"{name}.j2" for name in (*OPERATIONS, "in_depth", "judge")
    }


def test_breadth_takes_the_slot_and_adds_no_depth(tmp_path: Path) -> None:
    samples, _ = run(
        tmp_path / "r", script(lambda parent, request: f"Name {len(parent)} stars."), rounds=2,
        operations=["breadth"],
    )  # fmt: skip
    lineage = [s for s in samples if fields(s).slot == 0]
    assert [s.prompt[0].content for s in lineage] == ["Name a bird.", "Name 12 stars.", "Name 14 stars."]
    assert [fields(s).depth for s in lineage] == [0, 0, 0]
    assert len({s.group for s in lineage}) == 1


def test_a_judge_of_its_own_is_asked_only_where_it_is_wanted(tmp_path: Path) -> None:
    def no_judge(request: Request) -> str:
        assert "Are they equal?" not in request.messages[-1].content
        return script()(request)

    judge = ScriptTeacher(lambda request: "Not equal.", identity="judge")
    kdbench.generate(
        "evol_instruct", teacher={"teacher": ScriptTeacher(no_judge), "judge": judge}, n=99,
        out=tmp_path / "r", config={"questions": write(tmp_path), "rounds": 1, "judged_by": "judge"},
    )  # fmt: skip
    assert judge.asked == 3
    with pytest.raises(UsageError, match="judge"):
        run(tmp_path / "s", judged_by="judge")


# Lineages


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.floats(0, 1), st.booleans(), st.integers(1, 7))
def test_a_parent_is_the_newest_accepted_sample_of_its_slot(
    salt: int, failing: float, originals: bool, concurrency: int
) -> None:
    def evolve(parent: str, request: Request) -> str:
        return parent if share(request, f"evolve {salt}") < failing / 2 else f"{parent} Then {request.seed}."

    def answer(instruction: str, request: Request) -> str:
        return "Sorry, no." if share(request, f"answer {salt}") < failing / 2 else ANSWER

    with TemporaryDirectory() as folder:
        samples, rejections = run(
            Path(folder) / "r", script(evolve, answer=answer), {"concurrency": concurrency},
            rounds=3, include_originals=originals,
        )  # fmt: skip
    assert len(samples) + len(rejections) == 3 * (3 + originals)
    newest: dict[int, Completion] = {}
    for sample in samples:
        made = fields(sample)
        parent = newest.get(made.slot)
        assert made.parent == (parent.id if parent else None)
        before = parent.prompt[0].content if parent else INITIAL[made.slot]
        assert sample.prompt[0].content.startswith(before)
        if parent:
            assert fields(parent).round < made.round
            assert parent.group == sample.group
        newest[made.slot] = sample


def test_with_a_teacher_that_always_fails_every_slot_keeps_its_original(tmp_path: Path) -> None:
    evolved: Counter[str] = Counter()

    def evolve(parent: str, request: Request) -> str:
        evolved[parent] += 1
        return f"{parent} Say more."

    say = script(evolve, answer=lambda instruction, request: "I am sorry to say that it is not known.")
    samples, rejections = run(tmp_path / "r", say, rounds=3)
    assert not samples
    assert evolved == dict.fromkeys(INITIAL, 3)
    assert Counter(r.reason for r in rejections) == {"sorry": 12}
    assert {fields(r.sample).parent for r in rejections} == {None}


def test_a_failed_parent_is_evolved_again_by_another_draw(tmp_path: Path) -> None:
    asked: list[str] = []

    def evolve(parent: str, request: Request) -> str:
        asked.append(request.messages[-1].content)
        return f"{parent} Say more." if len(asked) == 9 else parent

    samples, rejections = run(
        tmp_path / "r",
        script(evolve),
        {"concurrency": 1},
        rounds=9,
        questions=write(tmp_path, "Name a bird."),
    )
    assert [r.reason for r in rejections] == ["unchanged"] * 8
    assert samples[1].prompt[0].content == "Name a bird. Say more."
    assert fields(samples[1]).parent == samples[0].id
    assert len(set(asked)) > 3


# Eliminations


BARE = PROMPTS.render("deepen", instruction="")


def eliminated(
    instruction: str, verdict: str | None = "not equal", parent: str = "Name it.", **filters: Any
) -> Any:
    return evol_instruct.find_elimination(verdict, instruction, parent, BARE, Filters(**filters))


def test_first_elimination_nothing_new() -> None:
    assert eliminated("Name it well.") is None
    assert eliminated("Name it well.", "equal") == ("no_new_information", "Name it.")
    assert eliminated("Name it well.", None) == ("no_verdict", "")
    assert eliminated("Name it well.", "equal", require_new_information=False) is None


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("equal", "equal"),
        ("Equal.", "equal"),
        ("**Not Equal**", "not equal"),
        ("They are not equal: the second asks for more.", "not equal"),
        ("They are not quite equal.", "not equal"),
        ("These are unequal, I think.", "not equal"),
        ("Equal, for they are not different.", "equal"),
        ("", None),
        ("Equality is a fine thing.", None),
    ],
)
def test_the_judges_verdict(text: str, verdict: str | None) -> None:
    assert evol_instruct.verdict_of(text) == verdict


def test_a_judge_that_says_nothing_readable_fails_the_evolution_alone(tmp_path: Path) -> None:
    for number, said in enumerate(("Who knows?", "", "They are" + ScriptTeacher.CUT)):
        samples, rejections = run(
            tmp_path / str(number),
            script(judge=lambda request, said=said: said),
            rounds=1,  # type: ignore[misc]
        )
        assert len(samples) == 3
        assert [r.reason for r in rejections] == ["no_verdict"] * 3
        assert {r.sample.text for r in rejections if isinstance(r.sample, Completion)} == {ANSWER}


def answered(answer: str, **filters: Any) -> str | None:
    found = evol_instruct.find_answer_fault(answer, "Name the tallest tree you know.", Filters(**filters))
    return found[0] if found else None


def test_second_elimination_sorry_in_a_short_answer() -> None:
    long = " ".join(a + b for a in "abcdefghij" for b in "klmnopqr")
    assert answered(f"Sorry! {long}") is None  # 81 words
    assert answered(f"Sorry! {' '.join(long.split()[:79])}") is None  # 80
    assert answered(f"Sorry! {' '.join(long.split()[:78])}") == "sorry"  # 79
    assert answered("That is a sorry tale.", sorry_words=5) is None
    assert answered("That is a sorry tale.", sorry_words=6) == "sorry"


@pytest.mark.parametrize("answer", ["...", "It is what it is.", "And so, to be with you?!", "—", "You and I"])
def test_third_elimination_punctuation_and_stop_words(answer: str) -> None:
    assert answered(answer) == "no_content"
    assert answered(answer, require_content=False) is None


@pytest.mark.parametrize("answer", ["42", "Yes.", "No.", "It is a yew.", "榆树", "√2"])
def test_a_short_answer_may_have_content(answer: str) -> None:
    assert answered(answer) is None


@given(st.lists(st.sampled_from(sorted(STOP_WORDS) + list(".,;!?-")), min_size=1, max_size=12))
def test_no_answer_of_stop_words_alone_is_kept(parts: list[str]) -> None:
    assert answered(" ".join(parts)) is not None
    assert answered(" ".join([*parts, "sequoia"])) in (None, "loop")


def test_fourth_elimination_words_of_the_request() -> None:
    for phrase in COPIED:
        assert eliminated(f"Tell me, {phrase.upper()} name it well.") == ("copied_prompt", phrase)
    assert eliminated("Explain what a new prompt is.", parent="What is a NEW PROMPT?") is None
    assert eliminated(f"Name it. {BARE}", copied=["xyzzy"]) == (
        "copied_prompt", "ten runs of four words or more",
    )  # fmt: skip
    assert eliminated("Name it. xyzzy", copied=["xyzzy"]) == ("copied_prompt", "xyzzy")
    assert eliminated(f"Given prompt: {BARE}", copied=[]) is None


def test_a_useless_evolution_costs_no_further_call(tmp_path: Path) -> None:
    for reason, text in {
        "unchanged": "Name a  bird.",
        "refusal": "I'm sorry, but I can't help with that.",
        "loop": "Name it now and then. " * 5,
        "other_language": "Nennen Sie einen Vogel, der im Winter bei uns bleibt, und sagen Sie auch, warum.",
    }.items():
        teacher = ScriptTeacher(script(lambda parent, request, text=text: text))  # type: ignore[misc]
        source = write(tmp_path, "Name a bird.") if reason == "unchanged" else write(
            tmp_path, "Name a bird that lives in the woods of your own country."
        )  # fmt: skip
        kdbench.generate(
            "evol_instruct", teacher=teacher, n=9, out=tmp_path / reason,
            config={"questions": source, "rounds": 1, "operations": ["deepen"]},
        )  # fmt: skip
        assert [r.reason for r in read_rejections(tmp_path / reason / "rejected.jsonl")] == [reason]
        assert teacher.asked == 2


def test_an_instruction_that_was_cut_off_is_never_kept(tmp_path: Path) -> None:
    say = script(
        lambda parent, request: f"{parent} And say" + ScriptTeacher.CUT,
        answer=lambda instruction, request: ANSWER + ScriptTeacher.CUT,
    )
    samples, rejections = run(tmp_path / "r", say, {"on_truncated": "keep"}, rounds=1)
    assert [s.text for s in samples] == [ANSWER] * 3
    assert [r.reason for r in rejections] == ["truncated"] * 3


@pytest.mark.parametrize(
    ("text", "instruction"),
    [
        ("Name it.", "Name it."),
        ("  Name it.\n", "Name it."),
        ('"Name it."', "Name it."),
        ("“Name it.”", "Name it."),
        ("<instruction>\nName \"it\"\n</instruction>", 'Name "it"'),
        ("Sure! Here you go:\n\nName it.", "Name it."),
        ("Certainly!\nName it.", "Name it."),
        ("Here is the harder version:\n\n\"Name it.\"", "Name it."),
        ("Here is a table of sales:\n1 | 2\nSum it.", "Here is a table of sales:\n1 | 2\nSum it."),
        ('"Name it," he said.', '"Name it," he said.'),
        ('"Yes" or "no"', '"Yes" or "no"'),
    ],
)  # fmt: skip
def test_the_instruction_of_a_reply(text: str, instruction: str) -> None:
    assert evol_instruct.instruction_of(text) == instruction


@given(st.text(), st.sampled_from(OPERATIONS))
def test_any_reply_is_read_or_turned_down(text: str, operation: evol_instruct.Operation) -> None:
    instruction = evol_instruct.instruction_of(text)
    try:
        evol_instruct.check_instruction(instruction, "Name a bird.", operation)
    except Rejected as exc:
        reason = exc.reason
    else:
        reason = None
        assert instruction.strip()
    assert reason in (None, "empty", "unchanged", "refusal", "loop", "other_language")
    assert evol_instruct.verdict_of(text) in ("equal", "not equal", None)
    evol_instruct.find_answer_fault(text, instruction, Filters())


def test_changed_filters_are_applied_to_the_replies_that_are_there(tmp_path: Path) -> None:
    def judge(request: Request) -> str:
        return "equal" if "Name a bird" in request.messages[-1].content else "not equal"

    samples, rejections = run(tmp_path / "r", script(judge=judge), rounds=1)
    assert [r.reason for r in rejections] == ["no_new_information"]
    more, none = run(
        tmp_path / "r", script(judge=judge), {"reparse": True}, rounds=1,
        filters={"require_new_information": False},
    )  # fmt: skip
    assert not none
    assert {s.id for s in more} == {s.id for s in samples} | {r.id for r in rejections}
    assert read_info(tmp_path / "r")["stats"]["calls"] == 0


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"operations\.0 = \"deeper\""):
        config(operations=["deeper"])
    with pytest.raises(ConfigError, match="operations = "):
        config(operations=[])
    with pytest.raises(ConfigError, match="rounds = 0"):
        config(rounds=0)
    with pytest.raises(ConfigError, match="needs exactly one of task, file and dataset"):
        config(questions={})


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("They aren't equal.", "not equal"),
        ("They are not quite equal", "not equal"),
        ("Equal.", "equal"),
        ("unequal", "not equal"),
        ("Hm", None),
    ],
)
def test_a_verdict_is_read_as_it_is_meant(text: str, verdict: str | None) -> None:
    assert evol_instruct.verdict_of(text) == verdict


def test_an_instruction_that_opens_in_a_chatty_way_keeps_its_first_line() -> None:
    text = "Okay, so write a haiku about it.\nThen explain it."
    assert evol_instruct.instruction_of(text) == text
    assert evol_instruct.instruction_of("Okay, here is one:\nWrite a haiku.") == "Write a haiku."
