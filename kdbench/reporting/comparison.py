"""The comparison table: metrics down, models across, the best student marked, intervals beside.

                                teacher            pruned           white_box
    perplexity  lower is better   4.92 [4.7, 5.1]  48,210 [...]    *12.3 [11.4, 13.2]*
    uses the words                 41 % [29, 53]   0 % [0, 0]       31 % [20, 43]

The same cells go to the terminal (`comparison_table`) and into the report.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from kdbench.evaluation import Unit
from kdbench.reporting.scores_file import ModelScore, Scores

LABELS = {
    "accuracy": "Right answers",
    "answered": "Gives an answer",
    "perplexity": "Perplexity on teacher's text",
    "agreement_kl": "KL from the teacher",
    "agreement_top1": "Same top token as the teacher",
    "rouge_l": "ROUGE-L with teacher's text",
    "rules_words": "Uses all the words",
    "rules_ends": "Comes to an end",
    "rules_no_loop": "Does not loop",
    "rules_all": "Keeps all rules",
    "distinct_2": "Distinct word pairs",
    "tokens_per_second": "Generation speed",
    "parameters": "Parameters",
    "bytes": "Size on disk",
}
NO_BREAK = "\u00a0"
_DIRECTIONS = {True: "higher is better", False: "lower is better", None: ""}


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of the table, ready to print; `interval` and `note` may be empty."""

    value: str
    interval: str = ""
    note: str = ""
    best: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One metric: its label, which way is better ("lower is better"), how many samples, a cell a model."""

    metric: str
    label: str
    direction: str
    n: int
    cells: tuple[Cell, ...]


def rows(scores: Scores) -> list[Row]:
    """The table's rows: metrics that kdbench brings in the order of LABELS, then others as measured."""
    known = list(LABELS)
    measured = scores.metrics()
    places = {metric: known.index(_family(metric)) for metric in measured if _family(metric) in LABELS}
    metrics = sorted(measured, key=lambda metric: places.get(metric, len(known)))
    return [_row(scores, metric) for metric in metrics]


def _family(metric: str) -> str:
    """The metric that this one is a part of: accuracy_gcd stands below accuracy."""
    return "accuracy" if metric.startswith("accuracy_") else metric


def _label(metric: str) -> str:
    if metric.startswith("accuracy_"):
        return f"Right answers: {metric.removeprefix('accuracy_').replace('_', ' ')}"
    return LABELS.get(metric, metric.replace("_", " ").capitalize())


def _row(scores: Scores, metric: str) -> Row:
    found = [scores.find(model.name, metric) for model in scores.models]
    known = [score for score in found if score is not None]
    best = scores.best(metric)
    return Row(
        metric=metric,
        label=_label(metric),
        direction=_DIRECTIONS[known[0].higher_is_better],
        n=max(score.n for score in known),
        cells=tuple(Cell("–") if s is None else _cell(s, best=s.model in best) for s in found),
    )


def _cell(score: ModelScore, *, best: bool) -> Cell:
    if score.value is None:
        return Cell("–", note=score.note)
    interval = ""
    if score.low is not None and score.high is not None:
        interval = (
            f"[{number(score.low, score.unit, bare=True)}, {number(score.high, score.unit, bare=True)}]"
        )
    return Cell(number(score.value, score.unit), interval, score.note, best)


def number(value: float, unit: Unit = "", *, bare: bool = False) -> str:
    """A number for reading: three significant digits, its unit unless `bare`, never broken in two."""
    if unit == "fraction":
        return f"{100 * value:.1f}" + ("" if bare else f"{NO_BREAK}%")
    if unit == "bytes":
        return _scaled(value, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)))
    if unit == "parameters":
        return _scaled(value, (("B", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0)))
    return significant(value) + (f"{NO_BREAK}{unit}" if unit and not bare else "")


def significant(value: float) -> str:
    """Three significant digits with thousands separators; powers of ten from a billion on."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1e9:
        return f"{value:.2e}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 4)}f}"


def _scaled(value: float, steps: tuple[tuple[str, float], ...]) -> str:
    name, size = next(((n, s) for n, s in steps if value >= s), steps[-1])
    return f"{significant(value / size)}{NO_BREAK}{name}".strip()


def comparison_table(scores: Scores) -> Table:
    """The comparison for a terminal: best student bold and green, intervals dim."""
    table = Table(
        title=_title(scores), title_style="bold", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("", overflow="fold")
    for model in scores.models:
        table.add_column(f"{model.name}\n({model.role})" if model.name != model.role else model.name)
    for row in rows(scores):
        label = Text(row.label)
        if row.direction:
            label.append(" ↓" if row.direction.startswith("lower") else " ↑", style="dim")
        table.add_row(label, *map(_cell_text, row.cells))
    table.caption = (
        "95 % bootstrap intervals over samples; ↑ higher, ↓ lower is better; best but the teacher in bold"
    )
    table.caption_justify = "left"
    return table


def _title(scores: Scores) -> str:
    most = max((score.n for score in scores.scores), default=0)
    return f"{most} held-out samples"


def _cell_text(cell: Cell) -> Text:
    text = Text(cell.value, style="bold green" if cell.best else "")
    for extra in (cell.interval, cell.note):
        if extra:
            text.append(f"\n{extra}", style="dim not bold")
    return text
