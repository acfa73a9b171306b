"""`doctor` on run directories and models, from Python and from the command line."""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from rich.console import Console

import kdbench
from kdbench.checks.findings import Finding
from kdbench.cli import main
from kdbench.errors import ConfigError, RunDirError
from kdbench.jobs.doctor_job import show_findings
from kdbench.jobs.training import train
from kdbench.records import Message
from kdbench_trainers._batches import in_shares, weights_of
from kdbench_trainers._trainer import KdTrainer
from tests.checks.cases import of, only
from tests.jobs.test_training import OWN, generated
from tests.trainers.test_step_by_step import questions
from tests.trainers.test_trainer import save_as
from tests.trainers.tiny import CHATML, WORDS, save_model, stories, story, tokenizer

pytestmark = pytest.mark.medium

CHECKS = [
    "samples", "left out", "vocabularies", "chat templates", "masks", "end of turn", "split",
    "batches", "positions", "denominator",
]  # fmt: skip
SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|> system be kind <|im_end|> newline {% endif %}"
    + CHATML
)
CPU = {"device": "cpu"}


@pytest.fixture
def data(tmp_path):
    return generated(tmp_path / "data", stories(12))


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("student"), seed=1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("teacher"), seed=2, layers=3, hidden=24)


def without_stop(folder: Path) -> str:
    """A student whose generation never stops."""
    ref = save_model(folder, seed=1)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": None}))
    return ref


@pytest.mark.parametrize("method", ["black_box", "white_box", "gkd"])
def test_a_sound_setup_is_ok_throughout(method, data, student, teacher):
    found = kdbench.doctor(method, data=data, student=student, teacher=teacher, config=CPU)
    assert [one.check for one in found] == CHECKS
    assert {one.level for one in found} == {"ok"}


def test_stored_signals_are_looked_at_in_place_of_a_teacher(data, student, teacher, tmp_path):
    kdbench.store_signals(data=data, teacher=teacher, out=tmp_path / "signals", config=CPU)
    settings = {**CPU, "signals": str(tmp_path / "signals")}
    found = kdbench.doctor("white_box", data=data, student=student, config=settings)
    assert [one.check for one in found] == CHECKS
    assert {one.level for one in found} == {"ok"}
    more = generated(tmp_path / "more", [*stories(12), story(40)])
    left_out = only(of(kdbench.doctor("white_box", data=more, student=student, config=settings), "warning"))
    assert (left_out.samples, left_out.value) == (("s40",), "18 tokens")
    assert "of which the stored signals know nothing" in left_out.text


def test_it_reads_what_a_training_would_read(student, tmp_path):
    odd = [story(n, weight=-1.0, fields=json.dumps({"stage": n % 2})) for n in range(4)]
    data = generated(tmp_path / "data", odd)

    def names(**which):
        found = kdbench.doctor("black_box", data=data, student=student, config=CPU, **which)
        return next(one for one in found if one.check == "left out").samples

    assert names() == ("s0", "s1", "s2", "s3")
    assert names(where={"stage": 1}) == ("s1", "s3")
    assert names(where={"stage": 1}, limit=1) == ("s1",)
    with pytest.raises(RunDirError, match="not finished"):
        kdbench.doctor(
            "black_box", data=generated(tmp_path / "torn", stories(2), finish=False), student=student
        )


def test_padded_heads_are_sliced_and_said(data, teacher, tmp_path):
    padded = save_model(tmp_path / "padded", seed=1, padded_to=40)
    found = kdbench.doctor("white_box", data=data, student=padded, teacher=teacher, config=CPU)
    assert {one.level for one in found} == {"ok"}
    assert "student 29 tokens, head 40; teacher 29 tokens, head 29; compared over the first 29" in {
        one.text for one in found
    }


def test_other_tokenizers_end_it_before_the_models_are_loaded(data, student, tmp_path):
    other = save_model(tmp_path / "other", tok=tokenizer(words=[*WORDS, "moon"]))
    found = kdbench.doctor("white_box", data=data, student=student, teacher=other, config=CPU)
    error = only(of(found, "error"))
    assert error.value == "29 and 30 tokens, 29 alike"
    assert str(only(of(found, "warning"))) == (
        "Batches, positions and denominator were not looked at; mend the vocabularies first"
    )


def test_what_the_trainer_refuses_is_a_finding(data, tmp_path):
    biased = save_as("Phi", tmp_path / "biased")
    error = only(of(kdbench.doctor("black_box", data=data, student=biased, config=CPU), "error"))
    assert error.check == "trainer"
    assert "changes its logits after the head in a way that" in error.text


def test_a_trainer_of_ones_own_is_told_how_to_be_looked_at(data, student, tmp_path):
    own = tmp_path / "copy_student.py"
    own.write_text(OWN)
    found = kdbench.doctor(own, data=data, student=student)
    assert [one.check for one in found] == [*CHECKS[:7], "trainer"]
    assert "give copy_student a function `rehearse`" in only(of(found, "warning")).way_out


def test_both_views_of_step_by_step_are_looked_at(student, tmp_path, monkeypatch):
    data = generated(tmp_path / "views", questions(5))
    found = kdbench.doctor(
        "step_by_step", data=data, student=student, config={**CPU, "alpha": 0.3, "seed": 2}
    )
    assert [(one.check, one.level) for one in found] == [(name, "ok") for name in CHECKS]
    # Each process by the rows of its own views: right in one batch, and wrong for two of them.
    monkeypatch.setattr(KdTrainer, "weighed", lambda self, window, world: _in_own_shares(self, window))
    found = kdbench.doctor(
        "step_by_step", data=data, student=student, config={**CPU, "alpha": 0.3, "seed": 2}
    )
    assert only(of(found, "error")).text.endswith("2 processes and 1")


def _in_own_shares(trainer, window):
    sums = dict(zip(trainer.plan.shares, weights_of(window, list(trainer.plan.shares)), strict=True))
    return in_shares(window, trainer.plan.shares, sums)


def test_the_trainings_of_a_sequence_are_looked_at_one_by_one(student, teacher, tmp_path):
    data = generated(
        tmp_path / "data",
        [story(n, words=3 + n % 7, fields=json.dumps({"stage": 1 + n % 2})) for n in range(12)],
    )
    stages = [
        {"method": "black_box", "where": {"stage": 1}, "config": CPU},
        {"method": "white_box", "where": {"stage": 2}, "config": {**CPU, "max_length": 18}},
    ]
    found = kdbench.doctor(
        "progressive", data=data, student=student, teacher=teacher, config={"stages": stages}
    )
    names = [f"{stage}: {check}" for stage in ("01_black_box", "02_white_box") for check in CHECKS]
    assert [one.check for one in found] == names
    assert {one.check for one in of(found, "warning")} == {"02_white_box: left out"}
    asked = {"data": data, "student": student, "teacher": teacher}
    rounds = kdbench.doctor("multi_round", **asked, config={"method": "gkd", "method_config": CPU})
    assert [(one.check, one.level) for one in rounds] == [(f"round: {name}", "ok") for name in CHECKS]
    adapted = kdbench.doctor("adapt_then_distill", **asked, config={"method_config": CPU})
    assert [(one.check, one.level) for one in adapted] == [(f"distil: {name}", "ok") for name in CHECKS]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"order_by": "score"}, "the sample s0 has no number of that name"),
        ({"conditions": [{"where": {"by": "nobody"}}]}, "No sample has a field 'by'"),
        ({"plain_text": {"texts": ["nowhere"]}}, "No text at 'nowhere'"),
    ],
)
def test_options_that_do_not_fit_are_a_finding(settings, said, data, student):
    (found,) = kdbench.doctor("black_box", data=data, student=student, config={**CPU, **settings})
    assert (found.check, found.level) == ("options", "error")
    assert said in found.text


def test_messages_that_a_template_turns_down_are_named(data, student, tmp_path):
    refusing = CHATML.replace(
        "{% for m in messages %}",
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}",
    )
    strict = save_model(tmp_path / "strict", seed=1, tok=tokenizer(template=refusing))
    system = story(7)
    system = system.model_copy(update={"prompt": (Message(role="system", content="be"), *system.prompt)})
    more = generated(tmp_path / "more", [*stories(3), system])
    error = only(kdbench.doctor("black_box", data=more, student=strict, config=CPU))
    assert (error.level, error.samples) == ("error", ("s7",))
    assert "no system" in error.value


def test_nothing_to_train_on_is_an_error_with_the_reason(data, student):
    found = kdbench.doctor("black_box", data=data, student=student, config={**CPU, "max_length": 5})
    error = only(of(found, "error"))
    assert error.text == "12 of 12 samples (100%) left out as too long"
    assert [one.check for one in found] == CHECKS[:7]


def test_a_needed_teacher_is_asked_for(data, student):
    with pytest.raises(ConfigError, match="no teacher is given"):
        kdbench.doctor("white_box", data=data, student=student)


# the training itself


def test_a_training_runs_the_cheap_checks(data, teacher, tmp_path, caplog):
    settings = {**CPU, "steps": 1, "batch_size": 2}
    polite = save_model(tmp_path / "polite", seed=2, tok=tokenizer(template=SYSTEM))
    student = save_model(tmp_path / "student", seed=1)
    caplog.set_level(logging.WARNING, logger="kdbench")
    train("white_box", data=data, student=student, teacher=polite, out=tmp_path / "out", config=settings)
    assert "a default system message that the student never sees" in caplog.text
    with pytest.raises(ConfigError, match="generation does not stop at the end of turn that is learnt"):
        train("black_box", data=data, student=without_stop(tmp_path / "endless"), out=tmp_path / "no",
              config=settings)  # fmt: skip
    assert not (tmp_path / "no" / "model").exists()


# the command


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["kdbench", "doctor", *map(str, words), "--set", "device=cpu"])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out, shown.err

    logger = logging.getLogger("kdbench")  # which `main` takes for itself
    before = logger.handlers[:], logger.level, logger.propagate
    yield run
    logger.handlers[:], logger.level, logger.propagate = before


def test_the_command_prints_a_line_per_check_and_exits_0(command, data, student, teacher):
    code, out, _ = command("white_box", "--data", data, "--student", student, "--teacher", teacher)
    assert code == 0
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines] == CHECKS
    assert lines[0] == "samples: ok"
    assert lines[2].startswith("vocabularies: ok: student 29 tokens, head 29; ")


def test_the_command_exits_1_with_an_error_and_0_with_warnings(command, student, tmp_path):
    data = generated(tmp_path / "data", [*stories(8), *(story(n, words=60) for n in range(20, 25))])
    words = ("black_box", "--data", data, "--set", "max_length=50")
    code, out, _ = command(*words, "--student", student)
    assert code == 0
    assert (
        "left out: warning: 5 of 13 samples (38%) left out as too long: s20 (72 tokens; at most 50, "
        "max_length), s21, s22 and 2 more; raise max_length" in out.splitlines()
    )
    code, out, _ = command(*words, "--student", without_stop(tmp_path / "endless"))
    assert code == 1
    assert "end of turn: error: The student's generation does not stop" in out
    assert "set eos_token_id to 2 in its generation_config.json" in out


def test_the_command_exits_2_for_what_is_no_training(command, data, student):
    code, out, err = command("white_box", "--data", data, "--student", student)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "no teacher is given; name one with --teacher" in err


def test_a_terminal_gets_a_table():
    console = Console(file=io.StringIO(), force_terminal=True, width=70, no_color=True)
    show_findings(
        [
            Finding("masks", "ok", ""),
            Finding("split", "error", "held out", ("s1",), "group [bold]", "mend it"),
            Finding("split", "warning", "twins", ("s2",)),
        ],
        console,
    )
    table = console.file.getvalue()
    assert table.splitlines()[1].split() == ["masks", "ok"]
    assert "held out: s1 (group [bold]); mend it" in table
    assert table.count("split") == 1


def test_the_twin_is_no_module():
    import kdbench.checks.running

    assert kdbench.doctor.__name__ == "doctor"
