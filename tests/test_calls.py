"""The call log: what was paid for is kept through kills, full disks and changed filters, and reused."""

from __future__ import annotations

import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import kdbench
from kdbench.asking import Teachers
from kdbench.config import StrictConfig
from kdbench.engine import Outcome, Seed
from kdbench.errors import RunDirError
from kdbench.jsonl import read_rejections, read_samples
from kdbench.records import Completion, Rejection
from kdbench.rundir import read_info
from tests.support.recipes import SAMPLING, chain, one_call, user
from tests.support.teachers import EchoTeacher
from tests.test_engine import samples_bytes, stats

ROOT = Path(__file__).parents[1]

RUN = """
import sys
from pathlib import Path
import kdbench
from tests.support.recipes import {recipe}
from tests.support.teachers import EchoTeacher
teacher = EchoTeacher(longest_wait=0.02, asked_file=Path({asked!r}))
kdbench.generate({recipe}, teacher=teacher, n={n}, out={out!r}, concurrency=8, resume=Path({out!r}).exists())
"""


def start(recipe: str, n: int, out: Path, asked: Path) -> subprocess.Popen[bytes]:
    code = RUN.format(recipe=recipe, n=n, out=str(out), asked=str(asked))
    # A process in the background ignores Ctrl-C, and those it starts do so, too, unless told otherwise.
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def logged(out: Path) -> int:
    path = out / "calls.sqlite"
    if not path.is_file():
        return 0
    try:
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute("SELECT count(*) FROM calls").fetchone()[0]
    except sqlite3.Error:
        return 0


@pytest.mark.parametrize("recipe", ["one_call", "chain"])
def test_kill_9_and_resume_give_the_same_bytes_and_ask_nothing_twice(tmp_path: Path, recipe: str) -> None:
    n = 60
    functions = {"one_call": one_call, "chain": chain}
    calm = kdbench.generate(functions[recipe], teacher=EchoTeacher(), n=n, out=tmp_path / "calm")
    out = tmp_path / "killed"
    rng = random.Random(recipe)
    kills = 0
    for round_number in range(4):
        asked = tmp_path / f"asked{round_number}"
        before = set(answered_prompts(out))
        process = start(recipe, n, out, asked)
        at_least = logged(out) + rng.randint(1, 25)
        while process.poll() is None and logged(out) < at_least:
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        assert not before & set(asked_prompts(asked))
    assert kills >= 3
    before = set(answered_prompts(out))
    last = start(recipe, n, out, tmp_path / "asked-last")
    _, errors = last.communicate(timeout=60)
    assert last.returncode == 0, errors.decode()
    assert not before & set(asked_prompts(tmp_path / "asked-last"))
    assert samples_bytes(out) == samples_bytes(calm)


def asked_prompts(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1] if path.exists() else []


def answered_prompts(out: Path) -> list[str]:
    """'prompt|seed' of every committed reply: the echo teacher repeats both in its answer."""
    import json
    import zlib

    path = out / "calls.sqlite"
    if not logged(out):
        return []
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT reply FROM calls").fetchall()
    texts = [json.loads(zlib.decompress(r[0]))["choices"][0]["message"]["content"] for r in rows]
    return [f"{prompt}|{seed}" for prompt, _, seed in (t.rpartition(" -> ") for t in texts)]


def test_the_kill_drill_reads_the_log_rightly(tmp_path: Path) -> None:
    """The drill above would pass on empty sets: here they are seen to be full."""
    asked = tmp_path / "asked"
    run = kdbench.generate(one_call, teacher=EchoTeacher(asked_file=asked), n=5, out=tmp_path / "r")
    assert set(answered_prompts(run)) == set(asked_prompts(asked)) != set()


def test_ctrl_c_stops_cleanly_and_resumes(tmp_path: Path) -> None:
    out = tmp_path / "r"
    process = start("one_call", 20_000, out, tmp_path / "asked")
    while logged(out) < 20:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert read_info(out)["status"] == "interrupted"
    assert "go on with --resume" in errors.decode()
    # What was in flight came home before the end: all that was asked is in the log.
    assert set(asked_prompts(tmp_path / "asked")) == set(answered_prompts(out))


def test_a_full_disk_keeps_what_was_paid_for(tmp_path: Path) -> None:
    """A limit on file size stands in for a full disk: writes fail in mid run in the same way."""
    code = (
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))\n"
        + RUN.format(
            recipe="one_call", n=3000, out=str(tmp_path / "r"), asked=str(tmp_path / "asked")
        ).replace("kdbench.generate(", "from kdbench.errors import StorageError\ntry:\n    kdbench.generate(")
        + "except StorageError as exc:\n    print('STORAGE', exc)\n"
    )
    assert resource.RLIMIT_FSIZE  # only POSIX has it
    code = code.replace("asked_file=Path", "asked_file=None and Path").replace(
        "longest_wait=0.02", "longest_wait=0"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "STORAGE" in done.stdout, done.stderr
    assert "--resume" in done.stdout
    kept = logged(tmp_path / "r")
    assert kept > 50
    teacher = EchoTeacher()
    run = kdbench.generate(one_call, teacher=teacher, n=100, out=tmp_path / "r", resume=True)
    assert stats(run)["replayed_calls"] > 50
    assert stats(run)["calls"] + stats(run)["replayed_calls"] >= stats(run)["seeds"]


class Filters(StrictConfig):
    """What may change without a new call."""

    shortest: int = 0


class Config(StrictConfig):
    """A config with a filter and a generation setting."""

    topic: str = "rain"
    filters: Filters = Filters()


RECIPE = """
from kdbench.records import Completion, Message, Rejection
from kdbench.teacher import Sampling
from tests.test_calls import Config
async def generate(seed, teachers, config):
    ask = Message(role="user", content=f"{config.topic} {seed.index}")
    reply = await teachers["teacher"].chat([ask], Sampling())
    sample = Completion(prompt=(ask,), completion=(reply.message,))
    if len(reply.text) < config.filters.shortest or seed.index % 5 == 0:
        return [Rejection(reason="short", sample=sample)]
    return [sample]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "topics.py").write_text(RECIPE)
    return tmp_path / "topics.py"


def test_reparse_applies_new_filters_and_asks_nothing(tmp_path: Path, recipe: Path) -> None:
    run = kdbench.generate(recipe, teacher=EchoTeacher(), n=40, out=tmp_path / "r")
    before = {s.id for s in read_samples(run / "samples.jsonl")}
    by_length = sorted(len(s.text) for s in read_samples(run / "samples.jsonl") if isinstance(s, Completion))
    typical = by_length[-10]
    teacher = EchoTeacher()
    with pytest.raises(RunDirError, match="--reparse"):
        kdbench.generate(
            recipe, teacher=teacher, n=40, out=run, resume=True, config={"filters": {"shortest": typical}}
        )
    kdbench.generate(
        recipe, teacher=teacher, n=40, out=run, reparse=True, config={"filters": {"shortest": typical}}
    )
    after = {s.id for s in read_samples(run / "samples.jsonl")}
    assert teacher.requests == []
    assert 10 <= len(after) < 40
    assert len(after & before) >= 10  # a changed filter keeps the names
    assert any(r.reason == "short" and r.sample for r in read_rejections(run / "rejected.jsonl"))


def test_a_changed_parameter_misses_and_a_cache_copies_hits(tmp_path: Path, recipe: Path) -> None:
    def run_on(teacher: EchoTeacher, out: str, **more: Any) -> Path:
        # Every run asks the same ten seeds: how many a run begins beyond those it needs is a matter of time.
        return kdbench.generate(recipe, teacher=teacher, n=100, max_candidates=10, out=tmp_path / out, **more)

    old = run_on(EchoTeacher(), "old")
    other = EchoTeacher()
    run = run_on(other, "snow", cache=[old], config={"topic": "snow"})
    assert stats(run)["cached_calls"] == 0
    assert len(other.requests) == stats(run)["calls"] > 0
    same = EchoTeacher()
    run = run_on(same, "same", cache=[old])
    assert same.requests == []
    assert stats(run)["cached_calls"] == stats(run)["seeds"] == 10
    (old / "calls.sqlite").unlink()
    alone = EchoTeacher()
    run_on(alone, "same", resume=True)
    assert alone.requests == []  # the hits were copied
    model = EchoTeacher(identity="another model")
    run_on(model, "model", cache=[run])
    assert len(model.requests) == 10


def test_resume_refuses_another_run_and_grows_the_same(tmp_path: Path, recipe: Path) -> None:
    run = kdbench.generate(recipe, teacher=EchoTeacher(), n=10, out=tmp_path / "r")
    ten = (run / "samples.jsonl").read_bytes()
    with pytest.raises(RunDirError, match="different generation"):
        kdbench.generate(recipe, teacher=EchoTeacher(), n=10, out=run, resume=True, config={"topic": "fog"})
    with pytest.raises(RunDirError, match="different seed"):
        kdbench.generate(recipe, teacher=EchoTeacher(), n=10, out=run, resume=True, seed=1)
    with pytest.raises(RunDirError, match="different teachers"):
        kdbench.generate(recipe, teacher=EchoTeacher(identity="x"), n=10, out=run, resume=True)
    teacher = EchoTeacher()
    kdbench.generate(recipe, teacher=teacher, n=25, out=run, resume=True)
    assert (run / "samples.jsonl").read_bytes().startswith(ten)
    assert 5 <= len(teacher.requests) <= 25


def test_seeds_sample_apart_and_job_seeds_too(tmp_path: Path) -> None:
    async def same_prompt(seed: Seed, teachers: Teachers) -> list[Outcome]:
        answer = await teachers["teacher"].chat([user("same")], SAMPLING)
        return [Completion(prompt=(user("same"),), completion=(answer.message,)), Rejection(reason="x")]

    def texts(run: Path) -> set[str]:
        return {s.text for s in read_samples(run / "samples.jsonl") if isinstance(s, Completion)}

    first = kdbench.generate(same_prompt, teacher=EchoTeacher(), n=20, out=tmp_path / "0")
    second = kdbench.generate(same_prompt, teacher=EchoTeacher(), n=20, out=tmp_path / "1", seed=1)
    assert len(texts(first)) == 20
    assert not texts(first) & texts(second)


def test_a_foreign_or_newer_log_is_refused(tmp_path: Path) -> None:
    run = kdbench.generate(one_call, teacher=EchoTeacher(), n=2, out=tmp_path / "r")
    with closing(sqlite3.connect(run / "calls.sqlite")) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(RunDirError, match="call-log format 99"):
        kdbench.generate(one_call, teacher=EchoTeacher(), n=2, out=run, resume=True)
    (run / "calls.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(RunDirError, match="cannot be opened as a call log"):
        kdbench.generate(one_call, teacher=EchoTeacher(), n=2, out=run, resume=True)
    assert (run / "calls.sqlite").is_file()  # never deleted for the user
