"""What a metric is given and what it gives back; each public module here is one metric.

    def measure(subject: Subject, config: Config) -> list[Score]:
        hits = [float("dragon" in g.text) for g in subject.generations]
        return [Score("dragons", fmean(hits), n=len(hits), unit="fraction", higher_is_better=True)]

`NEEDS` of a metric's module says what it reads: "generations" (each model's own texts), "logits" (what
the model says of the held-out texts), "teacher" (what the teacher says of them). Nothing is generated
or computed that no metric asked for, and nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kdbench.records import Completion

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Need = Literal["generations", "logits", "teacher"]
Unit = Literal["", "fraction", "nats", "tokens/s", "parameters", "bytes"]


@dataclass(frozen=True, slots=True)
class Score:
    """One number of one model. `value` is None where it cannot be had; `note` then says why.

    `low` and `high` bound the 95 % bootstrap interval over the `n` samples. `higher_is_better` is
    None for a number that describes and does not judge.
    """

    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    unit: Unit = ""
    higher_is_better: bool | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Generation:
    """What a model wrote for one held-out sample; `seconds` is its share of the model's whole time."""

    id: str
    text: str
    tokens: int
    finish_reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What a model says of the held-out completions, their end token included: sums per sample, [n].

    `nll` in nats. `kl` is KL(teacher || model) in nats and `top1` the number of positions whose most
    likely token is the teacher's; both None without a teacher of the same tokenizer. `same_tokenizer`
    is None without a teacher.
    """

    tokens: NDArray[np.float64]
    nll: NDArray[np.float64]
    kl: NDArray[np.float64] | None = None
    top1: NDArray[np.float64] | None = None
    same_tokenizer: bool | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """One model under evaluation, and the held-out samples, the same for every model.

    `generations` are in the order of `samples`, empty if no metric needs them. `token_scores()` runs
    the model over the held-out texts on its first call and remembers. `seed` seeds the bootstrap.
    """

    name: str
    samples: tuple[Completion, ...]
    generations: tuple[Generation, ...]
    parameters: int
    bytes: int
    seed: int
    token_scores: Callable[[], TokenScores]
