"""A byte-level BPE tokenizer with real merges, trained on a page of text in a moment."""

from __future__ import annotations

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
