"""ROUGE-L of what the model writes against what the teacher wrote for the same prompt.

The F-measure of the longest common subsequence of words (Lin 2004), mean over samples, from Google's
`rouge-score` with Porter stemming; its tokenizer knows English words and digits alone. A free task
such as story writing has many good answers, so even the teacher scores low against itself.
"""

from __future__ import annotations

from pydantic import Field

from kdbench.config import StrictConfig
from kdbench.evaluation import Score, Subject
from kdbench.evaluation._bootstrap import estimate

NEEDS = frozenset({"generations"})


class Config(StrictConfig):
    """How words are compared."""

    stem: bool = Field(True, description="compare word stems: 'jumped' matches 'jumps'")


def measure(subject: Subject, config: Config) -> list[Score]:
    """Score "rouge_l", a fraction."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=config.stem)
    values = [
        float(scorer.score(sample.text, made.text)["rougeL"].fmeasure)
        for sample, made in zip(subject.samples, subject.generations, strict=True)
    ]
    return [estimate("rouge_l", values, seed=subject.seed, unit="fraction", higher_is_better=True)]
