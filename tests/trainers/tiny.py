"""Tiny random models with a word-level tokenizer, saved as folders of weights."""

from __future__ import annotations

from pathlib import Path

from kdbench.records import Completion, Message, Origin

WORDS = [
    "write",
    "a",
    "story",
    "about",
    "the",
    "cat",
    "dog",
    "sun",
    "who",
    "was",
    "happy",
    "and",
    "sad",
    "then",
    "ran",
    "home",
    "to",
    "sleep",
    "again",
    ".",
    "be",
    "kind",
]
CHATML = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> newline {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def tokenizer(words=WORDS, template=CHATML, pad_token="<|im_end|>"):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<unk>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {w: i for i, w in enumerate([*specials, "user", "assistant", "system", "newline", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token=pad_token,
        chat_template=template,
    )


def save_model(
    folder: Path, *, seed=0, layers=2, hidden=16, padded_to=None, tie=True, dropout=0.0, tok=None
) -> str:
    """A random Llama with the tiny tokenizer; its reference."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tok = tok or tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=padded_to or len(tok),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=tie,
        attention_dropout=dropout,
        initializer_range=0.3,
        eos_token_id=tok.eos_token_id,
        bos_token_id=None,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def story(number: int, words: int = 6, finish_reason: str = "stop", **more) -> Completion:
    """A sample whose text depends on its number."""
    text = " ".join(WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(words))
    asked = f"write a story about {WORDS[number % len(WORDS)]}"
    return Completion(
        id=f"s{number}",
        prompt=(Message(role="user", content=asked),),
        completion=(Message(role="assistant", content=text),),
        origin=Origin(seed=number, finish_reason=finish_reason),
        **more,
    )


def stories(count: int) -> list[Completion]:
    """Samples of different lengths."""
    return [story(n, words=3 + n % 5) for n in range(count)]
