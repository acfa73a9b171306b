"""The command line: mistakes end in one sentence and exit code 2, failed runs in 1, none in a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.cli import main
from kdbench.rundir import is_done, read_info


def kdbench(*words: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and everything printed by the command, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "kdbench.cli", *words], capture_output=True, text=True, env=env, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The same in this process: (exit code, what was printed)."""

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["kdbench", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else 0), captured.out + captured.err

    return run


GENERATE = ("generate", "tinystories", "--teacher", "scripted", "-n", "3")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("generate", "tinystory", *GENERATE[2:]), ["No recipe named 'tinystory'", "'tinystories'"]),
        ((*GENERATE, "--teacher", "skripted"), ["Several teachers need their roles"]),
        (("generate", "tinystories", "--teacher", "skripted", "-n", "3"), ["No teacher named 'skripted'"]),
        (
            ("train", "white_bx", "--data", "d", "--student", "s"),
            ["No trainer named 'white_bx'", "'white_box'"],
        ),
        ((*GENERATE, "--set", "filtres.min_words=4"), ["no key 'filtres'", "'filters'"]),
        (
            (*GENERATE, "--set", "sampling.temperature=9"),
            ["sampling.temperature = 9", "less than or equal to 2"],
        ),
        ((*GENERATE, "--set", "draws=many"), ['draws = "many"', "valid integer"]),
        ((*GENERATE, "--set", "draws"), ["--set draws", "key=value"]),
        ((*GENERATE, "--on-truncated", "weep"), ["on_truncated", "'reject', 'keep' or 'retry'"]),
        ((*GENERATE, "-n", "0"), ["n = 0", "greater than or equal to 1"]),
        ((*GENERATE, "--teacher-set", "speed=3"), ["no key 'speed'"]),
        (
            ("generate", "tinystories", "--teacher", "judge=scripted", "-n", "1"),
            ["no role 'judge'", "Available: teacher"],
        ),
        ((*GENERATE, "--resume", "--overwrite"), ["--resume and --overwrite exclude each other"]),
        ((*GENERATE, "--cache", "nowhere"), ["No call log at nowhere"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(tmp_path: Path, run_main, words: tuple[str, ...], says: list[str]) -> None:
    code, printed = run_main(*words, "--out", str(tmp_path / "out"))
    assert code == 2, printed
    for part in says:
        assert part in printed
    assert "Traceback" not in printed
    assert printed.count("\n") == 1


def test_a_job_that_does_not_exist_gets_the_nearest_name(run_main) -> None:
    code, printed = run_main("run", "tinystorys")
    assert code == 2
    assert "Did you mean 'tinystories'" in printed


def test_a_used_directory_names_the_ways_out(tmp_path: Path, run_main) -> None:
    out = str(tmp_path / "out")
    assert run_main(*GENERATE, "--out", out)[0] == 0
    code, printed = run_main(*GENERATE, "--out", out)
    assert code == 2
    assert "--resume" in printed
    assert "--overwrite" in printed
    assert run_main(*GENERATE, "--out", out, "--resume")[0] == 0
    assert run_main(*GENERATE, "--out", out, "--overwrite")[0] == 0
    assert is_done(tmp_path / "out")


def test_a_run_that_fails_exits_1(tmp_path: Path, run_main) -> None:
    code, printed = run_main(
        *GENERATE, "--max-candidates", "4", "--set", "filters.max_words=41", "--out", str(tmp_path / "out")
    )
    assert code == 1
    assert "No sample was accepted out of 4 seeds (too_long 4)" in printed


def test_a_template_of_ones_own_that_is_wrong(tmp_path: Path, run_main) -> None:
    (tmp_path / "tinystories").mkdir()
    template = tmp_path / "tinystories" / "story.j2"
    for text, says in (
        ("{{ hero }}", "'hero'"),
        ("{{ noun.__class__.__mro__ }}", "outside the sandbox"),
        ("{% if %}", "line 1"),
    ):
        template.write_text(text)
        code, printed = run_main(
            *GENERATE, "--prompts", str(tmp_path), "--out", str(tmp_path / "out"), "--overwrite"
        )
        assert code == 2
        assert says in printed
        assert "Traceback" not in printed


def test_dry_run_asks_nobody_and_shows_requests_and_cost(tmp_path: Path, run_main) -> None:
    code, printed = run_main(
        "generate", "tinystories", "--teacher", "openai:none", "-n", "100", "--dry-run",
        "--price-prompt", "1", "--price-completion", "10",
    )  # fmt: skip
    assert code == 0
    assert "The story must use the noun" in printed
    assert "100 calls or more" in printed
    assert "at most 76,800 completion tokens" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("list", "student"), ["No group 'student'", "metrics, students"]),
        (("list", "students"), ["list students needs --teacher T"]),
        (
            ("list", "metrics", "--teacher", "smollm2"),
            ["--teacher and --data are of `kdbench list students`"],
        ),
        (("list", "students", "--teacher", "nowhere"), ["No model 'nowhere'", "give smollm2"]),
        (("chat", "nowhere"), ["No model 'nowhere'", "give smollm2"]),
        (("chat", "nowhere", "--temperature", "9"), ["Config of chat: temperature = 9"]),
    ],
)
def test_bad_words_of_list_and_chat_are_one_sentence(
    run_main, words: tuple[str, ...], says: list[str]
) -> None:
    code, printed = run_main(*words)
    assert code == 2, printed
    for part in says:
        assert part in printed
    assert printed.count("\n") == 1


@pytest.mark.medium
def test_chat_answers_a_script(tmp_path: Path) -> None:
    from tests.support import byte_llama

    ref = byte_llama.save(tmp_path, layers=1)
    done = subprocess.run(
        [sys.executable, "-m", "kdbench.cli", "chat", ref, "--max-tokens", "4", "--temperature", "0"],
        input="Hi\n/reset\nHi\n", capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    half = len(done.stdout) // 2
    assert done.stdout[:half] == done.stdout[half:] != "\n"
    assert done.stderr == ""


def test_list_and_show(run_main) -> None:
    code, printed = run_main("list")
    assert code == 0
    assert "kdbench list students --teacher T" in printed
    for name in ("tinystories", "black_box", "white_box", "scripted", "openai_compatible", "perplexity"):
        assert name in printed
    code, printed = run_main("show", "tinystories")
    assert code == 0
    assert "2305.07759" in printed
    assert "max_hard_share" in printed
    assert "The story must use the noun" in printed


def test_a_missing_extra_is_named_with_the_line_that_installs_it(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'trl'): sys.modules[name] = None\n"
        "from kdbench.cli import main\n"
        f"sys.argv = ['kdbench', 'generate', 'tinystories', '--teacher', 'smollm2', '-n', '1', "
        f"'--out', {str(tmp_path / 'o')!r}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "needs the extra 'train'" in done.stderr
    assert "pip install 'kdbench[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_leaves_a_whole_run_behind(tmp_path: Path) -> None:
    code, printed = kdbench(*GENERATE, "--out", str(tmp_path / "out"))
    assert code == 0, printed
    info = read_info(tmp_path / "out")
    assert info["status"] == "done"
    assert info["stats"]["accepted"] == 3
    assert info["teacher"]["spec"] == "scripted"
    assert all(len(digest) == 64 for digest in info["templates"].values())
    lines = (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["origin"]["seed"] for line in lines] == [0, 1, 2]


def test_load_dataset_reads_a_run_directory(tmp_path: Path) -> None:
    from datasets import load_dataset

    code, printed = kdbench(
        *GENERATE[:-1], "20", "--teacher-set", "mistakes.loop=0.4", "--out", str(tmp_path / "out")
    )
    assert code == 0, printed
    rows = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 20
    assert rows[0]["prompt"][0]["role"] == "user"
    rejected = load_dataset(
        str(tmp_path / "out"), "rejected", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert "reason" in rejected.column_names
