"""A model with a trimmed vocabulary gives the tokens it kept the logits they had."""

from __future__ import annotations

import pytest

from kdbench.errors import UsageError
from kdbench.models.trimming import trim_vocabulary
from kdbench.records import Completion, Message
from tests.support import byte_llama, trained_bpe

pytestmark = pytest.mark.medium

SAMPLES = [
    Completion(
        prompt=(Message(role="user", content="The cat and the dog"),),
        completion=(Message(role="assistant", content="They ran together under the apple tree."),),
    )
]


def logits(model, ids):
    import torch

    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("padding", [0, 12])
def test_the_logits_of_the_kept_tokens_stay(tied, padding, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = trained_bpe.tokenizer()
    shape = {"vocab_size": len(tokenizer) + padding, "tie_word_embeddings": tied}
    old, model = byte_llama.model(**shape), byte_llama.model(**shape)
    small, facts = trim_vocabulary(model, tokenizer, SAMPLES, "it")
    vocabulary = tokenizer.get_vocab()
    kept = [vocabulary[t] for t, _ in sorted(small.get_vocab().items(), key=lambda item: item[1])]
    assert facts == {
        "vocabulary": len(kept), "vocabulary_before": len(tokenizer), "shares_teacher_vocabulary": False,
    }  # fmt: skip
    text = "The dog and the cat ran under the tree"
    expected = logits(old, tokenizer(text).input_ids)[:, kept]
    torch.testing.assert_close(logits(model, small(text).input_ids), expected, rtol=1e-5, atol=1e-5)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.vocab_size == len(small) == len(kept)
    assert torch.equal(logits(again, small(text).input_ids), logits(model, small(text).input_ids))
    ids = torch.tensor([small(text).input_ids])
    assert model(ids, labels=ids).loss == again(ids, labels=ids).loss


def test_the_configs_name_the_same_tokens_by_their_new_ids():
    tokenizer = trained_bpe.tokenizer()
    model = byte_llama.model(vocab_size=len(tokenizer) + 8)
    by, rare = tokenizer.convert_tokens_to_ids, tokenizer.convert_tokens_to_ids("Ġfeathers")
    model.config.bos_token_id = by("<|im_start|>")
    model.config.pad_token_id = len(tokenizer) + 3  # a row that no token has
    model.generation_config.eos_token_id = [by("<|im_end|>"), rare]
    model.generation_config.suppress_tokens = [len(tokenizer) + 3]
    small, _ = trim_vocabulary(model, tokenizer, SAMPLES, "it")
    new = small.convert_tokens_to_ids
    assert "Ġfeathers" in small.get_vocab()  # kept because the config names it
    assert model.generation_config.eos_token_id == [new("<|im_end|>"), new("Ġfeathers")] != [2, rare]
    assert model.config.bos_token_id == new("<|im_start|>")
    assert model.config.pad_token_id is None
    assert model.generation_config.suppress_tokens is None


def test_the_padding_row_stays_out_of_the_gradient():
    import torch

    tokenizer = trained_bpe.tokenizer()
    model = byte_llama.model(vocab_size=len(tokenizer), pad_token_id=tokenizer.convert_tokens_to_ids("Ġtree"))
    small, _ = trim_vocabulary(model, tokenizer, SAMPLES, "it")
    assert model.model.embed_tokens.padding_idx == small.convert_tokens_to_ids("Ġtree")
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    assert model.model.embed_tokens.weight.grad.abs().sum() > 0  # the new weights learn


def test_no_data_no_trimming():
    tokenizer = trained_bpe.tokenizer()
    with pytest.raises(UsageError, match=r"needs the data.*--data"):
        trim_vocabulary(byte_llama.model(vocab_size=len(tokenizer)), tokenizer, [], "it")


def test_a_tokenizer_that_is_larger_than_the_model():
    tokenizer = trained_bpe.tokenizer()
    model = byte_llama.model(vocab_size=300)
    with pytest.raises(UsageError, match="embeddings for 300"):
        trim_vocabulary(model, tokenizer, SAMPLES, "it")
