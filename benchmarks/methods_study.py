"""One student, one data set, the methods side by side: what each learns of its teacher, and what it costs.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/methods_study.py > docs/results/methods.md

It goes on where it stopped. The data are the stories of the job tinystories. The student is pruned from
SmolLM2 and trained on the stories' text first, as GKD and DistiLLM ask for; every method goes on from there
with the same steps, batches and learning rate. Agreement is measured on frozen prefixes: the teacher's
held-out stories, and stories that the student wrote to the same prompts before any of the methods.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import kdbench
from kdbench.jobs.job_file import load_job
from kdbench.jsonl import JsonlWriter, read_samples
from kdbench.provenance import machine, now
from kdbench.records import Completion, Message
from kdbench.reporting.scores_file import ModelScore, Scores
from kdbench.rundir import is_done, read_info

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("black_box", {}),
    "forward_kl": ("white_box", {"divergence": "forward_kl"}),
    "reverse_kl": ("white_box", {"divergence": "reverse_kl"}),
    "jsd": ("white_box", {"divergence": "jsd"}),
    "skew_kl": ("white_box", {"divergence": "skew_kl"}),
    "skew_reverse_kl": ("white_box", {"divergence": "skew_reverse_kl"}),
    "gkd": ("gkd", {"lmbda": 0.5, "max_new_tokens": 112}),
    "distillm": ("distillm", {"max_new_tokens": 112, "buffer_size": 64, "tolerance": 0.0}),
}
STORIES, HELD_OUT, LAYERS = 500, 40, 14
COLUMNS = {
    "agreement_kl": "KL, teacher's text",
    "agreement_top1": "same top token",
    "perplexity": "perplexity",
    "rouge_l": "ROUGE-L",
    "rules_all": "keeps the rules",
    "distinct_2": "distinct word pairs",
}


class Study:
    """The runs below one directory, made as they are needed."""

    def __init__(self, out: Path, steps: int, seed: int) -> None:
        self.out = out
        self.job = load_job("tinystories")
        self.training = {
            "steps": steps,
            "batch_size": 8,
            "learning_rate": 3e-4,
            "warmup_steps": 4,
            "freeze_embeddings": True,
            "eval_every": max(1, steps // 6),
            "checkpoint_every": 20,
            "seed": seed,
        }

    def data(self, name: str, n: int) -> Path:
        """Stories of the teacher."""
        stage = self.job.generate[name]
        settings = {**stage.settings(), "n": n}
        return kdbench.generate(
            stage.recipe, teacher="smollm2", config=stage.config, out=self.out / name, resume=True, **settings
        )

    def train(self, name: str, method: str, student: str, **config: Any) -> Path:
        """One training."""
        out = self.out / name
        if not is_done(out):
            kdbench.train(
                method,
                data=self.out / "train",
                student=student,
                teacher="smollm2",
                out=out,
                config={**self.training, **config},
                resume=out.exists(),
            )
        return out

    def evaluate(self, name: str, models: dict[str, str], data: Path, metrics: list[str]) -> Path:
        """The models on one set of texts."""
        out = self.out / name
        if not is_done(out):
            with redirect_stdout(sys.stderr):  # the page alone goes to stdout
                kdbench.evaluate(
                    models,
                    teacher="smollm2",
                    data=data,
                    out=out,
                    metrics=metrics,
                    max_tokens=112,
                    temperature=0.8,
                    resume=out.exists(),
                )
        return out

    def text_of(self, evaluation: Path, model: str) -> Path:
        """What a model wrote to the held-out prompts, as samples to measure agreement on."""
        path = self.out / f"text_of_{model}.jsonl"
        lines = map(json.loads, (evaluation / "generations.jsonl").read_text().splitlines())
        wrote = {line["id"]: line for line in lines if line["model"] == model}
        with JsonlWriter(path) as file:
            for sample in read_samples(self.out / "heldout" / "samples.jsonl"):
                line = wrote.get(sample.id)
                if not isinstance(sample, Completion) or line is None or not line["text"].strip():
                    continue
                assert sample.origin is not None
                origin = sample.origin.model_copy(update={"finish_reason": line["finish_reason"]})
                told = Message(role="assistant", content=line["text"])
                file.write(sample.model_copy(update={"completion": (told,), "origin": origin}))
        return path


def main() -> None:
    """Make what is lacking, and print the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("runs/methods_study"))
    parser.add_argument("--stories", type=int, default=STORIES)
    parser.add_argument("--heldout", type=int, default=HELD_OUT)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    study = Study(given.out, given.steps, given.seed)
    start, heldout = make_start(study, given.stories, given.heldout, given.layers)
    models = {"start": str(start)}
    for name, (method, config) in METHODS.items():
        models[name] = str(study.train(name, method, str(start), **config))
    metrics = ["agreement", "perplexity", "rouge_l", "story_rules"]
    on_teacher = study.evaluate("on_teacher_text", models, heldout, metrics)
    on_student = study.evaluate("on_student_text", models, study.text_of(on_teacher, "start"), ["agreement"])
    print_page(study, models, Scores.read(on_teacher), Scores.read(on_student), given)


def make_start(
    study: Study, stories: int = STORIES, held_out: int = HELD_OUT, layers: int = LAYERS
) -> tuple[Path, Path]:
    """(the student that all methods begin with, the stories held out)."""
    study.data("train", stories)
    heldout = study.data("heldout", held_out)
    pruned = study.out / "pruned"
    if not is_done(pruned):
        kdbench.make_student(
            {"kind": "pruned", "layers": layers},
            teacher="smollm2",
            data=study.out / "train",
            out=pruned,
            overwrite=pruned.exists(),
        )
    return study.train("start", "black_box", str(pruned)), heldout


def print_page(
    study: Study, models: dict[str, str], teacher: Scores, student: Scores, given: argparse.Namespace
) -> None:
    """The table."""
    spec = machine()
    print("# Methods side by side\n")
    print("Written by `benchmarks/methods_study.py`.\n")
    print(f"{now()[:10]}, {spec['cores']} cores, {spec['cpu']}. Teacher SmolLM2-135M-Instruct, a student of")
    print(
        f"{given.layers} of its 30 layers; {given.stories} stories, {given.heldout} held out; {given.steps}"
    )
    print(
        f"steps of 8 for the start and again for each method, seed {given.seed}. In brackets: 95 % bootstrap"
    )
    print("intervals over stories.\n")
    heads = [*COLUMNS.values(), "KL, student's text", "seconds", "of these writing", "written tokens"]
    print("| | " + " | ".join(heads) + " |")
    print("|---|" + "---:|" * len(heads))
    for name in ["teacher", *models]:
        cells = [cell(teacher.find(name, metric)) for metric in COLUMNS]
        cells.append(cell(student.find(name, "agreement_kl")))
        cells += cost(Path(models[name])) if name in models else ["", "", ""]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\nThe paper of DistiLLM has SFT < forward KL <= JSD < reverse KL < DistiLLM, by ROUGE-L.")


def cell(score: ModelScore | None) -> str:
    """A value with its interval."""
    if score is None or score.value is None:
        return "-"
    scale, places = (100, 1) if score.unit == "fraction" else (1, 3 if score.value < 3 else 1)
    sign = " %" if score.unit == "fraction" else ""
    bounds = ""
    if score.low is not None and score.high is not None:
        bounds = f" [{scale * score.low:.{places}f}, {scale * score.high:.{places}f}]"
    return f"{scale * score.value:.{places}f}{sign}{bounds}"


def cost(run: Path) -> list[str]:
    """Seconds, those spent writing, and the tokens that the student wrote."""
    stats = read_info(run)["stats"]
    written = stats.get("generated_tokens")
    return [
        f"{stats['seconds']:,.0f}",
        f"{stats['phases']['generate']:,.0f}",
        f"{written:,.0f}" if written else "",
    ]


if __name__ == "__main__":
    main()
