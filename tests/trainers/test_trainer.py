"""black_box and white_box on tiny models: what they write, and what must not change the result."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from kdbench.errors import ConfigError, RunFailed, StorageError  # noqa: E402
from kdbench.models.chat import student_chat_template  # noqa: E402
from kdbench.models.loading import load_model, load_tokenizer  # noqa: E402
from kdbench.records import Completion, Message  # noqa: E402
from kdbench_trainers import black_box, white_box  # noqa: E402
from tests.trainers.tiny import save_model, stories, story, tokenizer  # noqa: E402

pytestmark = pytest.mark.medium

BASE = {
    "steps": 4, "batch_size": 4, "learning_rate": 0.01, "warmup_steps": 0, "eval_every": 2,
    "device": "cpu", "validation_share": 0.25,
}  # fmt: skip


def run(module, out, student, teacher=None, samples=None, resume=False, load=True, **settings):
    config = module.Config(**{**BASE, **settings})
    module.train(
        samples or stories(16), teacher=teacher, student=student, out=out, config=config, resume=resume
    )
    return load_file(out / "model" / "model.safetensors") if load else None


def lines(out, split=None):
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if split in (None, line["split"])]


def same(left, right, **tolerance):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], **(tolerance or {"rtol": 1e-4, "atol": 1e-5}))


@pytest.fixture(params=["black_box", "white_box"])
def method(request, teacher):
    module = {"black_box": black_box, "white_box": white_box}[request.param]
    return lambda *args, **kwargs: run(module, *args, teacher=teacher, **kwargs)


def test_writes_a_model_that_loads_and_metrics(method, student, tmp_path):
    method(tmp_path, student)
    assert load_model(str(tmp_path / "model"), device="cpu").config.num_hidden_layers == 2
    assert load_tokenizer(str(tmp_path / "model")).chat_template == load_tokenizer(student).chat_template
    assert [line["step"] for line in lines(tmp_path, "train")] == [1, 2, 3, 4]
    assert [line["step"] for line in lines(tmp_path, "validation")] == [0, 2, 4]
    for line in lines(tmp_path):
        assert math.isfinite(line["loss"])
        assert line["tokens"] > 0
    assert all(line["tokens_per_second"] > 0 and "learning_rate" in line for line in lines(tmp_path, "train"))
    assert not (tmp_path / "checkpoints").exists()


def test_learns(method, student, tmp_path):
    method(tmp_path, student, steps=60, eval_every=60, validation_share=0.1)
    train = lines(tmp_path, "train")
    assert train[-1]["loss"] < 0.5 * train[0]["loss"]


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_micro_batches_change_nothing(method, student, tmp_path, micro_batch_size):
    weights = [0.5, 2.0]
    samples = [story(n, words=1 + n % 9, weight=weights[n % 2]) for n in range(16)]
    whole = method(tmp_path / "whole", student, samples=samples)
    cut = method(tmp_path / "cut", student, samples=samples, micro_batch_size=micro_batch_size)
    same(whole, cut)
    for one, other in zip(lines(tmp_path / "whole"), lines(tmp_path / "cut"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert one["tokens"] == other["tokens"]


def test_first_loss_is_the_mean_over_the_learnt_tokens(student, tmp_path):
    """Against transformers' own forward, one unpadded sample at a time."""
    samples = [story(n, words=1 + 2 * n) for n in range(4)]
    run(black_box, tmp_path, student, samples=samples, validation_share=0, steps=1)
    model, tok = load_model(student, device="cpu"), load_tokenizer(student)
    total, count = 0.0, 0
    for sample in samples:
        messages = [{"role": m.role, "content": m.content} for m in sample.prompt]
        prompt = tok.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        answer = [*tok(sample.text)["input_ids"], tok.eos_token_id]
        ids = torch.tensor([prompt + answer])
        logits = model(ids).logits[0, len(prompt) - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum").item()
        count += len(answer)
    (line,) = lines(tmp_path, "train")
    assert line["loss"] == pytest.approx(total / count, rel=1e-4)
    assert line["tokens"] == count


def test_white_box_measures_the_teachers_divergence_on_its_own_prompt(student, teacher, tmp_path):
    hint = (Message(role="user", content="write a happy story about the sad dog"),)
    sample = story(1, teacher_prompt=hint)
    run(white_box, tmp_path, student, teacher, [sample], validation_share=0, steps=1)
    answer = torch.tensor(
        [*load_tokenizer(student)(sample.text)["input_ids"], load_tokenizer(student).eos_token_id]
    )

    def log_probabilities(ref, messages):
        tok = load_tokenizer(ref)
        turns = [{"role": m.role, "content": m.content} for m in messages]
        prompt = tok.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        ids = torch.cat([torch.tensor(prompt), answer]).unsqueeze(0)
        return load_model(ref, device="cpu")(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)

    theirs, ours = log_probabilities(teacher, hint), log_probabilities(student, sample.prompt)
    expected = (theirs.exp() * (theirs - ours)).sum(-1).mean().item()
    (line,) = lines(tmp_path, "train")
    assert line["loss"] == line["divergence"] == pytest.approx(expected, rel=1e-4)
    assert line["cross_entropy"] == pytest.approx(
        -ours.gather(-1, answer.unsqueeze(-1)).mean().item(), rel=1e-4
    )


def test_a_student_that_is_its_teacher_has_nothing_to_learn(student, tmp_path):
    # Adam makes a step of whatever rounding leaves of a gradient, so the step is made small.
    run(white_box, tmp_path, student, teacher=student, steps=1, learning_rate=1e-12)
    assert all(abs(line["divergence"]) < 1e-5 for line in lines(tmp_path))


def test_the_cache_of_the_teacher_changes_nothing(student, teacher, tmp_path):
    settings = {"samples": stories(6), "steps": 6, "micro_batch_size": 2}
    kept = run(white_box, tmp_path / "kept", student, teacher, **settings)
    read = run(white_box, tmp_path / "read", student, teacher, **settings, teacher_cache_mb=0)
    same(kept, read)


def test_the_teacher_reads_each_sample_once(student, teacher, tmp_path, monkeypatch):
    from kdbench_trainers._teacher import LiveTeacher

    seen = []
    look = LiveTeacher._look
    monkeypatch.setattr(
        LiveTeacher, "_look", lambda self, group: seen.extend(s.key for s in group) or look(self, group)
    )
    run(white_box, tmp_path, student, teacher, stories(6), steps=6)
    assert sorted(seen) == list(range(6))


@pytest.mark.parametrize("settings", [{"divergence": "reverse_kl"}, {"divergence": "jsd", "beta": 0.3},
                                      {"kd_temperature": 2.0}, {"ce_weight": 0.5}])  # fmt: skip
def test_every_divergence_trains(student, teacher, tmp_path, settings):
    run(white_box, tmp_path, student, teacher, steps=40, validation_share=0, **settings)
    found = lines(tmp_path, "train")
    assert found[-1]["loss"] < 0.7 * found[0]["loss"]


def test_frozen_embeddings_stay(method, student, tmp_path):
    before = load_file(Path(student) / "model.safetensors")
    after = method(tmp_path, student, freeze_embeddings=True)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "model.embed_tokens.weight" not in changed
    assert "model.layers.0.mlp.up_proj.weight" in changed


def test_gradient_checkpointing_changes_nothing(method, student, tmp_path):
    plain = method(tmp_path / "plain", student)
    same(plain, method(tmp_path / "saved", student, gradient_checkpointing=True))


def test_bfloat16_products_keep_float32_weights(method, student, tmp_path):
    weights = method(tmp_path, student, dtype="bfloat16")
    assert {w.dtype for w in weights.values()} == {torch.float32}
    same(weights, method(tmp_path / "single", student), rtol=0.5, atol=0.1)


def test_heads_padded_to_different_sizes_are_allowed(student, teacher, tmp_path):
    size = len(load_tokenizer(student))
    padded = save_model(tmp_path / "padded", seed=1, padded_to=size + 9)
    run(white_box, tmp_path / "out", padded, teacher)
    assert all(math.isfinite(line["loss"]) for line in lines(tmp_path / "out"))


def test_validation_is_made_without_dropout(method, tmp_path):
    student = save_model(tmp_path / "dropout", seed=1, dropout=0.9)
    method(tmp_path / "out", student, steps=2, eval_every=1, learning_rate=1e-12)
    held_out = [line["loss"] for line in lines(tmp_path / "out", "validation")]
    assert held_out == pytest.approx([held_out[0]] * 3, rel=1e-5)
    learnt = [line["loss"] for line in lines(tmp_path / "out", "train")]
    method(tmp_path / "plain", save_model(tmp_path / "none", seed=1), steps=2, learning_rate=1e-12)
    assert learnt != pytest.approx([line["loss"] for line in lines(tmp_path / "plain", "train")], rel=1e-3)


def test_untied_heads(method, tmp_path):
    method(tmp_path / "out", save_model(tmp_path / "untied", seed=1, tie=False))
    assert all(math.isfinite(line["loss"]) for line in lines(tmp_path / "out"))


def test_other_vocabulary_is_refused_with_both_sizes(student, tmp_path):
    other = save_model(tmp_path / "other", tok=tokenizer(words=["some", "other", "words"]))
    with pytest.raises(ConfigError, match=r"has 29 tokens and the teacher .* has 10,.*use black_box"):
        run(white_box, tmp_path / "out", student, teacher=other)


def test_white_box_needs_a_teacher(student, tmp_path):
    with pytest.raises(ConfigError, match="no teacher is given; name one with --teacher"):
        run(white_box, tmp_path, student)


def save_as(kind, folder, **changes):
    """A tiny model of another architecture with the tiny tokenizer."""
    import transformers

    tok = tokenizer()
    shape = {
        "vocab_size": len(tok), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.5,
    }  # fmt: skip
    torch.manual_seed(3)
    config = getattr(transformers, f"{kind}Config")(**{**shape, **changes})
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Cohere", {"logit_scale": 0.1}),
        ("Granite", {"logits_scaling": 4.0}),
        ("Gemma2", {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8}),
    ],
)
def test_scaled_and_capped_logits_are_learnt_as_the_model_makes_them(kind, changes, tmp_path):
    """The first loss against transformers' own forward."""
    student = save_as(kind, tmp_path / "student", **changes)
    sample = story(1)
    run(black_box, tmp_path / "out", student, samples=[sample], validation_share=0, steps=1)
    model, tok = load_model(student, device="cpu"), load_tokenizer(student)
    turns = [{"role": m.role, "content": m.content} for m in sample.prompt]
    prompt = tok.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    answer = [*tok(sample.text)["input_ids"], tok.eos_token_id]
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    expected = torch.nn.functional.cross_entropy(logits.float(), torch.tensor(answer)).item()
    assert lines(tmp_path / "out", "train")[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_a_head_with_a_bias_is_refused(tmp_path):
    student = save_as("Phi", tmp_path / "student")
    with pytest.raises(ConfigError, match="changes its logits after the head in a way"):
        run(black_box, tmp_path / "out", student)


def test_a_loss_that_is_no_number_stops_the_training(student, tmp_path):
    heavy = [story(n, weight=1e38) for n in range(4)]  # their sum is beyond float32
    with pytest.raises(
        RunFailed, match=r"The loss became (nan|inf) at step 1; train with a smaller learning"
    ):
        run(black_box, tmp_path, student, samples=heavy, validation_share=0)


def test_a_disk_that_refuses_is_named(student, tmp_path):
    (tmp_path / "checkpoints").write_text("a file where a folder is needed")
    with pytest.raises(StorageError, match=r"Cannot write into .*; free some room and go on with --resume"):
        run(black_box, tmp_path, student, checkpoint_every=1)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from tests.trainers import test_trainer as t
from kdbench_trainers import _callbacks
wanted, how = int(sys.argv[2]), sys.argv[3]
on_log = _callbacks.Metrics.on_log
def stop(self, args, state, control, logs, **more):
    on_log(self, args, state, control, logs, **more)
    if state.global_step == wanted and "loss" in logs:
        os.kill(os.getpid(), getattr(signal, how))
_callbacks.Metrics.on_log = stop
module = getattr(t, sys.argv[4])
try:
    t.run(module, t.Path(sys.argv[5]), sys.argv[6], sys.argv[7], checkpoint_every=2, steps=6)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(
    ("name", "how", "step"),
    [
        ("black_box", "SIGKILL", 5),
        ("white_box", "SIGKILL", 3),
        ("black_box", "SIGINT", 3),
        ("white_box", "SIGKILL", 1),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(name, how, step, student, teacher, tmp_path):
    here = str(Path(__file__).parents[2])
    command = [
        sys.executable,
        "-c",
        KILLED,
        here,
        str(step),
        how,
        name,
        str(tmp_path / "cut"),
        student,
        teacher,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == (-signal.SIGKILL if how == "SIGKILL" else 130), done.stderr
    assert not (tmp_path / "cut" / "model").exists()
    module = {"black_box": black_box, "white_box": white_box}[name]
    settings = {"checkpoint_every": 2, "steps": 6}
    # What was done before the last checkpoint is kept, its times included, and not done again.
    last = {"SIGKILL": (step - 1) // 2 * 2, "SIGINT": step}[how]
    kept = [line for line in lines(tmp_path / "cut", "train") if line["step"] <= last]
    resumed = run(module, tmp_path / "cut", student, teacher, resume=True, **settings)
    whole = run(module, tmp_path / "whole", student, teacher, **settings)
    same(resumed, whole)
    assert lines(tmp_path / "cut", "train")[:last] == kept
    steps = [(line["step"], line["split"]) for line in lines(tmp_path / "cut")]
    assert steps == [(line["step"], line["split"]) for line in lines(tmp_path / "whole")]


def test_a_torn_checkpoint_is_passed_over(student, tmp_path):
    from kdbench_trainers._fit import last_checkpoint

    run(black_box, tmp_path, student, checkpoint_every=1, keep_checkpoints=True)
    folder = tmp_path / "checkpoints"
    assert last_checkpoint(folder).name == "checkpoint-3"
    (folder / "checkpoint-3" / "trainer_state.json").write_text('{"torn')
    assert last_checkpoint(folder).name == "checkpoint-2"
    assert last_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("module", [black_box, white_box])
def test_smollm2_teaches_a_student_of_two_of_its_layers(module, tmp_path):
    """The real tokenizer, vocabulary and templates; the loss falls within three steps."""
    model, tok = load_model("smollm2", device="cpu"), load_tokenizer("smollm2")
    model.model.layers = model.model.layers[:1] + model.model.layers[-1:]
    model.model.layers[1].self_attn.layer_idx = 1
    model.config.num_hidden_layers = 2
    model.config.layer_types = None
    tok.chat_template = student_chat_template(tok)
    model.save_pretrained(tmp_path / "student")
    tok.save_pretrained(tmp_path / "student")
    text = "Once upon a time a happy cat wanted to jump over the moon. It could not. It laughed."
    asked = (Message(role="user", content="Write a story with the words cat, jump and happy."),)
    samples = [
        Completion(id=str(n), prompt=asked, completion=(Message(role="assistant", content=text),))
        for n in range(2)
    ]
    run(module, tmp_path / "out", str(tmp_path / "student"), "smollm2", samples,
        steps=3, batch_size=2, learning_rate=1e-3, validation_share=0)  # fmt: skip
    first, *_, last = lines(tmp_path / "out", "train")
    assert first["tokens"] == 2 * (len(tok(text)["input_ids"]) + 1)
    assert last["loss"] < 0.95 * first["loss"]
