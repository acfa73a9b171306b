"""`kdbench evaluate`: teacher, students and baselines side by side on held-out samples.

    evaluate({"teacher": "smollm2", "white_box": "runs/white_box"}, teacher="smollm2",
             data="runs/heldout", out="runs/evaluation")

    runs/evaluation/samples.jsonl       the held-out samples that were used
                    generations.jsonl   what each model wrote for them, generated once
                    scores.json         every metric of every model, with intervals
                    run.json DONE       where it came from

A run that is taken up again keeps the generations of every model that finished.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console

from kdbench.config import StrictConfig, build
from kdbench.errors import RunDirError, UsageError
from kdbench.evaluation import Generation, Subject, TokenScores, _generations
from kdbench.evaluation._candidate import Candidate
from kdbench.evaluation._metrics import Metric, choose
from kdbench.evaluation._samples import held_out, samples_file
from kdbench.jsonl import JsonlWriter
from kdbench.provenance import file_sha256, source_sha256
from kdbench.records import Completion
from kdbench.reporting.comparison import comparison_table
from kdbench.reporting.scores_file import ModelEntry, ModelScore, Role, Scores
from kdbench.rundir import IfExists, RunDir, read_info
from kdbench.teacher import Sampling

KIND = "evaluate"
log = logging.getLogger("kdbench")


class EvaluateSettings(StrictConfig):
    """What every model is asked to write, and how."""

    n: int | None = Field(None, ge=1, description="held-out samples, the first by id; all if not said")
    max_tokens: int = Field(256, ge=1, description="longest generation, in tokens")
    temperature: float = Field(0.7, ge=0, le=2, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0, description="of the generations and of the bootstrap")

    def sampling(self) -> Sampling:
        """How a text is drawn."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_tokens)


def evaluate(
    models: Sequence[str] | Mapping[str, str],
    *,
    data: str | Path,
    out: str | Path,
    teacher: str | None = None,
    metrics: Sequence[str] | None = None,
    config: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Path:
    """Measure models side by side and print the table; the run directory `out` holds all of it.

    `models` are references, or display names with references; `teacher` is put first if it is not
    among them. `data` is a finished generate run or a samples file that no student was trained on.
    `metrics` are all that can be had if not said; `config` holds their configs by name. `settings` are
    the fields of EvaluateSettings (n, max_tokens, temperature, top_p, seed).
    Raises UsageError (unknown metric: with the nearest name), DataError, MissingExtra.
    """
    chosen = build(EvaluateSettings, settings, "evaluate")
    measured = choose(metrics, config or {}, teacher)
    named = _named(models, teacher)
    source = samples_file(Path(data))
    samples = held_out(source, chosen.n)
    candidates = {name: Candidate.of(ref) for name, ref in named.items()}
    fingerprint = {
        "data_sha256": file_sha256(source),
        "settings": chosen.model_dump(mode="json"),
        "teacher": None if teacher is None else candidates[_reference(named, teacher)].sha256,
        "models": {name: candidate.sha256 for name, candidate in candidates.items()},
        "metrics": {name: source_sha256(metric.module) for name, metric in measured.items()},
    }
    written = {
        "models": named,
        "teacher": teacher,
        "settings": fingerprint["settings"],
        "metrics": {name: metric.config.model_dump(mode="json") for name, metric in measured.items()},
    }
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other; choose one")
    kept = _kept_generations(Path(out), fingerprint) if resume else {}
    how: IfExists = "overwrite" if overwrite else "resume" if resume else "refuse"
    run = RunDir.create(Path(out), kind=KIND, config=written, fingerprint=fingerprint, if_exists=how)
    status = "failed"
    try:
        run.update(inputs={"data": str(data), "data_sha256": fingerprint["data_sha256"]})
        _Evaluation(run, candidates, teacher, samples, measured, chosen, kept).run()
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        if not run.closed:
            run.abandon(status)
    return run.path


def _named(models: Sequence[str] | Mapping[str, str], teacher: str | None) -> dict[str, str]:
    """Display name -> reference, the teacher first where it had to be put in. Raises UsageError."""
    if isinstance(models, str):
        models = [models]
    pairs = list(models.items()) if isinstance(models, Mapping) else [(_name_of(ref), ref) for ref in models]
    if teacher is not None and all(ref != teacher for _, ref in pairs):
        pairs.insert(0, ("teacher", teacher))
    names = [name for name, _ in pairs]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UsageError(f"Two models are named '{twice[0]}'; give each its own name: NAME=MODEL")
    if not pairs:
        raise UsageError("evaluate needs at least one model")
    return dict(pairs)


def _name_of(ref: str) -> str:
    path = Path(ref.removeprefix("hf:"))
    return path.parent.name if path.name == "model" and path.parent.name else path.name or ref


def _reference(named: Mapping[str, str], teacher: str) -> str:
    return next(name for name, ref in named.items() if ref == teacher)


def _kept_generations(out: Path, fingerprint: Mapping[str, Any]) -> _generations.ByModel:
    """The finished generations of an earlier sitting that still hold. Raises RunDirError."""
    if not (out / "run.json").is_file():
        return {}
    info = read_info(out)
    before = info.get("fingerprint", {})
    for key in ("data_sha256", "settings"):
        if before.get(key) != fingerprint[key]:
            raise RunDirError(
                f"{out} was made with other {key.removesuffix('_sha256')}; set them back, use --overwrite, "
                "or evaluate into another directory"
            )
    finished = info.get("generated", {})
    current = fingerprint["models"]
    return {
        name: made
        for name, made in _generations.read(out).items()
        if name in current and finished.get(name) == current[name]
    }


@dataclass
class _Evaluation:
    """One sitting: model by model, so that only one is in memory."""

    run_dir: RunDir
    candidates: Mapping[str, Candidate]
    teacher: str | None
    samples: tuple[Completion, ...]
    metrics: Mapping[str, Metric]
    settings: EvaluateSettings
    generations: _generations.ByModel
    _teacher_states: Any = field(default=None, init=False)

    def run(self) -> None:
        """Generate, measure, write, show."""
        self._record_generated()
        with JsonlWriter(self.run_dir.path / "samples.jsonl") as file:
            for sample in self.samples:
                file.write(sample)
        measured = {name: self._measure(name) for name in self._order()}
        scores = Scores(
            models=tuple(self._entry(name) for name in self.candidates),
            scores=tuple(score for name in self.candidates for score in measured[name]),
            settings={**self.settings.model_dump(mode="json"), "n": len(self.samples)},
        )
        scores.write(self.run_dir.path)
        self.run_dir.finish(
            teacher={"spec": self.teacher},
            models=[model.model_dump() for model in scores.models],
            stats={"samples": len(self.samples), "models": len(self.candidates)},
        )
        Console().print(comparison_table(scores))

    def _order(self) -> list[str]:
        """The teacher first: the others are compared with what it says."""
        return sorted(self.candidates, key=lambda name: self.candidates[name].ref != self.teacher)

    def _entry(self, name: str) -> ModelEntry:
        model = self.candidates[name]
        return ModelEntry(
            name=name,
            ref=model.ref,
            role=self._role(model.ref),
            weights_sha256=model.sha256,
            parameters=model.parameters,
            bytes=model.bytes,
        )

    def _role(self, ref: str) -> Role:
        if ref == self.teacher:
            return "teacher"
        path = Path(ref)
        trained = (path / "run.json").is_file() and read_info(path)["kind"] == "train"
        return "student" if trained else "baseline"

    def _needed(self, need: str) -> bool:
        return any(need in metric.needs for metric in self.metrics.values())

    def _measure(self, name: str) -> list[ModelScore]:
        candidate = self.candidates[name]
        subject = Subject(
            name=name,
            samples=self.samples,
            generations=self._generate(name) if self._needed("generations") else (),
            parameters=candidate.parameters,
            bytes=candidate.bytes,
            seed=self.settings.seed,
            token_scores=cache(lambda: self._token_scores(candidate)),
        )
        log.info("Measuring %s", name)
        found = [
            ModelScore.of(name, score)
            for metric in self.metrics.values()
            for score in metric.module.measure(subject, metric.config)
        ]
        candidate.release()
        return found

    def _generate(self, name: str) -> tuple[Generation, ...]:
        wanted = [sample.id for sample in self.samples]
        if [made.id for made in self.generations.get(name, ())] == wanted:
            log.info("Generations of %s are complete, kept", name)
            return self.generations[name]
        from kdbench.evaluation._generating import generate_texts

        candidate = self.candidates[name]
        self.generations[name] = generate_texts(
            candidate.model(),
            candidate.tokenizer(),
            self.samples,
            what=f"generate {name}",
            sampling=self.settings.sampling(),
            seed=self.settings.seed,
        )
        _generations.write(self.run_dir.path, self.generations)
        self._record_generated()
        return self.generations[name]

    def _record_generated(self) -> None:
        """Note whose generations are complete, and of which weights: what a resumed run may keep."""
        self.run_dir.update(generated={name: self.candidates[name].sha256 for name in self.generations})

    def _token_scores(self, candidate: Candidate) -> TokenScores:
        from kdbench.evaluation import _held_out as held

        model, tokenizer = candidate.model(), candidate.tokenizer()
        encoded = held.encode(self.samples, tokenizer, teacher_side=False)
        if candidate.ref != self.teacher:
            return held.score(model, tokenizer, encoded, self._teacher_states)
        states = held.TeacherStates.of(model, tokenizer, self.samples)
        if self._needed("teacher"):
            self._teacher_states = states
        if states.encoded == encoded:
            return held.score_teacher(states)
        # Its own prompt was erased for the students: as one of them it is measured without it.
        return held.score(model, tokenizer, encoded, states)
