"""What was gained, in sentences made from the numbers and nothing else.

    white_box has 63.1 % of the teacher's parameters (84.9 M of 135 M) and writes 1.9 times as fast.
    Against pruned, the same model before training, its perplexity on the teacher's text fell from
    48,210 to 12.3 (teacher 4.92), ...

A number that got worse is told as plainly: "rose from 9.00 to 12.3".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from kdbench.reporting.comparison import number
from kdbench.reporting.scores_file import ModelEntry, Scores

# What the sentence compares, in order of telling, and the phrase for it.
_GAINS = {
    "accuracy": "its share of right answers",
    "perplexity": "its perplexity on the teacher's text",
    "agreement_kl": "its divergence from the teacher",
    "agreement_top1": "its share of top tokens equal to the teacher's",
    "rules_all": "the share of its stories that keep all rules",
}
# By what the student to speak of is chosen: the first that was measured.
_CHOOSE_BY = ("accuracy", "agreement_kl", "perplexity", "rules_all", "rouge_l")


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure at the head of the page: the student's, and what it is to be read against."""

    label: str
    value: str
    against: str


@dataclass(frozen=True, slots=True)
class Headline:
    """The top of the page."""

    title: str
    sentences: tuple[str, ...]
    tiles: tuple[Tile, ...]


def headline(scores: Scores, started_from: Mapping[str, str]) -> Headline:
    """The headline of an evaluation.

    `started_from` leads from a trained model to the one it began as, both by weights or `short_ref`.
    """
    student = _best_student(scores)
    teacher = next(iter(scores.role("teacher")), None)
    if student is None:
        names = ", ".join(model.name for model in scores.models)
        return Headline(f"Evaluation of {names}", (), ())
    before = _before(scores, student, started_from)
    title = f"{teacher.ref} distilled into {student.name}" if teacher else f"Evaluation of {student.name}"
    sentences = [_size(scores, student, teacher), _gain(scores, student, before, teacher)]
    return Headline(title, tuple(s for s in sentences if s), tuple(_tiles(scores, student, before, teacher)))


def _best_student(scores: Scores) -> ModelEntry | None:
    students = list(scores.role("student"))
    for metric in _CHOOSE_BY:
        found = [(model, scores.find(model.name, metric)) for model in students]
        known = [(score.value, model) for model, score in found if score and score.value is not None]
        if known:
            pick = max if metric in ("accuracy", "rules_all", "rouge_l") else min
            return pick(known, key=lambda pair: pair[0])[1]
    return students[0] if students else None


def _before(scores: Scores, student: ModelEntry, started_from: Mapping[str, str]) -> ModelEntry | None:
    """The untrained model the student was made from, if it is in the table."""
    start = started_from.get(student.weights_sha256) or started_from.get(short_ref(student.ref))
    named = (m for m in scores.role("baseline") if start in (m.weights_sha256, short_ref(m.ref)))
    return next(named, None)


def short_ref(ref: str) -> str:
    """The last two parts of a path: the same for a job's directory wherever it is looked at from."""
    return "/".join(PurePath(ref).parts[-2:])


def _value(scores: Scores, model: ModelEntry | None, metric: str) -> float | None:
    score = scores.find(model.name, metric) if model else None
    return score.value if score else None


def _size(scores: Scores, student: ModelEntry, teacher: ModelEntry | None) -> str:
    if teacher is None:
        return f"{student.name} has {number(student.parameters, 'parameters')} parameters."
    share = number(student.parameters / teacher.parameters, "fraction")
    text = (
        f"{student.name} has {share} of the teacher's parameters "
        f"({number(student.parameters, 'parameters')} of {number(teacher.parameters, 'parameters')})"
    )
    fast, slow = (_value(scores, m, "tokens_per_second") for m in (student, teacher))
    if fast and slow:
        text += f" and writes {fast / slow:.2g} times as fast"
    return f"{text}."


def _gain(scores: Scores, student: ModelEntry, before: ModelEntry | None, teacher: ModelEntry | None) -> str:
    if before is None:
        return ""
    clauses = []
    for metric, phrase in _GAINS.items():
        old, new = _value(scores, before, metric), _value(scores, student, metric)
        if old is None or new is None:
            continue
        clause = f"{phrase} {_moved(scores, metric, student, old, new)}"
        goal = _value(scores, teacher, metric)
        if goal is not None and metric not in ("agreement_kl", "agreement_top1"):
            clause += f" (teacher {_shown(scores, student, metric, goal)})"
        clauses.append(clause)
    return f"Against {before.name}, the same model before training, {_listed(clauses)}." if clauses else ""


def _moved(scores: Scores, metric: str, student: ModelEntry, old: float, new: float) -> str:
    if old == new:
        return f"stayed at {_shown(scores, student, metric, new)}"
    verb = "fell" if new < old else "rose"
    old_text, new_text = (_shown(scores, student, metric, value) for value in (old, new))
    return f"{verb} from {old_text} to {new_text}"


def _shown(scores: Scores, model: ModelEntry, metric: str, value: float) -> str:
    score = scores.find(model.name, metric)
    return number(value, score.unit if score else "")


def _listed(clauses: list[str]) -> str:
    return clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])}, and {clauses[-1]}"


def _tiles(
    scores: Scores, student: ModelEntry, before: ModelEntry | None, teacher: ModelEntry | None
) -> Iterable[Tile]:
    wanted = {
        "accuracy": "Right answers",
        "parameters": "Parameters",
        "tokens_per_second": "Speed",
        "perplexity": "Perplexity",
        "agreement_top1": "Same top token",
        "rules_all": "Keeps all rules",
    }
    for metric, label in wanted.items():
        value = _value(scores, student, metric)
        if value is None:
            continue
        others = [(m.name, _value(scores, m, metric)) for m in (teacher, before) if m is not None]
        if metric == "agreement_top1":
            others = others[1:] if teacher else others  # the teacher always agrees with itself
        against = ", ".join(
            f"{name} {_shown(scores, student, metric, v)}" for name, v in others if v is not None
        )
        yield Tile(label, _shown(scores, student, metric, value), against)
