"""Choose samples by what their fields say.

chosen(samples, {"stage": 1})     # -> those whose `fields` hold "stage": 1, in order
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from kdbench.config import suggestion
from kdbench.errors import ConfigError
from kdbench.records import Completion, Preference, Text

SampleT = TypeVar("SampleT", bound=Completion | Text | Preference)


def chosen(samples: Sequence[SampleT], where: Mapping[str, Any]) -> Sequence[SampleT]:
    """The samples whose fields have the values asked for. Raises ConfigError where none has them."""
    for key, value in where.items():
        fields = [json.loads(sample.fields) for sample in samples]
        known = {name for found in fields for name in found}
        if key not in known:
            raise ConfigError(f"No sample has a field '{key}' to choose by{suggestion(key, known)}")
        kept = [sample for sample, found in zip(samples, fields, strict=True) if found.get(key) == value]
        if not kept:
            present = sorted({json.dumps(found[key]) for found in fields if key in found})
            raise ConfigError(
                f"No sample has {key} = {json.dumps(value)}; there are {', '.join(present[:10])}"
            )
        samples = kept
    return samples
