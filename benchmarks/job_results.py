"""A page of docs/results/ from finished jobs: every figure is read out of their files.

make demo demo-full
python benchmarks/job_results.py runs/tinystories runs/tinystories-full > docs/results/tinystories.md
kdbench run chain-of-thought
python benchmarks/job_results.py runs/chain-of-thought > docs/results/chain-of-thought.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdbench.reporting.comparison import rows
from kdbench.reporting.scores_file import Scores
from kdbench.rundir import read_info


def main() -> None:
    """Print the page for the job directories named."""
    jobs = [Path(name) for name in sys.argv[1:]]
    if not jobs:
        sys.exit("Name the directories of finished jobs: python benchmarks/job_results.py runs/JOB ...")
    print(f"# What the job `{jobs[0].name}` gives\n")
    print("Written by `benchmarks/job_results.py` from the jobs' own files.\n")
    for job in jobs:
        print("\n".join(section(job)))


def section(job: Path) -> Iterator[str]:
    """The lines of one job: machine, generation, student, trainings, comparison."""
    evaluation = read_info(job / "evaluation")
    machine, git = evaluation["machine"], evaluation.get("git", {})
    where = f"{machine['cores']} cores, {machine['cpu']}, Python {machine['python']}"
    yield f"## `{job.name}`\n"
    yield (
        f"{evaluation['finished'][:10]}, {where}, "
        f"torch {evaluation['packages']['torch']}, commit {git.get('commit', 'unknown')[:12]}"
        f"{' with changes' if git.get('dirty') else ''}.\n"
    )
    yield "| stage | what | seconds |\n|---|---|---:|"
    for path in sorted((job / "data").glob("*/run.json")):
        yield generation(path.parent.name, read_info(path.parent)["stats"])
    for path in sorted((job / "trained").glob("*/run.json")):
        stats = read_info(path.parent)["stats"]
        yield (
            f"| train {path.parent.name} | {stats['steps']} steps, {stats['tokens']:,} learnt tokens, "
            f"{stats['tokens'] / stats['seconds']:,.0f} tokens/s | {stats['seconds']:,.0f} |"
        )
    yield ""
    yield from comparison(Scores.read(job / "evaluation"))


def generation(name: str, stats: dict[str, Any]) -> str:
    """One row: how many samples were asked for and what became of them."""
    asked = stats["accepted"] + stats["rejected"]
    reasons = ", ".join(f"{reason} {count}" for reason, count in stats["reasons"].items())
    rejected = f"; rejected: {reasons}" if reasons else ""
    return (
        f"| generate {name} | {stats['accepted']} of {asked} samples accepted "
        f"({stats['accepted'] / asked:.0%}){rejected} | {stats['seconds']:,.0f} |"
    )


def comparison(scores: Scores) -> Iterator[str]:
    """The comparison as a Markdown table; the best model but the teacher in bold."""
    yield "| |" + "".join(f" {model.name} |" for model in scores.models)
    yield "|---|" + "---:|" * len(scores.models)
    for row in rows(scores):
        arrow = {"l": " ↓", "h": " ↑"}.get(row.direction[:1], "")
        cells = [
            " ".join(part for part in (f"**{c.value}**" if c.best else c.value, c.interval, c.note) if part)
            for c in row.cells
        ]
        yield f"| {row.label}{arrow} (n = {row.n}) |" + "".join(f" {cell} |" for cell in cells)
    yield f"\nSettings: `{json.dumps(scores.settings)}`."
    yield "In brackets: 95 % bootstrap intervals over samples.\n"


if __name__ == "__main__":
    main()
