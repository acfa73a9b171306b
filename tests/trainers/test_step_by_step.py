"""step_by_step against two forward passes made by hand, and what must not change its loss."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from kdbench.errors import DataError, NothingLeft  # noqa: E402
from kdbench.models.loading import load_model, load_tokenizer  # noqa: E402
from kdbench.records import Completion, Message  # noqa: E402
from kdbench_trainers import black_box, step_by_step  # noqa: E402
from tests.trainers.test_trainer import lines, run, same  # noqa: E402
from tests.trainers.tiny import WORDS, stories  # noqa: E402

pytestmark = pytest.mark.medium

ROOT = Path(__file__).parents[2]


def view(number, name, words, weight=1.0):
    """One task of a question, as the recipe writes it."""
    text = " ".join(WORDS[(number * 5 + i * i) % len(WORDS)] for i in range(words))
    return Completion(
        id=f"q{number}-{name}",
        group=f"q{number}",
        prompt=(Message(role="user", content=f"{name} who was {WORDS[number % len(WORDS)]}"),),
        completion=(Message(role="assistant", content=text),),
        weight=weight,
        fields=json.dumps({"view": name}),
    )


def questions(count, weights=(1.0, 1.0)):
    """Short labels and rationales of different lengths, in turn."""
    return [
        one
        for n in range(count)
        for one in (
            view(n, "label", 1 + n % 2, weights[0]),
            view(n, "rationale", 4 + 3 * (n % 4), weights[1]),
        )
    ]


def task_loss(student, samples):
    """The mean of -log p over all tokens of these samples, one unpadded forward pass each."""
    model, tok = load_model(student, device="cpu"), load_tokenizer(student)
    losses = []
    for sample in samples:
        turns = [{"role": m.role, "content": m.content} for m in sample.prompt]
        prompt = tok.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        answer = [*tok(sample.text)["input_ids"], tok.eos_token_id]
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        losses += torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="none").tolist()
    return sum(losses) / len(losses)


def expected(student, samples, alpha):
    parts = {
        name: [s for s in samples if json.loads(s.fields)["view"] == name] for name in ("label", "rationale")
    }
    return alpha * task_loss(student, parts["label"]) + (1 - alpha) * task_loss(student, parts["rationale"])


@pytest.mark.parametrize(
    ("settings", "weights", "alpha"),
    [
        ({}, (1.0, 1.0), 0.5),
        ({"alpha": 0.8}, (1.0, 1.0), 0.8),
        ({}, (1.6, 0.4), 0.8),  # what the recipe's alpha 0.8 writes
        ({"alpha": 0.3}, (1.6, 0.4), 0.3),
    ],
)
def test_the_loss_is_that_of_two_forward_passes(student, tmp_path, settings, weights, alpha):
    samples = questions(5, weights)
    run(
        step_by_step,
        tmp_path,
        student,
        samples=samples,
        steps=1,
        batch_size=5,
        validation_share=0,
        **settings,
    )
    (line,) = lines(tmp_path)
    assert line["loss"] == pytest.approx(expected(student, samples, alpha), rel=1e-4)
    assert line["tokens"] == sum(len(s.text.split()) + 1 for s in samples)
    # One mean over all tokens is something else.
    assert line["loss"] != pytest.approx(task_loss(student, samples), rel=1e-3)


def test_validation_has_the_same_shares(student, tmp_path):
    samples = questions(8)
    run(step_by_step, tmp_path, student, samples=samples, steps=1, validation_share=0.5, alpha=0.7)
    first = lines(tmp_path, "validation")[0]
    from kdbench.models.sequences import Reader, split

    sequences = step_by_step.encode_pairs(
        step_by_step.pair_views(samples), Reader(load_tokenizer(student)), 1024
    )
    held_out = {one.group for one in split(sequences, 0.5, 0)[1]}
    assert len(held_out) == 4
    chosen = [one for one in samples if one.group in held_out]
    assert first["loss"] == pytest.approx(expected(student, chosen, 0.7), rel=1e-4)


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_micro_batches_change_nothing(student, tmp_path, micro_batch_size):
    settings = {"samples": questions(8), "batch_size": 4, "alpha": 0.7}
    whole = run(step_by_step, tmp_path / "whole", student, **settings)
    cut = run(step_by_step, tmp_path / "cut", student, **settings, micro_batch_size=micro_batch_size)
    same(whole, cut)
    for one, other in zip(lines(tmp_path / "whole"), lines(tmp_path / "cut"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one.get("grad_norm", 0) == pytest.approx(other.get("grad_norm", 0), rel=1e-3)
        assert one["tokens"] == other["tokens"]


def test_both_views_of_a_question_are_read_together(student, tmp_path, monkeypatch):
    from kdbench_trainers import _trainer

    seen = []
    score = _trainer.KdTrainer._score
    monkeypatch.setattr(
        _trainer.KdTrainer,
        "_score",
        lambda self, model, inputs: seen.append(inputs["sequences"]) or score(self, model, inputs),
    )
    run(step_by_step, tmp_path, student, samples=questions(4), steps=2, batch_size=2, validation_share=0)
    assert len(seen) == 2  # one pass a step
    for window in seen:
        assert sorted(one.task for one in window) == ["label", "label", "rationale", "rationale"]
        assert len({one.group for one in window}) == 2


def test_alpha_near_one_is_a_training_on_labels_alone(student, tmp_path):
    samples = questions(6)
    labels = [one for one in samples if one.text and one.id.endswith("label")]
    settings = {"validation_share": 0, "batch_size": 6, "steps": 3}
    both = run(step_by_step, tmp_path / "both", student, samples=samples, alpha=1 - 1e-9, **settings)
    same(run(black_box, tmp_path / "alone", student, samples=labels, **settings), both)


SHARED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.trainers import test_step_by_step as t
settings = {"samples": t.questions(12), "load": False, **t.SHARED_SETTINGS}
t.run(t.step_by_step, Path(sys.argv[2]), sys.argv[3], **settings)
"""
SHARED_SETTINGS = {"steps": 3, "batch_size": 6, "micro_batch_size": 2, "alpha": 0.7}


def test_two_processes_make_the_loss_and_gradient_of_one(student, tmp_path):
    (tmp_path / "shared.py").write_text(SHARED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "shared.py"), str(ROOT), str(tmp_path / "two"), student],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run(step_by_step, tmp_path / "one", student, samples=questions(12), **SHARED_SETTINGS)
    for one, two in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
        assert one.get("grad_norm", 0) == pytest.approx(two.get("grad_norm", 0), rel=1e-3)
        assert one["tokens"] == two["tokens"]


def test_a_view_without_the_other_is_left_out(student, tmp_path, caplog):
    samples = questions(4)
    run(step_by_step, tmp_path, student, samples=samples[:-1], steps=1, batch_size=3, validation_share=0)
    assert "1 of 7 samples left out: the other view of their question is missing" in caplog.text
    assert lines(tmp_path)[0]["loss"] == pytest.approx(expected(student, samples[:6], 0.5), rel=1e-4)


def test_a_view_that_is_too_long_takes_the_other_with_it(student, tmp_path):
    samples = [*questions(3), view(7, "label", 2), view(7, "rationale", 60)]
    settings = {"steps": 1, "batch_size": 3, "validation_share": 0, "max_length": 30}
    run(step_by_step, tmp_path / "out", student, samples=samples, **settings)
    assert lines(tmp_path / "out")[0]["loss"] == pytest.approx(expected(student, samples[:6], 0.5), rel=1e-4)
    with pytest.raises(
        NothingLeft, match="No question has a label and a rationale that fit into max_length 30"
    ):
        run(step_by_step, tmp_path / "none", student, samples=samples[6:], **settings)


def test_several_questions_of_one_group_keep_together():
    samples = [one.model_copy(update={"group": "g"}) for one in questions(3)]
    pairs = step_by_step.pair_views(samples)
    assert [(label.id, rationale.id) for label, rationale in pairs] == [
        (f"q{n}-label", f"q{n}-rationale") for n in range(3)
    ]


def test_other_samples_are_refused_with_the_recipe_that_makes_the_right_ones(student, tmp_path):
    with pytest.raises(
        DataError, match=r"sample 's0' is neither .* with the recipe step_by_step, or use black_box"
    ):
        run(step_by_step, tmp_path / "out", student, samples=stories(4))
    labels = [one for one in questions(3) if one.id.endswith("label")]
    with pytest.raises(DataError, match=r"no question has both; give it all samples of a run of the recipe"):
        run(step_by_step, tmp_path / "out", student, samples=labels)
    assert not (tmp_path / "out").exists()
