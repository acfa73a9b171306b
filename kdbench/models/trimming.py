"""A model and its tokenizer with the vocabulary that the data needs.

    tokenizer, facts = trim_vocabulary(model, tokenizer, samples, "smollm2")
    facts     # {"vocabulary": 7211, "vocabulary_before": 49152, "shares_teacher_vocabulary": False}
    model     # embeddings and head have 7,211 rows; the logits of the kept tokens are what they were

In a small model the embeddings are much of the parameters (SmolLM2-135M: 28 of 135 million; Gemma-3-270M:
168 of 268), and most of their rows are of tokens that one job never meets. The price: the ids are no longer
the teacher's, so such a student learns from the teacher's text (black_box) and no longer from its
distribution: white_box compares token by token and refuses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from kdbench.errors import UsageError
from kdbench.models.vocabulary import trim_tokenizer, used_ids
from kdbench.records import Sample


def trim_vocabulary(
    model: Any, tokenizer: Any, samples: Iterable[Sample], ref: str
) -> tuple[Any, dict[str, Any]]:
    """The smaller tokenizer and the facts; the model is changed in place. `ref` names it in messages.

    Raises UsageError where there is no sample, and for a tokenizer that cannot be trimmed.
    """
    before = len(tokenizer)
    small, kept = needed(model, tokenizer, samples, ref)
    _keep_rows(model, kept)
    _renumber([model.config, model.generation_config], {old: new for new, old in enumerate(kept)})
    return small, {
        "vocabulary": len(kept),
        "vocabulary_before": before,
        "shares_teacher_vocabulary": False,
    }


def needed(model: Any, tokenizer: Any, samples: Iterable[Sample], ref: str) -> tuple[Any, list[int]]:
    """The smaller tokenizer, and the old id of each of its tokens; the model is only looked at.

    Raises UsageError as `trim_vocabulary`.
    """
    used = used_ids(tokenizer, samples)
    if not used:
        raise UsageError(
            "Trimming the vocabulary needs the data that the student will see, and none was given; "
            "give a generate run with --data"
        )
    # What a config names is kept, whether or not the data uses it.
    named = {i for _, ids in _named([model.config, model.generation_config]) for i in ids}
    small, kept = trim_tokenizer(tokenizer, used | {i for i in named if 0 <= i < len(tokenizer)})
    rows = model.get_input_embeddings().weight.shape[0]
    if kept[-1] >= rows:
        raise UsageError(
            f"The tokenizer of '{ref}' has tokens with ids up to {kept[-1]} and the model embeddings for "
            f"{rows}, so its vocabulary cannot be trimmed; leave `trim_vocabulary` out"
        )
    return small, kept


def _keep_rows(model: Any, kept: list[int]) -> None:
    """Embeddings and head with these rows only, tied if they were."""
    import torch

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight
    index = torch.tensor(kept, device=embedding.weight.device)

    def cut(weight: Any) -> Any:
        return torch.nn.Parameter(weight.detach()[index].clone())

    embedding.weight = cut(embedding.weight)
    embedding.num_embeddings = len(kept)
    if embedding.padding_idx is not None:
        embedding.padding_idx = kept.index(embedding.padding_idx) if embedding.padding_idx in kept else None
    head.weight = embedding.weight if tied else cut(head.weight)
    if getattr(head, "bias", None) is not None:
        head.bias = cut(head.bias)
    head.out_features = len(kept)
    model.config.vocab_size = len(kept)


def _named(configs: Iterable[Any]) -> Iterator[tuple[tuple[Any, str], list[int]]]:
    """Every (config, key) that names tokens by id, and the ids."""
    for config in configs:
        for key, value in config.to_dict().items():
            if key.endswith(("_token_id", "_token_ids", "suppress_tokens")) and value is not None:
                yield (config, key), [value] if isinstance(value, int) else list(value)


def _renumber(configs: Iterable[Any], new: dict[int, int]) -> None:
    """Give the tokens that the configs name their new ids; one that is gone is named no more."""
    for (config, key), ids in list(_named(configs)):
        found = [new[i] for i in ids if i in new]
        single = isinstance(getattr(config, key), int)
        setattr(config, key, (found[0] if single else found) if found else None)
