"""A training in stages: each has a folder of its own, and one that is done is not done again.

with Stages(out, resume=False) as stages:
    teacher = stages.do("adapt_teacher", lambda folder, resume: adapt(teacher, folder, resume))
    student = stages.do("distil", lambda folder, resume: distil(teacher, student, folder, resume))
    stages.finish(student)

out/stages/01_adapt_teacher/    model/ metrics.jsonl stage.json DONE
    stages/02_distil/           model/ metrics.jsonl stage.json DONE
    metrics.jsonl               {"stage": "02_distil", "step": 240, ...}: of all stages, steps counted on
    model/                      that of the last
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate import PartialState

from kdbench.errors import RunDirError, StorageError
from kdbench.processes import this_process
from kdbench.progress import log

_WHAT = "stage.json"
_DONE = "DONE"


class Stages:
    """The stages of one training, one after the other; of several processes the first one keeps the files."""

    def __init__(self, out: Path, *, resume: bool, cpu: bool = False) -> None:
        """`cpu`: the stages run on the CPU although there is another device."""
        self._out = out
        self._resume = resume
        self._cpu = cpu
        self._folders: list[Path] = []
        self._place = this_process()

    def __enter__(self) -> Stages:
        if self._place.is_first and not self._resume:
            shutil.rmtree(self._out / "stages", ignore_errors=True)
        self.meet()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._write_metrics()

    def do(self, name: str, make: Callable[[Path, bool], None], **what: Any) -> str:
        """Have `make(folder, resume)` write folder/model, unless that is done; the model's reference.

        `what` must be the same for a stage that is taken up again, besides what its run is checked for.
        Raises RunDirError where it is not.
        """
        folder = self._out / "stages" / f"{len(self._folders) + 1:02d}_{name}"
        self._check_same(folder, what)
        done = (folder / _DONE).is_file()
        self._folders.append(folder)
        self.meet()  # all have looked before anybody writes
        if self._place.is_first:
            log.info("Stage %s%s", folder.name, " is done already" if done else "")
        if not done:
            self._write(folder / _WHAT, json.dumps(what))
            make(folder, self._resume)
            self.meet()
            self._write(folder / _DONE, "")
            self._write_metrics()
            gc.collect()  # models hold on to themselves
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return str(folder / "model")

    def finish(self, model: str) -> None:
        """Copy the last stage's model to out/model."""
        if self._place.is_first:
            target = self._out / "model"
            with _written(target):
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(model, target, ignore=shutil.ignore_patterns(".*"))
        self.meet()

    def meet(self) -> None:
        """Wait until all processes are here: what the first one has written can be read."""
        if self._place.world > 1:
            PartialState(cpu=self._cpu).wait_for_everyone()

    def _check_same(self, folder: Path, what: dict[str, Any]) -> None:
        try:
            before = json.loads((folder / _WHAT).read_bytes())
        except (OSError, ValueError):
            return  # never begun, or cut off before anything was done
        changed = [key for key in what if before.get(key) != what[key]]
        if changed:
            words = ", ".join(key.replace("_sha256", "").replace("_", " ") for key in changed)
            raise RunDirError(
                f"{folder} cannot go on: other {words} than when it began; set it back, begin anew with "
                "--overwrite, or choose another directory"
            )

    def _write(self, path: Path, text: str) -> None:
        if self._place.is_first:
            with _written(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")

    def _write_metrics(self) -> None:
        lines, before = list[str](), 0
        for folder in self._folders:
            found = list(_lines(folder / "metrics.jsonl"))
            lines += [
                json.dumps({"stage": folder.name, **line, "step": before + line["step"]}) + "\n"
                for line in found
            ]
            before += max((line["step"] for line in found), default=0)
        self._write(self._out / "metrics.jsonl", "".join(lines))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a stage; one that a kill has torn ends them."""
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            yield json.loads(text)
        except ValueError:
            return


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, shutil.Error) as exc:
        raise StorageError(f"Cannot write {path}: {exc}; free some room and go on with --resume") from exc
