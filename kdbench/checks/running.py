"""All checks in order, those that load no model apart from those that do.

examine(case)               -> [Finding("masks", "ok", ""), Finding("split", "warning", ...), ...]
rehearsed(case, rehearsal)  -> [Finding("batches", "ok", ""), ...]
vet(case)                   # in a training: logs the warnings, raises where there is an error
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from kdbench.checks.case import Case
from kdbench.checks.endings import ENDINGS, check_endings
from kdbench.checks.findings import Finding
from kdbench.checks.masks import MASKS, check_masks
from kdbench.checks.samples import LEFT_OUT, SAMPLES, check_left_out, check_samples
from kdbench.checks.splits import SPLIT, check_split
from kdbench.checks.templates import TEMPLATES, check_templates
from kdbench.checks.vocabularies import VOCABULARIES, check_vocabularies
from kdbench.errors import ConfigError, DataError, UsageError

if TYPE_CHECKING:
    from kdbench.checks.rehearsing import Rehearsal

log = logging.getLogger("kdbench")

_CHEAP: dict[str, Callable[[Case], list[Finding]]] = {
    SAMPLES: check_samples,
    LEFT_OUT: check_left_out,
    VOCABULARIES: check_vocabularies,
    TEMPLATES: check_templates,
    MASKS: check_masks,
    ENDINGS: check_endings,
    SPLIT: check_split,
}
_OF_DATA = (SAMPLES, SPLIT, MASKS)
VETTED = 200  # samples whose text a training looks at before it begins


def examine(case: Case) -> list[Finding]:
    """What is found without a model; at least one finding for each check."""
    return _all({name: check(case) for name, check in _CHEAP.items()})


def rehearsed(case: Case, rehearsal: Rehearsal) -> list[Finding]:
    """What is found with the trainer's own batches, states and first step; one finding or more per check."""
    from kdbench.checks.batches import BATCHES, POSITIONS, check_batches, check_positions
    from kdbench.checks.denominator import DENOMINATOR, check_denominator

    checks = {BATCHES: check_batches, POSITIONS: check_positions, DENOMINATOR: check_denominator}
    return _all({name: check(case, rehearsal) for name, check in checks.items()})


def _all(found: Mapping[str, list[Finding]]) -> list[Finding]:
    return [one for name, findings in found.items() for one in findings or [Finding(name, "ok", "")]]


def vet(case: Case) -> None:
    """The cheap checks before a training; samples left out have been counted by then.

    Raises DataError or ConfigError with the first error.
    """
    found = [one for name, check in _CHEAP.items() if name != LEFT_OUT for one in check(case)]
    seen, all_of_them = len(case.learnt()), len(case.sequences)
    part = f" (seen in {seen} of {all_of_them} samples; kdbench doctor looks at all)"
    for one in found:
        if one.level == "warning":
            log.warning("%s: %s%s", one.check, one, part if case.most and seen < all_of_them else "")
    for one in found:
        if one.level == "error":
            kind: type[UsageError] = DataError if one.check in _OF_DATA else ConfigError
            raise kind(f"{one}")
