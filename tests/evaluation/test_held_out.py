"""Perplexity and agreement against a naive float64 computation, one unpadded sample at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from kdbench.errors import DataError, UsageError
from kdbench.evaluation import Subject, _held_out, agreement, perplexity
from kdbench.models.loading import load_model, load_tokenizer
from tests.support.tiny_llama import WORDS, save_model, stories, story

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    ref = save_model(tmp_path_factory.mktemp("teacher"), seed=2, layers=3, hidden=24)
    return load_model(ref), load_tokenizer(ref)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    # Its head is padded beyond the tokenizer, as heads are for speed.
    ref = save_model(tmp_path_factory.mktemp("student"), seed=1, padded_to=40)
    return load_model(ref), load_tokenizer(ref)


def rendered(sample, *, teacher_side):
    asked = sample.teacher_prompt if teacher_side and sample.teacher_prompt else sample.prompt
    text = "".join(f"<|im_start|> {m.role} {m.content} <|im_end|> newline " for m in asked)
    return f"{text}<|im_start|> assistant".split()


def naive_log_probabilities(model, tokenizer, sample, *, teacher_side, end=True):
    """log p [T, V] at each completion position, and the target ids, all in float64."""
    prompt = tokenizer.convert_tokens_to_ids(rendered(sample, teacher_side=teacher_side))
    target = tokenizer.convert_tokens_to_ids(sample.text.split())
    target += [tokenizer.eos_token_id] if end else []
    with torch.no_grad():
        logits = model.double()(torch.tensor([prompt + target])).logits[0]
    model.float()
    return logits[len(prompt) - 1 : -1].log_softmax(-1), target


def naive(student, teacher, samples, end=True):
    """(tokens, nll, kl, top1) over all samples."""
    tokens, nll, kl, top1 = 0, 0.0, 0.0, 0
    for sample in samples:
        log_q, target = naive_log_probabilities(*student, sample, teacher_side=False, end=end)
        log_p, _ = naive_log_probabilities(*teacher, sample, teacher_side=True, end=end)
        nll -= sum(log_q[i, t].item() for i, t in enumerate(target))
        real = len(student[1])
        log_q = log_q[:, :real].log_softmax(-1)
        log_p = log_p[:, :real]
        kl += (log_p.exp() * (log_p - log_q)).sum().item()
        top1 += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
        tokens += len(target)
    return tokens, nll, kl, top1


def token_scores(student, teacher, samples):
    states = _held_out.TeacherStates.of(*teacher, samples)
    encoded = _held_out.encode(samples, student[1], teacher_side=False)
    return _held_out.score(*student, encoded, states)


def subject(samples, scores):
    return Subject("s", samples, (), parameters=1, bytes=1, seed=0, token_scores=lambda: scores)


@pytest.mark.parametrize("teacher_saw", [None, "be kind ."])
def test_metrics_agree_with_float64(student, teacher, teacher_saw, monkeypatch):
    # Small chunks and batches, so that their seams are crossed.
    monkeypatch.setattr(_held_out, "CHUNK_ROWS", 3)
    monkeypatch.setattr(_held_out, "BATCH_TOKENS", 50)
    samples = stories(9, teacher_saw=teacher_saw)
    scores = token_scores(student, teacher, samples)
    tokens, nll, kl, top1 = naive(student, teacher, samples)
    assert scores.tokens.sum() == tokens
    measured = subject(samples, scores)
    (found,) = perplexity.measure(measured, perplexity.Config())
    assert found.value == pytest.approx(math.exp(nll / tokens), rel=1e-4)
    assert found.low < found.value < found.high
    divergence, same_top = agreement.measure(measured, agreement.Config())
    assert divergence.value == pytest.approx(kl / tokens, rel=1e-4)
    assert same_top.value == top1 / tokens
    assert (divergence.unit, same_top.unit) == ("nats", "fraction")


def test_sums_are_per_sample_in_the_samples_own_order(student, teacher):
    samples = stories(6)
    together = token_scores(student, teacher, samples)
    for i, sample in enumerate(samples):
        alone = token_scores(student, teacher, (sample,))
        assert together.tokens[i] == alone.tokens[0]
        assert together.nll[i] == pytest.approx(alone.nll[0], rel=1e-4)
        assert together.kl[i] == pytest.approx(alone.kl[0], rel=1e-3)


def test_a_completion_that_was_cut_off_has_no_end_token(student, teacher):
    samples = stories(4, finish_reason="length")
    scores = token_scores(student, teacher, samples)
    tokens, nll, _, _ = naive(student, teacher, samples, end=False)
    assert scores.tokens.sum() == tokens == sum(len(s.text.split()) for s in samples)
    assert scores.nll.sum() == pytest.approx(nll, rel=1e-4)


def test_the_teacher_agrees_with_itself(teacher):
    samples = stories(5)
    states = _held_out.TeacherStates.of(*teacher, samples)
    shortcut = _held_out.score_teacher(states)
    computed = _held_out.score(*teacher, _held_out.encode(samples, teacher[1], teacher_side=False), states)
    assert np.abs(computed.kl).max() < 1e-5
    assert (shortcut.kl == 0).all()
    assert (computed.top1 == shortcut.top1).all()
    assert computed.nll == pytest.approx(shortcut.nll, rel=1e-5)


def test_another_tokenizer_has_a_perplexity_and_no_agreement(tmp_path, teacher):
    ref = save_model(tmp_path / "other", words=[*WORDS[::-1], "more"])
    samples = stories(3)
    measured = subject(samples, token_scores((load_model(ref), load_tokenizer(ref)), teacher, samples))
    (found,) = perplexity.measure(measured, perplexity.Config())
    assert found.value > 1
    assert "own tokenizer" in found.note
    for score in agreement.measure(measured, agreement.Config()):
        assert score.value is None
        assert score.note == "another tokenizer"


def test_a_text_beyond_the_window_names_the_sample(tmp_path):
    ref = save_model(tmp_path / "short", window=12)
    samples = (story(0), story(4))
    encoded = _held_out.encode(samples, load_tokenizer(ref), teacher_side=False)
    with pytest.raises(DataError, match=r"ab12-4-0 has 18 tokens .* at most 12"):
        list(_held_out.hidden_states(load_model(ref), encoded))


def test_an_architecture_that_changes_its_logits_is_refused(student, monkeypatch):
    model, tokenizer = student
    encoded = _held_out.encode(stories(1), tokenizer, teacher_side=False)
    real = model.forward

    def doubled(*args, **kwargs):
        output = real(*args, **kwargs)
        output.logits = 2 * output.logits
        return output

    monkeypatch.setattr(model, "forward", doubled)
    with pytest.raises(UsageError, match="changes its logits"):
        _held_out.checked_head(model, encoded[0])
