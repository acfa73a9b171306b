"""Tiny random Llama models with a word-level tokenizer, saved as folders of weights."""

from __future__ import annotations

from pathlib import Path

from kdbench.records import Completion, Message, Origin

_TEXT = "write a story about the cat dog sun who was happy and sad then ran home to sleep again . be kind"
WORDS = _TEXT.split()
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> newline {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def tokenizer(words=WORDS):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<unk>", "<|im_start|>", "<|im_end|>", "user", "assistant", "system", "newline"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*specials, *words])}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=TEMPLATE,
    )


def save_model(folder: Path, *, seed=0, layers=2, hidden=16, padded_to=None, words=WORDS, window=128) -> str:
    """A random Llama and its tokenizer; the reference is the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    made = tokenizer(words)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=padded_to or len(made),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=window,
        tie_word_embeddings=True,
        initializer_range=0.3,
        eos_token_id=made.eos_token_id,
        bos_token_id=None,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    made.save_pretrained(folder)
    return str(folder)


def story(number: int, *, teacher_saw: str | None = None, finish_reason: str = "stop") -> Completion:
    """A sample whose length and text depend on its number."""
    text = " ".join(WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(3 + number % 5))
    asked = f"write a story about {WORDS[number % len(WORDS)]}"
    return Completion(
        id=f"ab12-{number}-0",
        prompt=(Message(role="user", content=asked),),
        completion=(Message(role="assistant", content=text),),
        teacher_prompt=(Message(role="user", content=f"{teacher_saw} {asked}"),) if teacher_saw else None,
        fields='{"words": ["cat", "run", "happy"]}',
        origin=Origin(seed=number, finish_reason=finish_reason),
    )


def stories(count: int, **more) -> tuple[Completion, ...]:
    """The first stories, in the order of their numbers."""
    return tuple(story(n, **more) for n in range(count))
