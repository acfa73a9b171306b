"""The browsable tables: held-out samples with every model's text beside, and rejected samples.

Plain data for the page's script, which puts it in as text, never as markup.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdbench.errors import DataError
from kdbench.evaluation import Generation, _generations
from kdbench.evaluation.accuracy import is_right
from kdbench.evaluation.story_rules import has_end, words_of
from kdbench.jsonl import read_rejections, read_samples
from kdbench.records import Completion, Rejection
from kdbench.reporting._runs import Run
from kdbench.reporting.scores_file import ModelEntry
from kdbench.textstats import has_loop, inflections, missing_words, vocabulary

MOST_SAMPLES = 400
MOST_REJECTED = 400
REFERENCE = "Held-out text"


def held_out_stories(run: Run, models: Sequence[ModelEntry], colors: Mapping[str, int]) -> dict[str, Any]:
    """Columns (held-out text, then models) and rows of an evaluation; no rows where files are missing."""
    samples = [s for s in _samples(run) if isinstance(s, Completion)]
    texts = {model: {g.id: g for g in made} for model, made in _read_generations(run).items()}
    shown = [model for model in models if model.name in texts]
    columns = [model.name for model in shown]
    rows = [_row(sample, [texts[c].get(sample.id) for c in columns]) for sample in samples[:MOST_SAMPLES]]
    return {
        "columns": [REFERENCE, *columns],
        "roles": ["reference", *(model.role for model in shown)],
        "colors": [colors[name] for name in (REFERENCE, *columns)],
        "rows": rows,
        "total": len(samples),
        # Questions with gold answers are judged as right or wrong, all others by the rules of stories.
        "questions": any(sample.answer is not None for sample in samples),
    }


def _samples(run: Run) -> list[Any]:
    path = run.path / "samples.jsonl"
    try:
        return list(read_samples(path)) if path.is_file() else []
    except DataError:
        return []


def _read_generations(run: Run) -> Mapping[str, Sequence[Generation]]:
    try:
        return _generations.read(run.path)
    except DataError:
        return {}


def _row(sample: Completion, made: Sequence[Generation | None]) -> dict[str, Any]:
    words = words_of(sample)
    reference = Generation(sample.id, sample.text, 0, "stop", 0.0)
    cells = [_cell(one, words, sample) for one in (reference, *made)]
    shown = frozenset[str]().union(*(vocabulary(c["text"]) for c in cells if c))
    forms = sorted(shown & frozenset[str]().union(*map(inflections, words)))
    return {
        "id": sample.id,
        "prompt": sample.prompt[-1].content,
        "words": list(words),
        "forms": forms,
        "gold": sample.answer,
        "cells": cells,
    }


def _cell(made: Generation | None, words: Sequence[str], sample: Completion) -> dict[str, Any] | None:
    if made is None:
        return None
    return {
        "text": made.text,
        "right": is_right(sample, made.text),
        "missing": missing_words(made.text, words),
        "ends": has_end(made),
        "loops": has_loop(made.text),
    }


def rejected_stories(runs: Sequence[Run]) -> dict[str, Any]:
    """{"rows": [...], "reasons": {...}, "total": n}: of every reason its fair share, up to a limit."""
    found: list[tuple[str, Rejection]] = []
    for run in runs:
        found += [(run.name, rejection) for rejection in _rejections(run)]
    reasons = Counter(rejection.reason for _, rejection in found)
    rows = [_rejected_row(name, rejection) for name, rejection in _fair(found, reasons)]
    return {"rows": rows, "reasons": dict(reasons.most_common()), "total": len(found)}


def _rejections(run: Run) -> list[Rejection]:
    path = run.path / "rejected.jsonl"
    try:
        return list(read_rejections(path)) if path.is_file() else []
    except DataError:
        return []


def _fair(
    found: Sequence[tuple[str, Rejection]], reasons: Mapping[str, int]
) -> Iterator[tuple[str, Rejection]]:
    """All, or too many of them: the first of every reason, so that a rare one is not crowded out."""
    each = max(reasons.values(), default=0)
    while each > 1 and sum(min(each, count) for count in reasons.values()) > MOST_REJECTED:
        each -= 1
    taken: Counter[str] = Counter()
    for name, rejection in found:
        taken[rejection.reason] += 1
        if taken[rejection.reason] <= each:
            yield name, rejection


def _rejected_row(name: str, rejection: Rejection) -> dict[str, Any]:
    sample = rejection.sample
    text = sample.text if isinstance(sample, Completion) else ""
    words = ", ".join(words_of(sample)) if isinstance(sample, Completion) else ""
    prompt = sample.prompt[-1].content if isinstance(sample, Completion) else ""
    return {
        "run": name,
        "reason": rejection.reason,
        "detail": rejection.detail,
        "about": words or prompt,
        "text": text,
    }


def as_script_data(value: Any) -> str:
    """JSON that is safe inside a <script> element: no '<' that could end it, no line separators."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign, escaped in {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}.items():
        text = text.replace(sign, escaped)
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
