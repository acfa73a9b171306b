"""dpo against the equation in float64, and what must not change its loss."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from kdbench.config import build  # noqa: E402
from kdbench.errors import ConfigError, DataError, NothingLeft, StorageError  # noqa: E402
from kdbench.jobs.doctor_job import doctor  # noqa: E402
from kdbench.jobs.report_job import report  # noqa: E402
from kdbench.jobs.training import train  # noqa: E402
from kdbench.models.loading import load_model, load_tokenizer  # noqa: E402
from kdbench.models.sequences import choose_groups  # noqa: E402
from kdbench.records import Message, Preference  # noqa: E402
from kdbench.rundir import read_info  # noqa: E402
from kdbench_trainers import dpo  # noqa: E402
from tests.jobs.test_training import generated  # noqa: E402
from tests.trainers.test_trainer import BASE, lines, run, same  # noqa: E402
from tests.trainers.tiny import WORDS, save_model, stories  # noqa: E402

pytestmark = pytest.mark.medium

ROOT = Path(__file__).parents[2]
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}


def said(role, words):
    return Message(role=role, content=" ".join(words))


def pair(number, chosen=None, rejected=None, **more):
    """Two answers of different lengths that depend on the number."""
    chosen = chosen or [WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(2 + number % 5)]
    rejected = rejected or [WORDS[(number * 3 + 5 * i) % len(WORDS)] for i in range(1 + number % 7)]
    return Preference(
        id=f"p{number}",
        prompt=(said("user", ["write", "a", "story", "about", WORDS[number % len(WORDS)]]),),
        chosen=(said("assistant", chosen),),
        rejected=(said("assistant", rejected),),
        **more,
    )


def pairs(count, **more):
    return [pair(n, **more) for n in range(count)]


def log_probability(ref, sample, answer):
    """log p(answer and its end | prompt) in float64, unpadded, and the number of its tokens."""
    model, tok = load_model(ref, device="cpu").double(), load_tokenizer(ref)
    turns = [{"role": m.role, "content": m.content} for m in sample.prompt]
    prompt = tok.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    ids = [*tok(answer[0].content)["input_ids"], tok.eos_token_id]
    logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    found = logits.log_softmax(-1).gather(-1, torch.tensor(ids).unsqueeze(-1)).sum().item()
    return found, len(ids)


def expected(before, after, samples, *, beta=0.1, loss="sigmoid", sft_weight=0.0):
    """What the equations make of the student before and after the training: the line of metrics."""
    sums = dict.fromkeys(("loss", "margin", "reward_chosen", "reward_rejected", "accuracy"), 0.0)
    weight = entropy = tokens = learnt = 0
    for sample in samples:
        (chosen, n), (rejected, m) = (
            log_probability(after, sample, one) for one in (sample.chosen, sample.rejected)
        )
        up, down = (
            now - log_probability(before, sample, one)[0]
            for now, one in ((chosen, sample.chosen), (rejected, sample.rejected))
        )
        margin = beta * (up - down)
        value = math.log1p(math.exp(-margin))
        if loss == "ipo":
            value = (up / n - down / m - 1 / (2 * beta)) ** 2
        found = {
            "loss": value - sft_weight * chosen / n,
            "margin": margin,
            "reward_chosen": beta * up,
            "reward_rejected": beta * down,
            "accuracy": float(margin > 0),
        }
        for name, one in found.items():
            sums[name] += sample.weight * one
        weight += sample.weight
        entropy -= sample.weight * chosen
        tokens += sample.weight * n
        learnt += n + m
    return {name: one / weight for name, one in sums.items()} | {
        "cross_entropy": entropy / tokens,
        "tokens": learnt,
    }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta": 0.5, "sft_weight": 0.7, "micro_batch_size": 1},
        {"loss": "ipo", "beta": 0.2},
        {"lora": {"rank": 2}},
    ],
    ids=["sigmoid", "sft", "ipo", "lora"],
)
def test_the_validation_of_the_trained_student_is_the_equation(student, tmp_path, settings):
    samples = [pair(n, weight=(0.5, 1.0, 2.0)[n % 3]) for n in range(12)]
    run(dpo, tmp_path, student, samples=samples, eval_every=9, **settings)
    held_out = choose_groups([one.id for one in samples], BASE["validation_share"], 0)
    asked = {k: v for k, v in settings.items() if k in ("beta", "loss", "sft_weight")}
    wanted = expected(
        student, str(tmp_path / "model"), [one for one in samples if one.id in held_out], **asked
    )
    assert abs(wanted["margin"]) > 0.01
    last = lines(tmp_path, "validation")[-1]
    assert {name: last[name] for name in wanted} == pytest.approx(wanted, rel=2e-4, abs=1e-5)


def test_before_the_first_step_the_student_is_its_reference(tmp_path):
    """log 2 and no margin, whatever dropout the student's config asks for."""
    student = save_model(tmp_path / "dropout", seed=1, dropout=0.9)
    run(dpo, tmp_path / "out", student, samples=pairs(8), steps=1)
    held_out, learnt = lines(tmp_path / "out", "validation")[0], lines(tmp_path / "out", "train")[0]
    for line in (held_out, learnt):
        assert line["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert line["margin"] == pytest.approx(0, abs=1e-6)
    assert learnt["grad_norm"] > 0.1
    assert learnt["tokens_per_second"] > 0


def test_the_loss_of_one_batch_is_trls_own(student, tmp_path):
    """DPOTrainer's equation on DPOTrainer's batches, in a student that has changed."""
    from trl import DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    from kdbench_trainers._fit import quiet
    from kdbench_trainers._models import load_student
    from kdbench_trainers._pairs import answers_of, encode_pairs
    from kdbench_trainers._preference import PreferenceTrainer

    config = dpo.Config(**BASE, loss="ipo", beta=0.3)
    reader, model = load_student(student, config)
    batch = encode_pairs(answers_of(pairs(4)), reader, 64)
    with quiet():
        trainer = PreferenceTrainer(
            model, train=batch, validation=[], tokenizer=reader.tokenizer, out=tmp_path, config=config
        )
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    rows = [
        {
            "prompt_ids": list(one.chosen.prompt),
            "chosen_ids": list(one.chosen.completion),
            "rejected_ids": list(one.rejected.completion),
            "ref_chosen_logps": trainer.reference[one.chosen.key],
            "ref_rejected_logps": trainer.reference[one.rejected.key],
        }
        for one in batch
    ]
    trainer.beta, trainer.loss_types = config.beta, ["ipo"]
    theirs = DPOTrainer._compute_loss(trainer, model, DataCollatorForPreference(0)(rows), False)
    ours = trainer.compute_loss(model, trainer.collate(batch), num_items_in_batch=4)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    parts = [torch.autograd.grad(loss, list(model.parameters())) for loss in (ours, theirs)]
    for mine, other in zip(*parts, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_micro_batches_change_nothing(student, tmp_path, micro_batch_size):
    """TRL's mean of means gives a pair of a small micro-batch more weight."""
    samples = [pair(n, weight=(0.5, 2.0)[n % 2]) for n in range(12)]
    settings = {"samples": samples, "sft_weight": 0.5, "steps": 3}
    whole = run(dpo, tmp_path / "whole", student, **settings)
    cut = run(dpo, tmp_path / "cut", student, **settings, micro_batch_size=micro_batch_size)
    same(whole, cut)
    for one, other in zip(lines(tmp_path / "whole"), lines(tmp_path / "cut"), strict=True):
        for name in ("loss", "grad_norm", "margin", "accuracy", "cross_entropy"):
            assert one.get(name, 0) == pytest.approx(other.get(name, 0), rel=1e-3, abs=1e-5)
        assert one["tokens"] == other["tokens"]


SHARED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.trainers import test_dpo as t
t.run(t.dpo, Path(sys.argv[2]), sys.argv[3], samples=t.pairs(12), load=False, **t.SHARED_SETTINGS)
"""
SHARED_SETTINGS = {"steps": 2, "batch_size": 6, "micro_batch_size": 2, "sft_weight": 0.5}


def test_two_processes_make_the_loss_and_gradient_of_one(student, tmp_path):
    (tmp_path / "shared.py").write_text(SHARED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "shared.py"), str(ROOT), str(tmp_path / "two"), student],
        capture_output=True, text=True, timeout=300, env=ALONE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run(dpo, tmp_path / "one", student, samples=pairs(12), **SHARED_SETTINGS)
    for one, two in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        for name in ("loss", "margin", "cross_entropy", "tokens"):
            assert one[name] == pytest.approx(two[name], rel=1e-4, abs=1e-5)
        assert one.get("grad_norm", 0) == pytest.approx(two.get("grad_norm", 0), rel=1e-3)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from kdbench_trainers import _callbacks
from tests.trainers import test_dpo as t
on_log = _callbacks.Metrics.on_log
def stop(self, args, state, control, logs, **more):
    on_log(self, args, state, control, logs, **more)
    if state.global_step == 5 and "eval_loss" in logs:
        os.kill(os.getpid(), signal.SIGKILL)
_callbacks.Metrics.on_log = stop
t.torch.set_num_threads(1)
t.run(t.dpo, Path(sys.argv[2]), sys.argv[3], samples=t.pairs(12), **t.STEPS)
"""
# Lines and checkpoints fall on different steps, and the last step on neither.
STEPS = {"steps": 8, "eval_every": 1, "checkpoint_every": 3, "log_every": 5}


def test_killed_and_resumed_goes_on_to_the_same_bits(student, tmp_path):
    """After the kill the reference is again the student as it began, not what the checkpoint holds."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(ROOT), str(tmp_path / "cut"), student],
        capture_output=True, text=True, timeout=300, env=ALONE,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run(dpo, tmp_path / "cut", student, samples=pairs(12), resume=True, **STEPS)
    run(dpo, tmp_path / "whole", student, samples=pairs(12), **STEPS)
    torch.set_num_threads(threads)

    def curve(out):
        kept = ("step", "split", "loss", "margin", "accuracy", "cross_entropy", "tokens", "grad_norm")
        return [{key: line[key] for key in kept if key in line} for line in lines(out)]

    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    weights = [(tmp_path / out / "model" / "model.safetensors").read_bytes() for out in ("cut", "whole")]
    assert weights[0] == weights[1]


def test_what_is_preferred_is_preferred_in_pairs_never_seen(student, tmp_path):
    """Happy endings are chosen and sad ones rejected, whatever the story is about."""
    happy, sad = ["who", "was", "happy"], ["who", "was", "sad"]
    samples = [pair(n, [*happy, WORDS[n % 5]], [*sad, WORDS[n % 7], "."]) for n in range(20)]
    run(dpo, tmp_path, student, samples=samples, steps=30, eval_every=30)
    first, last = lines(tmp_path, "validation")
    assert last["accuracy"] == 1
    assert last["margin"] > 0.5 > first["margin"] + 0.4
    assert last["loss"] < 0.5 * first["loss"]


def test_adapters_alone_are_saved_and_trls_copy_of_them_is_not(student, tmp_path):
    run(dpo, tmp_path, student, samples=pairs(8), load=False, lora={"rank": 2, "merge": False}, steps=2)
    names = load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert names
    assert all(".lora_" in name and ".ref." not in name for name in names)
    assert not [path for path in (tmp_path / "model").iterdir() if path.is_dir()]


def test_the_split_cuts_through_no_group(student, tmp_path):
    samples = [pair(n, group=f"g{n % 2}") for n in range(8)]
    run(dpo, tmp_path, student, samples=samples, steps=1, validation_share=0.5)
    held_out = choose_groups(["g0", "g1"], 0.5, 0)
    answers = [turn for one in samples if one.group in held_out for turn in (*one.chosen, *one.rejected)]
    assert lines(tmp_path, "validation")[0]["tokens"] == sum(len(a.content.split()) + 1 for a in answers)


def test_pairs_that_teach_nothing_are_left_out_whole(student, tmp_path, caplog):
    good, twice = pairs(3), pair(3, ["the", "cat"], ["the", "cat"])
    silent = pair(4).model_copy(update={"rejected": (Message(role="assistant", content=""),)})
    endless = pair(5, ["the"] * 60)
    settings = {"steps": 1, "batch_size": 3, "validation_share": 0, "max_length": 40}
    run(dpo, tmp_path / "out", student, samples=[*good, twice, silent, endless], **settings)
    run(dpo, tmp_path / "good", student, samples=good, **settings)
    assert lines(tmp_path / "out")[0]["tokens"] == lines(tmp_path / "good")[0]["tokens"]
    assert "2 of 6 pairs left out: one of their answers was, or both" in caplog.text
    assert "1 of 6 pairs left out: their two answers are the same" in caplog.text
    assert "left out: their completion is empty" in caplog.text
    assert "longer than 40 tokens (max_length" in caplog.text
    with pytest.raises(NothingLeft, match="No pair can be trained on, out of 3: of each, an answer is empty"):
        run(dpo, tmp_path / "none", student, samples=[twice, silent, endless], **settings)


def test_other_samples_and_answers_of_several_turns_are_refused(student, tmp_path):
    with pytest.raises(DataError, match=r"'s0' is a completion; give it samples of the kind preference"):
        run(dpo, tmp_path / "out", student, samples=stories(4))
    turns = (said("user", ["the", "cat"]), said("assistant", ["happy"]))
    with pytest.raises(DataError, match=r"The rejected answer of 'p0' has the turns user, assistant"):
        run(dpo, tmp_path / "out", student, samples=[pair(0).model_copy(update={"rejected": turns})])
    assert not (tmp_path / "out").exists()


def test_dropout_of_adapters_is_refused_before_anything_is_loaded():
    with pytest.raises(ConfigError, match=r"lora.dropout = 0.1, and dpo is trained without dropout"):
        build(dpo.Config, {"lora": {"dropout": 0.1}}, "trainer dpo")


def test_a_disk_that_refuses_is_named(student, tmp_path):
    (tmp_path / "checkpoints").write_text("a file where a folder is needed")
    with pytest.raises(StorageError, match=r"Cannot write into .*; free some room and go on with --resume"):
        run(dpo, tmp_path, student, samples=pairs(8), checkpoint_every=1)


def test_a_job_from_a_run_of_pairs_to_a_card_and_a_report(student, tmp_path):
    data = generated(tmp_path / "data", [*pairs(8), *stories(1)])
    settings = {**BASE, "steps": 2}
    train("dpo", data=data, student=student, out=tmp_path / "dpo", config=settings)
    stats = read_info(tmp_path / "dpo")["stats"]
    assert (stats["samples"], stats["steps"]) == (8, 2)
    assert stats["validation_loss"] == lines(tmp_path / "dpo", "validation")[-1]["loss"]
    assert "method: `dpo`" in (tmp_path / "dpo" / "model" / "README.md").read_text()
    assert "validation loss" in report(tmp_path / "dpo").read_text()
    with pytest.raises(ConfigError, match="looks at completions, and the trainer dpo learns from preference"):
        doctor("dpo", data=data, student=student)
    with pytest.raises(NothingLeft, match="the trainer dpo does not learn from completion"):
        train("dpo", data=generated(tmp_path / "other", stories(2)), student=student, out=tmp_path / "x")
