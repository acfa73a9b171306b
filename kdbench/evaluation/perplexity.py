"""Perplexity on held-out teacher text: how surprised the model is by what the teacher wrote.

    exp(sum of -log q(token) / number of tokens)      over completion tokens, the end token included

The model reads the student's prompt (`prompt`, never `teacher_prompt`) in its own chat template.
Tokens are the model's own: numbers of models with other tokenizers do not compare, and say so.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kdbench.config import StrictConfig
from kdbench.evaluation import Score, Subject
from kdbench.evaluation._bootstrap import interval

NEEDS = frozenset({"logits"})
LARGEST_NATS = 700.0


class Config(StrictConfig):
    """Nothing to set."""


def measure(subject: Subject, config: Config) -> list[Score]:
    """Score "perplexity", a number from 1 upwards."""
    scores = subject.token_scores()
    value = float(_perplexity(scores.nll.sum() / scores.tokens.sum()))
    low, high = interval(scores.nll, scores.tokens, seed=subject.seed, transform=_perplexity)
    note = "per token of its own tokenizer" if scores.same_tokenizer is False else ""
    return [Score("perplexity", value, low, high, n=len(scores.tokens), higher_is_better=False, note=note)]


def _perplexity(nats: Any) -> Any:
    # Of a broken model it can pass the largest float, for which JSON has no name.
    return np.exp(np.minimum(nats, LARGEST_NATS))
