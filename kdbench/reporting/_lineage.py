"""Where everything came from: each stage as a link of a chain, held together by equal hashes.

A hash that one run took in and another gave out joins the two; nothing is guessed from names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdbench.provenance import file_sha256
from kdbench.reporting._cards import teacher_names
from kdbench.reporting._runs import Run

_HASH = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_TAKEN_IN = ("fingerprint", "inputs")


@dataclass(frozen=True, slots=True)
class Input:
    """One hash a run depends on, and the run of this report that made the thing, if one did."""

    label: str
    sha256: str
    made_by: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """One stage."""

    name: str
    kind: str
    status: str
    started: str
    facts: tuple[tuple[str, str], ...]
    inputs: tuple[Input, ...]
    outputs: tuple[Input, ...]
    git: str
    packages: Mapping[str, str]


def lineage(runs: list[Run]) -> list[Link]:
    """One link per run, in the order they were started."""
    outputs = {run.name: dict(_outputs(run)) for run in runs}
    makers: dict[str, str] = {}
    for run in runs:
        for sha256 in outputs[run.name].values():
            makers.setdefault(sha256, run.name)
    return [_link(run, outputs[run.name], makers) for run in runs]


def _link(run: Run, outputs: Mapping[str, str], makers: Mapping[str, str]) -> Link:
    taken = {label: sha256 for part in _TAKEN_IN for label, sha256 in _hashes(run.info.get(part), "")}
    inputs, seen = [], set()
    for label, sha256 in taken.items():
        if sha256 in seen or sha256 in outputs.values():
            continue
        seen.add(sha256)
        inputs.append(Input(label, sha256, makers.get(sha256, "")))
    git = run.info.get("git") or {}
    commit = str(git.get("commit", ""))
    return Link(
        name=run.name,
        kind=run.kind,
        status=run.status,
        started=str(run.info.get("started", "")),
        facts=tuple(_facts(run)),
        inputs=tuple(inputs),
        outputs=tuple(Input(label, sha256) for label, sha256 in outputs.items()),
        git=f"{commit} with uncommitted changes" if git.get("dirty") else commit,
        packages=run.info.get("packages") or {},
    )


def _outputs(run: Run) -> Iterator[tuple[str, str]]:
    samples = run.path / "samples.jsonl"
    if run.kind == "generate" and samples.is_file():
        yield "samples.jsonl", file_sha256(samples)
    if weights := run.info.get("weights_sha256"):
        yield "weights", str(weights)


def _hashes(value: Any, label: str) -> Iterator[tuple[str, str]]:
    """Every hash inside a run.json entry, with the keys it stands under."""
    if isinstance(value, Mapping):
        for key, nested in value.items():
            yield from _hashes(nested, f"{label} {key}".strip())
    elif isinstance(value, str) and _HASH.fullmatch(value):
        yield label.removesuffix("_sha256").replace("_", " "), value


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    yield from teacher_names(run.info).items()
    for key in ("recipe", "trainer", "method", "seed"):
        if (value := run.info.get(key, run.config.get(key))) is not None:
            yield key, str(value)
    if config := run.info.get("config_sha256"):
        yield "config", str(config)


def split_hashes(text: str) -> list[tuple[str, bool]]:
    """The text in pieces, each with whether it is a hash, so that a page can show hashes short."""
    pieces, last = [], 0
    for match in _HASH.finditer(text):
        pieces += [(text[last : match.start()], False), (match.group(), True)]
        last = match.end()
    return [(piece, is_hash) for piece, is_hash in [*pieces, (text[last:], False)] if piece]
