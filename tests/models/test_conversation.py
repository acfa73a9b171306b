"""A conversation: streamed, remembered, stopped, begun anew."""

from __future__ import annotations

import pytest

from kdbench.errors import CallRefused, UsageError
from kdbench.records import Message
from kdbench.teacher import Sampling
from tests.support import byte_llama

pytestmark = pytest.mark.medium


def talking(temperature=1.0, max_tokens=12, system=None, seed=0, template=byte_llama.TEMPLATE, **more):
    from kdbench.models.conversation import Conversation

    sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
    return Conversation(
        byte_llama.model(layers=1, **more), byte_llama.tokenizer(template), sampling, system=system, seed=seed
    )


def said(talk, *messages):
    return [talk.reply(message, lambda piece: None).text for message in messages]


def test_the_pieces_are_the_reply():
    talk, pieces = talking(max_tokens=300, temperature=1.5), []
    spoken = talk.reply("Hi", pieces.append)
    assert "".join(pieces) == spoken.text
    assert len(pieces) > 1
    assert "" not in pieces
    assert not spoken.stopped
    assert talk.history == [
        Message(role="user", content="Hi"),
        Message(role="assistant", content=spoken.text),
    ]


def test_a_greedy_reply_is_what_the_model_says():
    """Greedy tokens until the end of the turn, found one by one."""
    import torch

    from kdbench.models.chat import prompt_ids

    talk = talking(temperature=0, max_tokens=6)
    ids = prompt_ids(talk.tokenizer, [Message(role="user", content="Hi")])
    reply = []
    for _ in range(6):
        with torch.inference_mode():
            reply.append(int(talk.model(torch.tensor([ids + reply])).logits[0, -1].argmax()))
    assert said(talk, "Hi") == [talk.tokenizer.decode(reply, skip_special_tokens=True)]


@pytest.mark.parametrize("special", [True, False])
def test_the_turn_ends_at_any_of_its_ends_which_are_no_part_of_it(special):
    talk = talking(temperature=0, max_tokens=30)
    whole = said(talk, "Hi")[0]
    letter = next(c for c in whole if c.isascii() and c.isprintable())
    end = talk.tokenizer.convert_tokens_to_ids(letter)
    stops = talking(temperature=0, max_tokens=30)
    stops._ends = (2, end) if special else (end,)
    assert said(stops, "Hi") == [whole[: whole.index(letter)]]


def test_the_same_seed_gives_the_same_conversation_and_draws_go_on_after_a_reset():
    import torch

    before = torch.random.get_rng_state()
    first = said(talking(seed=3), "Hi", "And?")
    assert said(talking(seed=3), "Hi", "And?") == first != said(talking(seed=4), "Hi", "And?")
    assert torch.equal(torch.random.get_rng_state(), before)
    talk = talking(seed=3)
    said(talk, "Hi")
    talk.reset()
    assert said(talk, "Hi") != first[:1]


def test_what_was_said_is_part_of_the_prompt(monkeypatch):
    from kdbench.models import conversation

    seen = []
    render = conversation.prompt_ids
    monkeypatch.setattr(
        conversation, "prompt_ids", lambda t, turns: seen.append(list(turns)) or render(t, turns)
    )
    talk = talking(system="Be kind")
    first, second = said(talk, "One", "Two")
    talk.reset()
    said(talk, "Three")
    turns = [[(m.role, m.content) for m in one] for one in seen[1:]]
    system = ("system", "Be kind")
    assert turns == [
        [system, ("user", "One")],
        [system, ("user", "One"), ("assistant", first), ("user", "Two")],
        [system, ("user", "Three")],
    ]
    assert second


def test_an_interrupt_keeps_what_was_said():
    talk, heard = talking(max_tokens=400, temperature=1.5), []

    def interrupt(piece):
        heard.append(piece)
        if len(heard) == 2:
            raise KeyboardInterrupt

    spoken = talk.reply("Hi", interrupt)
    assert spoken.stopped
    assert spoken.text.startswith("".join(heard[:2]))
    assert talk.history[-1].content == spoken.text
    assert len(said(talk, "Go on")) == 1


def test_an_interrupt_between_two_words_keeps_the_part_of_a_word():
    talk, calls = talking(temperature=0, max_tokens=40), []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt

    talk.model.register_forward_pre_hook(interrupt)
    spoken = talk.reply("Hi", lambda piece: None)
    assert spoken.stopped
    assert [spoken.text] == said(talking(temperature=0, max_tokens=6), "Hi")


def test_a_reply_ends_where_the_model_reads_no_further():
    from kdbench.models.chat import prompt_ids

    talk, calls = talking(temperature=0, max_tokens=300, max_position_embeddings=100), []
    talk.model.register_forward_pre_hook(lambda *_: calls.append(1))
    said(talk, "Hi")
    assert len(calls) == 100 - len(prompt_ids(talk.tokenizer, talk.history[:1]))


def test_a_conversation_that_no_longer_fits():
    talk = talking(max_tokens=300, max_position_embeddings=80)
    with pytest.raises(UsageError, match="tokens long and the model reads 80; begin anew with /reset"):
        said(talk, "x" * 80)
    assert talk.history == []
    said(talk, "Hi")  # as long as there is room
    assert len(talk.history) == 2


def test_a_model_that_cannot_chat_says_so_at_once():
    with pytest.raises(UsageError, match="no chat template"):
        talking(template=None)


def test_a_template_without_a_system_message_says_so_at_once():
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}x"
    with pytest.raises(CallRefused, match="No system role"):
        talking(template=template, system="Be kind")
    assert talking(template=template).history == []
