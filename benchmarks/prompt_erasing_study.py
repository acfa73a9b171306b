"""What erasing the strategy's message does: a student before, and after training on each of the three arms.

    python benchmarks/prompt_erasing_study.py > docs/results/prompt_erasing_study.md

It goes on where it stopped. The teacher is the oracle, which keeps to the strategies and is always right:
SmolLM2 follows none of them (docs/recipes/prompt_erasing.md) and would show nothing. The student is SmolLM2.
Arms (Orca 2 has no such ablation): `erased`, `kept` (the student is told the strategy, as the teacher is)
and `random` (erased, and the strategies fit their kinds by chance only).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import kdbench
from kdbench.errors import ConfigError
from kdbench.evaluation._bootstrap import interval
from kdbench.jobs.job_file import load_job
from kdbench.jsonl import read_samples
from kdbench.provenance import machine, now
from kdbench.records import Completion
from kdbench.reporting.scores_file import Scores
from kdbench.rundir import is_done

TASK = {
    "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1},
    "products": {"min_digits": 1, "max_digits": 1},
}
SUITED = {"chain_sum": "step_by_step", "products": "direct"}
OPENS_WITH = {"step_by_step": "Step 1:", "direct": "The answer is"}
RANDOM_SEED = 0  # gives each kind the other strategy; checked below
ARMS: dict[str, dict[str, Any]] = {
    "erased": {"erase": "erased", "per_kind": SUITED},
    "kept": {"erase": "kept", "per_kind": SUITED},
    "random": {"erase": "random", "assignment_seed": RANDOM_SEED, "strategies": list(OPENS_WITH)},
}


def generate(out: Path, arm: str, part: str, n: int) -> Path:
    """Questions of one part, answered by the oracle in one arm; goes on with a run that is there."""
    questions = {"task": TASK, "part": part, "seed": int(part == "heldout")}
    config = {"questions": questions, "sampling": {"temperature": 0.7, "max_tokens": 80}, **ARMS[arm]}
    return kdbench.generate(
        "prompt_erasing", teacher="oracle", config=config, out=out / f"{part}-{arm}", n=n, resume=True
    )


def train(out: Path, arm: str, data: Path) -> Path:
    """SmolLM2 after the training of the job prompt-erasing, on one arm's data."""
    training = load_job("prompt-erasing").train["erased"]
    model = out / f"trained-{arm}"
    if not is_done(model):
        kdbench.train(
            training.method, data=data, student="smollm2", config=training.config, out=model,
            resume=model.exists(),
        )  # fmt: skip
    return model


def evaluate(out: Path, name: str, models: dict[str, str], data: Path) -> Path:
    """Greedy answers to one set of held-out questions."""
    scores = out / f"evaluation-{name}"
    if not is_done(scores):
        with redirect_stdout(sys.stderr):  # the page alone goes to stdout
            kdbench.evaluate(
                models, data=data, out=scores, metrics=["accuracy"], max_tokens=80, temperature=0.0,
                resume=scores.exists(),
            )  # fmt: skip
    return scores


def rows(evaluation: Path, data: Path, asked: str) -> Iterator[str]:
    """One table row per model: right answers, and answers that open as the kind's strategy does."""
    kinds = {
        s.id: json.loads(s.fields)["kind"]
        for s in read_samples(data / "samples.jsonl")
        if isinstance(s, Completion)
    }
    scores = Scores.read(evaluation)
    made = [json.loads(line) for line in (evaluation / "generations.jsonl").read_text().splitlines()]
    for model in (entry.name for entry in scores.models):
        right = scores.find(model, "accuracy")
        assert right is not None  # every held-out sample has a gold answer
        mine = [line for line in made if line["model"] == model]
        cells = [f"{100 * right.value:.0f} % [{100 * right.low:.0f}, {100 * right.high:.0f}]"]
        for kind, strategy in SUITED.items():
            texts = [line["text"] for line in mine if kinds[line["id"]] == kind]
            follows = [float(text.startswith(OPENS_WITH[strategy])) for text in texts]
            other = sum(text.startswith(sign) for text in texts for sign in OPENS_WITH.values()) - sum(
                follows
            )
            low, high = interval(follows, [1.0] * len(follows), seed=0)
            bounds = f" [{100 * low:.0f}, {100 * high:.0f}]" if low is not None and high is not None else ""
            cells.append(f"{100 * sum(follows) / len(texts):.0f} %{bounds}; {100 * other / len(texts):.0f} %")
        yield f"| {model} | {asked} | " + " | ".join(cells) + " |"


def main() -> None:
    """Make what is lacking, and print the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("runs/prompt_erasing_study"))
    parser.add_argument("--train", type=int, default=160, help="samples each arm learns from")
    parser.add_argument("--heldout", type=int, default=60, help="questions each model is asked")
    given = parser.parse_args()
    data = {arm: generate(given.out, arm, "train", given.train) for arm in ARMS}
    check_random(data["random"])
    models = {"before": "smollm2", **{arm: str(train(given.out, arm, data[arm])) for arm in ARMS}}
    cautious, told = (generate(given.out, arm, "heldout", given.heldout) for arm in ("erased", "kept"))
    under_cautious = evaluate(given.out, "cautious", models, cautious)
    under_told = evaluate(given.out, "told", {name: models[name] for name in ("before", "kept")}, told)

    spec = machine()
    config = load_job("prompt-erasing").train["erased"].config
    print("# What erasing the prompt does\n")
    print("Written by `benchmarks/prompt_erasing_study.py`.\n")
    print(f"{now()[:10]}, {spec['cores']} cores, {spec['cpu']}. SmolLM2-135M-Instruct as the student; the")
    print(f"oracle as the teacher. {given.train} samples an arm, {config['steps']} steps of")
    print(
        f"{config['batch_size']}; {given.heldout} held-out questions, greedy. One training seed; in brackets"
    )
    print("95 % bootstrap intervals over questions.\n")
    print("Sums are taught step by step and products straight away; in the arm `random` it is the other way")
    print('round. "Follows" is the share of answers that open as the strategy that suits their kind demands')
    print('("Step 1:", "The answer is"), and behind it the share that opens as the other one does.\n')
    print("| student | asked under | right | sums: follows; other | products: follows; other |")
    print("|---|---|---:|---:|---:|")
    for line in rows(under_cautious, cautious, "the cautious message"):
        print(line)
    for line in rows(under_told, told, "its strategy"):
        print(line)


def check_random(run: Path) -> None:
    """The arm `random` must differ from the others. Raises ConfigError."""
    drawn = {
        (f["kind"], f["strategy"]) for s in read_samples(run / "samples.jsonl") if (f := json.loads(s.fields))
    }
    if drawn & set(SUITED.items()):
        raise ConfigError(
            f"RANDOM_SEED {RANDOM_SEED} gives a kind the strategy that suits it: {sorted(drawn)}"
        )


if __name__ == "__main__":
    main()
