"""What a check found: how bad it is, in which samples, with what value, and what to do.

Finding("split", "error", "1 group is on both sides of the split", samples=("s3",), value="group g1",
        way_out="give all samples of a question one group")
-> 1 group is on both sides of the split: s3 (group g1); give all samples of a question one group
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "ok"]
SHOWN = 3  # samples named in a line


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding of one check; an "ok" has no samples, and perhaps a text with the numbers."""

    check: str
    level: Level
    text: str
    samples: tuple[str, ...] = ()  # the ids of all of them
    value: str = ""  # of the first one
    way_out: str = ""

    def __str__(self) -> str:
        value = f" ({self.value})" if self.value else ""
        if self.samples:
            first, *others = self.samples[:SHOWN]
            value = f": {', '.join([first + value, *others])}"
            if len(self.samples) > SHOWN:
                value += f" and {len(self.samples) - SHOWN} more"
        return f"{self.text}{value}{f'; {self.way_out}' if self.way_out else ''}"


def about(
    check: str, level: Level, text: str, values: Mapping[str, str], *, way_out: str = ""
) -> list[Finding]:
    """One finding about the samples that are named in `values`, with theirs; none where there are none."""
    if not values:
        return []
    names = tuple(values)
    return [Finding(check, level, f"{counted(len(names))} {text}", names, values[names[0]], way_out)]


def counted(number: int, what: str = "sample") -> str:
    """ "1 sample", "1,204 samples"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def shortened(text: str, most: int = 60) -> str:
    """A text in quotes, its middle left out if it is long."""
    half = most // 2
    return repr(text if len(text) <= most else f"{text[:half]} ... {text[-half:]}")
