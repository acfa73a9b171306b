"""`kdbench run`: a whole job, from a teacher to a report, out of one file.

    run_job("tinystories", profile="quick", out="runs/tinystories")

    runs/tinystories/data/NAME       a generate run per entry of `generate`
                     students/NAME   a student per entry of `students`
                     trained/NAME    a training per entry of `train`
                     evaluation      all models side by side
                     report.html     the whole story

A stage is used again only if its settings, its inputs and the sources of its plug-in and templates are
unchanged; a stage that was interrupted goes on where it stopped. Replies of a teacher are never lost:
a generation whose settings changed begins again over the replies it already has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from kdbench import plugins
from kdbench.config import build, canonical_hash
from kdbench.errors import DataError
from kdbench.jobs._teachers import spec_text
from kdbench.jobs.evaluating import evaluate
from kdbench.jobs.generating import generate
from kdbench.jobs.job_file import GenerateStage, Job, TrainStage, load_job
from kdbench.jobs.report_job import report
from kdbench.jobs.student_job import make_student
from kdbench.jobs.training import train
from kdbench.prompts import shipped_sha256
from kdbench.provenance import file_sha256, folder_sha256
from kdbench.rundir import is_done, require

log = logging.getLogger("kdbench")
KEY_FILE = ".stage"


@dataclass(frozen=True)
class _Stage:
    """One stage: where it writes, what decides whether it must be made, and how it is made.

    `make(path, taken_up)` is told whether the directory holds an unfinished run of this very stage.
    """

    title: str
    path: Path
    key: str
    make: Callable[[Path, bool], object]


def run_job(
    job: str | Path,
    *,
    out: str | Path | None = None,
    profile: str | None = None,
    sets: Sequence[str] = (),
    console: Console | None = None,
) -> Path:
    """Run a job file (a path) or a shipped job (a name) to its report; returns the job's directory.

    `profile` picks one of the job's own variants ("quick"), `sets` are key=value changes on top.
    Run it again to go on or to change something: finished stages that are unchanged are kept.
    Raises UsageError and RunFailed.
    """
    loaded = load_job(job, profile, sets)
    root = Path(out) if out is not None else Path("runs") / loaded.name
    console = console or Console(stderr=True)
    if loaded.note:
        console.print(f"[yellow]{loaded.note}[/]", highlight=False)
    stages = list(_stages(loaded, root))
    for number, stage in enumerate(stages, start=1):
        _do(stage, f"[{number}/{len(stages)}]", console)
    page = report([root])
    console.print(f"[bold]Report:[/] {page}", highlight=False)
    return root


def _do(stage: _Stage, place: str, console: Console) -> None:
    same = _read_key(stage.path) == stage.key
    if same and is_done(stage.path):
        console.print(f"{place} {stage.title}: unchanged, kept", style="dim", markup=False, highlight=False)
        return
    console.print(f"{place} {stage.title}", style="bold", markup=False, highlight=False)
    used = (stage.path / "run.json").is_file()
    _write_key(stage.path, stage.key)
    stage.make(stage.path, used and same)


def _read_key(path: Path) -> str | None:
    # Beside the directory, not in it: an overwritten directory is emptied.
    try:
        return path.with_name(path.name + KEY_FILE).read_text()
    except OSError:
        return None


def _write_key(path: Path, key: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name + KEY_FILE).write_text(key)
    except OSError as exc:
        raise DataError(f"Cannot write beside {path}: {exc.strerror or exc}") from exc


def _stages(job: Job, root: Path) -> Iterator[_Stage]:
    keys: dict[str, str] = {}

    def key(name: str, settings: Any, sources: Mapping[str, Any], *needs: str) -> str:
        keys[name] = canonical_hash([job.format, settings, sources, [keys[n] for n in needs]])
        return keys[name]

    for name, gen in job.generate.items():
        yield _Stage(
            f"generate {name}: {gen.n} samples of {gen.recipe} from {spec_text(gen.teacher or job.teacher)}",
            root / "data" / name,
            key(
                f"data/{name}",
                [job.teacher, job.teacher_config, gen.model_dump(mode="json")],
                _recipe_sources(gen),
                *(f"data/{used}" for used in gen.reads()),
            ),
            _generating(job, gen, root),
        )
    for name, student in job.students.items():
        data = root / "data" / student.data
        yield _Stage(
            f"student {name}: {student.title}",
            root / "students" / name,
            key(f"students/{name}", [job.teacher, student.model_dump()], {}, f"data/{student.data}"),
            lambda path, _, student=student, data=data: make_student(  # type: ignore[misc]
                student.config, teacher=job.teacher, data=data, out=path, seed=job.seed,
                overwrite=(path / "run.json").is_file(),
            ),
        )  # fmt: skip
    for name, training in job.train.items():
        yield _Stage(
            f"train {name}: {training.method} on {training.data}",
            root / "trained" / name,
            key(
                f"trained/{name}",
                [job.teacher, training.model_dump(mode="json")],
                {**_sources("trainers", training.method), **_inputs(training)},
                f"data/{training.data}",
                _place(job, training.student),
            ),
            lambda path, taken_up, training=training: train(  # type: ignore[misc]
                training.method, data=root / "data" / training.data,
                student=str(root / _place(job, training.student)), teacher=job.teacher,
                where=training.where, config=training.config, out=path, resume=taken_up,
                overwrite=not taken_up and (path / "run.json").is_file(),
            ),
        )  # fmt: skip
    models = {name: _model_ref(name, job, root) for name in job.evaluate.models}
    yield _Stage(
        f"evaluate {', '.join(models)}",
        root / "evaluation",
        key(
            "evaluation",
            [job.teacher, job.evaluate.model_dump(mode="json")],
            {m: _sources("metrics", m) for m in job.evaluate.metrics or plugins.names("metrics")},
            f"data/{job.evaluate.data}",
            *(n for n in keys if n.startswith(("students/", "trained/"))),
        ),
        lambda path, taken_up: evaluate(
            models, data=root / "data" / job.evaluate.data, out=path, teacher=job.teacher,
            metrics=job.evaluate.metrics, config=job.evaluate.config, n=job.evaluate.n,
            max_tokens=job.evaluate.max_tokens, temperature=job.evaluate.temperature, seed=job.seed,
            resume=taken_up, overwrite=not taken_up and (path / "run.json").is_file(),
        ),
    )  # fmt: skip


def _generating(job: Job, stage: GenerateStage, root: Path) -> Callable[[Path, bool], object]:
    def make(path: Path, taken_up: bool) -> object:
        return generate(
            stage.recipe,
            teacher=stage.teacher or job.teacher,
            teacher_config=job.teacher_config,
            config=stage.config_in(root),
            out=path,
            # The replies stay: what still fits the new settings is not asked for again.
            refresh=(path / "run.json").is_file(),
            **stage.settings(),
        )

    return make


def _model_ref(name: str, job: Job, root: Path) -> str:
    return job.teacher if name == "teacher" else str(root / _place(job, name))


def _place(job: Job, name: str) -> str:
    """Where a student or a training lies in the job's directory."""
    return f"{'trained' if name in job.train else 'students'}/{name}"


def _recipe_sources(stage: GenerateStage) -> dict[str, Any]:
    return {
        **_sources("generators", stage.recipe),
        "templates": shipped_sha256(),  # of all recipes: `questions` borrows those of others
        "files": dict(_files(stage.config)),
    }


def _files(value: Any) -> Iterator[tuple[str, str]]:
    """Each file that a config names, with its sha256: the same name with other content is another input."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _files(one)
    elif isinstance(value, str) and Path(value).is_file():
        yield value, file_sha256(Path(value))


def _inputs(training: TrainStage) -> dict[str, Any]:
    """What a training reads besides its data."""
    module = plugins.load("trainers", training.method)
    config = build(plugins.config_class(module), training.config, f"trainer {training.method}")
    found = plugins.inputs(module, config)
    if signals := getattr(config, "signals", None):
        found[str(signals)] = canonical_hash(require(Path(signals), "signals")["fingerprint"])
    return {"inputs": found} if found else {}


def _sources(group: str, name: str) -> dict[str, Any]:
    """Hash of the package a plug-in lives in: what it shares with its neighbours counts too."""
    folder = Path(str(plugins.load(group, name).__file__)).parent
    return {"source": folder_sha256(folder, ["*.py"])}
