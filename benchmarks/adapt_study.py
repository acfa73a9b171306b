"""Adapt-then-distill: AdaLM's four orders on manual pages, and what the small models make of them.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/adapt_study.py > docs/results/adapt_then_distill.md

It goes on where it stopped. The domain is Linux system calls: section 2 of the manual, as `man` prints the
pages of this machine. One page in ten is held out. The general text is what SmolLM2 tells to the job
tinystories' requests. Bits per byte do not depend on the vocabulary, which `--grow` lets grow.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import kdbench
from kdbench.evaluation._bootstrap import interval
from kdbench.jobs.job_file import load_job
from kdbench.jsonl import read_samples
from kdbench.provenance import machine, now
from kdbench.records import Completion
from kdbench.rundir import is_done, read_info

ORDERS = {
    "(a) from scratch": "from_scratch",
    "(b) distil, then adapt": "distil_then_adapt",
    "(c) adapt the teacher, then distil": "adapt_teacher",
    "(d) adapt both, then distil": "adapt_both",
}
LONGEST = 6_000  # characters of a page


def main() -> None:
    """Make what is lacking, and print the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("runs/adapt_study"))
    parser.add_argument("--pages", type=Path, default=Path("/usr/share/man/man2"))
    parser.add_argument("--most", type=int, default=400, help="pages taken at most")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60, help="of each stage")
    parser.add_argument(
        "--grow", type=int, default=0, help="new tokens in each round; 0: the vocabulary stays"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    train, held_out = corpus(given.pages, given.out, given.most)
    general = [
        s.text
        for s in read_samples(stories(given.out, "heldout") / "samples.jsonl")
        if isinstance(s, Completion)
    ]
    stories(given.out, "train")
    pruned = student(given.out, "pruned", {"kind": "pruned", "layers": given.layers})
    scratch = student(given.out, "scratch", {"kind": "scratch", "layers": given.layers})
    models: dict[str, str] = {"teacher": "smollm2", "pruned, as it is": str(pruned)}
    for name, order in ORDERS.items():
        start = scratch if order == "from_scratch" else pruned
        models[name] = str(adapt(given, order, start, train))
    page(given, models, [path.read_text() for path in held_out], general)


def corpus(pages: Path, out: Path, most: int) -> tuple[Path, list[Path]]:
    """(folder of the texts to learn, texts held out), printed by `man` once."""
    train, held_out = out / "domain" / "train", out / "domain" / "heldout"
    found = sorted(pages.glob("*.gz"))[:most]
    if not found:
        sys.exit(f"No manual pages in {pages}: install manpages-dev, or name another folder with --pages")
    for path in found:
        text = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
        if text.lstrip().startswith(".so "):
            continue  # another name of a page that is here already
        part = held_out if hashlib.sha256(path.name.encode()).digest()[0] < 26 else train
        target = part / f"{path.name.removesuffix('.gz')}.txt"
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(printed(path)[:LONGEST], encoding="utf-8")
    return train, sorted(held_out.glob("*.txt"))


def printed(path: Path) -> str:
    """A manual page as plain text."""
    env = {**os.environ, "MANWIDTH": "78", "LC_ALL": "C.UTF-8", "MANROFFOPT": "-c"}
    command = ["man", "--no-justification", "--no-hyphenation", "-l", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout
    return re.sub(r"\n{3,}", "\n\n", re.sub(r".\x08", "", text)).strip()


def stories(out: Path, name: str) -> Path:
    """General text: what (b) distils on, and what is held out."""
    stage = load_job("tinystories").generate[name]
    return kdbench.generate(
        stage.recipe, teacher="smollm2", config=stage.config, out=out / f"general-{name}", resume=True,
        **stage.settings(),
    )  # fmt: skip


def student(out: Path, name: str, config: dict[str, Any]) -> Path:
    """What the orders begin with."""
    path = out / name
    if not is_done(path):
        kdbench.make_student(
            config, teacher="smollm2", data=out / "general-train", out=path, overwrite=path.exists()
        )
    return path


def adapt(given: argparse.Namespace, order: str, start: Path, texts: Path) -> Path:
    """One order."""
    out: Path = given.out / (order if not given.grow else f"{order}-{given.grow}")
    general = order == "distil_then_adapt"  # distils before it comes to the domain; the others on its text
    training = {
        "steps": given.steps, "batch_size": 8, "max_length": 160, "learning_rate": 3e-4, "warmup_steps": 4,
        "eval_every": given.steps, "validation_share": 0.05, "checkpoint_every": 20, "seed": given.seed,
    }  # fmt: skip
    config: dict[str, Any] = {
        "order": order, "texts": [str(texts)], "adaptation": training,
        "teacher_adaptation": {**training, "learning_rate": 1e-4},
        "method": "white_box",
        "method_config": {**training, "divergence": "forward_kl", "max_length": 1024 if general else 160},
    }  # fmt: skip
    if given.grow:
        config["grow"] = {"step": given.grow}
    if not is_done(out):
        kdbench.train(
            "adapt_then_distill", student=str(start), teacher="smollm2", out=out, config=config,
            data=[given.out / "general-train"] if general else [],
            resume=out.exists(),
        )  # fmt: skip
    return out


def page(
    given: argparse.Namespace, models: dict[str, str], domain: Sequence[str], general: Sequence[str]
) -> None:
    """The table."""
    spec = machine()
    print("# Adapt, then distil: the four orders\n")
    print("Written by `benchmarks/adapt_study.py`.\n")
    print(f"{now()[:10]}, {spec['cores']} cores, {spec['cpu']}. Teacher SmolLM2-135M-Instruct; students of")
    print(f"{given.layers} layers, pruned, or new for (a). {given.steps} steps of 8 windows of 160 tokens")
    print(
        f"in each stage, seed {given.seed}; {len(domain)} pages and {len(general)} stories held out. Bits per"
    )
    print("byte, lower is better; in brackets: 95 % bootstrap intervals over documents.\n")
    print("| | manual pages | stories | seconds |\n|---|---:|---:|---:|")
    for name, ref in models.items():
        cells = [bits(ref, texts) for texts in (domain, general)]
        stats = read_info(Path(ref))["stats"] if (Path(ref) / "run.json").is_file() else {}
        seconds = f"{stats['seconds']:,.0f}" if "seconds" in stats else ""
        print(f"| {name} | {cells[0]} | {cells[1]} | {seconds} |")
    print("\nThe paper finds (d) best, and (a) worst.")


def bits(ref: str, texts: Sequence[str]) -> str:
    """Bits per byte of a model on texts, with the interval."""
    nats, sizes = zip(*surprises(ref, texts), strict=True)
    scale = 1 / math.log(2)
    low, high = interval([scale * one for one in nats], list(sizes), seed=0)
    bounds = f" [{low:.2f}, {high:.2f}]" if low is not None and high is not None else ""
    return f"{scale * sum(nats) / sum(sizes):.2f}{bounds}"


def surprises(ref: str, texts: Sequence[str]) -> Iterator[tuple[float, float]]:
    """(-log p in nats, bytes) of each text, read in windows of 160 tokens as in training."""
    import torch

    from kdbench.losses.chunked import cross_entropy_loss
    from kdbench.losses.heads import head_of
    from kdbench.models.loading import load_model, load_tokenizer
    from kdbench.models.packing import windows
    from kdbench.models.rows import hidden_rows, padded
    from kdbench.models.sequences import Reader
    from kdbench.records import Text

    model, tokenizer = load_model(ref), load_tokenizer(ref)
    reader = Reader(tokenizer, (model.generation_config, model.config))
    for text in texts:
        found, _ = windows([Text(text=text)], reader, 160, 0.0, 0)
        counts = [len(one.completion) for one in found]
        inputs = padded([one.prompt + one.completion for one in found], counts)
        targets = torch.tensor([token for one in found for token in one.completion], device=model.device)
        with torch.no_grad():
            hidden = hidden_rows(model, {k: v.to(model.device) for k, v in inputs.items()})
            loss = cross_entropy_loss(hidden, head_of(model), targets).loss
        yield float(loss), float(len(text.encode()))


if __name__ == "__main__":
    main()
