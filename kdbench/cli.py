"""The `kdbench` command: a thin door to the Python twins in `kdbench.jobs`.

    kdbench run tinystories --quick
    kdbench generate tinystories --teacher scripted -n 100 --out runs/stories
    kdbench list
    kdbench chat runs/student

Exit codes: 0 done, 1 a run that failed, 2 a usage or config error, 130 Ctrl-C. A user's mistake is one
sentence.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from kdbench import plugins
from kdbench.config import load_yaml, with_sets
from kdbench.errors import KdbenchError, UsageError
from kdbench.processes import this_process

app = typer.Typer(
    help=__doc__.split("\n", 1)[0],
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Sets = Annotated[list[str] | None, typer.Option("--set", help="Change one config key: key.sub=value.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with the config.")]
STUDENTS = "students"
Out = Annotated[Path, typer.Option("--out", help="Run directory to make.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Begin anew in a used directory.")]


@app.command()
def run(
    job: Annotated[str, typer.Argument(help="Name of a shipped job, or a job file.")],
    out: Annotated[Path | None, typer.Option("--out", help="Directory; runs/NAME if not said.")] = None,
    profile: Annotated[str | None, typer.Option("--profile", help="A variant the job file defines.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Short for --profile quick.")] = False,
    sets: Sets = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Says what happens anyway: finished stages are kept.")
    ] = False,
) -> None:
    """Run a whole job, from a teacher to a report. Run it again to go on where it stopped."""
    from kdbench.jobs.running import run_job

    del resume  # a job always goes on; the flag is there because every other command has it
    if quick and profile not in (None, "quick"):
        raise UsageError(f"--quick and --profile {profile} exclude each other; choose one")
    run_job(job, out=out, profile="quick" if quick else profile, sets=sets or [])


@app.command()
def generate(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or your own file.py.")],
    n: Annotated[int, typer.Option("-n", help="Accepted samples wanted.")],
    teacher: Annotated[
        list[str], typer.Option("--teacher", help="smollm2, openai:MODEL, hf:PATH, scripted; or ROLE=SPEC.")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Run directory to make.")] = None,
    sets: Sets = None,
    config: ConfigFile = None,
    teacher_sets: Annotated[
        list[str] | None, typer.Option("--teacher-set", help="Change one key of the teacher's config.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="Folder of templates of your own.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Job seed.")] = 0,
    max_candidates: Annotated[
        int | None, typer.Option("--max-candidates", help="Seeds tried at most.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option("--concurrency", help="Seeds at once.")] = None,
    max_errors: Annotated[int, typer.Option("--max-errors", help="Failing rows before the run stops.")] = 100,
    on_truncated: Annotated[
        str, typer.Option("--on-truncated", help="reject, keep, or retry once with twice the tokens.")
    ] = "reject",
    retries: Annotated[int, typer.Option("--retries", help="Further tries of a call that may yet work.")] = 8,
    price_prompt: Annotated[float, typer.Option(help="Dollars per million prompt tokens.")] = 0.0,
    price_completion: Annotated[float, typer.Option(help="Dollars per million completion tokens.")] = 0.0,
    max_cost: Annotated[float | None, typer.Option("--max-cost", help="Stop at this many dollars.")] = None,
    max_tokens_total: Annotated[
        int | None, typer.Option("--max-tokens-total", help="Stop at this many tokens.")
    ] = None,
    cache: Annotated[
        list[Path] | None, typer.Option("--cache", help="Another run whose replies may be used.")
    ] = None,
    measure_strategies: Annotated[
        bool, typer.Option("--measure-strategies", help="prompt_erasing: --set measure_strategies=true.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the first requests; ask nobody.")] = False,
    resume: Resume = False,
    reparse: Annotated[
        bool, typer.Option("--reparse", help="Apply changed filters to replies already paid for.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Ask a teacher for N accepted samples of a recipe."""
    values = with_sets(load_yaml(config) if config else {}, sets or [])
    if measure_strategies:
        values["measure_strategies"] = True
    settings: dict[str, Any] = {
        "seed": seed,
        "max_candidates": max_candidates,
        "concurrency": concurrency,
        "max_errors": max_errors,
        "on_truncated": on_truncated,
        "retries": retries,
        "prices": {"prompt": price_prompt, "completion": price_completion},
        "max_cost": max_cost,
        "max_tokens_total": max_tokens_total,
    }
    if dry_run:
        _show_preview(recipe, n, values, prompts, settings)
        return
    from kdbench.jobs.generating import generate as work

    if out is None:
        raise UsageError("generate needs --out DIR, the run directory to make (or --dry-run)")
    work(
        recipe,
        teacher=_roles(teacher),
        n=n,
        out=out,
        config=values,
        teacher_config=with_sets({}, teacher_sets or []),
        prompts=prompts,
        cache=cache or [],
        resume=resume,
        reparse=reparse,
        overwrite=overwrite,
        **settings,
    )
    _say(f"Done: {out}")


def _roles(teachers: list[str]) -> str | dict[str, str]:
    """`--teacher SPEC`, or `--teacher ROLE=SPEC` for a recipe with several roles."""
    if len(teachers) == 1 and "=" not in teachers[0]:
        return teachers[0]
    pairs = [spec.partition("=") for spec in teachers]
    if any(not equals for _, equals, _ in pairs):
        raise UsageError("Several teachers need their roles: --teacher teacher=SPEC --teacher judge=SPEC")
    return {role: spec for role, _, spec in pairs}


def _show_preview(
    recipe: str, n: int, config: dict[str, Any], prompts: Path | None, settings: dict[str, Any]
) -> None:
    from kdbench.jobs.previewing import preview

    seen = preview(recipe, n=n, config=config, prompts=prompts, **settings)
    console = Console()
    for request in list(dict.fromkeys(seen.requests))[:2]:  # several draws are one and the same request
        console.rule(f"seed {request.seed}, {request.role}, {request.sampling.model_dump_json()}")
        for message in request.messages:
            console.print(f"[bold]{message.role}[/]")
            console.print(message.content, markup=False, highlight=False)
    console.rule("estimate, if every seed were accepted")
    console.print(
        f"{seen.calls:,} calls or more; about {seen.prompt_tokens:,} prompt tokens (4 characters each), "
        f"at most {seen.completion_tokens_at_most:,} completion tokens, at most ${seen.cost_at_most:.4f}. "
        "Nothing was asked.",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def student(
    kind: Annotated[str, typer.Option("--kind", help="pruned, scratch or weights.")],
    teacher: Annotated[str, typer.Option("--teacher", help="The teacher's weights: smollm2, hf:PATH.")],
    out: Out,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="A generate run: pruning measures on it, trimming keeps its tokens."),
    ] = None,
    sets: Sets = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make the model that a training starts from."""
    from kdbench.jobs.student_job import make_student

    config = with_sets({"kind": kind}, sets or [])
    make_student(config, teacher=teacher, data=data, out=out, seed=seed, overwrite=overwrite)
    _say(f"Done: {out}")


@app.command()
def train(
    method: Annotated[str, typer.Argument(help="A trainer's name, or your own file.py.")],
    student: Annotated[str, typer.Option("--student", help="Weights, or a student run.")],
    out: Out,
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="A finished generate run; may be repeated.")
    ] = None,
    teacher: Annotated[str | None, typer.Option("--teacher", help="The teacher's weights.")] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", help="Only samples whose field has the value: stage=1.")
    ] = None,
    sets: Sets = None,
    config: ConfigFile = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Distil a teacher into a student."""
    from kdbench.jobs.training import train as work

    values = with_sets(load_yaml(config) if config else {}, sets or [])
    work(
        method, data=data or [], student=student, teacher=teacher, out=out, config=values,
        where=with_sets({}, where or []), resume=resume, overwrite=overwrite,
    )  # fmt: skip
    _say(f"Done: {out}")


@app.command()
def doctor(
    method: Annotated[str, typer.Argument(help="A trainer's name, or your own file.py.")],
    data: Annotated[list[Path], typer.Option("--data", help="A finished generate run; may be repeated.")],
    student: Annotated[str, typer.Option("--student", help="Weights, or a student run.")],
    teacher: Annotated[str | None, typer.Option("--teacher", help="The teacher's weights.")] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", help="Only samples whose field has the value: stage=1.")
    ] = None,
    sets: Sets = None,
    config: ConfigFile = None,
) -> None:
    """Look for what is wrong with a training before it begins; the options are those of train."""
    from kdbench.jobs.doctor_job import doctor as work
    from kdbench.jobs.doctor_job import has_errors, show_findings

    values = with_sets(load_yaml(config) if config else {}, sets or [])
    found = work(
        method, data=data, student=student, teacher=teacher, config=values, where=with_sets({}, where or [])
    )
    show_findings(found, Console())
    if has_errors(found):
        raise typer.Exit(1)


@app.command()
def signals(
    data: Annotated[list[Path], typer.Option("--data", help="A finished generate run; may be repeated.")],
    out: Out,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            help="Weights that read the data: smollm2, hf:PATH. If not given, what the data's own teacher "
            "handed over while it wrote (--teacher-set top_logprobs=20).",
        ),
    ] = None,
    sets: Sets = None,
    config: ConfigFile = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Put down what a teacher says about a data set, so that trainings need it no more."""
    from kdbench.jobs.signals_job import store_signals

    settings = with_sets(load_yaml(config) if config else {}, sets or [])
    store_signals(
        data=list(data), teacher=teacher, out=out, config=settings, resume=resume, overwrite=overwrite
    )
    _say(f"Done: {out}")


@app.command()
def evaluate(
    models: Annotated[list[str], typer.Argument(help="Models or runs; NAME=MODEL gives one a name.")],
    data: Annotated[Path, typer.Option("--data", help="A finished generate run of held-out samples.")],
    out: Out,
    teacher: Annotated[str | None, typer.Option("--teacher", help="The teacher's weights.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="All if not said; may be repeated.")
    ] = None,
    n: Annotated[int | None, typer.Option("-n", help="Held-out samples; all if not said.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest generation, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature")] = 0.7,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    sets: Sets = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Compare models side by side."""
    from kdbench.jobs.evaluating import evaluate as work

    named = [m.partition("=") if "=" in m else (Path(m).name, "=", m) for m in models]
    work(
        {name: ref for name, _, ref in named}, data=data, out=out, teacher=teacher, metrics=metric, n=n,
        max_tokens=max_tokens, temperature=temperature, seed=seed, config=with_sets({}, sets or []),
        resume=resume, overwrite=overwrite,
    )  # fmt: skip
    _say(f"Done: {out}")


@app.command()
def chat(
    student: Annotated[str, typer.Argument(help="A train or student run, a folder of weights, or smollm2.")],
    system: Annotated[str | None, typer.Option("--system", help="System message.")] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.")] = 0.7,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest reply, in tokens.")] = 512,
    seed: Annotated[int, typer.Option("--seed")] = 0,
) -> None:
    """Talk to a model; without a terminal, every line of stdin is a message."""
    from kdbench.jobs.chatting import chat as work

    work(student, system=system, temperature=temperature, max_tokens=max_tokens, seed=seed)


@app.command()
def report(
    dirs: Annotated[list[Path], typer.Argument(help="A job's directory, or run directories.")],
) -> None:
    """Write report.html: one page, nothing loaded from elsewhere."""
    from kdbench.jobs.report_job import report as work

    _say(f"Done: {work(dirs)}")


@app.command("list")
def list_plugins(
    group: Annotated[
        str | None, typer.Argument(help=f"One of {', '.join(plugins.GROUPS)}, or students.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="students: the weights they would be made from.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="students: a generate run, to trim the vocabulary to it.")
    ] = None,
) -> None:
    """List what is installed: teachers, recipes, curators, trainers, metrics; or a teacher's students."""
    console = Console()
    if group == STUDENTS:
        from kdbench.jobs.listing_students import list_students

        if teacher is None:
            raise UsageError("list students needs --teacher T, the weights they would be made from")
        list_students(teacher, console, data)
        return
    if group is not None and group not in plugins.GROUPS:
        raise UsageError(f"No group '{group}'; choose one of {', '.join([*plugins.GROUPS, STUDENTS])}")
    if teacher is not None or data is not None:
        raise UsageError("--teacher and --data are of `kdbench list students`; leave them out")
    table = Table(box=None, pad_edge=False)
    for heading in ("group", "name", "what it is"):
        table.add_column(heading, overflow="fold")
    for one in [group] if group else plugins.GROUPS:
        for name in plugins.names(one):
            table.add_row(one, name, plugins.summary(plugins.load(one, name)))
    console.print(table, highlight=False)
    if group is None:
        console.print("\nStudents of a teacher, with their sizes: kdbench list students --teacher T")


@app.command()
def show(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or your own file.py.")],
    sets: Sets = None,
    config: ConfigFile = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher", help="Have it answer, to see the prompts that build on replies; or ROLE=SPEC."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which seed to show.")] = 0,
) -> None:
    """Show a recipe: its facts, its config, and its prompts rendered on a real seed."""
    from kdbench.jobs.showing import show_recipe

    values = with_sets(load_yaml(config) if config else {}, sets or [])
    show_recipe(recipe, values, Console(), teacher=_roles(teacher) if teacher else None, seed=seed)


def _say(text: str) -> None:
    if this_process().is_first:
        Console(stderr=True).print(text, style="bold", markup=False, highlight=False)


def _set_up_logging() -> None:
    console = Console(stderr=True)
    handler: logging.Handler = (
        RichHandler(console=console, show_path=False, show_time=False, show_level=False, markup=False)
        if console.is_terminal
        else logging.StreamHandler()
    )
    logger = logging.getLogger("kdbench")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if this_process().is_first else logging.ERROR)
    logger.propagate = False


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and an exit code."""
    _set_up_logging()
    try:
        app()
    except KdbenchError as exc:
        Console(stderr=True).print(
            f"kdbench: {exc}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(exc.exit_code)


if __name__ == "__main__":
    main()
