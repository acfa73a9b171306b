"""`kdbench list students`: a table of sizes, and lines that can be pasted."""

from __future__ import annotations

import io
import shlex

import pytest
from rich.console import Console

from kdbench.jobs.listing_students import list_students
from tests.jobs.test_student_job import generated
from tests.support import byte_llama, trained_bpe

pytestmark = pytest.mark.medium


def listed(teacher, data=None) -> str:
    out = io.StringIO()
    list_students(teacher, Console(file=out, width=100), data)
    return out.getvalue()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a teacher")
    tokenizer = trained_bpe.tokenizer()
    byte_llama.model(layers=4, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_table(teacher):
    text = listed(teacher)
    whole = byte_llama.model(layers=4, vocab_size=len(trained_bpe.tokenizer())).num_parameters()
    half = byte_llama.model(layers=2, vocab_size=len(trained_bpe.tokenizer())).num_parameters()
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert rows["teacher"] == [f"{whole:,}", "100%", f"{whole * 4 / 1e6:,.1f}"]
    assert rows["layers-2"] == [f"{half:,}", f"{half / whole:.0%}", f"{half * 4 / 1e6:,.1f}"]
    assert "--data RUN also lists trimmed vocabularies" in text


def test_every_line_makes_the_student_it_names(teacher, tmp_path, monkeypatch):
    """Pasted into a shell: the commands of the smallest, the narrowest and the trimmed one."""
    import sys

    from kdbench.cli import main
    from kdbench.rundir import read_info

    data = generated(tmp_path / "data", "The cat ran.", "They gather feathers together.")
    text = listed(teacher, data)
    rows = {line.split()[0]: line.split()[1] for line in text.splitlines() if line.strip()}
    lines = [line for line in text.splitlines() if line.startswith("kdbench student ")]
    assert len(lines) == len([name for name in rows if "-" in name or name == "trimmed"])
    monkeypatch.chdir(tmp_path)
    for name in ("layers-1", "layers-3-hidden-24-mlp-48", "trimmed", "layers-2-trimmed"):
        line = next(one for one in lines if f"--out students/{name} " in one)
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        assert f"{read_info(tmp_path / 'students' / name)['stats']['parameters']:,}" == rows[name]


def test_why_nothing_is_narrower(tmp_path):
    text = listed(byte_llama.save(tmp_path, layers=4, architecture="Phi3"))
    assert "layers-2" in text
    assert "hidden-" not in text
    assert "cannot be pruned by width, since" in text
