"""`kdbench signals`: what a teacher says about a data set, put down once, so that no training needs it again.

    store_signals(data="runs/stories", teacher="smollm2", out="runs/signals")
    store_signals(data="runs/stories", teacher="smollm2", out="runs/top50", config={"kind": "top_k", "k": 50})

    kdbench train white_box --data runs/stories --student runs/start --set signals=runs/signals ...

Hidden states hold everything the teacher's head can say, in 2 bytes a number; the top k hold less in
fewer. run.json states bytes per token, and `lost`: the mean KL, in nats per token, of the exact distribution
from the stored one (for the top k: with the rest spread evenly), on some 2,000 tokens from all over the data.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kdbench.config import StrictConfig, build
from kdbench.errors import MissingExtra, UsageError
from kdbench.jobs._completions import data_sha256, read_completions
from kdbench.models.weights import local_weights, weights_sha256
from kdbench.progress import Meter
from kdbench.records import Completion
from kdbench.rundir import IfExists, RunDir, is_done, read_info

log = logging.getLogger("kdbench")


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


def store_signals(
    *,
    data: str | Path | Sequence[str | Path],
    teacher: str,
    out: str | Path,
    config: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Let `teacher` read the completions of finished generate runs and keep what it says in `out`.

    `config` are the fields of SignalsConfig. A run that was cut off goes on with `resume`, to the same
    bytes. Raises ConfigError, UsageError, RunDirError, DataError, NothingLeft, MissingExtra, RunFailed.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other; choose one")
    settings = build(SignalsConfig, config or {}, "signals")
    paths = [Path(data)] if isinstance(data, str | Path) else [Path(one) for one in data]
    samples = read_completions(paths)
    fingerprint = {
        "config": settings.model_dump(mode="json"),
        "data_sha256": data_sha256(paths),
        "teacher_weights": weights_sha256(local_weights(teacher)),
    }
    path = Path(out)
    if resume and (path / "run.json").is_file():
        _check_same(path, fingerprint)
        if is_done(path):
            log.info("%s is finished already, from the same data and teacher", path)
            return path
    how: IfExists = "overwrite" if overwrite else "resume" if resume else "refuse"
    written = {"data": [str(one) for one in paths], "teacher": teacher, "config": fingerprint["config"]}
    run = RunDir.create(path, kind="signals", config=written, fingerprint=fingerprint, if_exists=how)
    try:
        signals, stats = _fill(run.path, samples, teacher, settings, str(fingerprint["teacher_weights"]))
        run.finish(
            teacher={"spec": teacher, "weights_sha256": fingerprint["teacher_weights"]},
            signals=signals,
            stats=stats,
        )
    finally:
        if not run.closed:
            run.abandon("failed")
    log.info(
        "%d texts, %s tokens, %d bytes per token, %.2g nats per token lost",
        stats["texts"], f"{stats['tokens']:,}", stats["bytes_per_token"], stats["lost"],
    )  # fmt: skip
    return path


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
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the samples and write the columns; (what the store is, what came of it) for run.json."""
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
