"""Run directories: refused when in use, locked while open, finished last, clear about versions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdbench.errors import RunDirError
from kdbench.rundir import IfExists, RunDir, is_done, read_info, require


def create(path: Path, how: IfExists = "refuse", kind: str = "generate") -> RunDir:
    return RunDir.create(path, kind=kind, config={"a": 1}, fingerprint={}, if_exists=how)


def test_a_finished_run_says_where_it_came_from(tmp_path: Path) -> None:
    run = create(tmp_path / "r")
    assert not is_done(run.path)
    run.finish(stats={"accepted": 3})
    info = require(run.path, "generate")
    assert info["format"] == 1
    assert info["status"] == "done"
    assert info["stats"] == {"accepted": 3}
    assert info["packages"]["kdbench"]
    assert (run.path / "config.yaml").read_text() == "a: 1\n"


def test_a_used_directory_is_refused_with_the_ways_out(tmp_path: Path) -> None:
    create(tmp_path / "r").finish()
    with pytest.raises(RunDirError, match=r"in use; use --resume.*--overwrite.*another directory"):
        create(tmp_path / "r")
    create(tmp_path / "r", "resume").finish()


def test_a_foreign_directory_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for how in ("refuse", "resume", "overwrite"):
        with pytest.raises(RunDirError, match="no run directory of kdbench"):
            create(tmp_path, how)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_overwrite_begins_anew(tmp_path: Path) -> None:
    run = create(tmp_path / "r")
    (run.path / "old").mkdir()
    (run.path / "old" / "file").write_text("x")
    run.finish()
    create(tmp_path / "r", "overwrite").finish()
    assert not (tmp_path / "r" / "old").exists()


def test_two_processes_do_not_share_a_directory(tmp_path: Path) -> None:
    run = create(tmp_path / "r")
    with pytest.raises(RunDirError, match="Another process is working"):
        create(tmp_path / "r", "resume")
    run.abandon("failed")
    assert read_info(tmp_path / "r")["status"] == "failed"
    create(tmp_path / "r", "resume").finish()


def test_a_resumed_run_is_not_done_until_it_ends(tmp_path: Path) -> None:
    create(tmp_path / "r").finish()
    run = create(tmp_path / "r", "resume")
    assert not is_done(run.path)
    with pytest.raises(RunDirError, match="not finished"):
        require(run.path, "generate")
    run.finish()


def test_kinds_and_formats_are_checked(tmp_path: Path) -> None:
    create(tmp_path / "r").finish()
    with pytest.raises(RunDirError, match="'generate' run; a 'train' run is needed"):
        require(tmp_path / "r", "train")
    with pytest.raises(RunDirError, match="holds a 'generate' run, not a 'train' run"):
        create(tmp_path / "r", "resume", kind="train")
    info = json.loads((tmp_path / "r" / "run.json").read_text())
    (tmp_path / "r" / "run.json").write_text(json.dumps({**info, "format": 7}))
    with pytest.raises(RunDirError, match="run format 7; this kdbench reads format 1"):
        create(tmp_path / "r", "resume")
    (tmp_path / "r" / "run.json").write_text("{torn")
    with pytest.raises(RunDirError, match="cannot be read"):
        read_info(tmp_path / "r")
    with pytest.raises(RunDirError, match=r"no run\.json"):
        read_info(tmp_path)


def test_a_file_in_the_way_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunDirError):
        create(tmp_path / "file")
    with pytest.raises(RunDirError, match="Cannot use"):
        create(tmp_path / "file" / "below")
