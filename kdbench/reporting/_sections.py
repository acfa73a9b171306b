"""The parts of the report between headline and stories: tables of runs and their pictures.

Each function takes the runs of its kind and leaves out what their files do not hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from kdbench.reporting import _svg
from kdbench.reporting._runs import Run
from kdbench.reporting._stories import REFERENCE
from kdbench.reporting.comparison import number, significant
from kdbench.textstats import words

TRAIN_COLOR, VALIDATION_COLOR = 0, 1


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with its name and what there is to say below it."""

    title: str
    picture: Markup
    caption: str = ""


@dataclass(frozen=True, slots=True)
class DataRow:
    """One generation in the table of costs; all ready to print."""

    name: str
    recipe: str
    teacher: str
    accepted: str
    acceptance: str
    calls: str
    tokens: str
    cost: str
    seconds: str
    share: float


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One training in the table of what it cost; all ready to print."""

    name: str
    method: str
    steps: str
    tokens: str
    generated: str
    speed: str
    seconds: str
    phases: tuple[str, ...]
    memory: str


PHASES = ("generate", "teacher", "student", "loss", "optimizer")


def training_rows(runs: Iterable[Run]) -> list[TrainingRow]:
    """What each training cost, by phase."""
    return [_training_row(run) for run in runs if run.stats.get("phases")]


def _training_row(run: Run) -> TrainingRow:
    stats = run.stats
    phases = stats["phases"]
    generated, memory = stats.get("generated_tokens"), stats.get("peak_memory_mb")
    return TrainingRow(
        name=run.name,
        method=str(run.info.get("trainer", "")),
        steps=f"{stats.get('steps', 0):,}",
        tokens=f"{stats.get('tokens', 0):,}",
        generated=f"{generated:,.0f}" if generated else "",
        speed=significant(stats.get("tokens_per_second", 0)),
        seconds=duration(float(stats.get("seconds", 0))),
        phases=tuple(duration(phases[name]) if phases.get(name) else "" for name in PHASES),
        memory=f"{memory:,.0f} MB" if memory else "",
    )


def training_curves(runs: Iterable[Run]) -> list[Figure]:
    """One picture per training: losses of different methods are not on one scale."""
    figures = []
    for run in runs:
        train, validation = _losses(run)
        series = [
            _svg.Series("train", train, TRAIN_COLOR),
            _svg.Series("validation", validation, VALIDATION_COLOR, dots=True),
        ]
        picture = _svg.line_chart(series, x="step", y="loss")
        if picture:
            method = run.info.get("trainer") or run.info.get("method") or run.config.get("trainer")
            title = run.name if method in (None, run.path.name) else f"{run.name} ({method})"
            figures.append(Figure(title, picture, _training_caption(run, validation)))
    return figures


def _losses(run: Run) -> tuple[list[_svg.Point], list[_svg.Point]]:
    found: dict[str, list[_svg.Point]] = {"train": [], "validation": []}
    for line in _lines(run):
        loss, step = line.get("loss"), line.get("step")
        if isinstance(loss, int | float) and isinstance(step, int | float) and math.isfinite(loss):
            found.setdefault(str(line.get("split", "train")), []).append((float(step), float(loss)))
    return found["train"], found["validation"]


def _lines(run: Run) -> Iterable[Mapping[str, Any]]:
    path = run.path / "metrics.jsonl"
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            return  # torn by an interrupted training: what stands before it is shown
        if isinstance(line, dict):
            yield line


def _training_caption(run: Run, validation: Sequence[_svg.Point]) -> str:
    stats, parts = run.stats, []
    if "steps" in stats:
        parts.append(f"{stats['steps']:,} steps")
    if "tokens" in stats:
        parts.append(f"{stats['tokens']:,} tokens")
    if "seconds" in stats:
        parts.append(duration(stats["seconds"]))
    if rate := stats.get("tokens_per_second"):
        parts.append(f"{significant(rate)} tokens/s")
    if validation:
        parts.append(f"validation loss {significant(validation[-1][1])} at the end")
    return ", ".join(parts)


def block_influence(runs: Iterable[Run]) -> list[Figure]:
    """Which layers of the teacher a pruned student kept."""
    figures = []
    for run in runs:
        influence = run.stats.get("block_influence")
        if not influence:
            continue
        kept = frozenset(run.stats.get("kept_layers", ()))
        picture = _svg.columns(influence, kept, x="layer of the teacher", y="influence")
        caption = (
            f"{len(kept)} of {len(influence)} layers kept (coloured). Block Influence: one minus the cosine "
            "similarity of a layer's input and output; the first to go are the lowest."
        )
        figures.append(Figure(run.name, picture, caption))
    return figures


def data_rows(runs: Iterable[Run]) -> list[DataRow]:
    """What each generation gave and cost."""
    return [_data_row(run) for run in runs if run.stats]


def _data_row(run: Run) -> DataRow:
    stats = run.stats
    accepted, rejected = int(stats.get("accepted", 0)), int(stats.get("rejected", 0))
    share = accepted / (accepted + rejected) if accepted + rejected else 0.0
    spec = run.info.get("teacher") or {}
    reused = int(stats.get("cached_calls", 0)) + int(stats.get("replayed_calls", 0))
    calls = f"{int(stats.get('calls', 0)):,}" + (f" and {reused:,} from a log" if reused else "")
    return DataRow(
        name=run.name,
        recipe=str(run.info.get("recipe", "")),
        teacher=str(spec.get("spec", "")) if isinstance(spec, Mapping) else str(spec),
        accepted=f"{accepted:,} of {accepted + rejected:,}",
        acceptance=f"{share:.0%}",
        calls=calls,
        tokens=f"{int(stats.get('prompt_tokens', 0)):,} / {int(stats.get('completion_tokens', 0)):,}",
        cost=f"${float(stats.get('cost', 0.0)):,.4f}",
        seconds=duration(float(stats.get("seconds", 0.0))),
        share=share,
    )


def rejection_charts(runs: Iterable[Run]) -> list[Figure]:
    """Why samples were turned down, per generation."""
    figures = []
    for run in runs:
        reasons = run.stats.get("reasons")
        if reasons:
            rows = sorted(
                ((str(k).replace("_", " "), float(v)) for k, v in reasons.items()), key=lambda r: -r[1]
            )
            figures.append(Figure(run.name, _svg.bars(rows, color=1)))
    return figures


def length_charts(stories: Mapping[str, Any], colors: Mapping[str, int]) -> list[Figure]:
    """Words per story, the teacher's held-out text first, all on the same axes."""
    lengths: dict[str, list[int]] = {}
    for row in stories["rows"]:
        for column, cell in zip(stories["columns"], row["cells"], strict=True):
            if cell:
                lengths.setdefault(column, []).append(len(words(cell["text"])))
    longest = max((max(found) for found in lengths.values()), default=0)
    if not longest:
        return []
    step = _svg.ticks(0, longest, 14)[1] if longest > 14 else 1
    edges = [step * i for i in range(math.ceil((longest + 1) / step) + 1)]
    top = max(_fullest(found, edges) for found in lengths.values())
    return [
        Figure(
            name,
            _svg.histogram(found, edges=edges, top=top, color=colors.get(name, 0), x="words"),
            f"mean {number(sum(found) / len(found))} words",
        )
        for name, found in lengths.items()
    ]


def _fullest(values: Sequence[int], edges: Sequence[float]) -> float:
    counts = [sum(low <= v < low + edges[1] for v in values) for low in edges[:-1]]
    return max(counts) / len(values)


def model_colors(models: Sequence[str]) -> dict[str, int]:
    """One colour per model throughout the page; the held-out text has the first."""
    return {name: number % 8 for number, name in enumerate([REFERENCE, *models])}


def duration(seconds: float) -> str:
    """Seconds for reading: 42 s, 3 min 30 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
