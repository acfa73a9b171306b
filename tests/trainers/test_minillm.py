"""minillm: what is drawn and from which distribution, the loss by hand, and what must not change it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from kdbench.errors import ConfigError, RunFailed  # noqa: E402
from kdbench.models.loading import load_model, load_tokenizer  # noqa: E402
from kdbench.models.sequences import Reader, TokenSequence, encode  # noqa: E402
from kdbench.processes import Place  # noqa: E402
from kdbench.records import Message  # noqa: E402
from kdbench.teacher import Sampling  # noqa: E402
from kdbench_trainers import minillm  # noqa: E402
from kdbench_trainers._batches import BatchOrder  # noqa: E402
from kdbench_trainers._config import TeacherConfig  # noqa: E402
from kdbench_trainers._policy import MixedWriter, Rollouts  # noqa: E402
from kdbench_trainers._sources import Writer  # noqa: E402
from kdbench_trainers._teacher import TeacherModel  # noqa: E402
from tests.trainers.test_trainer import lines, run, same, stories  # noqa: E402
from tests.trainers.tiny import save_model, story, tokenizer  # noqa: E402

pytestmark = pytest.mark.medium

# The teacher's prompts are longer by a word, and not all alike.
BATCH = [TokenSequence(n, f"g{n}", (1, 4 + n, 2), (7, 8), (1, 9, 4 + n, 2), 0.5) for n in range(4)]
TOKENS = len(tokenizer())


def writer(student, teacher, share, *, place=None, limit=64, most=6, seed=3):
    read = TeacherModel(teacher, load_model(teacher, device="cpu"), TeacherConfig(), TOKENS)
    model, tok = load_model(student, device="cpu"), load_tokenizer(student)
    sampling = Sampling(temperature=1.0, max_tokens=most)
    return MixedWriter(read, share, model.train(), tok, sampling, limit=limit, seed=seed, place=place)


def distribution(ref, prompt, completion=(), model=None):
    """Log-probabilities [T, V] where each token of the completion is predicted; one of the prompt's alone."""
    model = model or load_model(ref, device="cpu")
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 :, :TOKENS]
    return (logits[:-1] if completion else logits).log_softmax(-1)


def of_tokens(log_probs, completion):
    return log_probs.gather(-1, torch.tensor(completion).unsqueeze(-1)).squeeze(-1)


# what is drawn


@torch.no_grad()
def test_what_both_models_gave_to_each_token_is_put_down(student, teacher):
    write = writer(student, teacher, 0.4)
    drawn = write.draw(5, BATCH)
    for one, before in zip(drawn, BATCH, strict=True):
        assert (one.prompt, one.teacher_prompt) == (before.prompt, before.teacher_prompt)
        assert (one.group, one.weight, one.key) == (before.group, before.weight, None)
        assert 1 <= len(one.completion) <= 6
        for ref, prompt, given in (
            (student, one.prompt, one.by_student),
            (teacher, one.teacher_prompt, one.by_teacher),
        ):
            expected = of_tokens(distribution(ref, prompt, one.completion), one.completion)
            torch.testing.assert_close(torch.tensor(given), expected, rtol=1e-4, atol=1e-5)
    assert drawn == writer(student, teacher, 0.4).draw(5, BATCH)
    assert drawn != write.draw(6, BATCH)
    assert write.logged()["generated_tokens"] > write.logged()["generated_tokens"] == 0
    assert write._model.training


@torch.no_grad()
def test_tokens_are_drawn_from_the_mixture(student, teacher):
    """The first token and the one after it, each model behind its own prompt."""
    count, share = 2000, 0.5
    one = BATCH[0]
    drawn = writer(student, teacher, share, most=2).draw(0, [one] * count)

    def distance(firsts, expected):
        found = torch.bincount(torch.tensor(firsts), minlength=TOKENS) / len(firsts)
        return (found - expected).abs().sum().item() / 2

    def chances(*before):
        q, p = (
            distribution(ref, prompt + before)[-1].exp()
            for ref, prompt in ((student, one.prompt), (teacher, one.teacher_prompt))
        )
        return q, p, share * p + (1 - share) * q

    firsts = [r.completion[0] for r in drawn]
    (likeliest, _), *_ = Counter(r.completion[0] for r in drawn if len(r.completion) > 1).most_common()
    seconds = [r.completion[1] for r in drawn if r.completion[0] == likeliest]
    for rows, expected in ((firsts, chances()), (seconds, chances(likeliest))):
        noise = (TOKENS / len(rows)) ** 0.5
        by_student, by_teacher, by_both = (distance(rows, one) for one in expected)
        assert by_both < noise
        assert by_both < 0.7 * min(by_student, by_teacher)


def test_the_end_is_kept_and_both_models_limits_are(student, teacher):
    drawn = [one for step in range(4) for one in writer(student, teacher, 0.2, most=40).draw(step, BATCH)]
    end = load_tokenizer(student).eos_token_id
    ended = [one for one in drawn if len(one.completion) < 40]
    assert ended
    assert all(one.completion[-1] == end for one in ended)
    assert all(end not in one.completion[:-1] for one in drawn)
    bounded = writer(student, teacher, 0.2, limit=9, most=40)
    tight = [one for step in range(4) for one in bounded.draw(step, BATCH)]
    assert max(len(one.teacher_prompt) + len(one.completion) for one in tight) == 9


def test_two_processes_draw_what_one_would(student, teacher):
    whole = writer(student, teacher, 0.2).draw(2, BATCH)
    for rank in (0, 1):
        share = writer(student, teacher, 0.2, place=Place(rank, 2)).draw(2, BATCH[rank::2])
        assert [one.completion for one in share] == [one.completion for one in whole[rank::2]]


def test_rows_that_pad_a_head_are_never_drawn(tmp_path):
    """Heads padded beyond the tokenizer to different sizes: of random rows nine tenths would be padding."""
    student, teacher = (
        save_model(tmp_path / name, seed=seed, padded_to=size)
        for name, seed, size in (("student", 1, 400), ("teacher", 2, 300))
    )
    drawn = [one for step in range(3) for one in writer(student, teacher, 0.3).draw(step, BATCH)]
    assert max(token for one in drawn for token in one.completion) < TOKENS
    run(minillm, tmp_path / "out", student, teacher, steps=2, max_new_tokens=4)


def test_rollouts_last_for_the_epochs_and_go_through_a_checkpoint(student, teacher):
    def source():
        return Rollouts(writer(student, teacher, 0.2), epochs=3, with_data=True)

    first = source()
    windows = [first.window(step, BATCH) for step in range(5)]
    assert all(window[4:] == [replace(one, task="data") for one in BATCH] for window in windows)
    drawn = [window[:4] for window in windows]
    assert drawn[0] == drawn[1] == drawn[2] != drawn[3] == drawn[4]
    again = source()
    again.restore(json.loads(json.dumps(first.state())))
    assert again.window(5, BATCH) == first.window(5, BATCH) == windows[3]
    assert again.window(6, BATCH) == first.window(6, BATCH) != windows[3]


# the loss


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_first_step_is_the_papers_by_hand(student, teacher, tmp_path, share):
    """One unpadded forward pass per sequence: prompts and padding play no part, rewards are constants."""
    hint = (Message(role="user", content="write a happy story about the sad dog"),)
    samples = [story(n, words=1 + 2 * n, weight=0.5 + n % 2, teacher_prompt=hint) for n in range(4)]
    mix = 0.4
    settings = {"max_new_tokens": 30, "teacher_mix": mix, "ce_weight": share, "max_grad_norm": 1e9}
    run(minillm, tmp_path, student, teacher, samples, steps=1, validation_share=0, **settings)
    (line,) = lines(tmp_path)

    readers = [Reader(load_tokenizer(ref)) for ref in (student, teacher)]
    data = encode(samples, *readers, 1024)
    (order,) = BatchOrder(4, batch=4, steps=1, seed=0)
    drawn = writer(student, teacher, mix, most=30, limit=128, seed=0).draw(0, [data[i] for i in order])
    assert len({len(one.completion) for one in drawn}) > 1
    model = load_model(student, device="cpu")
    policy = mean_over_tokens([(one, by_hand(model, teacher, one, mix)) for one in drawn])
    text = mean_over_tokens(
        [
            (one, -of_tokens(distribution("", one.prompt, one.completion, model), one.completion))
            for one in data
        ]
    )
    loss = (1 - share) * policy + share * text
    loss.backward()
    norm = torch.stack([one.grad.norm() for one in model.parameters()]).norm()
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
    assert line["generated_tokens"] == sum(len(one.completion) for one in drawn)
    learnt = [*drawn, *data] if share else drawn
    assert line["tokens"] == sum(len(one.completion) for one in learnt)
    if share:
        assert line["data_cross_entropy"] == pytest.approx(text.item(), rel=1e-4)
    else:
        assert "data_cross_entropy" not in line


def by_hand(model, teacher, one, mix):
    """The loss of each token of a rollout, before any step has changed the student."""
    ours = distribution("", one.prompt, one.completion, model)
    theirs = distribution(teacher, one.teacher_prompt, one.completion).detach()
    q, p = (of_tokens(both, one.completion) for both in (ours, theirs))
    rewards = (p - q).tolist()
    behind = [rewards[t + 1 :] for t in range(len(rewards))]
    returns = torch.tensor([sum(after) / len(after) if after else 0.0 for after in behind])
    weight = (q.exp() / (mix * p.exp() + (1 - mix) * q.exp())).detach()
    kl = (ours.exp() * (ours - theirs)).sum(-1)
    return kl - weight * returns * (q - q.detach()).exp()


def mean_over_tokens(losses):
    total = sum(one.weight * of_each.sum() for one, of_each in losses)
    return total / sum(one.weight * len(one.completion) for one, _ in losses)


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_micro_batches_change_nothing(student, teacher, tmp_path, micro_batch_size):
    """Of steps that learn fresh rollouts, those of the step before, and the data beside both."""
    samples = [story(n, words=1 + n % 9, weight=0.5 + n % 2) for n in range(12)]
    settings = {"samples": samples, "max_new_tokens": 9, "inner_epochs": 2, "ce_weight": 0.3, "steps": 3}
    whole = run(minillm, tmp_path / "whole", student, teacher, **settings)
    cut = run(minillm, tmp_path / "cut", student, teacher, **settings, micro_batch_size=micro_batch_size)
    same(whole, cut)
    for one, other in zip(lines(tmp_path / "whole"), lines(tmp_path / "cut"), strict=True):
        assert one["tokens"] == other["tokens"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one.get("grad_norm", 0) == pytest.approx(other.get("grad_norm", 0), rel=1e-3)


def test_the_same_text_is_learnt_for_several_steps(student, teacher, tmp_path):
    settings = {"max_new_tokens": 6, "inner_epochs": 3, "steps": 5, "validation_share": 0}
    run(minillm, tmp_path, student, teacher, **settings)
    found = lines(tmp_path)
    assert [line["generated_tokens"] > 0 for line in found] == [True, False, False, True, False]
    assert found[0]["tokens"] == found[1]["tokens"] == found[2]["tokens"]
    assert found[2]["divergence"] < found[0]["divergence"]


def test_a_clip_bounds_what_one_text_may_do(student, teacher, tmp_path):
    """It has a say from the second step on the same text, and none in the first."""
    settings = {"max_new_tokens": 6, "inner_epochs": 4, "steps": 4, "validation_share": 0}
    wide, narrow = (
        run(minillm, tmp_path / str(clip), student, teacher, clip=clip, **settings) for clip in (0.9, 0.01)
    )
    assert any(not torch.equal(wide[name], narrow[name]) for name in wide)
    first = [lines(tmp_path / str(clip))[0] for clip in (0.9, 0.01)]
    assert first[0]["loss"] == first[1]["loss"]  # nothing has moved yet


def test_lowers_the_reverse_kl_on_the_students_own_text(student, teacher, tmp_path):
    samples = stories(16)
    prompts = encode(samples, *(Reader(load_tokenizer(ref)) for ref in (student, teacher)), 1024) * 4

    @torch.no_grad()
    def reverse_kl(ref):
        model, sampling = load_model(ref, device="cpu"), Sampling(temperature=1.0, max_tokens=8)
        written = Writer(model, load_tokenizer(student), sampling, limit=64, seed=9).write(0, prompts)
        theirs = load_model(teacher, device="cpu")
        total = count = 0.0
        for one in written:
            q = distribution("", one.prompt, one.completion, model)
            p = distribution("", one.teacher_prompt, one.completion, theirs)
            total += (q.exp() * (q - p)).sum().item()
            count += len(one.completion)
        return total / count

    before = reverse_kl(student)
    settings = {"batch_size": 16, "max_new_tokens": 8, "steps": 20, "validation_share": 0}
    run(minillm, tmp_path, student, teacher, samples, **settings)
    assert reverse_kl(str(tmp_path / "model")) < 0.5 * before


# what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_mix": 1.0}, "teacher_mix"),
        ({"teacher_mix": -0.1}, "teacher_mix"),
        ({"inner_epochs": 0}, "inner_epochs"),
        ({"clip": 0}, "clip"),
        ({"ce_weight": 1.0}, "ce_weight"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"divergence": "forward_kl"}, "divergence"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    from kdbench.config import build

    with pytest.raises(ConfigError, match=message):
        build(minillm.Config, settings, "trainer minillm")


def test_a_teacher_that_is_missing_or_of_another_vocabulary_is_refused(student, tmp_path):
    with pytest.raises(ConfigError, match="The trainer minillm learns a teacher's distribution and no"):
        run(minillm, tmp_path, student)
    other = save_model(tmp_path / "other", tok=tokenizer(words=["some", "other", "words"]))
    with pytest.raises(ConfigError, match=r"compared over one vocabulary, but .* use black_box"):
        run(minillm, tmp_path, student, other)


def test_a_model_that_answers_with_no_numbers_is_named(student, teacher, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = Path(save_model(tmp_path / "broken", seed=2))
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    settings = {"validation_share": 0, "max_new_tokens": 4}
    with pytest.raises(RunFailed, match=r"The teacher '.*broken' answers with numbers that are none .* of s"):
        run(minillm, tmp_path / "out", student, str(broken), **settings)
    with pytest.raises(RunFailed, match=r"The student answers with numbers that are none .* learning_rate"):
        run(minillm, tmp_path / "other", str(broken), teacher, **settings)
