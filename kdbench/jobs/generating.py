"""`kdbench generate`: a recipe and a teacher to a run directory of samples.

    generate("tinystories", teacher="scripted", n=100, out="runs/stories")

    runs/stories/samples.jsonl     the N accepted samples of the lowest seeds, in seed order
                 rejected.jsonl    what was turned down up to there, each with its reason
                 *.parquet README.md   the same for datasets.load_dataset
                 calls.sqlite      every reply that was paid for
                 run.json DONE     where it came from

The call log is what lasts: a run that is taken up again replays it, and writes the views anew.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kdbench.asking import Asker, AskPolicy, Teachers
from kdbench.calls import FILE_NAME, CallLog
from kdbench.config import StrictConfig, build, canonical_hash
from kdbench.engine import Outcome, Seed, SeedRunner, Settled, make_seeds, run_seeds
from kdbench.errors import NothingLeft, RunDirError, UsageError
from kdbench.jobs._recipes import LoadedRecipe, RecipeFunction, load_recipe
from kdbench.jobs._tables import write_parquet
from kdbench.jobs._teachers import TeacherSpec, connect_roles, spec_text
from kdbench.jsonl import JsonlWriter
from kdbench.ledger import Ledger, LimitReached, Prices
from kdbench.loops import run_async
from kdbench.pool import Rounds
from kdbench.progress import DRAW_EVERY, Meter, log
from kdbench.records import Rejection
from kdbench.reporting.dataset_card import write_dataset_card
from kdbench.rundir import IfExists, RunDir, read_info
from kdbench.teacher import Teacher

KIND = "generate"


class GenerateSettings(AskPolicy):
    """How a generation is driven; none of it changes what a seed gives, except `seed` and `on_truncated`."""

    n: int = Field(ge=1, description="accepted samples wanted")
    seed: int = Field(0, ge=0, description="job seed: another seed, other samples")
    max_candidates: int | None = Field(None, ge=1, description="seeds tried at most; 20 times n if not said")
    concurrency: int | None = Field(
        None, ge=1, description="seeds at once; the teacher's own wish if not said"
    )
    max_errors: int = Field(100, ge=0, description="failing rows after which the run stops")
    prices: Prices = Field(default_factory=Prices, description="dollars per million tokens")
    max_cost: float | None = Field(None, gt=0, description="dollars after which the run stops, resumable")
    max_tokens_total: int | None = Field(
        None, ge=1, description="tokens after which the run stops, resumable"
    )

    @property
    def candidates(self) -> int:
        """Seeds tried at most."""
        return self.max_candidates or 20 * self.n


def generate(
    recipe: str | Path | RecipeFunction,
    *,
    teacher: TeacherSpec | Mapping[str, TeacherSpec],
    n: int,
    out: str | Path,
    config: Mapping[str, Any] | StrictConfig | None = None,
    teacher_config: Mapping[str, Any] | None = None,
    prompts: str | Path | None = None,
    cache: Sequence[str | Path] = (),
    resume: bool = False,
    reparse: bool = False,
    overwrite: bool = False,
    refresh: bool = False,
    **settings: Any,
) -> Path:
    """Ask a teacher for `n` accepted samples of a recipe; the run directory `out` holds them.

    `settings` are the fields of GenerateSettings (seed, concurrency, max_errors, on_truncated, prices,
    max_cost, ...). `resume` goes on with an unfinished or larger run, `reparse` applies changed filters
    to the replies already paid for and asks for nothing, `refresh` makes the samples anew whatever has
    changed, from the run's own replies where they still fit; `cache` names runs whose replies may be used.
    Works inside a notebook's event loop. Raises UsageError, RunFailed; what was answered is kept.
    """
    driven = build(GenerateSettings, {"n": n, **settings}, "generate")
    loaded = load_recipe(recipe, config, Path(prompts) if prompts else None)
    mode = _mode(resume=resume, reparse=reparse, overwrite=overwrite, refresh=refresh)
    teachers = connect_roles(teacher, loaded.roles, teacher_config)
    run = _open_run(Path(out), loaded, teachers, driven, mode, spec_text(teacher))
    work = _Generation(run, loaded, teachers, driven, cache, reparse=reparse)
    run_async(work.run(close=_ours(teacher, teachers)))
    return run.path


def _ours(given: TeacherSpec | Mapping[str, TeacherSpec], connected: Mapping[str, Teacher]) -> list[Teacher]:
    """The teachers connected here, which are ours to close; a caller's own object stays open."""
    specs = list(given.values()) if isinstance(given, Mapping) else [given]
    return [teacher for teacher in connected.values() if all(teacher is not spec for spec in specs)]


Mode = Literal["new", "resume", "reparse", "overwrite", "refresh"]


def _mode(**chosen: bool) -> Mode:
    modes: list[Mode] = [m for m in ("resume", "reparse", "overwrite", "refresh") if chosen[m]]
    if len(modes) > 1:
        raise UsageError(f"--{modes[0]} and --{modes[1]} exclude each other; choose one")
    return modes[0] if modes else "new"


def _open_run(
    out: Path,
    recipe: LoadedRecipe,
    teachers: Mapping[str, Teacher],
    settings: GenerateSettings,
    mode: Mode,
    spec: str,
) -> RunDir:
    fingerprint = {
        "recipe": recipe.name,
        "generation": recipe.generation_config(),
        "seed": settings.seed,
        "on_truncated": settings.on_truncated,
        "teachers": {role: teacher.identity for role, teacher in teachers.items()},
        "filters": recipe.filters(),
        "templates": recipe.prompts.hashes(),
        "recipe_source": recipe.source_sha256,
        "source": recipe.source(),
    }
    if mode == "reparse" and not (out / FILE_NAME).is_file():
        raise RunDirError(f"{out} has no call log to read again; generate first")
    if mode in ("resume", "reparse") and (out / "run.json").is_file():
        _check_same(out, fingerprint, mode)
    config = {
        "recipe": recipe.name,
        "teachers": fingerprint["teachers"],
        "settings": settings.model_dump(mode="json"),
        "config": recipe.config.model_dump(mode="json"),
    }
    how: IfExists = "refuse" if mode == "new" else "overwrite" if mode == "overwrite" else "resume"
    run = RunDir.create(out, kind=KIND, config=config, fingerprint=fingerprint, if_exists=how)
    run.update(
        recipe=recipe.name,
        teacher={"spec": spec, "identity": fingerprint["teachers"]},
        templates=fingerprint["templates"],
        seed=settings.seed,
        **({"inputs": fingerprint["source"]} if fingerprint["source"] else {}),
    )
    return run


def _check_same(out: Path, fingerprint: dict[str, Any], mode: Mode) -> None:
    """A run goes on only as what it was: its samples must all be made alike."""
    before = read_info(out).get("fingerprint", {})
    may_change = {"filters", "templates", "recipe_source", "on_truncated"} if mode == "reparse" else set()
    for key, value in fingerprint.items():
        if key in may_change or before.get(key) == value:
            continue
        if key in ("filters", "recipe_source"):
            raise RunDirError(
                f"{out} was made with other {key.replace('_', ' ')}; apply the new ones to its replies "
                "with --reparse, or use --overwrite"
            )
        raise RunDirError(
            f"{out} was made with a different {key} ({_short(before.get(key))}, now {_short(value)}); "
            f"set it back, or generate into another directory with --cache {out}"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass
class _Tally:
    """What a generation has come to, for the meter, the card and run.json."""

    accepted: int = 0
    rejected: int = 0
    seeds: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


class _Generation:
    """One sitting of a generation."""

    def __init__(
        self,
        run: RunDir,
        recipe: LoadedRecipe,
        teachers: Mapping[str, Teacher],
        settings: GenerateSettings,
        cache: Sequence[str | Path],
        *,
        reparse: bool,
    ) -> None:
        self._run = run
        self._recipe = recipe
        self._teachers = teachers
        self._settings = settings
        self._cache = [Path(c) / FILE_NAME if Path(c).is_dir() else Path(c) for c in cache]
        self._reparse = reparse
        self._tally = _Tally()
        self._rounds = Rounds(recipe.round_size())
        self._admit = recipe.admission()
        self._ledger = Ledger(settings.prices, settings.max_cost, settings.max_tokens_total)
        self._began = time.monotonic()

    async def run(self, close: Sequence[Teacher]) -> None:
        """Generate, write, and close the teachers named; run.json says how it ended."""
        status: Literal["failed", "interrupted", "limit reached"] = "failed"
        try:
            await self._generate_and_write()
        except LimitReached:
            status = "limit reached"
            raise
        except asyncio.CancelledError:
            status = "interrupted"
            log.warning("Interrupted; every reply so far is kept in %s: go on with --resume", self._run.path)
            raise
        else:
            return
        finally:
            for teacher in close:
                await teacher.close()
            if not self._run.closed:
                self._run.abandon(status, **self._stats())

    async def _generate_and_write(self) -> None:
        call_log = CallLog(self._run.path / FILE_NAME, self._cache)
        try:
            await self._collect(call_log)
        finally:
            call_log.close()
        self._check_left()
        out = self._run.path
        write_parquet(out / "samples.jsonl", out / "samples.parquet")
        write_parquet(out / "rejected.jsonl", out / "rejected.parquet", rejections=True)
        self._run.update(**self._stats())
        write_dataset_card(out, self._run.info)
        self._recipe.finish(out)
        self._run.finish()

    async def _collect(self, call_log: CallLog) -> None:
        concurrency = self._settings.concurrency or max(
            t.preferred_concurrency for t in self._teachers.values()
        )
        askers = {
            role: Asker(
                role, teacher, call_log, self._ledger, self._settings,
                in_flight=concurrency, replay_only=self._reparse,
            )
            for role, teacher in self._teachers.items()
        }  # fmt: skip
        runner = SeedRunner(
            self._run_recipe,
            askers,
            job_seed=self._settings.seed,
            id_prefix=self._id_prefix(),
            max_errors=self._settings.max_errors,
        )

        def stop() -> None:
            for asker in askers.values():
                asker.stop()

        settled_seeds = run_seeds(
            runner,
            make_seeds(self._settings.seed, self._candidates(call_log), self._recipe.rows),
            concurrency=concurrency,
            window=max(16 * concurrency, 1024),
            may_start=self._may_start,
            stop=stop,
        )
        out = self._run.path
        with (
            JsonlWriter(out / "samples.jsonl") as samples,
            JsonlWriter(out / "rejected.jsonl") as rejected,
            Meter(f"generate {self._recipe.name}", self._settings.n) as meter,
        ):
            # The meter runs by the clock: while a slow seed holds back the order, work goes on unseen.
            ticking = asyncio.ensure_future(self._tick(meter, samples))
            try:
                async with aclosing(settled_seeds) as stream:
                    async for settled in stream:
                        self._write(settled, samples, rejected)
            finally:
                ticking.cancel()
            meter.update(self._tally.accepted, self._note(), last=True)

    async def _tick(self, meter: Meter, samples: JsonlWriter) -> None:
        while True:
            await asyncio.sleep(DRAW_EVERY)
            if meter.due():
                samples.flush()
                meter.update(self._tally.accepted, self._note())

    def _candidates(self, call_log: CallLog) -> int:
        """A replay ends where the log does."""
        most = self._settings.candidates
        return min(most, call_log.last_seed() + 1) if self._reparse else most

    def _id_prefix(self) -> str:
        source = self._recipe.source()
        made_of = [self._recipe.name, self._recipe.generation_config(), self._settings.seed]
        return canonical_hash(made_of if source is None else [*made_of, source])[:12]

    async def _run_recipe(self, seed: Seed, teachers: Teachers) -> Iterable[Outcome]:
        return await self._recipe.run(seed, teachers, self._rounds.pool)

    def _may_start(self, outstanding: int) -> bool:
        """Dispatch no more than will probably be needed: (N - accepted) / acceptance."""
        need = self._settings.n - self._tally.accepted
        if need <= 0 or not self._rounds.has_begun(self._tally.seeds + outstanding):
            return False
        # Begins at one sample a seed and moves to what is seen.
        rate = (self._tally.accepted + 1) / (self._tally.seeds + 1)
        return outstanding < math.ceil(need / rate)

    def _write(self, settled: Settled, samples: JsonlWriter, rejected: JsonlWriter) -> None:
        tally = self._tally
        if tally.accepted >= self._settings.n:
            return  # above the N-th: over-generated, stays in the log alone
        tally.seeds += 1
        for rejection in settled.rejections:
            self._reject(rejection, rejected)
        for sample in settled.samples:
            if tally.accepted == self._settings.n:
                break
            admitted = self._admit(sample)
            if isinstance(admitted, Rejection):
                named = {"id": sample.id, "origin": sample.origin}
                self._reject(admitted.model_copy(update=named), rejected)
                continue
            samples.write(admitted)
            self._rounds.add(admitted)
            tally.accepted += 1
        self._rounds.settle(settled.seed)

    def _reject(self, rejection: Rejection, rejected: JsonlWriter) -> None:
        rejected.write(rejection)
        self._tally.rejected += 1
        self._tally.reasons[rejection.reason] += 1

    def _check_left(self) -> None:
        tally = self._tally
        if tally.accepted == 0:
            top = ", ".join(f"{reason} {count}" for reason, count in tally.reasons.most_common(3))
            raise NothingLeft(
                f"No sample was accepted out of {tally.seeds} seeds ({top}); look into "
                f"{self._run.path / 'rejected.jsonl'}, loosen the filters and use --reparse"
            )
        if tally.accepted < self._settings.n:
            ended = self._recipe.rows is not None and tally.seeds < self._settings.candidates
            more = (
                "The recipe has no more of them"
                if ended and not self._reparse
                else "Raise --max-candidates and go on with --resume for more"
            )
            log.warning(
                "%d of %d samples: the %d seeds of this run are used up; the samples are kept. %s",
                tally.accepted, self._settings.n, tally.seeds, more,
            )  # fmt: skip

    def _note(self) -> str:
        tally, seconds = self._tally, max(time.monotonic() - self._began, 1e-9)
        acceptance = f"acceptance {tally.accepted / tally.seeds:.0%}" if tally.seeds else "acceptance -"
        tokens = self._ledger.new_usage.completion_tokens
        return (
            f"{acceptance}, {tokens:,} new tokens ({tokens / seconds:,.0f}/s), "
            f"{self._ledger.calls:,} calls, ${self._ledger.cost:.4f}"
        )

    def _stats(self) -> dict[str, Any]:
        tally = self._tally
        return {
            "stats": {
                "accepted": tally.accepted,
                "rejected": tally.rejected,
                "seeds": tally.seeds,
                "reasons": dict(tally.reasons.most_common()),
                "seconds": round(time.monotonic() - self._began, 3),
                **self._ledger.as_dict(),
            }
        }
