"""scores.json: what an evaluation came to, in a versioned form that tables and reports read.

{"format": 1,
 "models": [{"name": "teacher", "ref": "smollm2", "role": "teacher", "parameters": 134515008, ...}],
 "scores": [{"model": "teacher", "metric": "perplexity", "value": 4.9, "low": 4.7, "high": 5.1,
             "n": 64, "unit": "", "higher_is_better": false, "note": ""}],
 "settings": {"n": 64, "max_tokens": 256, "temperature": 0.7, "seed": 0}}
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from kdbench.errors import DataError, StorageError
from kdbench.evaluation import Score, Unit
from kdbench.records import Record

FILE_NAME = "scores.json"
Role = Literal["teacher", "baseline", "student"]


class ModelEntry(Record):
    """One model of the table. A baseline is a model that kdbench did not train, the teacher apart."""

    name: str
    ref: str
    role: Role
    weights_sha256: str
    parameters: int
    bytes: int


class ModelScore(Record):
    """A score and the model it is of; see kdbench.evaluation.Score."""

    model: str
    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    unit: Unit = ""
    higher_is_better: bool | None = None
    note: str = ""

    @classmethod
    def of(cls, model: str, score: Score) -> ModelScore:
        """A metric's score, with its model's name put to it."""
        return cls(model=model, **dataclasses.asdict(score))


class Scores(Record):
    """The whole file: models in the order they were named, scores by model and metric."""

    format: Literal[1] = 1
    models: tuple[ModelEntry, ...]
    scores: tuple[ModelScore, ...]
    settings: dict[str, str | int | float | bool | None]

    def metrics(self) -> list[str]:
        """The metrics' names, in the order they were measured."""
        return list(dict.fromkeys(score.metric for score in self.scores))

    def find(self, model: str, metric: str) -> ModelScore | None:
        """The score of one model by one metric, or None."""
        return next((s for s in self.scores if s.model == model and s.metric == metric), None)

    def best(self, metric: str) -> frozenset[str]:
        """The models, the teacher apart, with the best value; none where there is nothing to compare.

        A number without an interval, such as a speed measured once, names no best: it may be chance.
        """
        rivals = {m.name for m in self.models if m.role != "teacher"}
        found = [s for s in self.scores if s.metric == metric and s.model in rivals and s.value is not None]
        if len(found) < 2 or found[0].higher_is_better is None or any(s.low is None for s in found):
            return frozenset()
        values = {s.model: s.value for s in found if s.value is not None}
        best = (max if found[0].higher_is_better else min)(values.values())
        return frozenset(model for model, value in values.items() if value == best)

    def role(self, *wanted: Role) -> Iterable[ModelEntry]:
        """The models of these roles."""
        return (model for model in self.models if model.role in wanted)

    def write(self, folder: Path) -> None:
        """Write scores.json. Raises StorageError."""
        path = folder / FILE_NAME
        try:
            path.write_text(
                json.dumps(self.model_dump(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
        except OSError as exc:
            raise StorageError(f"Cannot write {path}: {exc.strerror or exc}; free some room") from exc

    @classmethod
    def read(cls, folder: Path) -> Scores:
        """Read a run's scores.json. Raises DataError for a missing, foreign or unknown form of it."""
        path = folder / FILE_NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as exc:
            raise DataError(f"Cannot read {path}: {exc.strerror or exc}") from exc
        except ValidationError as exc:
            first = exc.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(
                f"{path} is not a scores file of format 1 ({where}: {first['msg']}); evaluate again"
            ) from exc
