"""Prompts as the model was trained on them, and nothing put in by accident."""

from __future__ import annotations

import pytest

from kdbench.errors import CallRefused, UsageError
from kdbench.models.chat import end_ids, prompt_ids, student_chat_template
from kdbench.records import Message
from tests.support import byte_llama

pytestmark = pytest.mark.medium

ASK = [Message(role="user", content="Hi")]


@pytest.fixture
def tokenizer():
    return byte_llama.tokenizer()


def test_a_teacher_keeps_its_own_template(tokenizer):
    text = tokenizer.decode(prompt_ids(tokenizer, ASK))
    assert text == (
        "<|im_start|>system\nYou are tiny<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_students_template_has_no_default_system_message(tokenizer):
    tokenizer.chat_template = student_chat_template(tokenizer)
    assert tokenizer.decode(prompt_ids(tokenizer, ASK)) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_students_prompt_keeps_what_was_written(tokenizer):
    tokenizer.chat_template = student_chat_template(tokenizer)
    turns = [
        Message(role="system", content=" Be kind. "),
        Message(role="user", content="One\n"),
        Message(role="assistant", content="Two", reasoning="thought"),
        Message(role="user", content="Three"),
    ]
    assert tokenizer.decode(prompt_ids(tokenizer, turns)) == (
        "<|im_start|>system\n Be kind. <|im_end|>\n<|im_start|>user\nOne\n<|im_end|>\n"
        "<|im_start|>assistant\nTwo<|im_end|>\n<|im_start|>user\nThree<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_template_survives_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.chat_template = student_chat_template(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert prompt_ids(again, ASK) == prompt_ids(tokenizer, ASK)


def test_special_tokens_are_single_ids(tokenizer):
    ids = prompt_ids(tokenizer, ASK)
    assert all(type(i) is int for i in ids)
    assert ids.count(1) == 3
    assert ids.count(2) == 2


def test_a_tokenizer_without_chat_marks_gets_plain_text(tokenizer):
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.chat_template = student_chat_template(tokenizer)
    turns = [*ASK, Message(role="assistant", content="Yes"), *ASK]
    assert tokenizer.decode(prompt_ids(tokenizer, turns)) == (
        "user:\nHi\n\nassistant:\nYes<|endoftext|>\n\nuser:\nHi\n\nassistant:\n"
    )


def test_no_end_no_student(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="could never stop"):
        student_chat_template(tokenizer)


def test_no_template_no_chat(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(UsageError, match="no chat template"):
        prompt_ids(tokenizer, ASK)


def test_messages_that_the_template_refuses(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('Only user and assistant roles') }}"
    with pytest.raises(CallRefused, match="Only user and assistant"):
        prompt_ids(tokenizer, ASK)


def test_ends_come_from_tokenizer_and_configs(tokenizer):
    model = byte_llama.model()
    assert end_ids(tokenizer, model.generation_config, model.config) == (2,)
    model.generation_config.eos_token_id = [0, 2]
    assert end_ids(tokenizer, model.generation_config, model.config) == (0, 2)
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    tokenizer.eos_token = None
    assert end_ids(tokenizer, model.generation_config, model.config) == ()
