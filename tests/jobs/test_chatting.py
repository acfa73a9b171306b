"""`kdbench chat`: every line a message, every reply printed; a terminal gets a prompt and a second chance."""

from __future__ import annotations

import io

import pytest

from kdbench.errors import ConfigError, UsageError
from kdbench.jobs.chatting import chat
from tests.support import byte_llama

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return byte_llama.save(tmp_path_factory.mktemp("model"), layers=1)


def talk(model, *lines, **more):
    """The replies and what was written."""
    out = io.StringIO()
    return chat(model, lines=lines, out=out, **{"max_tokens": 8, "seed": 1, **more}), out.getvalue()


def test_every_line_is_answered(model):
    replies, written = talk(model, "Hi\n", "\n", "And?\n")
    assert len(replies) == 2
    assert written == "".join(f"{reply}\n" for reply in replies)


def test_reset_and_exit(model):
    first = talk(model, "Hi", "Hi", temperature=0)[0]
    again = talk(model, "Hi", "/reset", "Hi", "/exit", "Hi", temperature=0)[0]
    assert first[0] != first[1]  # the second one knows the first
    assert again == [first[0], first[0]]


def test_the_options_reach_the_model(model):
    assert talk(model, "Hi", temperature=0)[0] == talk(model, "Hi", temperature=0, seed=9)[0]
    assert talk(model, "Hi")[0] != talk(model, "Hi", seed=9)[0]
    assert talk(model, "Hi", temperature=0)[0] != talk(model, "Hi", temperature=0, system="Be kind")[0]
    short, long = (talk(model, "Hi", temperature=0, max_tokens=n)[0][0] for n in (2, 12))
    assert len(short) < len(long)
    assert long.startswith(short.rstrip("�"))


def test_a_command_that_does_not_exist_and_text_that_is_none(model):
    with pytest.raises(UsageError, match="No command '/rest'; there are /reset and /exit"):
        talk(model, "Hi", "/rest")
    assert len(talk(model, "/etc/passwd", "/ what?")[0]) == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [({"temperature": 3}, "temperature = 3"), ({"max_tokens": 0}, "max_tokens = 0")],
)
def test_options_out_of_range(model, more, said):
    with pytest.raises(ConfigError, match=said):
        talk(model, "Hi", **more)


def test_a_model_without_a_chat_template(tmp_path):
    byte_llama.model(layers=1).save_pretrained(tmp_path)
    byte_llama.tokenizer(template=None).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="no chat template"):
        talk(str(tmp_path), "Hi")


def test_no_such_model():
    with pytest.raises(UsageError, match="No model 'nowhere'"):
        talk("nowhere", "Hi")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def typed(model, monkeypatch):
    """What a terminal shows when somebody types these; an exception is Ctrl-C or Ctrl-D at the prompt."""
    import builtins
    import sys

    def run(*entries, out=None, **more):
        left = list(entries)

        def answer(prompt):
            if isinstance(left[0], str):
                return left.pop(0)
            raise left.pop(0)

        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr(builtins, "input", answer)
        out = out or io.StringIO()
        replies = chat(model, out=out, **{"max_tokens": 8, "temperature": 1.0, **more})
        assert not left
        return replies, out.getvalue()

    return run


@pytest.mark.parametrize("leave", ["/exit", EOFError(), KeyboardInterrupt()])
def test_a_terminal_goes_on_until_the_user_leaves(typed, leave):
    replies, shown = typed("Hi", "", "/foo", "x" * 600, "And?", leave)
    assert len(replies) == 2
    assert all(f"{reply}\n" in shown for reply in replies)
    assert "No command '/foo'; there are /reset and /exit\n" in shown
    assert "begin anew with /reset\n" in shown


class Interrupting(io.StringIO):
    """Somebody presses Ctrl-C as soon as the reply begins."""

    armed = True

    def write(self, text):
        super().write(text)
        if self.armed and not text.endswith("\n"):
            self.armed = False
            raise KeyboardInterrupt
        return len(text)


def test_ctrl_c_stops_the_reply_and_a_second_one_leaves(typed):
    replies, shown = typed("Hi", KeyboardInterrupt(), out=Interrupting(), max_tokens=400, temperature=1.5)
    assert len(replies) == 1
    assert shown.endswith(f"{replies[0]} [stopped]\n\n")
    assert len(replies[0]) < 300


def test_ctrl_c_ends_a_script(model):
    with pytest.raises(KeyboardInterrupt):
        chat(model, lines=["Hi", "And?"], out=Interrupting(), max_tokens=400, temperature=1.5)
