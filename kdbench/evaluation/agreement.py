"""Agreement with the teacher, token by token, on the held-out teacher texts.

    agreement_kl     KL(teacher || model), mean per token, in nats: 0 means the same distribution
    agreement_top1   share of positions where both find the same token most likely

The teacher reads `teacher_prompt` where a sample has one (prompt erasing), else `prompt`, in its own
chat template; the model reads `prompt` in its own. Both then read the same completion, so the two
need one tokenizer.
"""

from __future__ import annotations

from kdbench.config import StrictConfig
from kdbench.evaluation import Score, Subject
from kdbench.evaluation._bootstrap import estimate

NEEDS = frozenset({"logits", "teacher"})


class Config(StrictConfig):
    """Nothing to set."""


def measure(subject: Subject, config: Config) -> list[Score]:
    """Scores "agreement_kl" and "agreement_top1"; without a value, and with a note, where it has none."""
    scores = subject.token_scores()
    n = len(scores.tokens)
    if scores.kl is None or scores.top1 is None:
        note = "no teacher" if scores.same_tokenizer is None else "another tokenizer"
        return [
            Score("agreement_kl", None, n=n, unit="nats", higher_is_better=False, note=note),
            Score("agreement_top1", None, n=n, unit="fraction", higher_is_better=True, note=note),
        ]
    of, seed = scores.tokens, subject.seed
    return [
        estimate("agreement_kl", scores.kl, of, seed=seed, unit="nats", higher_is_better=False),
        estimate("agreement_top1", scores.top1, of, seed=seed, unit="fraction", higher_is_better=True),
    ]
