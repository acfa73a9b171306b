"""The report as one HTML page: gathered, rendered with autoescape, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from kdbench import provenance
from kdbench.errors import DataError
from kdbench.reporting import _lineage, _sections, _stories, comparison
from kdbench.reporting._headline import Headline, headline, short_ref
from kdbench.reporting._runs import STAGES, Run, log
from kdbench.reporting.scores_file import Scores


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation, ready for the template."""

    run: Run
    scores: Scores
    rows: list[comparison.Row]
    stories: dict[str, Any]
    lengths: list[_sections.Figure]
    colors: dict[str, int]


def render(runs: Sequence[Run]) -> str:
    """The page for these runs. What a run's files lack is left out."""
    by_kind = {kind: [run for run in runs if run.kind == kind] for kind in STAGES}
    evaluations = [e for run in by_kind["evaluate"] if (e := _evaluation(run)) is not None]
    return _environment().get_template("report.html.j2").render(
        head=_headline(evaluations, by_kind["train"], runs),
        evaluations=evaluations,
        training=_sections.training_curves(by_kind["train"]),
        training_rows=_sections.training_rows(by_kind["train"]),
        phases=_sections.PHASES,
        influence=_sections.block_influence(by_kind["student"]),
        data=_sections.data_rows(by_kind["generate"]),
        rejections=_sections.rejection_charts(by_kind["generate"]),
        rejected=_stories.rejected_stories(by_kind["generate"]),
        stages=_stages(_lineage.lineage(list(runs))),
        unknown=[run for run in runs if run.kind not in STAGES],
        unfinished=[run for run in runs if not run.done],
        machine=_machine(runs),
        packages=_packages(runs),
        made=provenance.now(),
    )  # fmt: skip


def _stages(links: Sequence[_lineage.Link]) -> list[tuple[str, list[_lineage.Link]]]:
    """The links by stage, in the order data flows; kinds without a section come last."""
    known = [(kind, [link for link in links if link.kind == kind]) for kind in STAGES]
    other = [link for link in links if link.kind not in STAGES]
    return [(kind, found) for kind, found in [*known, ("other", other)] if found]


def _evaluation(run: Run) -> Evaluation | None:
    try:
        scores = Scores.read(run.path)
    except DataError as exc:
        log.warning("An evaluation is left out of the report: %s", exc)
        return None
    names = [model.name for model in scores.models]
    colors = _sections.model_colors(names)
    stories = _stories.held_out_stories(run, scores.models, colors)
    return Evaluation(
        run, scores, comparison.rows(scores), stories, _sections.length_charts(stories, colors), colors
    )


def _headline(evaluations: Sequence[Evaluation], trained: Sequence[Run], runs: Sequence[Run]) -> Headline:
    if evaluations:
        return headline(evaluations[-1].scores, _started_from(trained))
    kinds = ", ".join(dict.fromkeys(run.kind for run in runs))
    return Headline(f"Report on {len(runs)} runs: {kinds}", (), ())


def _started_from(trained: Sequence[Run]) -> dict[str, str]:
    """A trained model's weights and short reference -> those of the student it began as."""
    found: dict[str, str] = {}
    for run in trained:
        student = run.info.get("student") or run.config.get("student") or {}
        if not isinstance(student, dict):
            student = {"ref": str(student)}
        weights = student.get("weights_sha256") or run.info.get("fingerprint", {}).get("student_weights")
        if weights and run.info.get("weights_sha256"):
            found[str(run.info["weights_sha256"])] = str(weights)
        if ref := student.get("ref") or student.get("spec"):
            found[short_ref(str(run.path))] = short_ref(str(ref))
    return found


def _machine(runs: Sequence[Run]) -> str:
    """The machine of the last run, in a line."""
    machine = runs[-1].info.get("machine") or {}
    parts = [machine.get("cpu"), f"{machine['cores']} cores" if machine.get("cores") else None]
    return ", ".join(str(part) for part in [*parts, machine.get("system"), _python(machine)] if part)


def _python(machine: dict[str, Any]) -> str | None:
    return f"Python {machine['python']}" if machine.get("python") else None


def _packages(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Package -> its versions; more than one where runs were made with different ones."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, version in (run.info.get("packages") or {}).items():
            found.setdefault(str(name), {})[str(version)] = None
    return [(name, list(versions)) for name, versions in found.items()]


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kdbench.reporting"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Our own style sheet and script, and data whose '<' are escaped: safe inside their elements.
    environment.globals["asset"] = lambda name: Markup(_asset(name))  # noqa: S704
    environment.filters["script_data"] = lambda value: Markup(_stories.as_script_data(value))  # noqa: S704
    environment.filters["when"] = lambda started: str(started)[:16].replace("T", " ")
    environment.filters["split_hashes"] = _lineage.split_hashes
    return environment


def _asset(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
