"""The stages of adapt_then_distill at work: growing, adapting and distilling, each from model to model.

Adapting(texts, completions, config, method).follow("smollm2", "runs/pruned", out, resume=False)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from kdbench.config import canonical_hash
from kdbench.errors import StorageError
from kdbench.models.growing import Growth, grow, grow_embeddings, with_merges
from kdbench.models.loading import first_line, load_model, load_tokenizer, quiet_transformers
from kdbench.processes import this_process
from kdbench.progress import log
from kdbench.records import Text
from kdbench_trainers._config import Material
from kdbench_trainers._fit import fit
from kdbench_trainers._methods import Method
from kdbench_trainers._models import Compute, load_student
from kdbench_trainers._stages import Stages
from kdbench_trainers._teacher import check_vocabularies
from kdbench_trainers._trainer import Plan

if TYPE_CHECKING:
    from kdbench_trainers.adapt_then_distill import Config


class Adapting:
    """What the stages share: domain text, what is distilled on, and the settings."""

    def __init__(
        self, texts: Sequence[Text], lesson: Sequence[Material], config: Config, method: Method
    ) -> None:
        self._texts = texts
        self._lesson = lesson
        self._config = config
        self._method = method
        self._growth: Growth | None = None

    def follow(self, teacher: str | None, student: str, out: Path, resume: bool) -> None:
        """Do all stages of the order; out/model is the last one's."""
        models = {"student": student} | ({} if teacher is None else {"teacher": teacher})
        text = canonical_hash([[one.text, one.weight, one.group] for one in self._texts])
        on_cpu = Compute.of(self._config.adaptation).device == "cpu"
        verbs = {"grow": self._grow, "adapt": self._adapt}
        with Stages(out, resume=resume, cpu=on_cpu) as stages:
            for stage in self._config.stages:
                verb, _, whom = stage.partition("_")
                if verb == "distil":
                    whom = "student"
                    make = partial(self._method.train, self._lesson, models.get("teacher"), models["student"])
                else:
                    make = partial(verbs[verb], whom, models[whom])
                models[whom] = stages.do(stage, make, texts_sha256=text)
            stages.finish(models["student"])

    def _adapt(self, whom: str, ref: str, out: Path, resume: bool) -> None:
        """Go on with pre-training: cross-entropy of the domain's text."""
        config = self._config.adaptation_of(whom)
        reader, model = load_student(ref, config)
        fit(self._texts, student=reader, model=model, plan=Plan(), out=out, config=config, resume=resume)

    def _grow(self, whom: str, ref: str, out: Path, resume: bool) -> None:
        """Give the model the domain's words; teacher and student get the same."""
        if not this_process().is_first:
            return
        tokenizer = load_tokenizer(ref)
        if self._growth is None:
            texts, settings = [one.text for one in self._texts], self._config.grow
            assert settings is not None
            self._growth = grow(tokenizer, texts, **settings.model_dump())
            log.info("%s", _words(self._growth))
        bigger = with_merges(tokenizer, self._growth.merges)
        model = load_model(ref, device="cpu", dtype="float32")
        grow_embeddings(model, tokenizer, bigger)
        try:
            with quiet_transformers():
                model.save_pretrained(out / "model")
                bigger.save_pretrained(out / "model")
            (out / "growth.json").write_text(json.dumps(asdict(self._growth), ensure_ascii=False))
        except (OSError, SafetensorError) as exc:
            raise StorageError(
                f"Cannot write into {out}: {first_line(exc)}; free some room and go on with --resume"
            ) from exc


def _words(growth: Growth) -> str:
    first, last = growth.rounds[0], growth.rounds[-1]
    return (
        f"The vocabulary grows from {first.vocabulary:,} to {last.vocabulary:,} tokens, and a document's "
        f"log-likelihood under its tokens' frequencies from {first.log_likelihood:,.1f} to "
        f"{last.log_likelihood:,.1f}"
    )


def check_same_vocabulary(student: str, teacher: str) -> None:
    """Raise ConfigError where the two do not give every token the same id: before hours of adapting."""
    check_vocabularies(student, load_tokenizer(student), teacher, load_tokenizer(teacher))
