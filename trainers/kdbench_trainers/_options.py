"""What every trainer offers besides its method: conditioned sources, an order, and plain text beside it all.

conditioned(samples, config.conditions)             # C-RLFT: "Expert: How many ...", weight 1; others 0.1
in_order(sequences, samples, config)                # by a score of theirs, the smallest first
beside(plan, reader, config, config.plain_text)     # and some windows of text in every step
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kdbench.config import suggestion
from kdbench.errors import ConfigError
from kdbench.models.packing import windows
from kdbench.models.sequences import Reader, TokenSequence, sequence_limit
from kdbench.records import Completion, Message
from kdbench.selecting import chosen
from kdbench_trainers._config import Condition, Material, PlainText, TrainConfig
from kdbench_trainers._sources import Beside
from kdbench_trainers._texts import read_texts

if TYPE_CHECKING:
    from kdbench_trainers._trainer import Plan

PLAIN_TEXT = "plain_text"


def conditioned(samples: Sequence[Material], conditions: Sequence[Condition]) -> list[Material]:
    """The samples in their order, those of each condition's source with its prefix and weight.

    Class-conditioned fine-tuning (OpenChat, Wang et al. 2023, arXiv 2309.11235, section 3): the student is
    told whose answer it learns, and learns that of the weaker source with less weight. The prefix stands
    before the last question of a prompt; a teacher reads the prompt without it. The first condition that
    fits is taken. Raises ConfigError for one that fits no sample.
    """
    found = list(samples)
    left = dict(enumerate(samples))
    for condition in conditions:
        fitting = {id(one) for one in chosen(samples, condition.where)}
        numbers = [n for n, one in left.items() if id(one) in fitting]
        if not numbers:
            raise ConfigError(
                f"The condition where = {json.dumps(condition.where)} fits no sample that an earlier one has "
                "not taken; put it before that, or leave it out"
            )
        for number in numbers:
            found[number] = _under(left.pop(number), condition)
    return found


def _under(sample: Material, condition: Condition) -> Material:
    update: dict[str, Any] = {"weight": sample.weight * condition.weight}
    if isinstance(sample, Completion) and condition.prefix:
        *before, last = sample.prompt
        asked = Message(role=last.role, content=condition.prefix + last.content)
        update |= {"prompt": (*before, asked), "teacher_prompt": sample.teacher_prompt or sample.prompt}
    return sample.model_copy(update=update)


def in_order(
    sequences: list[TokenSequence], samples: Sequence[Material], config: TrainConfig
) -> list[TokenSequence]:
    """The sequences by `order_by`, those of one score by chance; as they are where it is not set.

    Raises ConfigError where a sample lacks the score or it is no number.
    """
    if config.order_by is None:
        return sequences
    name = config.order_by.removeprefix("-")
    score = _length if name == "length" else _by_field(samples, name)
    by_chance = random.Random(config.seed).sample(sequences, len(sequences))  # noqa: S311
    return sorted(by_chance, key=score, reverse=config.order_by.startswith("-"))


def check_score(samples: Sequence[Material], order_by: str | None) -> None:
    """Raise ConfigError for a sample that lacks the score to go by."""
    name = (order_by or "length").removeprefix("-")
    if name != "length":
        for number, sample in enumerate(samples):
            if isinstance(sample, Completion):
                _field(sample, number, name)


def _length(sequence: TokenSequence) -> float:
    return len(sequence.completion)


def _by_field(samples: Sequence[Material], name: str) -> Callable[[TokenSequence], float]:
    def score(sequence: TokenSequence) -> float:
        if sequence.sample is None:
            raise ConfigError(
                f'order_by = "{name}": plain text has no fields to go by; use "length", or leave it out'
            )
        return _field(samples[sequence.sample], sequence.sample, name)

    return score


def _field(sample: Material, number: int, name: str) -> float:
    fields = json.loads(sample.fields)
    value = fields.get(name)
    if isinstance(value, int | float):
        return float(value)
    known = [*sorted(key for key, one in fields.items() if isinstance(one, int | float)), "length"]
    raise ConfigError(
        f'order_by = "{name}": the sample {sample.id or number} has no number of that name'
        f"{suggestion(name, known)} (it has {', '.join(known)})"
    )


def beside(plan: Plan, student: Reader, config: TrainConfig, what: PlainText) -> Plan:
    """The plan, and windows of plain text learnt in every step, by cross-entropy and with their share.

    Raises DataError, RunDirError for paths that lead to no text, UsageError without an end token.
    """
    from kdbench_trainers._trainer import CrossEntropy

    limit, _ = sequence_limit(config.max_length, student)
    found, _ = windows(read_texts(what.texts), student, limit, 0.0, config.seed)
    text = [replace(one, task=PLAIN_TEXT) for one in found]
    own = plan.shares or {"": 1.0}
    return replace(
        plan,
        source=Beside(plan.source, text, count=what.windows, seed=config.seed),
        shares={task: (1 - what.share) * share for task, share in own.items()} | {PLAIN_TEXT: what.share},
        lessons={**plan.lessons, PLAIN_TEXT: CrossEntropy()},
    )
