"""A job file: everything `kdbench run` does, as strict data.

format: 1
name: tinystories
teacher: smollm2
generate: {train: {recipe: tinystories, n: 160}, heldout: {recipe: tinystories, n: 40, seed: 1}}
students: {pruned: {data: train, config: {kind: pruned, layers: 16}}}
train: {black_box: {method: black_box, data: train, student: pruned, config: {steps: 40}}}
evaluate: {data: heldout, models: [teacher, pruned, black_box]}
profiles: {quick: {note: proves the plumbing, set: {generate.train.n: 8}}}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kdbench.config import StrictConfig, build, load_yaml, put, suggestion, with_sets
from kdbench.errors import ConfigError
from kdbench.jobs.generating import GenerateSettings

_DATA = re.compile(r"\$\{data\.([^}]*)\}")


class GenerateStage(GenerateSettings):
    """One generation: a recipe, its config, and how the engine is driven.

    `teacher` writes instead of the job's own, for example one behind an API; a recipe with several roles
    gets one for each. In the config `${data.NAME}` is the run directory of a generation above this one.
    """

    recipe: str
    teacher: str | dict[str, str] | None = None
    config: dict[str, Any] = {}

    def reads(self) -> list[str]:
        """The generations that the config refers to."""
        return list(dict.fromkeys(_DATA.findall(str(self.config))))

    def config_in(self, root: Path) -> dict[str, Any]:
        """The config with every `${data.NAME}` as a path below the job's directory."""
        filled: dict[str, Any] = _with_data(self.config, lambda name: str(root / "data" / name))
        return filled

    def settings(self) -> dict[str, Any]:
        """The fields that drive the engine."""
        return {k: v for k, v in self.model_dump().items() if k not in ("recipe", "teacher", "config")}


def _with_data(value: Any, path_of: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return _DATA.sub(lambda found: path_of(found[1]), value)
    if isinstance(value, dict):
        return {key: _with_data(one, path_of) for key, one in value.items()}
    return [_with_data(one, path_of) for one in value] if isinstance(value, list) else value


class StudentStage(StrictConfig):
    """The model a training starts from; `data` is the generation that pruning measures on."""

    data: str
    config: dict[str, Any]

    @property
    def title(self) -> str:
        """The student in a few words."""
        return ", ".join(f"{k} {v}" for k, v in self.config.items())


class TrainStage(StrictConfig):
    """One training.

    `student` is a student of the job or a training above this one, which then is a stage of it; `where`
    takes only the samples whose fields have these values.
    """

    method: str
    data: str
    student: str
    where: dict[str, Any] = {}
    config: dict[str, Any] = {}


class EvaluateStage(StrictConfig):
    """The comparison; `models` are 'teacher' and names of students and trainings."""

    data: str
    models: list[str] = Field(min_length=1)
    metrics: list[str] | None = None
    n: int | None = Field(None, ge=1)
    max_tokens: int = Field(256, ge=1)
    temperature: float = Field(0.7, ge=0, le=2)
    config: dict[str, Any] = {}


class Profile(StrictConfig):
    """A variant of the job: dotted keys and their values, and a note that is shown when it runs."""

    note: str = ""
    set: dict[str, Any] = {}


class Job(StrictConfig):
    """A whole job."""

    format: Literal[1]
    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    about: str = ""
    note: str = ""
    seed: int = Field(0, ge=0)
    teacher: str
    teacher_config: dict[str, Any] = {}
    generate: dict[str, GenerateStage] = Field(min_length=1)
    students: dict[str, StudentStage] = {}
    train: dict[str, TrainStage] = {}
    evaluate: EvaluateStage
    profiles: dict[str, Profile] = {}


def shipped_jobs() -> dict[str, Path]:
    """The jobs that come with kdbench, by name."""
    folder = Path(str(files("kdbench.jobs"))) / "shipped"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_job(job: str | Path, profile: str | None = None, sets: Sequence[str] = ()) -> Job:
    """Read a job file, or a shipped job by name. Raises ConfigError."""
    values = load_yaml(_path_of(job))
    if profile is not None:
        values = _with_profile(values, profile, str(job))
    values.pop("x-shared", None)  # a place for YAML anchors
    loaded = build(Job, with_sets(values, sets), f"job {job}")
    _check_names(loaded)
    return loaded


def _path_of(job: str | Path) -> Path:
    path = Path(job)
    if path.suffix in (".yaml", ".yml"):
        return path
    jobs = shipped_jobs()
    if str(job) not in jobs:
        raise ConfigError(
            f"No job named '{job}'{suggestion(str(job), jobs)}; or give the path of a .yaml file"
        )
    return jobs[str(job)]


def _with_profile(values: dict[str, Any], name: str, job: str) -> dict[str, Any]:
    profiles = values.get("profiles") or {}
    if name not in profiles:
        raise ConfigError(f"Job {job} has no profile '{name}'{suggestion(name, profiles)}")
    profile = build(Profile, profiles[name], f"profile {name}")
    changed = with_sets(values, ())
    for path, value in profile.set.items():
        put(changed, path, value)
    changed["note"] = profile.note
    return changed


def _check_names(job: Job) -> None:
    """Every name a stage uses must be one that the job makes."""
    uses: list[tuple[str, str, Mapping[str, object]]] = [
        (f"students.{n}.data", s.data, job.generate) for n, s in job.students.items()
    ]
    written: dict[str, object] = {}
    for name, gen in job.generate.items():
        uses += [(f"generate.{name}.config", used, dict(written)) for used in gen.reads()]
        written[name] = gen
    begun: dict[str, object] = dict(job.students)
    for name, training in job.train.items():
        uses += [
            (f"train.{name}.data", training.data, job.generate),
            (f"train.{name}.student", training.student, dict(begun)),
        ]
        begun[name] = training
    uses.append(("evaluate.data", job.evaluate.data, job.generate))
    if twice := sorted(({"teacher", *job.students} & set(job.train)) | ({"teacher"} & set(job.students))):
        raise ConfigError(f"Job {job.name}: two models are named '{twice[0]}'; give each its own name")
    known = {"teacher": None, **job.students, **job.train}
    uses += [("evaluate.models", model, known) for model in job.evaluate.models]
    for key, used, made in uses:
        if used not in made:
            raise ConfigError(f"Job {job.name}: {key} names '{used}'{suggestion(used, made)}")
