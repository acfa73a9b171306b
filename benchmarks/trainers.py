"""One distillation step, ours against TRL's on the same tokens, and both against what the models alone cost.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/trainers.py > docs/results/trainers.md        # some minutes
    python benchmarks/trainers.py --only floor ours_live trl_gkd --steps 4

Teacher SmolLM2-135M-Instruct, student its layers cut to 6, batch 8 x 160 tokens of this repository's own
pages (32 of prompt, 128 learnt), JSD(0.5), float32 on a CPU or bfloat16 on a GPU, AdamW. Every side is a
process of its own and a real training: its step times are taken between the trainer's own callbacks, the
first step apart; memory is what the process grew by from its first step on. TRL runs without gradient
checkpointing, which would switch its key-value cache off.

    floor            teacher's forward, student's forward and backward as transformers makes them, no loss
    ours_live        white_box with a live teacher, nothing kept
    ours_hidden      white_box from stored hidden states        ours_top_k   from the stored top 50
    trl_gkd          trl.experimental.gkd.GKDTrainer, lmbda 0
    ours_on_policy   gkd, lmbda 1, up to 64 new tokens          trl_on_policy   GKDTrainer, lmbda 1, the same
    ours_ragged      sequences of 20 to 400 tokens, micro-batches of 4 out of 16
    head_ours        the loss head alone, forward and backward  head_trl   DistillationTrainer's chunked one
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from _trainer_sides import run_one

SIDES = [
    "floor",
    "ours_live",
    "trl_gkd",
    "ours_hidden",
    "ours_top_k",
    "ours_on_policy",
    "trl_on_policy",
    "ours_ragged",
    "head_ours",
    "head_trl",
]


def main() -> None:
    """Run every side in a process of its own and print the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2, help="the best of so many processes of each side")
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print("RESULT " + json.dumps(run_one(given.one, given.steps)))
        return
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in given.only}
    for _ in range(given.rounds):
        for side in given.only:  # side after side, so that a busy spell meets them all
            found[side].append(in_a_process(side, given.steps))
            print(f"{side}: {found[side][-1]}", file=sys.stderr)
    print(page({side: min(runs, key=lambda r: r["seconds"]) for side, runs in found.items()}, given.steps))


def in_a_process(side: str, steps: int) -> dict[str, Any]:
    """One side's result."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", side, "--steps", str(steps)]
    env = {**os.environ, "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return result


def page(best: dict[str, dict[str, Any]], steps: int) -> str:
    """The table, with ratios where both sides were run."""
    from kdbench.provenance import machine, now

    spec = machine()
    lines = [
        "# A training step, ours and TRL's\n",
        "Written by `benchmarks/trainers.py`; what the sides are stands at its top.\n",
        f"{now()[:10]}, {spec['cores']} cores, {spec['cpu']}, Python {spec['python']}. The median of "
        f"{steps - 1} steps in the better of the processes of each side.\n",
        "| side | seconds a step | learnt tokens/s | memory growth | loss of the first step | padding |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for side, r in best.items():
        padding = f"{r['padding']:.1%}" if r.get("padding") is not None else ""
        loss = f"{r['loss']:.5f}" if r.get("loss") is not None else ""
        lines.append(
            f"| {side} | {r['seconds']:.2f} | {r['tokens'] / r['seconds']:,.0f} | {r['memory_mb']:,.0f} MB "
            f"| {loss} | {padding} |"
        )
    lines += ["", "| ratio | |", "|---|---:|"]
    lines += [f"| {what} | {value:.2f} |" for what, value in ratios(best)]
    return "\n".join(lines)


def ratios(best: dict[str, dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """What the issue of speed is about."""
    pairs: list[tuple[str, str, str, Callable[[dict[str, Any]], float]]] = [
        ("ours, live teacher, to the floor", "ours_live", "floor", lambda r: r["seconds"]),
        ("TRL's GKDTrainer to ours, live teacher", "trl_gkd", "ours_live", lambda r: r["seconds"]),
        ("memory growth, ours to GKDTrainer's", "ours_live", "trl_gkd", lambda r: r["memory_mb"]),
        ("GKDTrainer to ours, stored hidden states", "trl_gkd", "ours_hidden", lambda r: r["seconds"]),
        ("GKDTrainer to ours, stored top 50", "trl_gkd", "ours_top_k", lambda r: r["seconds"]),
        (
            "on-policy, per learnt token: GKDTrainer to ours",
            "trl_on_policy",
            "ours_on_policy",
            lambda r: r["seconds"] / r["tokens"],
        ),
        ("loss head: DistillationTrainer's to ours", "head_trl", "head_ours", lambda r: r["seconds"]),
        ("memory growth of the loss head, ours to TRL's", "head_ours", "head_trl", lambda r: r["memory_mb"]),
    ]
    for what, one, other, of in pairs:
        if one in best and other in best:
            yield what, of(best[one]) / of(best[other])


if __name__ == "__main__":
    main()
