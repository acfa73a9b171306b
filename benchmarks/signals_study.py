"""Stored signals by size: what the top k tokens lose of a teacher, and what that does to a student.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/signals_study.py > docs/results/signals.md

It goes on where it stopped, and begins where `benchmarks/methods_study.py` began: with its stories, and with
the student that it had trained on their text before any of the methods. White_box goes on from each store
with the same steps, batches and learning rate, without a teacher.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from methods_study import Study, cell, make_start

import kdbench
from kdbench.provenance import machine, now
from kdbench.reporting.scores_file import Scores
from kdbench.rundir import is_done, read_info

KINDS = [*((f"top {k}", {"kind": "top_k", "k": k}) for k in (1, 4, 16, 64, 256)), ("hidden states", {})]


def main() -> None:
    """Make what is lacking, and print the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("runs/methods_study"), help="of methods_study.py")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    study = Study(given.out, given.steps, given.seed)
    start, heldout = make_start(study)
    models = {"start": str(start)}
    stores: dict[str, Path] = {}
    for name, config in KINDS:
        folder = name.replace(" ", "_")
        stores[name] = given.out / f"signals_{folder}"
        if not is_done(stores[name]):
            kdbench.store_signals(
                data=given.out / "train", teacher="smollm2", out=stores[name], config=config,
                resume=stores[name].exists(),
            )  # fmt: skip
        models[name] = str(study.train(f"from_{folder}", "white_box", str(start), signals=str(stores[name])))
    scores = Scores.read(study.evaluate("on_signals", models, heldout, ["agreement", "perplexity"]))
    spec = machine()
    print("# Stored signals by size\n")
    print("Written by `benchmarks/signals_study.py`.\n")
    print(
        f"{now()[:10]}, {spec['cores']} cores, {spec['cpu']}. Teacher SmolLM2-135M-Instruct (49,152 tokens,"
    )
    print(
        "hidden states of 576 numbers); the student and the stories of `benchmarks/methods_study.py`, where"
    )
    print(
        f"it begins; {given.steps} steps of 8 with white_box from each store, forward KL, seed {given.seed}."
    )
    print("Lost: KL of the teacher from what is stored, with the rest spread evenly, in nats per token. In")
    print("brackets: 95 % bootstrap intervals over held-out stories.\n")
    print("| | bytes per token | lost | KL from the teacher | same top token | perplexity | seconds |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, ref in models.items():
        cells = [
            cell(scores.find(name, metric)) for metric in ("agreement_kl", "agreement_top1", "perplexity")
        ]
        first = ["", ""]
        if name in stores:
            stats = read_info(stores[name])["stats"]
            first = [f"{stats['bytes_per_token']:,.0f}", f"{stats['lost']:.4f}"]
        seconds = f"{read_info(Path(ref))['stats']['seconds']:,.0f}"
        print(f"| {name} | " + " | ".join([*first, *cells, seconds]) + " |")


if __name__ == "__main__":
    main()
