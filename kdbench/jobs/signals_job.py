"""`kdbench signals`: what a teacher says about a data set, put down once, so that no training needs it again.

    store_signals(data="runs/stories", teacher="smollm2", out="runs/signals")
    store_signals(data="runs/stories", teacher="smollm2", out="runs/top50", config={"kind": "top_k", "k": 50})
    store_signals(data="runs/stories", out="runs/top20")     # what its own teacher said while it wrote

    kdbench train white_box --data runs/stories --student runs/start --set signals=runs/signals ...

Hidden states hold everything the teacher's head can say, in 2 bytes a number; the top k hold less in
fewer. run.json states bytes per token, and `lost`: the mean KL, in nats per token, of the exact distribution
from the stored one (for the top k: with the rest spread evenly), on some 2,000 tokens from all over the data.

Without `teacher` nothing is read: the top k come from the call logs of runs whose teacher was told
`top_logprobs`. run.json then states `rest`, the mean probability outside the k, and `left_out`, with reasons.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kdbench.calls import FILE_NAME
from kdbench.config import StrictConfig, build
from kdbench.errors import DataError, MissingExtra, UsageError
from kdbench.jobs._completions import data_sha256, read_completions
from kdbench.models.weights import local_weights, require_train, weights_sha256
from kdbench.progress import Meter
from kdbench.records import Completion
from kdbench.rundir import IfExists, RunDir, is_done, read_info

log = logging.getLogger("kdbench")
Filled = tuple[dict[str, Any], dict[str, Any]]  # what the store is, and what came of it, for run.json


class SignalsConfig(StrictConfig):
    """What is put down of a teacher's distributions."""

    kind: Literal["hidden", "top_k"] = Field(
        "hidden", description="final hidden states, exact; or the likeliest tokens alone"
    )
    k: int = Field(50, ge=1, description="of top_k")
    max_length: int = Field(
        1024, ge=2, description="tokens of prompt and completion; longer ones are left out"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the teacher's weights; auto: bfloat16 on cuda"
    )


class HandedOverConfig(StrictConfig):
    """What is put down of what a teacher handed over while it wrote."""

    k: int | None = Field(None, ge=1, description="likeliest tokens; all that were handed over if not said")
    tokenizer: str | None = Field(
        None, description="a model whose tokenizer is the teacher's; the run's own teacher if not said"
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """One way to fill a store: its settings, whom it is of, and what must be equal for it to go on."""

    settings: StrictConfig
    teacher: dict[str, str]
    fingerprint: dict[str, Any]
    fill: Callable[[Path], Filled]


def store_signals(
    *,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    teacher: str | None = None,
    config: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Let `teacher` read the completions of finished generate runs and keep what it says in `out`.

    Without `teacher`, keep what the runs' own teacher handed over while it wrote. `config` are the fields of
    SignalsConfig, or else of HandedOverConfig. A run that was cut off goes on with `resume`, to the same
    bytes. Raises ConfigError, UsageError, RunDirError, DataError, NothingLeft, MissingExtra, RunFailed.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other; choose one")
    paths = [Path(data)] if isinstance(data, str | Path) else [Path(one) for one in data]
    samples = read_completions(paths)
    work = _handed_over(paths, samples, config) if teacher is None else _read(samples, teacher, config)
    written_config = work.settings.model_dump(mode="json")
    fingerprint = {"config": written_config, "data_sha256": data_sha256(paths), **work.fingerprint}
    path = Path(out)
    if resume and (path / "run.json").is_file():
        _check_same(path, fingerprint)
        if is_done(path):
            log.info("%s is finished already, from the same data and teacher", path)
            return path
    how: IfExists = "overwrite" if overwrite else "resume" if resume else "refuse"
    written = {"data": [str(one) for one in paths], "teacher": teacher, "config": written_config}
    run = RunDir.create(path, kind="signals", config=written, fingerprint=fingerprint, if_exists=how)
    try:
        signals, stats = work.fill(run.path)
        run.finish(teacher=work.teacher, signals=signals, stats=stats)
    finally:
        if not run.closed:
            run.abandon("failed")
    log.info(
        "%d texts, %s tokens, %d bytes per token, %s",
        stats["texts"], f"{stats['tokens']:,}", stats["bytes_per_token"], _what_is_missing(stats),
    )  # fmt: skip
    return path


def _what_is_missing(stats: Mapping[str, Any]) -> str:
    if "lost" in stats:
        return f"{stats['lost']:.2g} nats per token lost"
    return f"{stats['rest']:.2g} of the probability outside them; {stats['log_bytes']:,} bytes of call logs"


def _read(samples: Sequence[Completion], teacher: str, config: Mapping[str, Any] | None) -> _Work:
    """A teacher's weights read the samples."""
    settings = build(SignalsConfig, config or {}, "signals")
    weights = weights_sha256(local_weights(teacher))
    return _Work(
        settings,
        {"spec": teacher, "weights_sha256": weights},
        {"teacher_weights": weights},
        lambda folder: _fill(folder, samples, teacher, settings, weights),
    )


def _handed_over(
    paths: Sequence[Path], samples: Sequence[Completion], config: Mapping[str, Any] | None
) -> _Work:
    """The samples' own teacher said it while it wrote them."""
    settings = build(HandedOverConfig, config or {}, "signals without a teacher")
    require_train("putting signals down")
    spec, identity = _writer_of(paths)
    tokenizer = settings.tokenizer or _own_tokenizer(spec)
    logs = [path / FILE_NAME for path in paths]
    for path in logs:
        if not path.is_file():
            raise DataError(
                f"{path} is missing, and what its teacher handed over is nowhere else; copy it from the "
                "machine that made the run, or let a teacher read the data: --teacher"
            )

    def fill(folder: Path) -> Filled:
        from kdbench.jobs._handed_over import copy

        return copy(folder, samples, logs, identity=identity, tokenizer=tokenizer, k=settings.k)

    named = {"spec": spec, "identity": identity}
    weights = weights_sha256(local_weights(tokenizer))
    return _Work(settings, named, {"teacher": identity, "tokenizer_weights": weights}, fill)


def _writer_of(paths: Sequence[Path]) -> tuple[str, str]:
    """(spec, identity) of the one teacher that wrote the runs. Raises DataError where it is not one."""
    named = [read_info(path).get("teacher", {}) for path in paths]
    identities = sorted({one for teacher in named for one in teacher.get("identity", {}).values()})
    if len(identities) != 1:
        raise DataError(
            f"A store holds what one teacher says, and {', '.join(map(str, paths))} come from "
            f"{' and '.join(identities) or 'none'}; give the runs of one, or let one read the data: --teacher"
        )
    return named[0]["spec"], identities[0]


def _own_tokenizer(spec: str) -> str:
    try:
        local_weights(spec)
    except UsageError as exc:
        raise UsageError(
            f"The teacher '{spec}' of the data is no model on this machine; name a folder with its tokenizer "
            "and its chat template: --set tokenizer=hf:PATH"
        ) from exc
    return spec


def _check_same(path: Path, fingerprint: Mapping[str, Any]) -> None:
    before = read_info(path).get("fingerprint", {})
    changed = [key for key, value in fingerprint.items() if before.get(key) != value]
    if changed and read_info(path)["kind"] == "signals":
        words = ", ".join(key.replace("_sha256", "").replace("_", " ") for key in changed)
        raise UsageError(
            f"{path} cannot go on: other {words} than when it began; set it back, begin anew with "
            "--overwrite, or choose another directory"
        )


def _fill(
    folder: Path, samples: Sequence[Completion], teacher: str, settings: SignalsConfig, weights: str
) -> Filled:
    """Read the samples and write the columns."""
    try:
        from kdbench.jobs._reading import TeacherReader
        from kdbench.signal_store import StoreWriter, write_head
    except ModuleNotFoundError as exc:
        raise MissingExtra("train", "reading data with a teacher") from exc
    reader = TeacherReader(teacher, settings, weights)
    companies = reader.companies(samples)
    writer = StoreWriter(folder, settings.kind, reader.info.width)
    done = 0  # companies that are there whole: what a teacher says depends on who is read with whom
    while done < len(companies) and sum(map(len, companies[: done + 1])) <= writer.done:
        done += 1
    writer.keep(sum(map(len, companies[:done])))
    with Meter("signals", sum(map(len, companies))) as meter, writer:
        for company in companies[done:]:
            writer.add(reader.read(company))
            meter.update(writer.done, f"{settings.kind} of {teacher}", last=company is companies[-1])
    if settings.kind == "hidden":
        write_head(folder, reader.head)
    texts = [one for company in companies for one in company]
    stats = {
        "texts": len(texts),
        "tokens": sum(len(one.completion) for one in texts),
        "bytes_per_token": reader.info.bytes_per_token(),
        "lost": reader.lost(texts),
    }
    return reader.info.model_dump(), stats
