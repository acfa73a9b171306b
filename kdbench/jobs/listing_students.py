"""`kdbench list students --teacher T`: what students could be made from a teacher, and how large they are.

    student      parameters  of teacher      MB
    teacher     134,515,008        100%   538.1
    layers-22   106,200,000         79%   424.8
    hidden-432  100,886,256         75%   403.5
    ...
    kdbench student --kind pruned --teacher smollm2 --data RUN --out students/layers-22 --set layers=22
    ...

Sizes come from the config; no weights are loaded. With `--data` there are also students that know only the
tokens of that data.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kdbench.errors import MissingExtra
from kdbench.jobs.student_job import SAMPLES
from kdbench.jsonl import read_samples
from kdbench.rundir import require


def list_students(teacher: str, console: Console, data: Path | None = None) -> None:
    """Print the students of a teacher, and the line that makes each.

    Raises UsageError for a teacher that is no model on this machine or cannot be pruned, RunDirError for
    data that is no finished generate run, MissingExtra without torch.
    """
    try:
        from kdbench.models.sizes import possible_students
    except ModuleNotFoundError as exc:
        raise MissingExtra("train", "listing students") from exc
    found, remark = possible_students(teacher, _vocabulary(teacher, data) if data else None)
    table = Table(box=None, pad_edge=False)
    table.add_column("student", overflow="fold")
    for heading in ("parameters", "of teacher", "MB"):
        table.add_column(heading, justify="right")
    for one in found:
        share = one.parameters / found[0].parameters
        table.add_row(one.name, f"{one.parameters:,}", f"{share:.0%}", f"{one.megabytes:,.1f}")
    console.print(table, highlight=False)
    console.print("\nMB are of float32 weights. The line that makes each:\n", highlight=False)
    for one in found[1:]:
        words = ["kdbench", "student", "--kind", "pruned", "--teacher", teacher]
        words += ["--data", str(data or "RUN"), "--out", f"students/{one.name}"]
        for key, value in one.settings.items():
            words += ["--set", f"{key}={str(value).lower()}"]
        console.print(shlex.join(words), highlight=False, markup=False, soft_wrap=True)
    if data is None:
        hint = "\nRUN is a generate run with samples of the task; --data RUN also lists trimmed vocabularies."
        console.print(hint, highlight=False, soft_wrap=True)
    if remark:
        console.print(f"\n{remark}.", highlight=False, markup=False, soft_wrap=True)


def _vocabulary(teacher: str, data: Path) -> int:
    """How many tokens a student of this data needs."""
    from kdbench.models.chat import student_chat_template
    from kdbench.models.loading import load_tokenizer
    from kdbench.models.sizes import meta_model
    from kdbench.models.trimming import needed

    require(data, "generate")
    tokenizer = load_tokenizer(teacher)
    tokenizer.chat_template = student_chat_template(tokenizer)
    return len(needed(meta_model(teacher), tokenizer, read_samples(data / SAMPLES), teacher)[1])
