"""How hard each sample is for a model: its loss, and samples drawn by it.

losses = measured("runs/start/model", samples, config, Path("sample_losses.parquet"))
hard_ones(losses, rate=0.5, candidates=64, seed=0)          # half of their groups, the hard ones more often

    sample_losses.parquet    sample (its place among all), id, group, loss (nats per token), tokens
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from kdbench.errors import StorageError
from kdbench.losses.chunked import cross_entropy_loss
from kdbench.losses.heads import head_of
from kdbench.models.rows import hidden_rows
from kdbench.models.sequences import TokenSequence, encode
from kdbench.processes import this_process
from kdbench.records import Completion
from kdbench_trainers._batches import collate, cut
from kdbench_trainers._config import TrainConfig
from kdbench_trainers._models import load_student

_READ_AT_ONCE = 8  # of the longest samples


@dataclass(frozen=True, slots=True)
class SampleLoss:
    """A sample by its place among all, and the mean of -log p(token) over its completion, in nats."""

    sample: int
    id: str
    group: str
    loss: float
    tokens: int


def measured(
    ref: str,
    samples: Sequence[Completion],
    config: TrainConfig,
    path: Path,
    meet: Callable[[], None] = lambda: None,
) -> list[SampleLoss]:
    """The losses under the model `ref` of all samples that fit, in order; they also lie at `path` then.

    Of several processes the first one measures, and `meet` waits for it: all then hold the same numbers.
    Raises NothingLeft, UsageError, StorageError.
    """
    if this_process().is_first:
        _write(path, sample_losses(ref, samples, config))
    meet()
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return [SampleLoss(**row) for row in rows]


def sample_losses(ref: str, samples: Sequence[Completion], config: TrainConfig) -> list[SampleLoss]:
    """The losses under the model `ref` of all samples that fit, in order. Raises NothingLeft, UsageError."""
    reader, model = load_student(ref, config.model_copy(update={"lora": None}))
    sequences = encode(samples, reader, None, config.max_length)
    parts = cut(sequences, _READ_AT_ONCE, on_cpu=model.device.type == "cpu")
    found = [one for part in parts for one in _losses(model.eval(), part, samples)]
    return sorted(found, key=lambda one: one.sample)


@torch.no_grad()
def _losses(
    model: Any, sequences: list[TokenSequence], samples: Sequence[Completion]
) -> Iterator[SampleLoss]:
    batch = collate(sequences)
    moved = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    counts = [len(one.completion) for one in sequences]
    rows, targets = hidden_rows(model, moved).split(counts), moved["targets"].split(counts)
    for one, hidden, learnt in zip(sequences, rows, targets, strict=True):
        assert one.sample is not None
        loss = float(cross_entropy_loss(hidden, head_of(model), learnt).loss) / len(learnt)
        yield SampleLoss(one.sample, samples[one.sample].id, one.group, loss, len(learnt))


def _write(path: Path, losses: Sequence[SampleLoss]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([asdict(one) for one in losses]), path)
    except OSError as exc:
        raise StorageError(f"Cannot write {path}: {exc}; free some room and go on with --resume") from exc


def hard_ones(losses: Sequence[SampleLoss], rate: float, candidates: int, *, seed: int) -> set[str]:
    """A share `rate` of the groups: of every `candidates` of them that come together by chance.

    A group's loss is the mean over its tokens. They are drawn without replacement with probabilities
    exp(loss) / sum of exp(loss) (PanGu-pi Pro, Tang et al. 2024, arXiv 2402.02791, section 3.3): the largest
    of loss + Gumbel noise are such a draw.
    """
    sums: dict[str, list[float]] = {}
    for one in losses:
        total = sums.setdefault(one.group, [0.0, 0.0])
        total[0] += one.loss * one.tokens
        total[1] += one.tokens
    chance = random.Random(seed)  # noqa: S311
    order = chance.sample(list(sums), len(sums))
    drawn: set[str] = set()
    for start in range(0, len(order), candidates):
        company = order[start : start + candidates]
        keys = {
            group: sums[group][0] / sums[group][1] - math.log(-math.log(chance.random() or 0.5))
            for group in company
        }
        company.sort(key=lambda group: -keys[group])
        drawn |= set(company[: max(1, round(rate * len(company)))])
    return drawn
