"""BPE tokenizers with real merges, trained on a page in a moment: byte-level, or like SentencePiece's."""

from __future__ import annotations

import json
from functools import cache

from tests.support.byte_llama import TEMPLATE

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PAGE = (
    "Once upon a time there was a little cat. The cat ran to the garden and sat under the apple tree. "
    "There the cat met a happy dog, and together they ran after a ball until the sun went down. "
    "Another day the dog went to the other side of the river, where the weather was better than there. "
    "Nobody knew whether they would gather feathers together. 12 + 12 = 24; aaaa aaa aa banana ananas. "
    "Über den Fluß geht die Straße, naïve café, 猫が走る。 The end.\n\n"
)


@cache
def inner(size=500, ignore_merges=False) -> str:
    """The tokenizer.json."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(s, special=True) for s in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([PAGE], trainer)
    made.model.ignore_merges = ignore_merges
    return made.to_str()


def tokenizer(template=TEMPLATE, *, spec=None, **more):
    """The trained tokenizer, or that of another tokenizer.json, as transformers holds it."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(spec or inner(**more)),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=template,
    )


@cache
def metaspace(size=400) -> str:
    """The tokenizer.json of one like SentencePiece's: a space before every text, bytes as the last resort."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=size, limit_alphabet=60, show_progress=False)
    made.train_from_iterator([PAGE], trainer)
    learnt = json.loads(made.to_str())["model"]
    tokens = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"]]
    merges = [tuple(pair) for pair in learnt["merges"]]
    made.model = models.BPE({t: i for i, t in enumerate(tokens)}, merges, byte_fallback=True)
    made.add_special_tokens(SPECIALS)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made.to_str()
