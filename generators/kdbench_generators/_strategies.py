"""The strategies of prompt erasing, and the table of how well a model does with each.

read_table(Path("measured/strategies.yaml")).kinds["chain_sum"]
# KindScores(best="step_by_step", strategies={"direct": Score(right=12, n=50, accuracy=0.24, ...), ...})
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field

from kdbench.config import StrictConfig, build, load_yaml
from kdbench.errors import DataError

# The simplest first.
StrategyName = Literal[
    "direct", "step_by_step", "recall_then_generate", "recall_reason_generate", "extract_generate",
    "explain_then_answer", "guess_and_check",
]  # fmt: skip
STRATEGIES: tuple[StrategyName, ...] = get_args(StrategyName)  # of equally good ones the first is taken
TABLE_FORMAT = 1
_Z = 1.959964  # of a 95 % interval


class Score(StrictConfig):
    """How one strategy did on one kind of question; `interval` is Wilson's, 95 %."""

    right: int = Field(ge=0)
    n: int = Field(ge=1)
    accuracy: float = Field(ge=0, le=1)
    interval: tuple[float, float]

    @classmethod
    def of(cls, right: int, n: int) -> Score:
        """The score of so many right answers out of n."""
        low, high = wilson(right, n)
        return cls(right=right, n=n, accuracy=round(right / n, 4), interval=(round(low, 4), round(high, 4)))


class KindScores(StrictConfig):
    """How the strategies did on one kind of question, and which of them is taken."""

    best: StrategyName
    strategies: dict[StrategyName, Score] = Field(min_length=1)


class StrategyTable(StrictConfig):
    """strategies.yaml: which strategy suits the measured model, by kind of question."""

    format: Literal[1]
    kinds: dict[str, KindScores] = Field(min_length=1)


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share: honest near 0 and 1 and for few questions."""
    share, spread = right / n, _Z**2 / n
    middle = share + spread / 2
    half = _Z * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def simplest_best(scores: Mapping[StrategyName, Score]) -> StrategyName:
    """The strategy with the highest accuracy; of equals the simplest."""
    return max(sorted(scores, key=STRATEGIES.index), key=lambda name: scores[name].right / scores[name].n)


def best_of(measured: KindScores | None, offered: Sequence[StrategyName]) -> StrategyName | None:
    """The table's choice where it is offered, else the best of those that are; None if none is."""
    if measured is None:
        return None
    if measured.best in offered:
        return measured.best
    left = {name: measured.strategies[name] for name in offered if name in measured.strategies}
    return simplest_best(left) if left else None


def read_table(path: Path) -> StrategyTable:
    """The table in a file. Raises DataError, ConfigError."""
    if not path.is_file():
        raise DataError(f"No strategy table at {path}; make one with --measure-strategies")
    status = path.stat()
    return _read_table(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _read_table(path: Path, changed: int, size: int) -> StrategyTable:
    values = load_yaml(path)
    if values.get("format") != TABLE_FORMAT:
        raise DataError(
            f"{path} is no strategy table of format {TABLE_FORMAT} (its format: {values.get('format')}); "
            "make it anew with --measure-strategies"
        )
    return build(StrategyTable, values, f"strategy table {path}")
