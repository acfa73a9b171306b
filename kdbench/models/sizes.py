"""How large the students are that can be made from a teacher, from its config alone.

    for one in possible_students("smollm2"):
        one.name, one.settings, one.parameters
    -> "teacher", {}, 134515008
       "layers-23", {"layers": 23}, 109737792
       "hidden-432", {"hidden_size": 432}, 100886256
       ...

Every student is built on the meta device, where a model has shapes but no weights: nothing is loaded, and the
numbers are those of the students that will be made.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm
from typing import Any

from kdbench.errors import UsageError
from kdbench.models._structure import Structure, read_structure
from kdbench.models.loading import first_line
from kdbench.models.pruning import decoder_layers, keep_layers
from kdbench.models.weights import local_weights, require_train
from kdbench.models.width import Width, narrow_config

_Settings = dict[str, int | bool]


@dataclass(frozen=True, slots=True)
class PossibleStudent:
    """A student, what to set to make it (kind pruned; the teacher: nothing), and its size."""

    name: str
    settings: Mapping[str, int | bool]
    parameters: int

    @property
    def megabytes(self) -> float:
        """Of its weights in float32."""
        return self.parameters * 4 / 1e6


def meta_model(ref: str) -> Any:
    """The model of a reference without its weights. Raises UsageError, MissingExtra."""
    require_train(f"looking at the model '{ref}'")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = local_weights(ref)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as exc:
        raise UsageError(f"The config of '{ref}' cannot be read: {first_line(exc)}") from exc


def possible_students(ref: str, vocabulary: int | None = None) -> tuple[list[PossibleStudent], str]:
    """The teacher and some students of it; and why none of them is narrower, if that is so.

    `vocabulary` is what trimming would leave; None leaves trimmed students out. Raises UsageError for a model
    that cannot be pruned at all.
    """
    teacher = meta_model(ref)
    depths = _depths(len(decoder_layers(teacher)))
    try:
        widths, remark = _widths(read_structure(teacher, ref)), ""
    except UsageError as exc:
        widths, remark = [], str(exc)
    settings = [*depths, *widths]
    if depths and widths:
        settings.append({**depths[0], **widths[-1]})
    if vocabulary is not None:
        untrimmed: list[_Settings] = [{}, *depths[1:2], *settings[-1:]]
        settings += [{**one, "trim_vocabulary": True} for one in untrimmed]
    rows = [PossibleStudent("teacher", {}, teacher.num_parameters())]
    for one in settings:
        rows.append(PossibleStudent(_name(one), one, _parameters(teacher, ref, one, vocabulary)))
    return rows, remark


def _depths(layers: int) -> list[_Settings]:
    """Three quarters, half and a third of the layers."""
    wanted = sorted({max(1, round(layers * share)) for share in (3 / 4, 1 / 2, 1 / 3)}, reverse=True)
    return [{"layers": n} for n in wanted if n < layers]


def _widths(have: Structure) -> list[_Settings]:
    """One size less at a time, then channels and neurons together."""
    unit = lcm(have.heads, 8)  # Llama's config wants whole heads, and processors like eights
    found: list[_Settings] = []
    for key, size, step in (
        ("heads", have.heads, have.heads // have.groups),
        ("intermediate_size", have.neurons, 8),
        ("hidden_size", have.hidden, unit if unit < have.hidden else have.heads),
    ):
        wanted = sorted({max(1, round(size * s / step)) * step for s in (3 / 4, 1 / 2)}, reverse=True)
        found += [{key: n} for n in wanted if n < size]
    both = [next((one for one in found if key in one), {}) for key in ("hidden_size", "intermediate_size")]
    return [*found, {**both[0], **both[1]}] if all(both) else found


def _name(settings: Mapping[str, int | bool]) -> str:
    """ "layers-23-hidden-432-trimmed"."""
    words = {"hidden_size": "hidden", "intermediate_size": "mlp"}
    sizes = [f"{words.get(k, k)}-{n}" for k, n in settings.items() if k != "trim_vocabulary"]
    return "-".join([*sizes, "trimmed"] if "trim_vocabulary" in settings else sizes)


def _parameters(teacher: Any, ref: str, settings: _Settings, vocabulary: int | None) -> int:
    """The parameters of a student, counted on one that has no weights."""
    import torch

    model = copy.deepcopy(teacher)
    if "layers" in settings:
        keep_layers(model, range(settings["layers"]))  # which ones they are does not matter to the size
    width = Width(*(settings.get(key) for key in ("hidden_size", "intermediate_size", "heads")))
    config = narrow_config(model, read_structure(model, ref), width, ref) if width else model.config
    if settings.get("trim_vocabulary"):
        config.vocab_size, config.pad_token_id = vocabulary, None  # no id of the old vocabulary
    with torch.device("meta"):
        count: int = type(model)(config).num_parameters()
    return count
