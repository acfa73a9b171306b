"""A model under evaluation: known by its files at once, loaded only when something must be run.

candidate = Candidate.of("runs/white_box")
candidate.parameters, candidate.bytes, candidate.sha256     # nothing loaded yet
candidate.model(), candidate.tokenizer()                    # loaded on first use
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.errors import DataError
from kdbench.models.weights import local_weights, require_train, weights_sha256


@dataclass(slots=True)
class Candidate:
    """One model by its reference. `parameters` counts the stored tensors, tied ones once."""

    ref: str
    folder: Path
    sha256: str
    parameters: int
    bytes: int
    _model: Any = field(default=None, repr=False)
    _tokenizer: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, ref: str) -> Candidate:
        """Find the weights and read their sizes. Raises UsageError, DataError, MissingExtra."""
        require_train("evaluating models")
        folder = local_weights(ref)
        files = sorted(folder.glob("*.safetensors"))
        return cls(
            ref=ref,
            folder=folder,
            sha256=weights_sha256(folder),
            parameters=sum(map(_parameters, files)),
            bytes=sum(path.stat().st_size for path in files),
        )

    def model(self) -> Any:
        """The transformers model, in eval mode."""
        if self._model is None:
            from kdbench.models.loading import load_model

            self._model = load_model(self.ref)
        return self._model

    def tokenizer(self) -> Any:
        """The tokenizer."""
        if self._tokenizer is None:
            from kdbench.models.loading import load_tokenizer

            self._tokenizer = load_tokenizer(self.ref)
        return self._tokenizer

    def release(self) -> None:
        """Let go of the model's memory."""
        self._model = None


def _parameters(path: Path) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as exc:
        raise DataError(f"{path} is not a whole safetensors file: {exc}; write the model anew") from exc
