"""How fast and how large the model is.

    tokens_per_second   tokens generated for this evaluation, over the time that took, prompts included
    parameters          tied weights counted once
    bytes               the weights on disk

The speed is that of this machine in this run: it compares models of one table, nothing else.
"""

from __future__ import annotations

from kdbench.config import StrictConfig
from kdbench.evaluation import Score, Subject

NEEDS = frozenset({"generations"})


class Config(StrictConfig):
    """Nothing to set."""


def measure(subject: Subject, config: Config) -> list[Score]:
    """Scores "tokens_per_second", "parameters" and "bytes"."""
    tokens = sum(made.tokens for made in subject.generations)
    seconds = sum(made.seconds for made in subject.generations)
    return [
        Score(
            "tokens_per_second",
            tokens / seconds if seconds > 0 else None,
            n=len(subject.generations),
            unit="tokens/s",
            higher_is_better=True,
        ),
        Score("parameters", float(subject.parameters), unit="parameters"),
        Score("bytes", float(subject.bytes), unit="bytes"),
    ]
