"""A whole job: stages are made, kept while nothing they stand on changes, and refused if senseless."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console

import kdbench
from kdbench.errors import ConfigError
from kdbench.jobs.job_file import load_job, shipped_jobs
from kdbench.rundir import is_done, read_info
from tests.support import byte_llama

STAGES = [
    "data/train",
    "data/heldout",
    "students/pruned",
    "trained/black_box",
    "trained/white_box",
    "evaluation",
]


def job_file(folder: Path, teacher: str) -> Path:
    """The shipped job in small: scripted stories, a tiny random teacher."""
    config = {"sentences": 2, "filters": {"min_words": 5}}
    stories = {"recipe": "tinystories", "teacher": "scripted", "n": 6, "config": config}
    training = {
        "data": "train",
        "student": "pruned",
        "config": {"steps": 2, "batch_size": 2, "warmup_steps": 0},
    }
    job = {
        "format": 1,
        "name": "tiny",
        "teacher": teacher,
        "generate": {
            "train": stories,
            "heldout": {**stories, "n": 3, "seed": 1},
        },
        "students": {"pruned": {"data": "train", "config": {"kind": "pruned", "layers": 2}}},
        "train": {m: {"method": m, **training} for m in ("black_box", "white_box")},
        "evaluate": {
            "data": "heldout", "models": ["teacher", "pruned", "black_box", "white_box"], "max_tokens": 8,
        },
        "profiles": {"longer": {"note": "A longer one.", "set": {"train.white_box.config.steps": 3}}},
    }  # fmt: skip
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def run(path: Path, out: Path, **more: object) -> list[str]:
    """Run the job; what it printed, a line per stage: 'made' or 'kept'."""
    console = Console(record=True, width=200, force_terminal=False, quiet=False)
    kdbench.run_job(path, out=out, console=console, **more)  # type: ignore[arg-type]
    lines = [line for line in console.export_text().splitlines() if re.match(r"\[\d/6\]", line)]
    return ["kept" if line.endswith("unchanged, kept") else "made" for line in lines]


@pytest.mark.medium
def test_stages_are_kept_until_something_they_stand_on_changes(tmp_path: Path) -> None:
    teacher = byte_llama.save(tmp_path / "teacher", max_position_embeddings=2048)
    path, out = job_file(tmp_path, teacher), tmp_path / "job"
    assert run(path, out) == ["made"] * 6
    assert all(is_done(out / stage) for stage in STAGES)
    assert "white_box" in (out / "report.html").read_text()
    assert run(path, out) == ["kept"] * 6
    assert run(path, out, profile="longer") == ["kept"] * 4 + ["made"] * 2
    assert read_info(out / "trained" / "white_box")["stats"]["steps"] == 3

    asked = read_info(out / "data" / "train")["stats"]["calls"]
    assert asked >= 6
    more = run(path, out, sets=["generate.train.n=8"])
    assert more == ["made", "kept", "made", "made", "made", "made"]
    grown = read_info(out / "data" / "train")["stats"]
    assert grown["replayed_calls"] >= 6  # a generation that grows pays for what is new

    (out / "evaluation" / "DONE").unlink()  # as after a kill
    assert run(path, out, sets=["generate.train.n=8"]) == ["kept"] * 5 + ["made"]


@pytest.mark.medium
def test_the_shipped_job_runs_on_the_real_teacher(tmp_path: Path) -> None:
    """`kdbench run tinystories --quick`: SmolLM2 writes, two students learn, all are measured."""
    kdbench.run_job("tinystories", out=tmp_path / "job", profile="quick")
    scores = json.loads((tmp_path / "job" / "evaluation" / "scores.json").read_text())
    found = {(s["model"], s["metric"]): s["value"] for s in scores["scores"]}
    for metric in ("perplexity", "agreement_kl", "rouge_l", "rules_all", "tokens_per_second"):
        for model in ("teacher", "pruned", "black_box", "white_box"):
            assert found[model, metric] is not None, (model, metric)
    # Even a few steps bring both students nearer to the teacher than the pruned one they began as.
    for student in ("black_box", "white_box"):
        assert found[student, "perplexity"] < found["pruned", "perplexity"]
        assert found[student, "agreement_kl"] < found["pruned", "agreement_kl"]
    assert found["teacher", "perplexity"] < found["black_box", "perplexity"]
    page = (tmp_path / "job" / "report.html").read_text()
    assert "white_box" in page
    assert not re.search(r"""(src|href)=["']https?://""", page)  # nothing is loaded from elsewhere
    rejected = (tmp_path / "job" / "data" / "train" / "rejected.jsonl").read_text()
    assert all(json.loads(line)["reason"] for line in rejected.splitlines())


def test_every_shipped_job_and_profile_is_valid() -> None:
    for name in shipped_jobs():
        for profile in (None, *load_job(name).profiles):
            assert load_job(name, profile).name == name


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (
            ["train.black_box.student=prunned"],
            "train.black_box.student names 'prunned'. Did you mean 'pruned'?",
        ),
        (
            ["train.black_box.student=white_box"],  # stands below it
            "train.black_box.student names 'white_box'",
        ),
        (["students.white_box={data: train, config: {}}"], "two models are named 'white_box'"),
        (["evaluate.models=[teacher, white_bx]"], "evaluate.models names 'white_bx'"),
        (["evaluate.data=held"], "evaluate.data names 'held'"),
        (["generate.train.n=0"], "generate.train.n = 0"),
        (["generte={}"], "no key 'generte'. Did you mean 'generate'?"),
        (["format=2"], "format = 2"),
    ],
)
def test_a_job_that_makes_no_sense_is_refused(sets: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_job("tinystories", sets=sets)


@pytest.mark.medium
def test_a_training_may_go_on_from_another_one(tmp_path: Path) -> None:
    teacher = byte_llama.save(tmp_path / "teacher", max_position_embeddings=2048)
    path, out = job_file(tmp_path, teacher), tmp_path / "job"
    sets = ["train.white_box.student=black_box"]
    assert run(path, out, sets=sets) == ["made"] * 6
    first = read_info(out / "trained" / "black_box")["weights_sha256"]
    assert read_info(out / "trained" / "white_box")["student"]["weights_sha256"] == first
    # What a stage stands on counts all the way down.
    sets.append("train.black_box.config.steps=1")
    assert run(path, out, sets=sets) == ["kept"] * 3 + ["made"] * 3


def test_an_unknown_profile_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no profile 'quik'\. Did you mean 'quick'"):
        load_job("tinystories", "quik")


def test_a_generation_may_read_what_one_above_it_wrote(tmp_path: Path) -> None:
    job = load_job("prompt-erasing")
    table = job.generate["train"].config_in(tmp_path)["strategy_table"]
    assert table == f"{tmp_path}/data/measured/strategies.yaml"
    assert job.generate["train"].reads() == ["measured"]
    assert job.generate["measured"].reads() == []
    with pytest.raises(
        ConfigError, match=r"generate\.train\.config names 'mesured'. Did you mean 'measured'"
    ):
        load_job(
            "prompt-erasing", sets=["generate.train.config.strategy_table=${data.mesured}/strategies.yaml"]
        )
    with pytest.raises(ConfigError, match="names 'heldout'"):  # stands below it
        load_job("prompt-erasing", sets=["generate.train.config.strategy_table=${data.heldout}/x"])


def test_a_file_of_questions_with_other_content_makes_its_stage_anew(tmp_path: Path) -> None:
    from kdbench.jobs.running import _stages

    questions = tmp_path / "q.jsonl"
    sets = [f"generate.train.config.questions={{file: {questions}, verifier: numeric}}"]
    keys = []
    for text in ('{"question": "1 + 1?", "answer": "2"}\n', '{"question": "9 + 9?", "answer": "18"}\n'):
        questions.write_text(text)
        keys.append([stage.key for stage in _stages(load_job("chain-of-thought", sets=sets), tmp_path)])
    train, heldout = 0, 1
    assert keys[0][train] != keys[1][train]
    assert keys[0][heldout] == keys[1][heldout]
    assert keys[0][-1] != keys[1][-1]  # the evaluation stands on it


def test_domain_text_with_other_content_makes_its_training_anew(tmp_path: Path) -> None:
    from kdbench.jobs.running import _stages

    text = tmp_path / "manual.txt"
    settings = f"{{order: from_scratch, texts: [{text}]}}"
    sets = [
        "train.adapted={method: adapt_then_distill, data: train, student: pruned}",
        f"train.adapted.config={settings}",
    ]
    keys: list[dict[str, str]] = []
    for content in ("mount", "umount"):
        text.write_text(content)
        job = load_job("tinystories", sets=sets)
        keys.append({stage.path.name: stage.key for stage in _stages(job, tmp_path)})
    assert {name for name in keys[0] if keys[0][name] != keys[1][name]} == {"adapted", "evaluation"}
