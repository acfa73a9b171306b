"""A vocabulary that grows with the words of a domain (AdaLM, Yao et al. 2021, arXiv 2106.13474, section 3.1).

    growth = grow(tokenizer, ["angiotensin raises ...", ...], step=1000)
    growth.rounds                        (Round(49152, -412.8), Round(50152, -380.1), Round(51152, -377.9))
    bigger = with_merges(tokenizer, growth.merges)
    "angiotensin"                        ang|iot|ens|in  ->  angiotensin: one token more, known to nobody yet
    grow_embeddings(model, tokenizer, bigger)       # its row is the mean of those of ang, iot, ens and in

The paper trains a WordPiece vocabulary anew with the old entries reserved. A byte-level BPE is made of
merges, so here it goes on merging on the domain's words from where it stopped: the new merges rank below all
old ones, a text is first cut as before, and every old token keeps its id. Sizes are counted from the old
vocabulary; the paper first rounds that down to a multiple of the step.
"""

from __future__ import annotations

import heapq
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from kdbench.errors import UsageError
from kdbench.models.vocabulary import reloaded

Pair = tuple[str, str]
Cut = tuple[Sequence[str], int]  # a word as its tokens, and how often it stands in the corpus


@dataclass(frozen=True, slots=True)
class Round:
    """A vocabulary's size, and P(D): log-likelihood of a document under it, on average, in nats."""

    vocabulary: int
    log_likelihood: float


@dataclass(frozen=True, slots=True)
class Growth:
    """The merges that a tokenizer gains, each of which makes one new token, and how they were found."""

    merges: tuple[Pair, ...]
    rounds: tuple[Round, ...]


def grow(
    tokenizer: Any,
    texts: Sequence[str],
    *,
    step: int = 10_000,
    tolerance: float = 0.01,
    min_count: int = 2,
) -> Growth:
    """Merges for the words of `texts`, `step` a round, until a round gains P(D) no more than `tolerance`.

    p(w) = count(w) / total and P(D) = mean over documents of the sum of log p(w), on the corpus as the
    round's vocabulary cuts it; the last round is the first with (P_before - P_now) / P_before <= tolerance.
    It is kept, as in the paper, unless P fell. A pair that stands less than `min_count` times is not merged.
    Raises UsageError for a tokenizer that is no byte-level BPE, or where there is no text.
    """
    spec = _checked_spec(tokenizer)
    words = word_counts(tokenizer, texts)
    if not words:
        raise UsageError("A vocabulary grows from the words of domain text, and the texts given have none")
    cut = _cut(spec, words)
    rounds = [Round(len(tokenizer), log_likelihood(cut, len(texts)))]
    merges: list[Pair] = []
    gain = math.inf
    while gain > tolerance:
        found = learn_merges(cut, step, _tokens(spec), min_count)
        if not found:
            break
        _append(spec, found)
        cut = _cut(spec, words)
        before, now = rounds[-1].log_likelihood, log_likelihood(cut, len(texts))
        gain = (before - now) / before
        if gain <= 0:
            break
        merges += found
        rounds.append(Round(len(tokenizer) + len(merges), now))
    return Growth(tuple(merges), tuple(rounds))


def word_counts(tokenizer: Any, texts: Iterable[str]) -> Counter[str]:
    """How often each word stands in the texts, as the tokenizer takes them apart before it merges."""
    backend = tokenizer.backend_tokenizer
    added = [re.escape(token.content) for token in backend.get_added_tokens_decoder().values()]
    words: Counter[str] = Counter()
    for text in texts:
        for part in re.split("|".join(sorted(added, key=len, reverse=True)), text) if added else [text]:
            normal = backend.normalizer.normalize_str(part) if backend.normalizer else part
            words.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
    return words


def log_likelihood(cut: Iterable[Cut], documents: int) -> float:
    """P(D): the sum over all tokens of log(count / total), divided by the number of documents."""
    counts: Counter[str] = Counter()
    for parts, times in cut:
        for token in parts:
            counts[token] += times
    total = counts.total()
    return math.fsum(n * math.log(n / total) for n in counts.values()) / documents


def learn_merges(cut: Iterable[Cut], count: int, taken: Iterable[str], min_count: int) -> list[Pair]:
    """Up to `count` merges of the most frequent neighbours, one after the other (Sennrich et al. 2016).

    Of equally frequent pairs the alphabetically first is taken. A merge into a token that is `taken`
    already is passed over, so that each token is made in one way only: then no new merge can bring about
    an older one, and a tokenizer applies them in the order in which they were learnt.
    """
    words = [(list(parts), times) for parts, times in cut]
    pairs: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)
    for place, (parts, times) in enumerate(words):
        for pair in pairwise(parts):
            pairs[pair] += times
            places[pair].add(place)
    heap = [(-times, pair) for pair, times in pairs.items()]
    heapq.heapify(heap)
    used, merges = set(taken), list[Pair]()
    while heap and len(merges) < count:
        times, pair = heapq.heappop(heap)
        if -times != pairs[pair] or (joined := pair[0] + pair[1]) in used:
            continue  # an old number: the pair is in the heap again with its new one
        if -times < min_count:
            break
        used.add(joined)
        merges.append(pair)
        changed: set[Pair] = set()
        for place in places.pop(pair):
            parts, times = words[place]
            for old in pairwise(parts):
                pairs[old] -= times
                changed.add(old)
            _merge(parts, pair)
            for new in pairwise(parts):
                pairs[new] += times
                places[new].add(place)
                changed.add(new)
        for one in changed:
            if pairs[one] > 0:
                heapq.heappush(heap, (-pairs[one], one))
    return merges


def _merge(parts: list[str], pair: Pair) -> None:
    """Join every occurrence of the pair, from the left."""
    i = 0
    while i < len(parts) - 1:
        if (parts[i], parts[i + 1]) == pair:
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        i += 1


def with_merges(tokenizer: Any, merges: Sequence[Pair]) -> Any:
    """The tokenizer with these merges after its own; their tokens get the ids after the last.

    Raises UsageError for a tokenizer that is no byte-level BPE.
    """
    spec = _checked_spec(tokenizer)
    expected = tokenizer.get_vocab() | _append(spec, merges)
    bigger = reloaded(tokenizer, spec)
    if bigger.get_vocab() != expected:  # a class that puts in tokens of its own
        raise _refused(f"its class {type(tokenizer).__name__} does not take a larger vocabulary as it is")
    return bigger


def grow_embeddings(model: Any, tokenizer: Any, bigger: Any) -> None:
    """Give every token of `bigger` that `tokenizer` lacks a row: the mean of its old pieces' rows.

    So in the input embedding and, where it is not tied, in the head; rows that only padded the model are
    used first. The model is changed in place.
    """
    import torch

    bpe = tokenizer.backend_tokenizer.model
    known = tokenizer.get_vocab()
    pieces = {
        i: [piece.id for piece in bpe.tokenize(token)]
        for token, i in bigger.get_vocab().items()
        if token not in known
    }
    rows = 1 + max(pieces, default=-1)
    if rows > model.get_input_embeddings().weight.shape[0]:
        with torch.random.fork_rng(devices=[]):  # draws rows that are overwritten at once
            model.resize_token_embeddings(rows, mean_resizing=False)
    head = model.get_output_embeddings()
    parts = (model.get_input_embeddings().weight, head.weight, getattr(head, "bias", None))
    with torch.no_grad():
        for weight in {id(part): part for part in parts if part is not None}.values():
            for i, old in pieces.items():
                weight[i] = weight[old].mean(0)


def _checked_spec(tokenizer: Any) -> dict[str, Any]:
    """The tokenizer.json. Raises UsageError where its merges cannot be gone on with."""
    if not getattr(tokenizer, "is_fast", False):
        raise _refused("it has no tokenizer.json")
    spec: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model = spec["model"]
    if model["type"] != "BPE":
        raise _refused(f"it is of the kind {model['type']}, and only BPE goes on from its merges")
    if '"ByteLevel"' not in json.dumps(spec["pre_tokenizer"]):
        raise _refused("its BPE does not work on the bytes of words")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _refused("its BPE marks the inside or the end of words")
    return spec


def _tokens(spec: dict[str, Any]) -> set[str]:
    return {*spec["model"]["vocab"], *(token["content"] for token in spec["added_tokens"])}


def _append(spec: dict[str, Any], merges: Sequence[Pair]) -> dict[str, int]:
    """Put merges and their tokens into a tokenizer.json; the new ids."""
    model = spec["model"]
    # Added tokens that the vocabulary lacks would be counted on from its end, which moves.
    model["vocab"] |= {token["content"]: token["id"] for token in spec["added_tokens"]}
    first = 1 + max(model["vocab"].values())
    new = {a + b: i for i, (a, b) in enumerate(merges, start=first)}
    model["merges"] += [[a, b] for a, b in merges]
    model["vocab"] |= new
    return new


def _cut(spec: dict[str, Any], words: Counter[str]) -> list[Cut]:
    """Every word as the tokenizer of this tokenizer.json cuts it."""
    from tokenizers import Tokenizer

    bpe = Tokenizer.from_str(json.dumps(spec)).model
    return [([token.value for token in bpe.tokenize(word)], times) for word, times in words.items()]


def _refused(why: str) -> UsageError:
    return UsageError(f"The vocabulary of this tokenizer cannot grow: {why}; leave `grow` out")
