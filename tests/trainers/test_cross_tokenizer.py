"""cross_tokenizer against plain forward passes, and what must not change its loss."""

from __future__ import annotations

import os
import signal

import pytest

torch = pytest.importorskip("torch")

from kdbench.checks.case import reader_of  # noqa: E402
from kdbench.errors import ConfigError, NothingLeft  # noqa: E402
from kdbench.losses.universal import per_token  # noqa: E402
from kdbench.models.alignment import encode_aligned  # noqa: E402
from kdbench.models.loading import load_model, load_tokenizer  # noqa: E402
from kdbench.records import Completion, Message, Origin  # noqa: E402
from kdbench_trainers import cross_tokenizer  # noqa: E402
from tests.support import byte_llama, trained_bpe  # noqa: E402
from tests.trainers.test_trainer import lines, run, same  # noqa: E402

pytestmark = pytest.mark.medium

# Behind a mark the teacher's tokenizer puts a space before an answer, as it does before one alone.
TEACHER_TEMPLATE = "<|im_start|>{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
SENTENCES = [one.strip() + "." for one in trained_bpe.PAGE.split(".") if one.strip()]


def sample(number, reason="stop", **more):
    """One to three sentences; some of them are of letters that a tokenizer cuts into bytes."""
    text = " ".join(SENTENCES[(number * 5 + i) % len(SENTENCES)] for i in range(1 + number % 3))
    return Completion(
        id=f"s{number}",
        prompt=(Message(role="user", content=f"Write number {number}"),),
        completion=(Message(role="assistant", content=text),),
        origin=Origin(seed=number, finish_reason=reason),
        **more,
    )


SAMPLES = [sample(n, "length" if n % 4 == 3 else "stop", weight=0.5 + n % 2) for n in range(12)]


def saved(folder, tokenizer, **more):
    byte_llama.model(vocab_size=len(tokenizer), **more).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("student"), trained_bpe.tokenizer(), seed=1, layers=2)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    tokenizer = trained_bpe.tokenizer(TEACHER_TEMPLATE, spec=trained_bpe.metaspace())
    return saved(tmp_path_factory.mktemp("teacher"), tokenizer, seed=2, hidden_size=48, initializer_range=0.5)


def trained(out, student, teacher, **settings):
    more = {"samples": SAMPLES, "resume": False, "load": True} | settings
    return run(cross_tokenizer, out, student, teacher, **more)


def answer(ref, sample, prompt):
    """A model's tokens of an answer, the texts read before each of them, and its logits there."""
    model, tok = load_model(ref, device="cpu"), load_tokenizer(ref)
    turns = [{"role": m.role, "content": m.content} for m in prompt]
    asked = tok.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    ids = tok(sample.text, add_special_tokens=False)["input_ids"]
    if sample.origin.finish_reason == "stop":
        ids = [*ids, tok.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([asked + ids])).logits[0, len(asked) - 1 : -1]
    return ids, [tok.decode(ids[:row]) for row in range(len(ids))], logits


def expected(student, teacher, samples):
    """Cross-entropy and distance per token, weighted, made of unpadded forward passes and decoded texts."""
    entropy = distance = weight = 0.0
    for one in samples:
        ids, ours, logits = answer(student, one, one.prompt)
        _, theirs, said = answer(teacher, one, one.teacher_prompt or one.prompt)
        entropy += one.weight * torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="sum")
        weight += one.weight * len(ids)
        places = [place for place in ours if one.text.startswith(place) and place in theirs]
        rows = [ours.index(place) for place in places], [theirs.index(place) for place in places]
        assert len(set(places)) == len(places) < len(ids)
        both = logits[rows[0]].softmax(-1), said[rows[1]].softmax(-1)
        distance += one.weight * per_token(*both).sum()
    return float(entropy / weight), float(distance / weight)


@pytest.mark.parametrize("ce_weight", [0.0, 0.4])
def test_the_first_loss_is_that_of_two_unpadded_forward_passes(student, teacher, tmp_path, ce_weight):
    hint = (Message(role="user", content="Write of a cat"),)
    samples = [*SAMPLES[:4], sample(7, teacher_prompt=hint)]
    settings = {"samples": samples, "batch_size": 5, "steps": 1, "validation_share": 0}
    trained(tmp_path, student, teacher, ce_weight=ce_weight, **settings)
    entropy, distance = expected(student, teacher, samples)
    (line,) = lines(tmp_path)
    assert line["cross_entropy"] == pytest.approx(entropy, rel=1e-4)
    assert line["divergence"] == pytest.approx(distance, rel=1e-4)
    assert line["loss"] == pytest.approx(ce_weight * entropy + (1 - ce_weight) * distance, rel=1e-4)
    assert distance > 0.1


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_micro_batches_change_nothing(student, teacher, tmp_path, micro_batch_size):
    """Weights are not held against each other: at its kinks the distance makes steps of rounding errors."""
    trained(tmp_path / "whole", student, teacher)
    trained(tmp_path / "cut", student, teacher, micro_batch_size=micro_batch_size)
    for one, other in zip(lines(tmp_path / "whole"), lines(tmp_path / "cut"), strict=True):
        assert one["tokens"] == other["tokens"]
        for name in ("loss", "divergence", "cross_entropy"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)
        assert one.get("grad_norm", 0) == pytest.approx(other.get("grad_norm", 0), rel=1e-3)


def test_interrupted_and_resumed_goes_on_to_the_same_bits(student, teacher, tmp_path, monkeypatch):
    from kdbench_trainers._callbacks import Metrics

    settings = {"steps": 6, "checkpoint_every": 2}
    whole = trained(tmp_path / "whole", student, teacher, **settings)
    on_log = Metrics.on_log

    def stop(self, args, state, control, logs, **more):
        on_log(self, args, state, control, logs, **more)
        if state.global_step == 3 and "loss" in logs:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Metrics, "on_log", stop)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "cut", student, teacher, **settings)
    resumed = trained(tmp_path / "cut", student, teacher, resume=True, **settings)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    curves = [
        [(line["step"], line["split"], line["loss"], line["divergence"]) for line in lines(tmp_path / name)]
        for name in ("whole", "cut")
    ]
    assert curves[0] == curves[1]


def test_the_distance_shrinks(student, teacher, tmp_path):
    trained(tmp_path, student, teacher, steps=30, eval_every=30, ce_weight=0.0)
    for split in ("train", "validation"):
        found = lines(tmp_path, split)
        assert found[-1]["divergence"] < 0.6 * found[0]["divergence"]


def test_the_cache_of_the_teacher_changes_nothing_and_it_reads_each_sample_once(
    student, teacher, tmp_path, monkeypatch
):
    from kdbench_trainers._teacher import TeacherModel

    read = trained(tmp_path / "read", student, teacher, teacher_cache_mb=0)
    seen = []
    look = TeacherModel._look
    monkeypatch.setattr(
        TeacherModel, "_look", lambda self, group: seen.extend(s.key for s in group) or look(self, group)
    )
    same(read, trained(tmp_path / "kept", student, teacher))
    assert sorted(seen) == list(range(12))


def test_heads_padded_beyond_the_tokenizers_play_no_part(student, teacher, tmp_path):
    """Padding is never written, so it has no place among the ranks either."""
    from safetensors.torch import load_file, save_file

    for ref, name in ((student, "student"), (teacher, "teacher")):
        tok, model = load_tokenizer(ref), load_model(ref, device="cpu")
        model.resize_token_embeddings(len(tok) + 40, mean_resizing=False)
        model.save_pretrained(tmp_path / name)
        tok.save_pretrained(tmp_path / name)
        weights = load_file(tmp_path / name / "model.safetensors")
        weights["model.embed_tokens.weight"][len(tok) :] = 3.0  # far from unlikely
        save_file(weights, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    settings = {"steps": 1, "validation_share": 0}
    trained(tmp_path / "plain", student, teacher, **settings)
    trained(tmp_path / "padded", *(str(tmp_path / name) for name in ("student", "teacher")), **settings)
    (plain,), (padded,) = lines(tmp_path / "plain"), lines(tmp_path / "padded")
    assert padded["loss"] == pytest.approx(plain["loss"], rel=1e-5)


def test_the_doctor_finds_nothing_and_says_how_much_is_compared(student, teacher, tmp_path):
    from kdbench.jobs.doctor_job import doctor
    from tests.jobs.test_training import generated

    samples = [sample(n) for n in range(12)]
    settings = {"data": generated(tmp_path / "data", samples), "config": {"device": "cpu"}}
    found = doctor("cross_tokenizer", student=student, teacher=teacher, **settings)
    assert [str(one) for one in found if one.level != "ok"] == []
    sequences = encode_aligned(samples, reader_of(student), reader_of(teacher), 1024)
    compared, tokens = sum(one.compared for one in sequences), sum(len(one.completion) for one in sequences)
    (said,) = [one.text for one in found if one.check == "vocabularies"]
    assert said.endswith(f"compared at {compared:,} of {tokens:,} learnt tokens")
    assert [one.check for one in found][-3:] == ["batches", "positions", "denominator"]
    found = doctor("cross_tokenizer", student=student, teacher=student, **settings)
    (error,) = [one for one in found if one.level == "error"]
    assert str(error).endswith("which token has which probability; use white_box, which does")


def test_a_teacher_is_needed_and_one_with_the_same_tokenizer_is_refused(student, tmp_path):
    with pytest.raises(ConfigError, match=r"The trainer cross_tokenizer .* no teacher is given"):
        trained(tmp_path, student, None)
    with pytest.raises(ConfigError, match=r"teacher '.*' have the same tokenizer, .*; use white_box, which"):
        trained(tmp_path, student, student)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_without_offsets_is_refused(student, tmp_path):
    from transformers import ByT5Tokenizer

    slow = ByT5Tokenizer()
    slow.chat_template = TEACHER_TEMPLATE
    with pytest.raises(ConfigError, match=r"The teacher's tokenizer \(ByT5Tokenizer\) does not say which"):
        trained(tmp_path / "out", student, saved(tmp_path / "slow", slow))


def test_empty_and_too_long_answers_are_left_out(student, teacher, tmp_path, caplog):
    blank = sample(1).model_copy(update={"completion": (Message(role="assistant", content=""),)})
    settings = {"steps": 1, "batch_size": 1, "validation_share": 0}
    trained(tmp_path / "out", student, teacher, samples=[SAMPLES[0], blank], **settings)
    assert "1 of 2 samples left out: their completion is empty" in caplog.text
    with pytest.raises(NothingLeft, match=r"1: longer than 50 tokens \(the student's; max_length; raise it"):
        trained(tmp_path / "none", student, teacher, samples=[SAMPLES[0]], max_length=50, **settings)
