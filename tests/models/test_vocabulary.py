"""A smaller tokenizer cuts the texts it was made for as the old one did, and can still write any other."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.errors import UsageError
from kdbench.models.vocabulary import trim_tokenizer, used_ids
from kdbench.records import Completion, Message, Preference, Text
from tests.support import byte_llama, tiny_llama, trained_bpe

pytestmark = pytest.mark.medium

TEXT = "The cat and the dog ran together under the apple tree; aaa banana, naïve Straße."
WORDS = [*trained_bpe.PAGE.split(), "猫", "🙂", "aaaaa", "ther", "XYZ"]


def trimmed(tokenizer, *texts):
    used = {i for text in texts for i in tokenizer(text, add_special_tokens=False)["input_ids"]}
    return trim_tokenizer(tokenizer, used)


def tokens(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


@pytest.mark.parametrize("ignore_merges", [False, True])
@settings(max_examples=25, deadline=None)
@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=12))
def test_the_texts_are_cut_into_the_same_tokens(ignore_merges, words):
    tokenizer = trained_bpe.tokenizer(ignore_merges=ignore_merges)
    text = " ".join(words)
    small, kept = trimmed(tokenizer, text)
    assert tokens(small, text) == tokens(tokenizer, text)
    # The ids are the old ones, counted anew, in the old order.
    assert [kept[i] for i in small(text)["input_ids"]] == tokenizer(text)["input_ids"]
    assert kept == sorted(kept)
    assert len(small) == len(kept) < len(tokenizer)


def test_any_other_text_can_still_be_written():
    tokenizer = trained_bpe.tokenizer()
    small, _ = trimmed(tokenizer, "The cat")
    other = "Völlig anders: 猫 \x00\t🙂 whatever"
    assert small.decode(small(other)["input_ids"]) == other
    assert len(small) < 300 < len(tokenizer)


def test_only_what_is_needed_is_kept():
    """Special tokens, bytes, the used tokens, and those they grow through: nothing else."""
    tokenizer = trained_bpe.tokenizer()
    spec = json.loads(trained_bpe.inner())
    small, _ = trimmed(tokenizer, " together")
    extra = {t for t in small.get_vocab() if len(t) > 1} - set(trained_bpe.SPECIALS)
    assert tokens(tokenizer, " together") == ["Ġtogether"]
    assert "Ġtogether" in extra
    assert all(token in "Ġtogether" for token in extra)
    merges = json.loads(small.backend_tokenizer.to_str())["model"]["merges"]
    # One merge makes one token, and they stand in the old order.
    assert {a + b for a, b in merges} == extra
    assert merges == [pair for pair in spec["model"]["merges"] if pair in merges]


def test_a_token_that_several_merges_make_keeps_those_it_needs():
    """Tokenizers converted from tiktoken list every way to make a token; most parts are then dropped."""
    spec = json.loads(trained_bpe.inner())
    known = spec["model"]["vocab"]
    text = " together with another feather, weather or not"
    plain = trimmed(trained_bpe.tokenizer(), text)[0].get_vocab()
    others = [
        [token[:i], token[i:]]
        for token in known
        for i in range(1, len(token))
        if token[:i] in known and token[i:] in known and [token[:i], token[i:]] not in spec["model"]["merges"]
    ]
    assert any(a + b in plain and not {a, b} <= plain.keys() for a, b in others)
    spec["model"]["merges"] += others
    tokenizer = trained_bpe.tokenizer(spec=json.dumps(spec))
    small, _ = trimmed(tokenizer, text)
    assert small.get_vocab() == plain
    assert tokens(small, text) == tokens(tokenizer, text)


def test_special_tokens_keep_their_roles_and_get_new_ids():
    spec = json.loads(trained_bpe.inner())
    late = len(spec["model"]["vocab"])
    spec["added_tokens"].append({**spec["added_tokens"][0], "id": late, "content": "<|late|>"})
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|late|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|late|>": {"id": "<|late|>", "ids": [late], "tokens": ["<|late|>"]}},
    }
    tokenizer = trained_bpe.tokenizer(spec=json.dumps(spec))
    assert tokenizer("The cat").input_ids[0] == late
    small, kept = trimmed(tokenizer, "The cat")
    assert kept[-1] == late
    assert small("The cat").input_ids[0] == len(kept) - 1 == small.convert_tokens_to_ids("<|late|>")
    assert (small.eos_token, small.bos_token) == ("<|im_end|>", "<|im_start|>")
    assert small.eos_token_id == small.convert_tokens_to_ids("<|im_end|>")
    assert small.chat_template == tokenizer.chat_template
    assert small.tokenize("<|im_end|>x<|late|>") == ["<|im_end|>", "x", "<|late|>"]


def test_saving_and_loading_keeps_it(tmp_path):
    from transformers import AutoTokenizer

    small, _ = trimmed(trained_bpe.tokenizer(), TEXT)
    small.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == small.get_vocab()
    assert again(TEXT)["input_ids"] == small(TEXT)["input_ids"]


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_tokenizer_classes_of_models(name):
    import transformers

    model = json.loads(trained_bpe.inner())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = getattr(transformers, name)(vocab=model["vocab"], merges=merges, unk_token="<|endoftext|>")
    small, _ = trimmed(tokenizer, TEXT)
    assert type(small) is type(tokenizer)
    assert tokens(small, TEXT) == tokens(tokenizer, TEXT)


def test_bpe_with_byte_fallback():
    """Gemma's and Llama 2's: characters where they are known, else bytes."""
    from transformers import GemmaTokenizer

    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces = [
        *specials,
        *(f"<0x{b:02X}>" for b in range(256)),
        *"▁abcdehlot",
        "he",
        "ll",
        "hell",
        "hello",
        "▁a",
    ]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "a")]
    tokenizer = GemmaTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=merges)
    small, kept = trimmed(tokenizer, "hello a é")
    assert tokens(small, "hello a é") == tokens(tokenizer, "hello a é") == [
        "hello", "▁a", "▁", "<0xC3>", "<0xA9>",
    ]  # fmt: skip
    assert {pieces[i] for i in kept} >= {"h", "e", "he", "ll", "hell", "hello"}
    assert not {pieces[i] for i in kept} & {"b", "c", "d", "t"}
    assert small.decode(small("that")["input_ids"]) == "that"


def test_word_level():
    tokenizer = tiny_llama.tokenizer()
    small, _ = trimmed(tokenizer, "the cat ran")
    assert tokens(small, "the cat ran zebra") == ["the", "cat", "ran", "<unk>"]
    assert tokens(small, "the dog") == ["the", "<unk>"]
    assert set(small.get_vocab()) == {"<unk>", "<|im_end|>", "the", "cat", "ran"}


def unigram(pieces):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.Unigram(pieces, unk_id=2))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")


def test_unigram():
    pieces = [("</s>", 0.0), ("zz", -30.0), ("<unk>", 0.0), ("▁", -3.0), *((c, -5.0) for c in "abcdef"),
              ("▁ab", -4.0), ("cd", -4.5), ("bc", -4.2), ("ef", -6.0), ("▁abc", -9.5)]  # fmt: skip
    tokenizer = unigram(pieces)
    small, kept = trimmed(tokenizer, "abcd ef?")
    assert tokens(small, "abcd ef?") == tokens(tokenizer, "abcd ef?") == ["▁ab", "cd", "▁", "ef", "<unk>"]
    assert [pieces[i][0] for i in kept] == ["</s>", "zz", "<unk>", "▁", *"abcdef", "▁ab", "cd", "ef"]
    assert small.unk_token_id == small.convert_tokens_to_ids("<unk>") == 2


def word_piece():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1})))


def marked_bpe(**more):
    spec = json.loads(trained_bpe.inner())
    spec["model"] |= more
    return trained_bpe.tokenizer(spec=json.dumps(spec))


def charwise_bpe():
    spec = json.loads(trained_bpe.inner())
    return trained_bpe.tokenizer(spec=json.dumps({**spec, "pre_tokenizer": {"type": "Whitespace"}}))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (word_piece, "of the kind WordPiece"),
        (lambda: marked_bpe(end_of_word_suffix="</w>"), "inside or the end of words"),
        (charwise_bpe, "does not work on bytes"),
    ],
)
def test_other_kinds_are_refused(make, why):
    with pytest.raises(UsageError, match=f"cannot be trimmed: .*{why}.*leave `trim_vocabulary` out"):
        trim_tokenizer(make(), {1})


def test_the_used_tokens_are_those_of_prompts_in_the_template_and_of_what_is_learnt():
    tokenizer = byte_llama.tokenizer()

    def used(*samples):
        return set(tokenizer.convert_ids_to_tokens(sorted(used_ids(tokenizer, samples))))

    ask = (Message(role="user", content="xyz"),)
    frame = {"<|im_start|>", "<|im_end|>", "Ċ", "Ġ", *"systemYouaretiny", *"user", *"assistant"}
    done = Completion(prompt=ask, completion=(Message(role="assistant", content="QJ"),),
                      teacher_prompt=(Message(role="user", content="K"),))  # fmt: skip
    assert used(done) == {*frame, *"xyzQJ"}
    assert used(Text(text="QJ")) == set("QJ")
    chosen, rejected = ((Message(role="assistant", content=c),) for c in "QJ")
    assert used(Preference(prompt=ask, chosen=chosen, rejected=rejected)) == {*frame, *"xyzQJ"}
    assert used() == set()
