"""How good labels are without gold answers: one draw, the majority of 3 to 31, and what each filter keeps.

    python benchmarks/voting_study.py oracle:0.3 oracle:0.6          # a scripted teacher with that error rate
    python benchmarks/voting_study.py smollm2 --questions 40 --draws 15
    python benchmarks/voting_study.py --read runs/voting/*      # the tables again

Each teacher is asked once, with the recipe chain_of_thought; all tables are read from the same draws. The
result stands in docs/results/voting.md.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kdbench
from kdbench.equations import path_key
from kdbench.errors import Rejected
from kdbench.evaluation._bootstrap import interval
from kdbench.evaluation.accuracy import question_of
from kdbench.jobs.job_file import load_job
from kdbench.jsonl import read_rejections, read_samples
from kdbench.provenance import machine, now
from kdbench.questions import Question
from kdbench.records import Completion
from kdbench.rundir import read_info
from kdbench.voting import majority

TASKS = {"chain_sum": {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}}
MARKER = "The answer is"


@dataclass(frozen=True, slots=True)
class Draw:
    """One reply: its answer in canonical form, None where it has none, and its reasoning path."""

    answer: str | None
    path: str


@dataclass(frozen=True, slots=True)
class Asked:
    """One question with all its draws, in order."""

    question: Question
    draws: list[Draw]

    def is_right(self, answer: str | None) -> bool:
        return answer is not None and self.question.is_correct(answer)


def ask(spec: str, questions: int, draws: int, out: Path) -> Path:
    """Run chain_of_thought, keeping every draw that can be read; goes on with a run that is there."""
    demonstrations = load_job("chain-of-thought").generate["train"].config["demonstrations"]
    teacher, _, error_rate = spec.partition(":") if spec.startswith("oracle:") else (spec, "", "")
    config: dict[str, Any] = {
        "questions": {"task": TASKS},
        "samples": draws,
        "shots": len(demonstrations),
        "demonstrations": demonstrations,
        "sampling": {"temperature": 0.7, "max_tokens": 48},
        "filters": {"keep": "all", "distinct": False, "valid_equations": False},
    }
    path = out / spec.replace(":", "-")
    return kdbench.generate(
        "chain_of_thought", teacher=teacher, config=config, out=path, n=questions * draws, resume=True,
        max_candidates=questions, teacher_config={"error_rate": float(error_rate)} if error_rate else None,
    )  # fmt: skip


def read(run: Path) -> list[Asked]:
    """Every question of a run with its draws, those that were turned down included."""
    questions: dict[int, Question] = {}
    draws: dict[int, dict[int, Draw]] = defaultdict(dict)

    def note(sample_id: str, sample: Any) -> None:
        seed, number = map(int, sample_id.split("-")[1:])
        draws[seed][number] = Draw(None, "")
        if not isinstance(sample, Completion) or (question := question_of(sample)) is None:
            return
        questions[seed] = question
        try:
            answer = question.canonical(question.solution(sample.text, MARKER).answer)
        except Rejected:
            answer = None
        draws[seed][number] = Draw(answer, path_key(sample.text))

    for sample in read_samples(run / "samples.jsonl"):
        note(sample.id, sample)
    for rejection in read_rejections(run / "rejected.jsonl"):
        note(rejection.id, rejection.sample)
    return [
        Asked(question, [one for _, one in sorted(draws[seed].items())])
        for seed, question in sorted(questions.items())
    ]


def share(right: Sequence[float], of: Sequence[float]) -> str:
    """A share, right[i] of of[i] for each question, with its 95 % bootstrap interval over questions."""
    if not sum(of):
        return "-"
    low, high = interval(list(right), list(of), seed=0)
    bounds = "" if low is None or high is None else f" [{100 * low:.0f}, {100 * high:.0f}]"
    return f"{100 * sum(right) / sum(of):.1f} %{bounds}"


def tables(run: Path) -> str:
    """The three tables of one run, as Markdown."""
    asked = read(run)
    most = max(len(one.draws) for one in asked)
    info = read_info(run)
    lines = [
        f"## `{run.name}`\n",
        f"{len(asked)} questions, {most} draws each, teacher {info['teacher']['spec']}.\n",
        "| draws | label of the majority is right | distinct right paths a question |",
        "|---:|---:|---:|",
    ]
    for m in [m for m in (1, 3, 5, 7, 15, 31) if m <= most]:
        votes = [majority([d.answer for d in one.draws[:m]]) for one in asked]
        right = [
            float(one.is_right(vote.answer if vote else None)) for one, vote in zip(asked, votes, strict=True)
        ]
        paths = [len({d.path for d in one.draws[:m] if d.path and one.is_right(d.answer)}) for one in asked]
        lines.append(f"| {m} | {share(right, [1.0] * len(right))} | {sum(paths) / len(paths):.2f} |")
    lines += ["", "| keep | paths kept | of these right | questions covered |", "|---|---:|---:|---:|"]
    for keep in ("gold", "majority", "all"):
        kept = [(one, [d.answer for d in one.draws if is_kept(d, one, keep)]) for one in asked]
        right = [float(sum(map(one.is_right, answers))) for one, answers in kept]
        counts = [float(len(answers)) for _, answers in kept]
        covered = sum(map(bool, counts))
        lines.append(f"| {keep} | {sum(counts):.0f} | {share(right, counts)} | {covered} of {len(asked)} |")
    return "\n".join([*lines, ""])


def is_kept(draw: Draw, one: Asked, keep: str) -> bool:
    """Whether a filter keeps a draw."""
    if draw.answer is None:
        return False
    if keep == "gold":
        return one.is_right(draw.answer)
    vote = majority([d.answer for d in one.draws])
    return keep == "all" or (vote is not None and draw.answer == vote.answer)


def main() -> None:
    """Ask and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("teachers", nargs="*", help="smollm2, openai:MODEL, oracle:ERROR_RATE")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--draws", type=int, default=31)
    parser.add_argument("--out", type=Path, default=Path("runs/voting"))
    parser.add_argument("--read", nargs="*", type=Path, default=[], help="runs that are there")
    given = parser.parse_args()
    runs = [*given.read, *(ask(spec, given.questions, given.draws, given.out) for spec in given.teachers)]
    spec = machine()
    print("# Labels without gold answers\n")
    print("Written by `benchmarks/voting_study.py`. Sums of three one-digit numbers, four examples shown,")
    print("temperature 0.7. In brackets: 95 % bootstrap intervals over questions.\n")
    print("The oracle is a scripted teacher that errs at the rate in its name; its errors seldom agree.\n")
    print(f"{now()[:10]}, {spec['cores']} cores, {spec['cpu']}.\n")
    for run in runs:
        print(tables(run))


if __name__ == "__main__":
    main()
