"""The trainer's own batches: which rows bear loss, what they learn, and what padding does to hidden states.

    input_ids   <|im_start|> user ... assistant  Once  upon  <|im_end|>  pad  pad
    rows             -        -           x        x     x        -       -    -
    targets                             Once     upon  <|im_end|>

A mask that is not shifted drops the first token of every answer (DistillKit); one by the pad token's id drops
the end where the two are the same. Padding on the left without positions changes what GPT-2 and other
models with learned positions read: by three times the spread of their logits (TRL's GKDTrainer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdbench.checks.case import Case, decoded
from kdbench.checks.findings import Finding, about, shortened
from kdbench.checks.rehearsing import Rehearsal
from kdbench.models.sequences import TokenSequence

BATCHES, POSITIONS = "batches", "positions"


def spread(sequences: Sequence[TokenSequence], most: int) -> list[TokenSequence]:
    """Up to `most` sequences of different lengths, the shortest and the longest among them."""
    ordered = sorted(sequences, key=lambda one: one.length)
    if len(ordered) <= most:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (most - 1))] for i in range(most)]


def check_batches(case: Case, rehearsal: Rehearsal) -> list[Finding]:
    """Every token of a completion is learnt once, from the position before it, and nothing else is."""
    chosen = spread(case.sequences, 4)
    batch = rehearsal.batch(chosen)
    wrong: dict[str, str] = {}
    unseen: dict[str, str] = {}
    weights: dict[str, str] = {}
    row = 0
    for i, one in enumerate(chosen):
        name, places = case.name(one.sample), batch["rows"][i].nonzero().squeeze(-1).tolist()
        part = slice(row, row := row + len(places))
        ids = batch["input_ids"][i].tolist()
        learnt = [ids[at + 1] for at in places if at + 1 < len(ids)]
        targets = batch["targets"][part].tolist()
        if learnt != list(one.completion):
            wrong[name] = f"{_shown(case, learnt)}, and its completion is {_shown(case, one.completion)}"
        elif targets != learnt:
            wrong[name] = f"{_shown(case, targets)} at the rows before {_shown(case, learnt)}"
        elif not torch.allclose(batch["weights"][part].double().cpu(), _same(one, len(places))):
            weights[name] = f"{batch['weights'][part][0]:g}, not {one.weight:g}"
        if not all(bool(batch["attention_mask"][i, at]) for at in places):
            unseen[name] = f"rows {places[0]} to {places[-1]}"
    way_out = "mend the trainer's collator: row t learns token t + 1, and masks go by length"
    return [
        *about(
            BATCHES, "error", "of which other rows are learnt than its completion's", wrong, way_out=way_out
        ),
        *about(BATCHES, "error", "with learnt rows that attention does not see", unseen, way_out=way_out),
        *about(BATCHES, "error", "whose rows have another weight than it", weights, way_out=way_out),
    ]


def _same(one: TokenSequence, count: int) -> Tensor:
    return torch.full((count,), one.weight, dtype=torch.float64)


def _shown(case: Case, ids: Sequence[int]) -> str:
    return shortened(decoded(case.student.tokenizer, ids), 40)


def check_positions(case: Case, rehearsal: Rehearsal) -> list[Finding]:
    """A short and a long sample in one padded batch have the hidden states that they have alone."""
    pair = spread(case.sequences, 2)
    together = rehearsal.states(pair)
    apart = [rehearsal.states([one]) for one in pair]
    return [finding for who in together for finding in _moved(case, pair, who, together, apart)]


def _moved(
    case: Case,
    pair: Sequence[TokenSequence],
    who: str,
    together: Mapping[str, Tensor],
    apart: Sequence[Mapping[str, Any]],
) -> list[Finding]:
    parts = torch.split(together[who], [len(alone[who]) for alone in apart])
    moved: dict[str, str] = {}
    for one, padded, alone in zip(pair, parts, apart, strict=True):
        tolerance = max(1e-4, 8 * torch.finfo(padded.dtype).eps)
        expected = alone[who].double()
        difference = float((padded.double() - expected).norm() / expected.norm().clamp_min(1e-12))
        if not difference <= tolerance:
            moved[case.name(one.sample)] = (
                f"by {difference:.2g} of their size, {one.length} tokens beside {pair[-1].length}"
            )
    return about(
        POSITIONS, "error", f"whose hidden states in the {who} change with what it is padded to", moved,
        way_out="pad on the right, or pass position_ids that begin at 0 with the first real token, and an "
        "attention mask",
    )  # fmt: skip
