"""Make a student: from weights, from scratch with the teacher's tokenizer, or pruned from the teacher.

    make_student(StudentConfig(kind="pruned", layers=18, hidden_size=432), teacher="smollm2",
                 out=Path("student/model"), sample_text=[...], seed=0)
    -> {"kind": "pruned", "layers": 18, "hidden_size": 432, "parameters": 64000000,
        "kept_layers": [0, 1, 3, ...], "block_influence": [0.81, 0.32, ...], "weights_sha256": "..."}

`out` becomes a folder of weights like any other: safetensors, config, tokenizer and generation config. A
pruned or new student gets a chat template without a default system message, so that whoever deploys it
through `apply_chat_template` sends exactly the prompts it was trained on; and its generation config names
every token that ends a turn, so that a plain `generate` stops there.

With `trim_vocabulary` the student knows only the tokens that `samples` use. Its ids are then no longer its
teacher's: black_box trains it, white_box refuses it (`"shares_teacher_vocabulary": False` among the facts).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from kdbench.config import StrictConfig
from kdbench.errors import StorageError, UsageError
from kdbench.models.chat import end_ids, student_chat_template
from kdbench.models.loading import first_line, load_model, load_tokenizer, quiet_transformers
from kdbench.models.pruning import block_influence, highest, keep_layers
from kdbench.models.scratch import Shape, new_model
from kdbench.models.weights import local_weights, require_train, weights_sha256
from kdbench.records import Sample

_PRUNES = ("layers", "hidden_size", "intermediate_size", "heads")


class StudentConfig(StrictConfig):
    """What a student begins as."""

    kind: Literal["pruned", "scratch", "weights"] = Field(
        "pruned", description="the teacher less a part of it; a new model; or the weights named by `model`"
    )
    layers: int | None = Field(
        None, ge=1, le=1024, description="of a new student, or of a pruned one: those of most Block Influence"
    )
    hidden_size: int | None = Field(
        None, ge=2, le=65536, description="of a pruned student: the most important channels are kept"
    )
    intermediate_size: int | None = Field(
        None, ge=1, le=524288, description="of a pruned student: the MLP neurons kept in each layer"
    )
    heads: int | None = Field(
        None, ge=1, le=1024,
        description="of a pruned student: the attention heads kept in each layer, in whole key-value groups",
    )  # fmt: skip
    trim_vocabulary: bool = Field(
        False,
        description="keep only the tokens that the data uses (kinds pruned and weights); the student then no "
        "longer shares ids with its teacher, so white_box cannot train it",
    )
    shape: Shape = Field(default_factory=Shape, description="of a student from scratch")
    model: str | None = Field(None, description="reference of the weights a student begins from")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "weights" and not self.model:
            raise ValueError("a student from weights needs `model`, for example smollm2 or a folder")
        if self.kind == "scratch" and self.layers is None:
            raise ValueError("a student of kind 'scratch' needs `layers`")
        if self.kind == "pruned" and not (self.prunes or self.trim_vocabulary):
            raise ValueError(
                "a student of kind 'pruned' needs `layers`, `hidden_size`, `intermediate_size`, `heads` or "
                "`trim_vocabulary`"
            )
        if self.kind != "pruned" and (narrow := [k for k in _PRUNES[1:] if getattr(self, k) is not None]):
            where = f"; write `shape.{narrow[0]}`" if self.kind == "scratch" else ""
            raise ValueError(f"`{narrow[0]}` is of a student of kind 'pruned', not '{self.kind}'{where}")
        if self.kind == "scratch" and self.trim_vocabulary:
            raise ValueError(
                "`trim_vocabulary` keeps embeddings that are there already, and a student of kind 'scratch' "
                "has none; choose the kind 'pruned' or 'weights'"
            )
        return self

    @property
    def prunes(self) -> tuple[str, ...]:
        """The keys that say what is pruned."""
        return tuple(key for key in _PRUNES if getattr(self, key) is not None)


def make_student(
    config: StudentConfig,
    *,
    teacher: str,
    out: Path,
    sample_text: list[str],
    seed: int,
    samples: Iterable[Sample] = (),
) -> dict[str, Any]:
    """Make a student and write it to the folder `out`; the facts about it, as plain JSON values.

    `teacher` is a model reference; `sample_text` shows it at work and is needed to prune only; `samples` is
    all of the student's data, gone through once and only where the vocabulary is trimmed.
    Raises UsageError where the student cannot be made as asked, StorageError where it cannot be written.
    """
    require_train("making a student")
    if config.kind == "weights":
        model, tokenizer, facts = _from_weights(config.model or "")
    elif config.kind == "scratch":
        model, tokenizer, facts = _from_scratch(config, teacher, seed)
    else:
        model, tokenizer, facts = _pruned(config, teacher, sample_text)
    if config.trim_vocabulary:
        from kdbench.models.trimming import trim_vocabulary

        tokenizer, trimmed = trim_vocabulary(model, tokenizer, samples, config.model or teacher)
        facts |= trimmed
    _name_the_ends(model, tokenizer)
    _save(model, tokenizer, out)
    return {
        "kind": config.kind,
        "layers": model.config.num_hidden_layers,
        "parameters": model.num_parameters(),
        "weights_sha256": weights_sha256(out),
        **facts,
    }


_Made = tuple[Any, Any, dict[str, Any]]


def _from_weights(ref: str) -> _Made:
    tokenizer = load_tokenizer(ref)
    if not tokenizer.chat_template:
        tokenizer.chat_template = student_chat_template(tokenizer)
    return load_model(ref, dtype="float32"), tokenizer, {"from_sha256": weights_sha256(local_weights(ref))}


def _from_scratch(config: StudentConfig, teacher: str, seed: int) -> _Made:
    from transformers import AutoConfig

    tokenizer = load_tokenizer(teacher)
    tokenizer.chat_template = student_chat_template(tokenizer)
    vocabulary = AutoConfig.from_pretrained(local_weights(teacher), local_files_only=True).vocab_size
    model = new_model(config.shape, config.layers or 1, tokenizer, vocabulary, seed)
    return model, tokenizer, {"seed": seed}


def _pruned(config: StudentConfig, teacher: str, sample_text: list[str]) -> _Made:
    """The teacher with fewer layers, then narrower: what is left of it is measured anew."""
    model = load_model(teacher, dtype="float32")
    tokenizer = load_tokenizer(teacher)
    facts: dict[str, Any] = {"teacher_sha256": weights_sha256(local_weights(teacher))}
    if config.layers is not None:
        facts |= _prune_depth(model, tokenizer, config.layers, teacher, sample_text)
    if config.hidden_size or config.intermediate_size or config.heads:
        from kdbench.models.width import Width, prune_width

        width = Width(config.hidden_size, config.intermediate_size, config.heads)
        model = prune_width(model, tokenizer, sample_text, width, teacher)
        facts |= {
            "hidden_size": model.config.hidden_size,
            "intermediate_size": model.config.intermediate_size,
            "heads": model.config.num_attention_heads,
            "kv_heads": model.config.num_key_value_heads,
            "head_dim": model.config.head_dim,
        }
    tokenizer.chat_template = student_chat_template(tokenizer)
    return model, tokenizer, facts


def _prune_depth(
    model: Any, tokenizer: Any, want: int, teacher: str, sample_text: list[str]
) -> dict[str, Any]:
    have = model.config.num_hidden_layers
    if want > have:
        raise UsageError(
            f"The teacher '{teacher}' has {have} layers, so a student cannot keep {want} of them"
        )
    influence = block_influence(model, tokenizer, sample_text)
    kept = highest(influence, want)
    keep_layers(model, kept)
    return {"kept_layers": kept, "block_influence": influence}


def _name_the_ends(model: Any, tokenizer: Any) -> None:
    """Have a plain `generate` stop where a turn ends: teachers often name only the end of a text."""
    ends = end_ids(tokenizer, model.generation_config, model.config)
    if ends:
        model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else list(ends)


def _save(model: Any, tokenizer: Any, out: Path) -> None:
    from safetensors import SafetensorError

    try:
        out.mkdir(parents=True, exist_ok=True)
        with quiet_transformers():
            model.save_pretrained(out)
            tokenizer.save_pretrained(out)
    except (OSError, SafetensorError) as exc:
        raise StorageError(
            f"Cannot write the student to {out}: {first_line(exc)}; free some room or choose another"
        ) from exc
