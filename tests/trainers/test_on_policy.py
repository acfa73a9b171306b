"""gkd, distillm and minillm on tiny models: resumption to the bit, several processes, and what they cost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from kdbench.errors import ConfigError, RunFailed  # noqa: E402
from kdbench_trainers import (  # noqa: E402
    cross_tokenizer,
    distillm,
    feature_matching,
    gkd,
    minillm,
    white_box,
)
from tests.support import byte_llama  # noqa: E402
from tests.trainers.test_trainer import lines, run, same, stories  # noqa: E402
from tests.trainers.tiny import save_model  # noqa: E402

pytestmark = pytest.mark.medium

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "white_box": {"divergence": "skew_reverse_kl"},
    "gkd": {"lmbda": 0.6, "max_new_tokens": 8},
    # Every validation counts as worse, so phi grows; the buffer is full after two batches.
    "distillm": {"tolerance": 0.0, "buffer_size": 8, "max_new_tokens": 8, "learning_rate": 1.0},
    # The checkpoint of step 6 falls among the steps that learn from the rollouts of step 4.
    "minillm": {"inner_epochs": 4, "ce_weight": 0.3, "max_new_tokens": 8},
}
MODULES = {"white_box": white_box, "gkd": gkd, "distillm": distillm, "minillm": minillm}
# Lines and checkpoints fall on different steps, and the last step on neither.
STEPS = {"steps": 14, "eval_every": 1, "checkpoint_every": 3, "log_every": 4}
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}

# Every run in a process of its own with one thread: they are forked from one that has imported all.
RUNS = """
import json, os, signal, sys, traceback
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from kdbench_trainers import _callbacks
from tests.trainers import test_on_policy as t
out, student, teacher = Path(sys.argv[2]), *sys.argv[3:5]
on_log = _callbacks.Metrics.on_log

def killed_at_8(self, args, state, control, logs, **more):
    on_log(self, args, state, control, logs, **more)
    if state.global_step == 8 and "eval_loss" in logs:
        os.kill(os.getpid(), signal.SIGKILL)

def ended(name, folder, log=on_log, resume=False):
    if not (child := os.fork()):
        _callbacks.Metrics.on_log = log
        try:
            settings = {**t.STEPS, **t.SETTINGS[name]}
            t.run(t.MODULES[name], out / name / folder, student, teacher, resume=resume, **settings)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

for name in t.SETTINGS:
    ends = [ended(name, "whole"), ended(name, "cut", killed_at_8), ended(name, "cut", resume=True)]
    (out / name / "ends.json").write_text(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def runs(student, teacher, tmp_path_factory):
    """By method: whole/ in one go, cut/ killed at step 8 and resumed, and how these three ended."""
    out = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-c", RUNS, str(ROOT), str(out), student, teacher]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ALONE)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("name", list(SETTINGS))
def test_killed_and_resumed_goes_on_to_the_same_bits(name, runs):
    found = runs / name
    assert json.loads((found / "ends.json").read_text()) == [0, -signal.SIGKILL, 0]

    def curve(out):
        kept = ("step", "split", "loss", "divergence", "tokens", "grad_norm", "phi", "buffer")
        return [{key: line[key] for key in kept if key in line} for line in lines(out)]

    assert curve(found / "cut") == curve(found / "whole")
    weights = [(found / out / "model" / "model.safetensors").read_bytes() for out in ("cut", "whole")]
    assert weights[0] == weights[1]
    train = lines(found / "whole", "train")
    if name == "distillm":
        assert train[-1]["phi"] > 0.3
        assert max(line["buffer"] for line in train) == 8
        assert {line["generated_tokens"] > 0 for line in train} == {True, False}


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_micro_batches_change_nothing(student, teacher, tmp_path, micro_batch_size):
    """The tokens are counted after the student has written, over the whole window."""
    settings = {"lmbda": 1.0, "max_new_tokens": 9, "validation_share": 0, "steps": 3}
    whole = run(gkd, tmp_path / "whole", student, teacher, **settings)
    cut = run(gkd, tmp_path / "cut", student, teacher, **settings, micro_batch_size=micro_batch_size)
    same(whole, cut)
    for one, other in zip(lines(tmp_path / "whole"), lines(tmp_path / "cut"), strict=True):
        assert one["tokens"] == other["tokens"] == one["generated_tokens"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("name", ["gkd", "distillm"])
def test_bfloat16_products_keep_float32_weights_and_the_student_can_write(name, student, teacher, tmp_path):
    settings = {"gkd": {"lmbda": 1.0}, "distillm": SETTINGS["distillm"]}[name]
    weights = run(
        MODULES[name], tmp_path, student, teacher, dtype="bfloat16", **{**settings, "max_new_tokens": 6}
    )
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert name == "distillm" or all(line["generated_tokens"] > 0 for line in lines(tmp_path, "train"))


def test_every_step_is_in_a_line_however_seldom_lines_are_written(student, teacher, tmp_path):
    settings = {"lmbda": 0.0, "steps": 5, "validation_share": 0}
    run(gkd, tmp_path / "each", student, teacher, **settings)
    run(gkd, tmp_path / "few", student, teacher, **settings, log_every=3, checkpoint_every=2)
    tokens = [sum(line["tokens"] for line in lines(tmp_path / name, "train")) for name in ("each", "few")]
    assert tokens[0] == tokens[1]
    assert [line["step"] for line in lines(tmp_path / "few", "train")] == [2, 3, 4, 5]


def test_a_model_of_no_numbers_is_never_saved(student, tmp_path):
    from kdbench_trainers import black_box
    from tests.trainers.tiny import story

    heavy = [story(n, weight=1e38) for n in range(4)]  # their sum is beyond float32
    with pytest.raises(RunFailed, match="The loss became"):
        run(black_box, tmp_path, student, samples=heavy, validation_share=0, steps=3, log_every=50)
    assert not (tmp_path / "model").exists()


def test_validation_never_has_the_teacher_read_what_is_learnt(student, teacher, tmp_path, monkeypatch):
    from kdbench_trainers._teacher import LiveTeacher

    seen = []
    look = LiveTeacher._look
    monkeypatch.setattr(
        LiveTeacher, "_look", lambda self, group: seen.extend(s.key for s in group) or look(self, group)
    )
    run(gkd, tmp_path, student, teacher, stories(24), lmbda=1.0, max_new_tokens=4, steps=2, eval_every=1)
    assert len([key for key in seen if key is not None]) == 6  # the quarter that is held out, each once


def test_how_long_the_unused_answers_are_plays_no_part(student, teacher, tmp_path):
    """TRL's GKDTrainer divides by the tokens of the answers that it does not use."""
    from tests.trainers.tiny import story

    settings = {"lmbda": 1.0, "max_new_tokens": 6, "validation_share": 0, "steps": 1}
    found = []
    for words in (1, 20):
        samples = [story(n, words=words) for n in range(4)]
        run(gkd, tmp_path / str(words), student, teacher, samples, **settings)
        (line,) = lines(tmp_path / str(words))
        found.append((line["loss"], line["grad_norm"], line["tokens"]))
    assert found[0] == pytest.approx(found[1])


SHARED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.trainers import test_on_policy as t
for name, (module, settings) in t.SHARED_METHODS.items():
    teacher = sys.argv[{"cross_tokenizer": 5, "feature_matching": 6}.get(name, 4)]
    t.run(module, Path(sys.argv[2]) / name, sys.argv[3], teacher, load=False, **settings)
"""
SHARED_SETTINGS = {
    "steps": 4,
    "batch_size": 6,
    "micro_batch_size": 2,
    "checkpoint_every": 2,
    "keep_checkpoints": True,
}
SHARED_METHODS = {
    "white_box": (white_box, {**SETTINGS["white_box"], **SHARED_SETTINGS}),
    "gkd": (gkd, {**SETTINGS["gkd"], **SHARED_SETTINGS}),
    "minillm": (minillm, {**SETTINGS["minillm"], **SHARED_SETTINGS}),
    "cross_tokenizer": (cross_tokenizer, SHARED_SETTINGS),
    "feature_matching": (
        feature_matching,
        {"relation_heads": 4, "hidden_layers": [[-1, -1]], **SHARED_SETTINGS},
    ),
}


def test_two_processes_make_the_loss_and_gradient_of_one(student, teacher, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    (tmp_path / "shared.py").write_text(SHARED)
    foreign = byte_llama.save(tmp_path / "foreign", seed=3)
    deep = save_model(tmp_path / "deep", seed=2, layers=3)  # as wide as the student
    teachers = {"cross_tokenizer": foreign, "feature_matching": deep}
    models = (student, teacher, foreign, deep)
    done = subprocess.run(
        [*launch, str(tmp_path / "shared.py"), str(ROOT), str(tmp_path / "two"), *models],
        capture_output=True, text=True, timeout=300, env=ALONE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name, (module, settings) in SHARED_METHODS.items():
        whose = teachers.get(name, teacher)
        run(module, tmp_path / "one" / name, student, whose, **settings)
        one, two = lines(tmp_path / "one" / name), lines(tmp_path / "two" / name)
        assert [line["step"] for line in one] == [line["step"] for line in two]
        for mine, theirs in zip(one, two, strict=True):
            assert mine["tokens"] == theirs["tokens"]
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
            assert mine.get("hidden_states", 0) == pytest.approx(theirs.get("hidden_states", 0), rel=1e-4)
            assert mine.get("grad_norm", 0) == pytest.approx(theirs.get("grad_norm", 0), rel=1e-3)
        from safetensors.torch import load_file

        if name != "cross_tokenizer":  # at its kinks the distance makes steps of rounding errors
            same(*(load_file(tmp_path / n / name / "model" / "model.safetensors") for n in ("one", "two")))
        assert len(list((tmp_path / "two" / name / "checkpoints").rglob("kdbench_source-1.json"))) == 1


def test_what_it_cost_is_in_every_line(student, teacher, tmp_path):
    run(gkd, tmp_path, student, teacher, lmbda=1.0, max_new_tokens=6)
    for line in lines(tmp_path, "train"):
        phases = [line[f"seconds_{name}"] for name in ("generate", "teacher", "student", "loss", "optimizer")]
        assert all(spent > 0 for spent in phases)
        assert sum(phases) == pytest.approx(line["seconds"], abs=0.002)
        assert line["peak_memory_mb"] > 10
        assert 0 <= line["padding"] < 1


def test_a_foreign_or_broken_checkpoint_is_named(student, teacher, tmp_path):
    settings = {"steps": 4, "checkpoint_every": 2, "keep_checkpoints": True}
    run(distillm, tmp_path, student, teacher, **settings)
    (checkpoint,) = (tmp_path / "checkpoints").glob("checkpoint-*")
    state = checkpoint / "kdbench_source-0.json"
    kept = state.read_text()
    state.write_text("{")
    with pytest.raises(
        RunFailed, match=r"checkpoint-2 has no readable kdbench_source-0.json; go on with as many"
    ):
        run(distillm, tmp_path, student, teacher, resume=True, **settings)
    state.write_text(kept)
    (checkpoint / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(RunFailed, match=r"checkpoint-2 is broken or of another training .*--overwrite"):
        run(distillm, tmp_path, student, teacher, resume=True, **settings)


def test_a_checkpoint_that_not_all_processes_wrote_is_passed_over(
    student, teacher, tmp_path, monkeypatch, caplog
):
    from kdbench_trainers._fit import last_checkpoint

    settings = {"steps": 5, "checkpoint_every": 2, "keep_checkpoints": True}
    run(gkd, tmp_path, student, teacher, **settings)
    folder = tmp_path / "checkpoints"
    monkeypatch.setenv("WORLD_SIZE", "2")
    (folder / "checkpoint-2" / "kdbench_source-1.json").write_text('{"world": 2, "source": {}}')
    assert last_checkpoint(folder).name == "checkpoint-2"
    assert "checkpoint-4 is passed over: not all processes had written to it" in caplog.text
    monkeypatch.delenv("WORLD_SIZE")
    state = folder / "checkpoint-4" / "kdbench_source-0.json"
    state.write_text(state.read_text().replace('"world": 1', '"world": 2'))
    with pytest.raises(
        RunFailed, match="checkpoint-4 was written by 2 processes, and there are 1; go on with as"
    ):
        run(gkd, tmp_path, student, teacher, resume=True, **settings)


def test_what_a_tracker_writes_beside_the_checkpoints_is_kept(student, teacher, tmp_path):
    log = tmp_path / "checkpoints" / "runs" / "events"
    log.parent.mkdir(parents=True)
    log.write_text("of a tracker")
    run(white_box, tmp_path, student, teacher, checkpoint_every=2)
    assert log.read_text() == "of a tracker"
    assert list((tmp_path / "checkpoints").iterdir()) == [log.parent]


FULL = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.trainers import test_on_policy as t
from kdbench.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[5]), resource.RLIM_INFINITY))
try:
    t.run(t.white_box, Path(sys.argv[2]), sys.argv[3], sys.argv[4], steps=3, checkpoint_every=1)
except StorageError as exc:
    print(f"STORAGE {exc}")
"""


def test_a_disk_that_is_full_under_the_optimizers_state_is_named(student, teacher, tmp_path):
    """torch's writer raises no OSError. The limit lies between the weights' size and the state's."""
    limit = (Path(student) / "model.safetensors").stat().st_size * 3 // 2
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        FULL,
        str(ROOT),
        str(tmp_path),
        student,
        teacher,
        str(limit),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ALONE)
    assert "STORAGE Cannot write into" in done.stdout, done.stderr[-2000:]
    assert "free some room and go on with --resume" in done.stdout


def test_ctrl_c_in_the_last_step_lets_the_training_end(student, teacher, tmp_path, monkeypatch, caplog):
    from kdbench_trainers import _callbacks

    on_step_end = _callbacks.Metrics.on_step_end

    def pressed(self, args, state, control, **more):
        if state.global_step == state.max_steps:
            os.kill(os.getpid(), signal.SIGINT)
        on_step_end(self, args, state, control, **more)

    monkeypatch.setattr(_callbacks.Metrics, "on_step_end", pressed)
    run(white_box, tmp_path, student, teacher)
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert "That was the last step: the training ends as it would have" in caplog.text


@pytest.mark.parametrize("asked", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_sharded_weights_are_refused_with_the_way_out(asked, student, teacher, tmp_path, monkeypatch):
    monkeypatch.setenv(asked, "true")  # as accelerate launch does
    with pytest.raises(
        ConfigError, match="work with DDP, and not with FSDP or DeepSpeed yet; launch without them"
    ):
        run(white_box, tmp_path, student, teacher)


def test_adapters_are_trained_alone_and_added_to_the_weights(student, teacher, tmp_path):
    from kdbench.models.loading import load_model

    lora = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "down_proj"]}
    weights = run(gkd, tmp_path / "merged", student, teacher, lora=lora, max_new_tokens=6, steps=6)
    before = load_model(student, device="cpu").state_dict()
    changed = {name for name in weights if not torch.equal(weights[name], before[name])}
    assert changed == {
        f"model.layers.{layer}.{part}.weight"
        for layer in (0, 1)
        for part in ("self_attn.q_proj", "mlp.down_proj")
    }
    run(white_box, tmp_path / "apart", student, teacher, lora={**lora, "merge": False}, load=False)
    names = {path.name for path in (tmp_path / "apart" / "model").glob("*.safetensors")}
    assert names == {"adapter_model.safetensors"}
    with pytest.raises(ConfigError, match=r"lora.targets = \['nowhere'\].*or all-linear"):
        run(gkd, tmp_path / "none", student, teacher, lora={"targets": ["nowhere"]})
    with pytest.raises(
        ConfigError, match=r"lora.targets names lm_head, and head and embeddings get no adapters"
    ):
        run(gkd, tmp_path / "head", student, teacher, lora={"targets": ["lm_head"]})
    again = run(gkd, tmp_path / "again", student, teacher, lora=lora, max_new_tokens=6, steps=6)
    same(weights, again, rtol=0, atol=0)  # whatever was drawn before


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        (gkd, {"lmbda": 1.5}, "lmbda"),
        (gkd, {"beta": -0.1}, "beta"),
        (distillm, {"alpha": 1.0}, "alpha"),
        (gkd, {"kd_temperature": 0}, "kd_temperature"),
        (gkd, {"sampling_temperature": 3}, "sampling_temperature"),
        (distillm, {"buffer_size": 3}, "buffer_size 3 holds no batch of 4"),
        (white_box, {"normalize_jsd": True}, "normalize_jsd belongs to divergence jsd, not to forward_kl"),
        (white_box, {"token_scaling": 0}, "token_scaling"),
        (white_box, {"beta": 0.9}, "beta plays no part in divergence forward_kl; leave it out"),
        (gkd, {"alpha": 0.2}, "alpha plays no part in divergence jsd"),
        (distillm, {"validation_share": 0}, "validation_share 0 leaves none"),
    ],
)
def test_numbers_out_of_range_are_refused(module, settings, message):
    from kdbench.config import build

    with pytest.raises(ConfigError, match=message):
        build(module.Config, {"batch_size": 4, **settings}, "trainer")


def test_a_teacher_that_answers_with_no_numbers_is_named(student, tmp_path):
    from safetensors.torch import load_file, save_file

    from tests.trainers.tiny import save_model

    broken = save_model(tmp_path / "broken", seed=2, hidden=24)
    weights = load_file(Path(broken) / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, Path(broken) / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        RunFailed, match=r"The teacher '.*broken' answers with numbers that are none .* samples of s"
    ):
        run(white_box, tmp_path / "out", student, broken, stories(8))


def test_token_scaling_weighs_by_what_the_teacher_found_hard(student, teacher, tmp_path):
    """One sample's loss, from both models' own logits."""
    from kdbench.losses.weighting import token_scaled
    from kdbench.models.loading import load_model, load_tokenizer
    from tests.trainers.tiny import story

    sample, tok = story(3, words=9), load_tokenizer(student)
    run(white_box, tmp_path, student, teacher, [sample], validation_share=0, steps=1, token_scaling=0.5)
    turns = [{"role": m.role, "content": m.content} for m in sample.prompt]
    prompt = tok.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    answer = [*tok(sample.text)["input_ids"], tok.eos_token_id]
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        ours, theirs = (
            load_model(ref, device="cpu")(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            for ref in (student, teacher)
        )
    kl = (theirs.exp() * (theirs - ours)).sum(-1)
    unsure = -theirs.gather(-1, torch.tensor(answer).unsqueeze(-1)).squeeze(-1)
    expected = (token_scaled(unsure, [len(answer)], 0.5) * kl).mean().item()
    assert lines(tmp_path, "train")[0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(kl.mean().item(), rel=1e-2)
