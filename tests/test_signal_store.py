"""Stored signals: what is on disk, that training from them needs no teacher, and stores that do not fit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from kdbench.errors import ConfigError, DataError, RunDirError, RunFailed, UsageError  # noqa: E402
from kdbench.jobs.signals_job import store_signals  # noqa: E402
from kdbench.jobs.training import train  # noqa: E402
from kdbench.jsonl import JsonlWriter  # noqa: E402
from kdbench.losses.divergences import log_probabilities  # noqa: E402
from kdbench.models.loading import load_model, load_tokenizer  # noqa: E402
from kdbench.models.sequences import text_key  # noqa: E402
from kdbench.records import Message  # noqa: E402
from kdbench.rundir import RunDir, read_info  # noqa: E402
from kdbench.signal_store import SignalStore  # noqa: E402
from tests.trainers.tiny import save_model, stories, story, tokenizer  # noqa: E402

pytestmark = pytest.mark.medium

ROOT = Path(__file__).parents[1]
COLUMNS = {"hidden": ["tokens.i32", "hidden.f16"], "top_k": ["tokens.i32", "ids.i32", "log_probs.f32"]}
HINT = (Message(role="user", content="write a happy story about the sad dog"),)
SAMPLES = [*stories(19), story(30, teacher_prompt=HINT), story(31, finish_reason="length")]
SETTINGS = {"steps": 4, "batch_size": 4, "learning_rate": 0.01, "warmup_steps": 0, "device": "cpu"}


def generated(path: Path, samples) -> Path:
    run = RunDir.create(path, kind="generate", config={}, fingerprint={})
    with JsonlWriter(path / "samples.jsonl") as file:
        for sample in samples:
            file.write(sample)
    run.finish()
    return path


@pytest.fixture
def data(tmp_path):
    return generated(tmp_path / "data", SAMPLES)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("teacher"), seed=1, hidden=24)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("student"), seed=2)


def exact(teacher, sample):
    """(tokens, log-probabilities) of one sample by transformers' own forward, without padding."""
    tok, model = load_tokenizer(teacher), load_model(teacher, device="cpu")
    turns = [{"role": m.role, "content": m.content} for m in sample.teacher_prompt or sample.prompt]
    prompt = tok.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    answer = tok(sample.text)["input_ids"]
    answer = answer if sample.origin.finish_reason == "length" else [*answer, tok.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return answer, log_probabilities(logits)


@pytest.mark.parametrize("kind", ["hidden", "top_k"])
def test_what_is_stored_is_what_the_teacher_says_of_its_own_prompt(kind, data, teacher, tmp_path):
    out = store_signals(data=data, teacher=teacher, out=tmp_path / "s", config={"kind": kind, "k": 5})
    store = SignalStore.open(out)
    assert len(store) == len({text_key(sample) for sample in SAMPLES})
    for sample in SAMPLES:
        tokens, log_probs = exact(teacher, sample)
        key = text_key(sample)
        assert list(store.tokens(key)) == tokens
        said = store.signal([key])
        assert len(said) == len(tokens)
        if kind == "top_k":
            expected = log_probs.topk(5)
            torch.testing.assert_close(said.log_probs, expected.values, rtol=1e-4, atol=1e-5)
            assert (said.ids == expected.indices).float().mean() > 0.99
        else:
            ours = log_probabilities(said.head.logits(said.hidden))
            torch.testing.assert_close(ours, log_probs, rtol=1e-2, atol=1e-2)
    both = [text_key(SAMPLES[3]), text_key(SAMPLES[0])]
    assert len(store.signal(both)) == sum(len(store.tokens(key)) for key in both)
    assert store.tokens("no such text") is None


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"kind": "hidden"}, 4 + 2 * 24),
        ({"kind": "top_k", "k": 5}, 4 + 8 * 5),
        ({"kind": "top_k", "k": 29}, 236),
    ],
)
def test_bytes_and_loss_are_stated(config, size, data, teacher, tmp_path):
    out = store_signals(data=data, teacher=teacher, out=tmp_path / "s", config=config)
    stats = read_info(out)["stats"]
    assert stats["bytes_per_token"] == size
    on_disk = sum((out / name).stat().st_size for name in COLUMNS[config["kind"]])
    assert on_disk == stats["tokens"] * size
    if config.get("k") == 5:
        assert 0.01 < stats["lost"] < 2
    else:
        assert stats["lost"] < 1e-4


def test_fewer_tokens_lose_more(data, teacher, tmp_path):
    lost = [
        read_info(
            store_signals(data=data, teacher=teacher, out=tmp_path / str(k), config={"kind": "top_k", "k": k})
        )["stats"]["lost"]
        for k in (1, 4, 16)
    ]
    assert lost[0] > lost[1] > lost[2]


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from kdbench.jobs.signals_job import store_signals
from kdbench import signal_store
data, teacher, out, kind, left = sys.argv[2:7]
add = signal_store.StoreWriter.add
def stop(self, entries):
    global left
    left = int(left) - 1
    if left == 0:  # in the midst of a company: columns are there, the index is not
        for file in self._files[:-1]:
            file.write(b"torn")
            file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, entries)
signal_store.StoreWriter.add = stop
store_signals(data=data, teacher=teacher, out=out, config={"kind": kind, "k": 5}, resume=True)
"""


@pytest.mark.parametrize("kind", ["hidden", "top_k"])
def test_killed_and_resumed_holds_the_same_bytes(kind, data, teacher, tmp_path):
    def run(out, left):
        command = [sys.executable, "-c", KILLED, str(ROOT), str(data), teacher, str(tmp_path / out), kind]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run([*command, str(left)], capture_output=True, text=True, env=env)

    assert run("whole", 99).returncode == 0
    assert run("cut", 3).returncode == -signal.SIGKILL
    with open(tmp_path / "cut" / "index.jsonl", "a") as file:
        file.write('{"text": "torn')
    done = run("cut", 99)
    assert done.returncode == 0, done.stderr
    for name in [*COLUMNS[kind], "index.jsonl"]:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def losses(run):
    return [json.loads(line)["divergence"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("divergence", ["forward_kl", "skew_reverse_kl"])
def test_training_from_hidden_states_is_training_with_the_teacher(
    divergence, data, teacher, student, tmp_path
):
    store = store_signals(data=data, teacher=teacher, out=tmp_path / "s")
    config = {**SETTINGS, "divergence": divergence}
    live = train(
        "white_box", data=data, teacher=teacher, student=student, out=tmp_path / "live", config=config
    )
    stored = train(
        "white_box", data=data, student=student, out=tmp_path / "stored",
        config={**config, "signals": str(store)},
    )  # fmt: skip
    assert losses(stored) == pytest.approx(losses(live), rel=1e-2)
    info = read_info(stored)
    assert "teacher" not in info
    assert info["fingerprint"]["signals"] == read_info(store)["fingerprint"]


def test_training_from_the_whole_vocabulary_as_top_k_is_exact_and_less_is_less(
    data, teacher, student, tmp_path
):
    found = {}
    for k in (29, 3):
        store = store_signals(
            data=data, teacher=teacher, out=tmp_path / f"s{k}", config={"kind": "top_k", "k": k}
        )
        out = train(
            "white_box", data=data, student=student, out=tmp_path / f"t{k}",
            config={**SETTINGS, "signals": str(store)},
        )  # fmt: skip
        found[k] = losses(out)
    live = train(
        "white_box", data=data, teacher=teacher, student=student, out=tmp_path / "l", config=SETTINGS
    )
    assert found[29] == pytest.approx(losses(live), rel=1e-3)
    assert found[3][0] < found[29][0]


def test_stored_tokens_are_trained_on_not_a_new_tokenisation(data, teacher, student, tmp_path):
    store = store_signals(data=data, teacher=teacher, out=tmp_path / "s")
    tokens = (store / "tokens.i32").read_bytes()
    swapped = load_tokenizer(student).convert_tokens_to_ids("kind")
    (store / "tokens.i32").write_bytes((swapped).to_bytes(4, "little") + tokens[4:])
    changed = SignalStore.open(store)
    first = json.loads((store / "index.jsonl").read_text().splitlines()[0])["text"]
    assert changed.tokens(first)[0] == swapped


def test_samples_that_the_store_does_not_know_are_left_out_and_counted(
    data, teacher, student, tmp_path, caplog
):
    few = generated(tmp_path / "few", SAMPLES[:9])
    store = store_signals(data=few, teacher=teacher, out=tmp_path / "s")
    train(
        "white_box",
        data=data,
        student=student,
        out=tmp_path / "t",
        config={**SETTINGS, "signals": str(store)},
    )
    assert "12 of 21 samples left out: the stored signals hold nothing about them" in caplog.text


def test_stores_that_do_not_fit_are_refused(data, teacher, student, tmp_path):
    store = store_signals(data=data, teacher=teacher, out=tmp_path / "s")
    signals = {**SETTINGS, "signals": str(store)}

    def attempt(**more):
        arguments = {"data": data, "student": student, "out": tmp_path / "t", "config": signals, **more}
        train("white_box", overwrite=(tmp_path / "t").exists(), **arguments)

    other_text = generated(tmp_path / "other", [story(n, words=9) for n in range(40, 44)])
    with pytest.raises(DataError, match="about other texts than the data: not one of its 4 samples"):
        attempt(data=other_text)
    with pytest.raises(ConfigError, match=r"of another teacher than '.*student"):
        attempt(teacher=student)
    foreign = save_model(tmp_path / "foreign", tok=tokenizer(words=["some", "other", "words"]))
    with pytest.raises(ConfigError, match=r"of a tokenizer of 29 tokens, and the student .* has another one"):
        attempt(student=foreign)
    with pytest.raises(RunDirError, match="holds a 'generate' run; a 'signals' run is needed"):
        attempt(config={**SETTINGS, "signals": str(data)})
    (store / "hidden.f16").write_bytes(b"short")
    with pytest.raises(DataError, match=r"hidden.f16 is not the [\d,]+ bytes .* --overwrite"):
        attempt()
    info = json.loads((store / "run.json").read_text())
    info["signals"]["format"] = 2
    (store / "run.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="holds no signals of format 1; make them anew"):
        attempt()


def test_what_cannot_be_stored_is_said(data, teacher, student, tmp_path):
    with pytest.raises(UsageError, match="k = 99, and the teacher has 29 tokens; lower k"):
        store_signals(data=data, teacher=teacher, out=tmp_path / "a", config={"kind": "top_k", "k": 99})
    with pytest.raises(ConfigError, match="kind"):
        store_signals(data=data, teacher=teacher, out=tmp_path / "b", config={"kind": "logits"})
    out = store_signals(data=data, teacher=teacher, out=tmp_path / "c")
    with pytest.raises(RunDirError, match="is in use; use --resume"):
        store_signals(data=data, teacher=teacher, out=out)
    with pytest.raises(UsageError, match="cannot go on: other teacher weights than when it began"):
        store_signals(data=data, teacher=student, out=out, resume=True)
    assert store_signals(data=data, teacher=teacher, out=out, resume=True) == out


def test_a_teacher_of_no_numbers_is_named(data, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = save_model(tmp_path / "broken", seed=2)
    weights = load_file(Path(broken) / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, Path(broken) / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunFailed, match="answers with numbers that are none"):
        store_signals(data=data, teacher=broken, out=tmp_path / "s")


def test_a_bfloat16_teacher_can_be_put_down(data, teacher, student, tmp_path):
    out = store_signals(data=data, teacher=teacher, out=tmp_path / "s", config={"dtype": "bfloat16"})
    assert 0 <= read_info(out)["stats"]["lost"] < 0.1
    run = train(
        "white_box", data=data, student=student, out=tmp_path / "t", config={**SETTINGS, "signals": str(out)}
    )
    assert all(loss > 0 for loss in losses(run))


def test_a_store_that_ends_its_turns_otherwise_is_refused(data, teacher, tmp_path):
    store = store_signals(data=data, teacher=teacher, out=tmp_path / "s")
    tok = tokenizer()
    other = save_model(tmp_path / "other", seed=2)
    path = Path(other) / "generation_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "eos_token_id": tok.convert_tokens_to_ids("sun")})
    )
    template = Path(other) / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|> newline", "sun newline"))
    settings = Path(other) / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token": "sun"}))
    with pytest.raises(
        ConfigError, match=r"end with '<\|im_end\|>', and the student '.*other' ends its turns with 'sun'"
    ):
        train(
            "white_box",
            data=data,
            student=other,
            out=tmp_path / "t",
            config={**SETTINGS, "signals": str(store)},
        )


def test_hidden_states_beyond_16_bits_are_refused_with_the_way_out(data, tmp_path):
    from safetensors.torch import load_file, save_file

    huge = save_model(tmp_path / "huge", seed=2)
    weights = load_file(Path(huge) / "model.safetensors")
    weights["model.norm.weight"].fill_(1e6)
    save_file(weights, Path(huge) / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunFailed, match=r"too large for 16 bits; .* --set kind=top_k"):
        store_signals(data=data, teacher=huge, out=tmp_path / "s")
    store_signals(data=data, teacher=huge, out=tmp_path / "k", config={"kind": "top_k", "k": 3})


@pytest.mark.parametrize(
    ("kind", "temperature", "warned"), [("top_k", 2.0, True), ("top_k", 1.0, False), ("hidden", 2.0, False)]
)
def test_softening_a_rest_is_said_to_be_another_objective(
    kind, temperature, warned, data, teacher, student, tmp_path, caplog
):
    store = store_signals(data=data, teacher=teacher, out=tmp_path / "s", config={"kind": kind, "k": 4})
    config = {**SETTINGS, "steps": 1, "signals": str(store), "kd_temperature": temperature}
    train("white_box", data=data, student=student, out=tmp_path / "t", config=config)
    assert ("kd_temperature 2 is another objective" in caplog.text) == warned


def test_the_command_says_what_it_kept(data, teacher, tmp_path):
    command = [sys.executable, "-m", "kdbench.cli", "signals", "--data", str(data), "--teacher", teacher]
    done = subprocess.run([*command, "--out", str(tmp_path / "s")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "52 bytes per token" in done.stderr
    assert "nats per token lost" in done.stderr
