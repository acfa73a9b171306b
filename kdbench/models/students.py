"""Make a student: from weights, from scratch with the teacher's tokenizer, or pruned from the teacher.

    make_student(StudentConfig(kind="pruned", layers=18), teacher="smollm2", out=Path("student/model"),
                 sample_text=[...], seed=0)
    -> {"kind": "pruned", "layers": 18, "parameters": 92000000, "kept_layers": [0, 1, 3, ...],
        "block_influence": [0.81, 0.32, ...], "weights_sha256": "..."}

`out` becomes a folder of weights like any other: safetensors, config and tokenizer. A pruned or new
student gets a chat template without a default system message, so that whoever deploys it through
`apply_chat_template` sends exactly the prompts it was trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from kdbench.config import StrictConfig
from kdbench.errors import StorageError, UsageError
from kdbench.models.chat import student_chat_template
from kdbench.models.loading import first_line, load_model, load_tokenizer, quiet_transformers
from kdbench.models.pruning import block_influence, highest, keep_layers
from kdbench.models.scratch import Shape, new_model
from kdbench.models.weights import local_weights, require_train, weights_sha256


class StudentConfig(StrictConfig):
    """What a student begins as."""

    kind: Literal["pruned", "scratch", "weights"] = Field(
        "pruned", description="the teacher less some layers; a new model; or the weights named by `model`"
    )
    layers: int | None = Field(None, ge=1, le=1024, description="of a pruned or new student")
    shape: Shape = Field(default_factory=Shape, description="of a student from scratch")
    model: str | None = Field(None, description="reference of the weights a student begins from")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "weights" and not self.model:
            raise ValueError("a student from weights needs `model`, for example smollm2 or a folder")
        if self.kind != "weights" and self.layers is None:
            raise ValueError(f"a student of kind '{self.kind}' needs `layers`")
        return self


def make_student(
    config: StudentConfig, *, teacher: str, out: Path, sample_text: list[str], seed: int
) -> dict[str, Any]:
    """Make a student and write it to the folder `out`; the facts about it, as plain JSON values.

    `teacher` is a model reference; `sample_text` measures Block Influence and is needed to prune only.
    Raises UsageError where the student cannot be made as asked, StorageError where it cannot be written.
    """
    require_train("making a student")
    if config.kind == "weights":
        model, tokenizer, facts = _from_weights(config.model or "")
    elif config.kind == "scratch":
        model, tokenizer, facts = _from_scratch(config, teacher, seed)
    else:
        model, tokenizer, facts = _pruned(config, teacher, sample_text)
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
    model = load_model(teacher, dtype="float32")
    tokenizer = load_tokenizer(teacher)
    have, want = model.config.num_hidden_layers, config.layers or 0
    if want > have:
        raise UsageError(
            f"The teacher '{teacher}' has {have} layers, so a student cannot keep {want} of them"
        )
    influence = block_influence(model, tokenizer, sample_text)
    kept = highest(influence, want)
    keep_layers(model, kept)
    tokenizer.chat_template = student_chat_template(tokenizer)
    facts = {
        "teacher_sha256": weights_sha256(local_weights(teacher)),
        "kept_layers": kept,
        "block_influence": influence,
    }
    return model, tokenizer, facts


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
