"""A tokenizer that knows only the tokens its data uses, and goes on writing any text.

    used = used_ids(tokenizer, samples)         # {1, 2, 198, 3363, ...}: prompts in the template, completions
    small, kept = trim_tokenizer(tokenizer, used)
    kept                                        # [0, 1, 2, 17, 28, ...]: the old id of each new one

Kept besides the used tokens: every special or added one; every single byte, so that any text can be
written; and, for byte-pair encoding, every token on the way to a kept one. BPE merges the pair of lowest rank
first, so a token grows through a fixed row of smaller ones: " cat" is made from " c" + "at". Merges that lead
elsewhere are dropped and the others keep their order. At every step of a text whose tokens are all kept, the
merge that the old tokenizer takes is still there and still the first, so it is cut into the same tokens.

Unigram takes the likeliest cut, which stays the likeliest among fewer; WordLevel looks words up. WordPiece
and tokenizers without a tokenizer.json are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kdbench.errors import UsageError
from kdbench.models.chat import prompt_ids
from kdbench.models.loading import quiet_transformers
from kdbench.records import Completion, Preference, Sample, Text

_Merges = dict[tuple[str, str], int]


def used_ids(tokenizer: Any, samples: Iterable[Sample]) -> set[int]:
    """The ids of every token that the samples are made of, prompts in the chat template.

    Raises UsageError for a tokenizer without a template, CallRefused for messages it turns down.
    """
    used: set[int] = set()
    for sample in samples:
        for text in _texts(sample):
            used.update(tokenizer(text, add_special_tokens=False)["input_ids"])
        if not isinstance(sample, Text):
            used.update(prompt_ids(tokenizer, sample.prompt))
    return used


def _texts(sample: Sample) -> Iterator[str]:
    """What is learnt: tokenised by itself, outside any template."""
    if isinstance(sample, Completion | Text):
        yield sample.text
    elif isinstance(sample, Preference):
        yield from (message.content for message in (*sample.chosen, *sample.rejected))


def trim_tokenizer(tokenizer: Any, used: Iterable[int]) -> tuple[Any, list[int]]:
    """The smaller tokenizer, and the old id of each of its tokens.

    Raises UsageError for a kind of tokenizer that cannot be trimmed.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise _refused("it has no tokenizer.json")
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    model = spec["model"]
    trim = {"BPE": _trim_bpe, "Unigram": _trim_unigram, "WordLevel": _trim_word_level}.get(model["type"])
    if trim is None:
        raise _refused(f"it is of the kind {model['type']}, and BPE, Unigram and WordLevel are known")
    wanted = {*used, *_named_in(spec.get("post_processor"))}
    wanted |= {token["id"] for token in spec["added_tokens"]}
    kept = sorted(trim(spec, wanted))
    new = {old: i for i, old in enumerate(kept)}
    _renumber(spec, new)
    small = reloaded(tokenizer, spec)
    expected = {token: new[old] for token, old in tokenizer.get_vocab().items() if old in new}
    if small.get_vocab() != expected:  # a class that puts in tokens of its own
        raise _refused(f"its class {type(tokenizer).__name__} does not take a smaller vocabulary as it is")
    return small, kept


def _trim_bpe(spec: dict[str, Any], wanted: set[int]) -> set[int]:
    model = spec["model"]
    vocab: dict[str, int] = model["vocab"]
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _refused("its BPE marks the inside or the end of words")
    merges: _Merges = {(a, b): rank for rank, (a, b) in enumerate(model["merges"])}
    strings = {i: token for token, i in vocab.items()}
    tokens = _single_bytes(spec)
    # Added tokens are found before BPE begins, and single bytes need no merge.
    whole = tokens | {token["content"] for token in spec["added_tokens"]}
    for token in {strings[i] for i in wanted & strings.keys()} - whole:
        tokens.update(_grown_from(token, merges))
    model["vocab"] = {token: i for token, i in vocab.items() if token in tokens or i in wanted}
    model["merges"] = [[a, b] for a, b in merges if {a, b, a + b} <= tokens]
    return wanted | set(model["vocab"].values())


def _single_bytes(spec: dict[str, Any]) -> set[str]:
    """The 256 tokens that can write anything. Raises UsageError for a BPE that has none."""
    if spec["model"].get("byte_fallback"):
        return {f"<0x{byte:02X}>" for byte in range(256)}
    if "ByteLevel" in {*_kinds(spec.get("pre_tokenizer")), *_kinds(spec.get("normalizer"))}:
        from tokenizers.pre_tokenizers import ByteLevel

        return set(ByteLevel.alphabet())
    raise _refused("its BPE does not work on bytes, so a smaller one could not write every text")


def _kinds(part: Any) -> Iterator[str]:
    """The types of a pre-tokenizer or normalizer and of all that it is made of."""
    if isinstance(part, dict):
        yield from [part["type"]] if isinstance(part.get("type"), str) else []
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from _kinds(inner)


def _grown_from(token: str, merges: _Merges) -> Iterator[str]:
    """The token and every smaller one that it passes through when BPE makes it from its characters.

    A token of a longer text is made in the same steps as alone: merges across its ends did not happen,
    or it would not be a token of that text.
    """
    yield token
    parts = list(token)
    yield from parts
    while len(parts) > 1:
        rank, i = min((merges.get(pair, len(merges)), i) for i, pair in enumerate(pairwise(parts)))
        if rank == len(merges):
            return  # a whole word that the tokenizer looks up without merging (ignore_merges)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        yield parts[i]


def _trim_unigram(spec: dict[str, Any], wanted: set[int]) -> set[int]:
    """Also keeps single characters, and the unlikeliest piece: the cost of the unknown is taken from it."""
    pieces = spec["model"]["vocab"]
    single = {i for i, (piece, _) in enumerate(pieces) if len(piece) == 1 or _is_byte(piece)}
    lowest = min(range(len(pieces)), key=lambda i: pieces[i][1])
    kept = wanted | single | {lowest} | ({spec["model"]["unk_id"]} - {None})
    spec["model"]["vocab"] = [piece for i, piece in enumerate(pieces) if i in kept]
    return kept


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _trim_word_level(spec: dict[str, Any], wanted: set[int]) -> set[int]:
    model = spec["model"]
    kept = wanted | {model["vocab"][t] for t in [model.get("unk_token")] if t in model["vocab"]}
    model["vocab"] = {token: i for token, i in model["vocab"].items() if i in kept}
    return kept


def _named_in(post_processor: Any) -> set[int]:
    """The ids that a post-processor puts around a text."""
    found: list[int] = []

    def note(i: int) -> int:
        found.append(i)
        return i

    _each_id(post_processor, note)
    return set(found)


def _each_id(part: Any, change: Callable[[int], int]) -> None:
    """Put `change(id)` in the place of every id inside a post-processor."""
    if isinstance(part, list):
        for inner in part:
            _each_id(inner, change)
    if not isinstance(part, dict):
        return
    for key, value in part.items():
        if key == "ids":  # of a template's special token
            part[key] = [change(i) for i in value]
        elif key in ("sep", "cls") and isinstance(value, list):  # of Bert's and Roberta's: [token, id]
            part[key] = [value[0], change(value[1])]
        else:
            _each_id(value, change)


def _renumber(spec: dict[str, Any], new: dict[int, int]) -> None:
    """Every id of a tokenizer.json whose vocabulary was cut down."""
    model = spec["model"]
    if model["type"] == "Unigram":
        if model["unk_id"] is not None:
            model["unk_id"] = new[model["unk_id"]]
    else:
        model["vocab"] = {token: new[old] for token, old in model["vocab"].items()}
    for token in spec["added_tokens"]:
        token["id"] = new[token["id"]]
    _each_id(spec.get("post_processor"), lambda i: new[i])
    if spec.get("padding"):
        spec["padding"]["pad_id"] = new.get(spec["padding"]["pad_id"], 0)


def reloaded(tokenizer: Any, spec: dict[str, Any]) -> Any:
    """The tokenizer with another tokenizer.json, through a folder, as everybody will load it."""
    from transformers import AutoTokenizer

    with TemporaryDirectory() as folder, quiet_transformers():
        tokenizer.save_pretrained(folder)
        for stale in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer.model"):
            (Path(folder) / stale).unlink(missing_ok=True)
        path = Path(folder) / "tokenizer_config.json"
        settings = json.loads(path.read_bytes())
        settings.pop("added_tokens_decoder", None)  # transformers 4 wrote it: it holds the old ids
        path.write_text(json.dumps(settings), encoding="utf-8")
        (Path(folder) / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
        small = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    small.name_or_path = tokenizer.name_or_path  # not the folder that is gone
    return small


def _refused(why: str) -> UsageError:
    return UsageError(
        f"The vocabulary of this tokenizer cannot be trimmed: {why}; leave `trim_vocabulary` out"
    )
