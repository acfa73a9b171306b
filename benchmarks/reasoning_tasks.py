"""Which reasoning-gym tasks a teacher can partly do, without and with four examples.

    python benchmarks/reasoning_tasks.py                          # smollm2, 24 questions a task
    python benchmarks/reasoning_tasks.py --teacher openai:qwen3 --questions 100

The shipped jobs take their tasks from this table, in docs/results/reasoning_tasks.md: one that is always
right has nothing to teach, one that is never right leaves nothing to keep.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import kdbench
from kdbench.asking import Teachers
from kdbench.engine import Outcome, Seed
from kdbench.errors import Rejected
from kdbench.jsonl import read_rejections, read_samples
from kdbench.provenance import machine, now
from kdbench.questions import Question, Questions, QuestionSource
from kdbench.records import Completion, Message, Rejection
from kdbench.teacher import Sampling

ONE_DIGIT = {"min_digits": 1, "max_digits": 1}
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "sums of 2 one-digit numbers": ("chain_sum", {"min_terms": 2, "max_terms": 2, **ONE_DIGIT}),
    "sums of 3 one-digit numbers": ("chain_sum", {"min_terms": 3, "max_terms": 3, **ONE_DIGIT}),
    "sums of 2 two-digit numbers": (
        "chain_sum",
        {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
    ),
    "products of one-digit numbers": ("products", ONE_DIGIT),
    "equations with 2 terms": ("simple_equations", {"min_terms": 2, "max_terms": 2, "max_value": 9}),
    "1 bits of numbers below 16": ("count_bits", {"max_n": 15}),
    "leap years": ("calendar_arithmetic", {"tasks": ["is_leap_year"]}),
    "greatest common divisors below 21": ("gcd", {"min_value": 1, "max_value": 20}),
}
SHOTS, DEMO_SEED = 4, 99


def worked(question: Question) -> str:
    """A demonstration's answer: the sum step by step where it is one, else the equation alone."""
    entry = json.loads(question.entry or "{}")
    expression = str(entry["metadata"].get("expression", "")).split()
    steps = []
    if question.kind == "chain_sum":
        value = int(expression[0])
        for sign, term in zip(expression[1::2], expression[2::2], strict=True):
            after = value + int(term) if sign == "+" else value - int(term)
            steps.append(f"{value} {sign} {term} = {after}.")
            value = after
    return " ".join([*steps, f"The answer is {question.answer}."])


def recipe_for(demos: list[Question], sampling: Sampling) -> Callable[..., Any]:
    """A recipe that asks every question after the demonstrations; right and wrong replies are samples."""
    shown = [
        message
        for demo in demos
        for message in (
            Message(role="user", content=demo.text),
            Message(role="assistant", content=worked(demo)),
        )
    ]
    hint = "" if demos else "\nThink step by step, then end with: The answer is X."

    async def ask(seed: Seed, teachers: Teachers) -> list[Outcome]:
        question = QUESTIONS[seed.index]
        prompt = Message(role="user", content=question.text + hint)
        reply = await teachers["teacher"].chat([*shown, prompt], sampling)
        sample = Completion(prompt=(prompt,), completion=(reply.message,))
        try:
            right = question.is_correct(question.solution(reply.text, "The answer is").answer)
        except Rejected as exc:
            return [Rejection(reason=exc.reason, sample=sample)]
        return [sample if right else Rejection(reason="wrong_answer", sample=sample)]

    return ask


QUESTIONS: list[Question] = []


def accuracy(
    teacher: Any, task: str, settings: dict[str, Any], shots: int, n: int, out: Path
) -> dict[str, int]:
    """How the replies to n questions fell out: "right", and the reasons of the others."""

    def some(count: int, seed: int) -> list[Question]:
        source = QuestionSource(task={task: settings}, seed=seed, limit=count)
        return list(Questions(source))

    QUESTIONS[:] = some(n, 5)
    sampling = Sampling(temperature=0.0, max_tokens=48 if shots else 160)
    with suppress(kdbench.errors.NothingLeft):
        kdbench.generate(
            recipe_for(some(shots, DEMO_SEED) if shots else [], sampling),
            teacher=teacher, n=n, max_candidates=n, out=out, overwrite=True,
        )  # fmt: skip
    found: dict[str, int] = defaultdict(int)
    found["right"] = sum(1 for _ in read_samples(out / "samples.jsonl"))
    for rejection in read_rejections(out / "rejected.jsonl"):
        found[rejection.reason] += 1
    return dict(found)


def main() -> None:
    """Measure every task and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--teacher", default="smollm2")
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("runs/reasoning_tasks"))
    asked = parser.parse_args()
    from kdbench.jobs._teachers import connect

    spec = machine()
    print(f"# Reasoning tasks: what {asked.teacher} can do\n")
    print("Written by `benchmarks/reasoning_tasks.py`.\n")
    print(
        f"{now()[:10]}, {spec['cores']} cores, {spec['cpu']}. Greedy, {asked.questions} questions a task.\n"
    )
    print(f"| task | no example: right | no answer marked | {SHOTS} examples: right | no answer marked |")
    print("|---|---:|---:|---:|---:|", flush=True)
    teacher = connect(asked.teacher)
    for label, (task, settings) in TASKS.items():
        cells = []
        for shots in (0, SHOTS):
            found = accuracy(teacher, task, settings, shots, asked.questions, asked.out / f"{task}-{shots}")
            cells += [found.get("right", 0), found.get("no_answer", 0) + found.get("truncated", 0)]
        print(f"| {label} | {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
