"""Cases as `fit` and `doctor` make them, with a fault put in where one is wanted."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from kdbench.checks.case import Case
from kdbench.errors import NothingLeft
from kdbench.models.alignment import encode_aligned
from kdbench.models.sequences import Reader, encode, split
from tests.trainers.tiny import tokenizer

SOUND = object()


def reader(template=None, *, eos=SOUND, head=None, window=128, words=None, **more):
    """A reader with the tiny tokenizer, in whose configs `eos` and `head` can be set."""
    tok = tokenizer(**({"template": template} if template else {}), **({"words": words} if words else {}))
    for name, value in more.items():
        setattr(tok, name, value)
    eos = tok.eos_token_id if eos is SOUND else eos
    generation = SimpleNamespace(eos_token_id=eos)
    config = SimpleNamespace(eos_token_id=eos, vocab_size=head or len(tok), max_position_embeddings=window)
    return Reader(tok, (generation, config))


def case(samples, student=None, teacher=None, *, max_length=1024, share=0.25, **more) -> Case:
    """Encoded and split as in a training."""
    student = student or reader()
    make = encode_aligned if more.get("two_tokenizers") else encode
    try:
        sequences = make(samples, student, teacher, max_length)
    except NothingLeft:
        sequences = []
    return Case(samples, student, teacher, max_length, *split(sequences, share, 0), **more)


def altered(found: Case, sample: str, **change) -> Case:
    """The case with another sequence for one sample: what a faulty `encode` would have made."""

    def new(one):
        if found.name(one.sample) != sample:
            return one
        return replace(one, **{k: v(getattr(one, k)) if callable(v) else v for k, v in change.items()})

    return replace(
        found, train=[new(one) for one in found.train], validation=[new(one) for one in found.validation]
    )


def of(found, level):
    """The findings of a level."""
    return [one for one in found if one.level == level]


def only(found):
    """The one finding there is."""
    (one,) = found
    return one
