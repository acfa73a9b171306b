"""What a teacher hands over while it writes is what a forward pass says of the same tokens."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import shutil
import signal
import sqlite3
import subprocess
import sys
import zlib
from contextlib import closing
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from kdbench.errors import ConfigError, DataError, NothingLeft, UsageError  # noqa: E402
from kdbench.jobs.generating import generate  # noqa: E402
from kdbench.jobs.signals_job import store_signals  # noqa: E402
from kdbench.jobs.training import train  # noqa: E402
from kdbench.jsonl import read_samples  # noqa: E402
from kdbench.losses.divergences import log_probabilities  # noqa: E402
from kdbench.models.chat import prompt_ids  # noqa: E402
from kdbench.models.loading import load_model, load_tokenizer  # noqa: E402
from kdbench.models.sequences import text_key  # noqa: E402
from kdbench.models.weights import weights_sha256  # noqa: E402
from kdbench.records import Completion, Message  # noqa: E402
from kdbench.rundir import read_info  # noqa: E402
from kdbench.signal_store import SignalStore  # noqa: E402
from kdbench.teacher import (  # noqa: E402
    Drawn,
    HandedOver,
    Request,
    Sampling,
    Usage,
    chat_completion,
    read_handed_over,
)
from kdbench.teachers import local  # noqa: E402
from tests.support.chat_server import ChatServer  # noqa: E402
from tests.test_signal_store import SETTINGS, generated, losses  # noqa: E402
from tests.trainers.tiny import WORDS, save_model  # noqa: E402

pytestmark = pytest.mark.medium

ROOT = Path(__file__).parents[2]
K = 6
HINT = Message(role="system", content="be kind")
SAMPLING = Sampling(temperature=1.2, top_p=0.95, max_tokens=24)


def asked(seed) -> Message:
    return Message(role="user", content=f"write a story about the {WORDS[seed.index % len(WORDS)]}")


async def tell(seed, teachers):
    reply = await teachers["teacher"].chat([asked(seed)], SAMPLING)
    return [Completion(prompt=(asked(seed),), completion=(reply.message,))]


async def erase(seed, teachers):
    """The teacher is told to be kind: two samples say so, one says that it was told otherwise."""
    reply = await teachers["teacher"].chat([HINT, asked(seed)], SAMPLING)
    told = {0: (HINT, asked(seed)), 1: (asked(seed), HINT), 2: None}[seed.index % 3]
    return [Completion(prompt=(asked(seed),), teacher_prompt=told, completion=(reply.message,))]


async def mend(seed, teachers):
    """Samples whose text is not what the teacher wrote."""
    reply = await teachers["teacher"].chat([asked(seed)], SAMPLING)
    better = Message(role="assistant", content=f"{reply.text} home")
    return [Completion(prompt=(asked(seed),), completion=(better,))]


async def stop(seed, teachers):
    """Replies that a stop string ends, or a limit."""
    sampling = Sampling(temperature=1.2, max_tokens=24, stop=("cat",))
    reply = await teachers["teacher"].chat([asked(seed)], sampling)
    return [Completion(prompt=(asked(seed),), completion=(reply.message,))]


def write(out, teacher, recipe=tell, *, n=12, top_logprobs=K, batch=8, **more) -> Path:
    config = {"device": "cpu", "batch": batch, "gather_ms": 5}
    if top_logprobs is not None:
        config["top_logprobs"] = top_logprobs
    more = {"on_truncated": "keep", **more}
    return generate(recipe, teacher=f"hf:{teacher}", n=n, out=out, teacher_config=config, **more)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("teacher"), seed=1, hidden=24)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("student"), seed=2)


@pytest.fixture(scope="module")
def written(tmp_path_factory, teacher):
    return write(tmp_path_factory.mktemp("runs") / "written", teacher)


@pytest.fixture(scope="module")
def stored(tmp_path_factory, written):
    return store_signals(data=written, out=tmp_path_factory.mktemp("stores") / "stored")


def samples(run) -> list[Completion]:
    return list(read_samples(run / "samples.jsonl"))


def replies(run):
    with closing(sqlite3.connect(run / "calls.sqlite")) as connection:
        return dict(connection.execute("SELECT hex(key), reply FROM calls"))


def forward(teacher, prompt, tokens):
    """Log-probabilities [N, V] by transformers' own forward, without cache, batch or padding."""
    model = load_model(teacher, device="cpu")
    with torch.no_grad():
        return log_probabilities(model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1])


def test_every_written_sample_is_stored_with_the_tokens_that_were_drawn(written, stored, teacher):
    store = SignalStore.open(stored)
    tok = load_tokenizer(teacher)
    for sample in samples(written):
        tokens = list(store.tokens(text_key(sample)))
        ended = tokens[-1] == tok.eos_token_id
        assert ended == (sample.origin.finish_reason == "stop")
        assert tok.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True) == sample.text
        assert len(tokens) - ended == sample.origin.completion_tokens
    reasons = {sample.origin.finish_reason for sample in samples(written)}
    assert reasons == {"stop", "length"}
    # Some of them a tokeniser would have read otherwise: marks inside a text are not written down.
    again = [tok(sample.text)["input_ids"] for sample in samples(written)]
    assert any(
        list(store.tokens(text_key(one)))[: len(ids)] != ids
        for one, ids in zip(samples(written), again, strict=True)
    )


def test_what_is_handed_over_is_what_a_forward_pass_says(written, stored, teacher):
    store = SignalStore.open(stored)
    tok = load_tokenizer(teacher)
    for sample in samples(written):
        said = store.signal([text_key(sample)])
        exact = forward(teacher, prompt_ids(tok, sample.prompt), store.tokens(text_key(sample)))
        torch.testing.assert_close(said.log_probs, exact.topk(K).values, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(said.log_probs, exact.gather(1, said.ids), rtol=1e-4, atol=1e-5)


def test_it_is_the_store_of_kdbench_signals_where_that_reads_the_same_tokens(
    written, stored, teacher, student, tmp_path
):
    read = store_signals(
        data=written, teacher=teacher, out=tmp_path / "read", config={"kind": "top_k", "k": K}
    )
    ours, theirs = SignalStore.open(stored), SignalStore.open(read)
    assert ours.info == theirs.info
    keys = [text_key(one) for one in samples(written)]
    alike = [i for i, key in enumerate(keys) if ours.tokens(key) == theirs.tokens(key)]
    assert len(alike) >= 3
    for i in alike:
        a, b = ours.signal([keys[i]]), theirs.signal([keys[i]])
        assert torch.equal(a.ids, b.ids)
        torch.testing.assert_close(a.log_probs, b.log_probs, rtol=1e-4, atol=1e-5)
    # And a training from either gives the same losses.
    data = generated(tmp_path / "alike", [samples(written)[i] for i in alike])
    found = [
        losses(
            train(
                "white_box", data=data, student=student, teacher=teacher, out=tmp_path / f"t{number}",
                config={**SETTINGS, "steps": 3, "batch_size": 2, "signals": str(store)},
            )
        )
        for number, store in enumerate((stored, read))
    ]  # fmt: skip
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_one_text_is_one_entry_and_fewer_tokens_can_be_kept(written, stored, tmp_path):
    few = store_signals(data=[written, written], out=tmp_path / "few", config={"k": 2})
    less, whole = SignalStore.open(few), SignalStore.open(stored)
    assert len(less) == len(whole)
    key = text_key(samples(written)[0])
    assert torch.equal(less.signal([key]).ids, whole.signal([key]).ids[:, :2])
    assert read_info(few)["stats"]["rest"] > read_info(stored)["stats"]["rest"] > 0


def ask_all(ref, requests, **config):
    async def run():
        teacher = local.connect(f"hf:{ref}", local.Config(device="cpu", top_logprobs=K, **config))
        try:
            return await asyncio.gather(*(teacher.ask(request) for request in requests))
        finally:
            await teacher.close()

    return [read_handed_over(raw) for raw in asyncio.run(run())]


def requests(**sampling):
    words = [f"write a {'happy ' * (i % 4)}story about the {word}" for i, word in enumerate(WORDS[:8])]
    return [
        Request((Message(role="user", content=text),), Sampling(max_tokens=16, **sampling), i)
        for i, text in enumerate(words)
    ]


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 0}, {"temperature": 0.4}, {"temperature": 1.7}, {"temperature": 1.0, "top_p": 0.3}],
    ids=str,
)
def test_the_sampling_does_not_change_what_is_said(sampling, teacher):
    for said in ask_all(teacher, requests(**sampling)):
        exact = forward(teacher, said.prompt, [drawn.token for drawn in said.drawn])
        own = torch.tensor([drawn.log_prob for drawn in said.drawn])
        tokens = torch.tensor([[drawn.token] for drawn in said.drawn])
        torch.testing.assert_close(own, exact.gather(1, tokens)[:, 0], rtol=1e-4, atol=1e-5)
        top = torch.tensor([[at for _, at in drawn.top] for drawn in said.drawn])
        torch.testing.assert_close(top, exact.topk(K).values, rtol=1e-4, atol=1e-5)


def test_neighbours_do_not_change_what_is_said(teacher):
    work = requests(temperature=1.0)
    together, alone = ask_all(teacher, work, batch=8), ask_all(teacher, work, batch=1)
    for a, b in zip(together, alone, strict=True):
        assert [one.token for one in a.drawn] == [one.token for one in b.drawn]
        assert [[t for t, _ in one.top] for one in a.drawn] == [[t for t, _ in one.top] for one in b.drawn]
        at = [torch.tensor([[p for _, p in one.top] for one in side.drawn]) for side in (a, b)]
        torch.testing.assert_close(at[0], at[1], rtol=1e-5, atol=1e-5)


def test_a_sample_is_refused_where_its_teacher_was_asked_something_else(teacher, tmp_path, caplog):
    run = write(tmp_path / "run", teacher, erase)
    store = SignalStore.open(store_signals(data=run, out=tmp_path / "s"))
    right = [i for i, sample in enumerate(samples(run)) if text_key(sample) in store]
    assert right == [i for i, one in enumerate(samples(run)) if one.teacher_prompt == (HINT, one.prompt[0])]
    assert 0 < len(right) < len(samples(run))
    wrong = len(samples(run)) - len(right)
    reason = "their teacher was asked something else than their prompt"
    assert f"{wrong} of 12 samples left out: {reason}" in caplog.text
    assert read_info(tmp_path / "s")["stats"]["left_out"] == {reason: wrong}


def test_a_text_that_is_not_the_teacher_s_own_is_left_out(teacher, tmp_path):
    run = write(tmp_path / "run", teacher, mend, n=3)
    with pytest.raises(NothingLeft, match=r"3: their text is not what the teacher's tokens decode to"):
        store_signals(data=run, out=tmp_path / "s")


def test_a_reply_that_a_stop_string_ended_is_left_out(teacher, tmp_path):
    run = write(tmp_path / "run", teacher, stop, n=16)
    out = store_signals(data=run, out=tmp_path / "s")
    store = SignalStore.open(out)
    left = [one for one in samples(run) if text_key(one) not in store]
    assert sum(read_info(out)["stats"]["left_out"].values()) == len(left) > 0
    end = load_tokenizer(teacher).eos_token_id
    for one in samples(run):
        if text_key(one) in store and one.origin.finish_reason == "stop":
            assert store.tokens(text_key(one))[-1] == end


def test_a_reply_that_another_end_token_ended_is_left_out(tmp_path):
    """A store's completions end with one token: the student is to learn that one."""
    two = Path(save_model(tmp_path / "two", seed=1, hidden=24))
    settings = json.loads((two / "generation_config.json").read_text())
    sun = load_tokenizer(str(two)).convert_tokens_to_ids("sun")
    ends = [settings["eos_token_id"], sun]
    (two / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": ends}))
    run = write(tmp_path / "run", two, n=16)
    out = store_signals(data=run, out=tmp_path / "s")
    ((reason, count),) = read_info(out)["stats"]["left_out"].items()
    assert reason == "they do not end with the token that ends a turn"
    store = SignalStore.open(out)
    left = [one for one in samples(run) if text_key(one) not in store]
    assert len(left) == count > 0
    assert all(one.origin.finish_reason == "stop" for one in left)
    assert all(sun not in store.tokens(text_key(one)) for one in samples(run) if one not in left)


def test_without_the_setting_nothing_changes_and_its_replies_answer_no_call_that_wants_more(
    teacher, written, tmp_path
):
    plain = write(tmp_path / "plain", teacher, top_logprobs=None)
    assert read_info(plain)["teacher"]["identity"] == {"teacher": weights_sha256(Path(teacher))}
    body = json.loads(zlib.decompress(next(iter(replies(plain).values()))))
    assert set(body) == {"object", "model", "choices", "usage"}
    assert set(body["choices"][0]) == {"index", "message", "finish_reason", "token_ids"}
    assert not set(replies(plain)) & set(replies(written))
    again = write(tmp_path / "again", teacher, cache=[plain])
    assert read_info(again)["stats"]["cached_calls"] == 0
    assert set(replies(again)) == set(replies(written))
    with pytest.raises(DataError, match=r"plain handed no log-probabilities over; generate with .*=20"):
        store_signals(data=plain, out=tmp_path / "s")


def test_bytes_per_token_are_stated(written, stored, caplog):
    stats = read_info(stored)["stats"]
    assert stats["bytes_per_token"] == 4 + 8 * K
    assert stats["log_bytes"] == (written / "calls.sqlite").stat().st_size
    on_disk = sum((stored / name).stat().st_size for name in ("tokens.i32", "ids.i32", "log_probs.f32"))
    assert on_disk == stats["tokens"] * stats["bytes_per_token"]


def test_runs_that_cannot_be_stored_are_named(written, teacher, student, tmp_path):
    abroad = tmp_path / "abroad"
    shutil.copytree(written, abroad)
    (abroad / "calls.sqlite").unlink()
    with pytest.raises(DataError, match=r"abroad/calls.sqlite is missing, .*; copy it .* --teacher"):
        store_signals(data=abroad, out=tmp_path / "a")
    other = write(tmp_path / "other", student, n=2)
    with pytest.raises(
        DataError, match=r"what one teacher says, and .*written, .*other come from \w+ with .* and"
    ):
        store_signals(data=[written, other], out=tmp_path / "b")
    with pytest.raises(UsageError, match=f"k = 9, and the {K} likeliest tokens were handed over; lower k"):
        store_signals(data=written, out=tmp_path / "c", config={"k": 9})
    with pytest.raises(ConfigError, match=r"no key 'kind'\. Available: k, tokenizer"):
        store_signals(data=written, out=tmp_path / "d", config={"kind": "hidden"})
    shutil.copy(other / "calls.sqlite", abroad)
    with pytest.raises(NothingLeft, match="12: the call that made them is not in the run's call log"):
        store_signals(data=abroad, out=tmp_path / "e")
    with pytest.raises(
        UsageError, match="top_logprobs = 99, and the model has 29 tokens; lower top_logprobs"
    ):
        write(tmp_path / "f", teacher, n=2, top_logprobs=99)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from kdbench.teachers.local import LocalTeacher
from tests.jobs.test_handed_over import tell, write
asked, ask = [], LocalTeacher.ask
async def mortal(self, request):
    asked.append(request)
    if len(asked) > 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return await ask(self, request)
LocalTeacher.ask = mortal
write(Path(sys.argv[2]), sys.argv[3], n=6, batch=1, concurrency=1)
"""


def test_killed_and_resumed_hands_over_the_same_bytes_and_asks_nothing_twice(teacher, tmp_path):
    command = [sys.executable, "-c", KILLED, str(ROOT), str(tmp_path / "cut"), teacher]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = replies(tmp_path / "cut")
    assert len(before) == 3
    cut = write(tmp_path / "cut", teacher, n=6, batch=1, concurrency=1, resume=True)
    assert read_info(cut)["stats"]["replayed_calls"] == 3
    whole = write(tmp_path / "whole", teacher, n=6, batch=1, concurrency=1)
    assert replies(whole) == replies(cut)
    assert before.items() <= replies(cut).items()
    stores = [store_signals(data=tmp_path / name, out=tmp_path / f"s-{name}") for name in ("cut", "whole")]
    for name in ("tokens.i32", "ids.i32", "log_probs.f32"):
        assert (stores[0] / name).read_bytes() == (stores[1] / name).read_bytes()
    # Cut off while it is written, a store is begun anew.
    (stores[0] / "DONE").unlink()
    (stores[0] / "index.jsonl").write_text('{"text": "torn')
    assert store_signals(data=tmp_path / "cut", out=stores[0], resume=True) == stores[0]
    assert (stores[0] / "ids.i32").read_bytes() == (stores[1] / "ids.i32").read_bytes()


def test_the_raw_form_keeps_every_bit_of_a_float32():
    values = (-torch.rand(300).log2().abs() * torch.logspace(-9, 3, 300)).tolist()
    drawn = tuple(Drawn(i, at, ((i, at), (i + 1, at - 1))) for i, at in enumerate(values))
    usage = Usage(2, 300)
    said = HandedOver((5, 6), drawn)
    raw = chat_completion("a", model="m", finish_reason="stop", usage=usage, handed_over=said)
    read = read_handed_over(raw)
    assert read.prompt == (5, 6)
    for ours, theirs in zip(read.drawn, drawn, strict=True):
        assert (ours.token, [t for t, _ in ours.top]) == (theirs.token, [t for t, _ in theirs.top])
        assert torch.tensor(ours.log_prob) == torch.tensor(theirs.log_prob)
    never = HandedOver((), (Drawn(1, -math.inf, ((1, -math.inf),)),))
    raw = chat_completion("a", model="m", finish_reason="stop", usage=usage, handed_over=never)
    assert read_handed_over(raw).drawn[0].log_prob == -9999.0


class TestServer:
    """The same from a server that speaks vLLM's form."""

    @pytest.fixture
    def server(self, teacher, monkeypatch):
        weights = local.connect(f"hf:{teacher}", local.Config(device="cpu", gather_ms=5, top_logprobs=29))
        with ChatServer(weights, tokenizer=load_tokenizer(teacher)) as running:
            monkeypatch.setenv("OPENAI_BASE_URL", running.url)
            for proxy in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
                monkeypatch.delenv(proxy, raising=False)
            yield running

    @staticmethod
    def write(out, **config):
        return generate(tell, teacher="openai:tiny", n=8, out=out, teacher_config=config, on_truncated="keep")

    def test_its_replies_fill_a_store(self, server, teacher, tmp_path):
        run = self.write(tmp_path / "run", top_logprobs=K)
        assert server.bodies[0]["return_tokens_as_token_ids"]
        with pytest.raises(
            UsageError, match=r"'openai:tiny' of the data is no model on this machine; .*tokenizer="
        ):
            store_signals(data=run, out=tmp_path / "a")
        out = store_signals(data=run, out=tmp_path / "s", config={"tokenizer": teacher})
        store = SignalStore.open(out)
        # The sampled token may have taken the last one's place: one fewer is known for certain.
        assert store.info.width == K - 1
        assert len(store) == len({text_key(sample) for sample in samples(run)})
        tok = load_tokenizer(teacher)
        for sample in samples(run):
            said = store.signal([text_key(sample)])
            exact = forward(teacher, prompt_ids(tok, sample.prompt), store.tokens(text_key(sample)))
            torch.testing.assert_close(said.log_probs, exact.topk(K - 1).values, rtol=1e-4, atol=1e-5)
        with pytest.raises(UsageError, match=f"the {K - 1} likeliest tokens were handed over"):
            store_signals(data=run, out=tmp_path / "b", config={"tokenizer": teacher, "k": K})

    @pytest.mark.parametrize("lacking", ["return_tokens_as_token_ids", "return_token_ids"])
    def test_a_server_that_names_no_ids_hands_nothing_over(self, lacking, server, teacher, tmp_path):
        run = self.write(tmp_path / "run", top_logprobs=K, extra_body={lacking: False})
        with pytest.raises(DataError, match="handed no log-probabilities over"):
            store_signals(data=run, out=tmp_path / "s", config={"tokenizer": teacher})

    def test_another_tokenizer_is_refused(self, server, tmp_path):
        from tests.trainers.tiny import tokenizer

        foreign = save_model(tmp_path / "foreign", tok=tokenizer(words=sorted(WORDS)))
        run = self.write(tmp_path / "run", top_logprobs=K)
        with pytest.raises(NothingLeft, match="8: their text is not what the teacher's tokens decode to"):
            store_signals(data=run, out=tmp_path / "s", config={"tokenizer": foreign})


def test_the_command(written, tmp_path, caplog, capsys):
    from kdbench import cli

    caplog.set_level(logging.INFO, logger="kdbench")
    cli.app(["signals", "--data", str(written), "--out", str(tmp_path / "s")], standalone_mode=False)
    assert f"{4 + 8 * K} bytes per token, " in caplog.text
    assert f"outside them; {(written / 'calls.sqlite').stat().st_size:,} bytes of call logs" in caplog.text
    assert "Done" in capsys.readouterr().err
    assert read_info(tmp_path / "s")["teacher"]["spec"].startswith("hf:")
