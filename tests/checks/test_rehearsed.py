"""Faults of a trainer, put into the shipped one, and found in its batches, hidden states and first step."""

from __future__ import annotations

import re

import pytest

torch = pytest.importorskip("torch")

from kdbench.checks.batches import check_batches, check_positions, spread  # noqa: E402
from kdbench.checks.case import reader_of  # noqa: E402
from kdbench.checks.denominator import check_denominator  # noqa: E402
from kdbench.checks.running import rehearsed  # noqa: E402
from kdbench.models import rows  # noqa: E402
from kdbench.models.rows import padded  # noqa: E402
from kdbench_trainers import _batches, _rehearsal, black_box, distillm, gkd, minillm, white_box  # noqa: E402
from kdbench_trainers._trainer import KdTrainer  # noqa: E402
from tests.checks.cases import case, of, only  # noqa: E402
from tests.trainers.tiny import story, tokenizer  # noqa: E402

pytestmark = pytest.mark.medium

SAMPLES = [story(n, words=1 + 3 * n, weight=0.5 + n % 2) for n in range(8)]
METHODS = {
    "black_box": black_box, "white_box": white_box, "gkd": gkd, "distillm": distillm, "minillm": minillm,
}  # fmt: skip


def rehearsal_of(method, student, teacher, **settings):
    module = METHODS[method]
    config = module.Config(device="cpu", **settings)
    return module.rehearse(SAMPLES, teacher=teacher, student=student, config=config)


@pytest.fixture
def sound(student, teacher):
    return case(SAMPLES, reader_of(student), reader_of(teacher))


@pytest.mark.parametrize("method", METHODS)
def test_a_sound_trainer_has_no_finding(method, sound, student, teacher):
    found = rehearsed(sound, rehearsal_of(method, student, teacher))
    assert [(one.check, one.level) for one in found] == [
        ("batches", "ok"), ("positions", "ok"), ("denominator", "ok"),
    ]  # fmt: skip
    assert "in one batch and in micro-batches, and for 2 processes" in found[-1].text


def test_shortest_and_longest_are_among_those_looked_at(sound):
    lengths = sorted(one.length for one in sound.sequences)
    chosen = [one.length for one in spread(sound.sequences, 4)]
    assert (chosen[0], chosen[-1], len(chosen)) == (lengths[0], lengths[-1], 4)
    assert spread(sound.sequences[:1], 4) == sound.sequences[:1]


# batches


def put(monkeypatch, change):
    """Let `change` spoil what `padded` returns to the collator."""

    def spoilt(ids, counts):
        batch = padded(ids, counts)
        change(batch, ids, counts)
        return batch

    monkeypatch.setattr(_batches, "padded", spoilt)


def test_a_mask_that_is_not_shifted(sound, student, teacher, monkeypatch):
    """DistillKit's: the first token of every completion is lost."""
    put(monkeypatch, lambda batch, *_: batch.update(rows=batch["rows"].roll(1, dims=1)))
    found = only(check_batches(sound, rehearsal_of("black_box", student, teacher)))
    assert found.level == "error"
    assert len(found.samples) == 4
    assert found.value.endswith(", and its completion is 'write <|im_end|>'")
    assert "row t learns token t + 1" in found.way_out


def test_a_mask_that_takes_the_end_for_padding(sound, student, teacher, monkeypatch):
    """Where pad is EOS: no sample ever learns to stop (distillm, LMOps)."""

    def by_id(batch, ids, counts):
        following = batch["input_ids"].roll(-1, dims=1)
        batch["rows"] &= following != tokenizer().pad_token_id

    put(monkeypatch, by_id)
    found = only(check_batches(sound, rehearsal_of("black_box", student, teacher)))
    assert (found.level, len(found.samples)) == ("error", 4)
    assert found.value.endswith("<|im_end|>'")


def test_a_mask_that_takes_the_prompt_in(sound, student, teacher, monkeypatch):
    def all_of_it(batch, ids, counts):
        for i, one in enumerate(ids):
            batch["rows"][i, : len(one) - 1] = True

    put(monkeypatch, all_of_it)
    found = only(check_batches(sound, rehearsal_of("black_box", student, teacher)))
    assert found.value.startswith("'user write a story")


def test_rows_that_attention_does_not_see_and_weights_that_are_lost(sound, student, teacher, monkeypatch):
    put(monkeypatch, lambda batch, *_: batch["attention_mask"].fill_(0))
    rehearsal = rehearsal_of("black_box", student, teacher)
    collate = _batches.collate
    monkeypatch.setattr(
        _rehearsal, "collate", lambda chosen: collate(chosen) | {"weights": torch.ones(sum(
            len(one.completion) for one in chosen))}
    )  # fmt: skip
    unseen, weights = check_batches(sound, rehearsal)
    assert "with learnt rows that attention does not see" in unseen.text
    assert "whose rows have another weight than it" in weights.text
    assert weights.value in ("1, not 0.5", "1, not 1.5")


def test_targets_that_are_not_what_comes_next(sound, student, teacher, monkeypatch):
    collate = _batches.collate
    monkeypatch.setattr(
        _rehearsal, "collate", lambda chosen: (one := collate(chosen)) | {"targets": one["targets"].roll(1)}
    )
    found = only(check_batches(sound, rehearsal_of("black_box", student, teacher)))
    assert (found.level, len(found.samples)) == ("error", 4)
    assert found.value == "'<|im_end|> write' at the rows before 'write <|im_end|>'"


# positions


def gpt2(folder):
    """A tiny model with learned positions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(5)
    tok = tokenizer()
    config = GPT2Config(
        vocab_size=len(tok), n_positions=128, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3,
        eos_token_id=tok.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def on_the_left(ids, counts):
    """TRL's GKDTrainer: padded on the left, positions counted from the padding."""
    batch = padded(ids, counts)
    length = batch["input_ids"].shape[1]
    for i, one in enumerate(ids):
        for name in ("input_ids", "attention_mask", "rows"):
            batch[name][i] = batch[name][i].roll(length - len(one))
    return batch


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_learned_positions_fed_wrongly(who, tmp_path, monkeypatch):
    model = gpt2(tmp_path)
    sound = case(SAMPLES, reader_of(model), reader_of(model))
    rehearsal = rehearsal_of("white_box", model, model)
    assert check_positions(sound, rehearsal) == []
    rehearsal.step(spread(sound.sequences, 2), micro_batch=2)  # what the teacher keeps of it is no answer
    monkeypatch.setattr({"student": _batches, "teacher": rows}[who], "padded", on_the_left)
    found = only(check_positions(sound, rehearsal))
    assert (found.level, found.samples) == ("error", ("s0",))  # the short one; the long one is not padded
    assert f"hidden states in the {who} change" in found.text
    assert "tokens beside" in found.value
    assert "position_ids" in found.way_out


def test_rotary_positions_do_not_mind_padding_on_the_left(sound, student, teacher, monkeypatch):
    monkeypatch.setattr(_batches, "padded", on_the_left)
    assert check_positions(sound, rehearsal_of("black_box", student, teacher)) == []


def test_attention_to_the_padding_is_found_with_any_positions(sound, student, teacher, monkeypatch):
    def blind(ids, counts):
        batch = on_the_left(ids, counts)
        batch["attention_mask"].fill_(1)
        return batch

    monkeypatch.setattr(_batches, "padded", blind)
    assert only(check_positions(sound, rehearsal_of("black_box", student, teacher))).samples == ("s0",)


# denominator


@pytest.fixture
def counted(monkeypatch):
    """A trainer that knows in how many micro-batches its step is cut."""
    whole = KdTrainer.get_batch_samples

    def get(self, *args):
        (step,), weight = whole(self, *args)
        self.in_so_many = len(step["parts"])
        return [step], weight

    monkeypatch.setattr(KdTrainer, "get_batch_samples", get)


def check(sound, method, student, teacher):
    return check_denominator(sound, rehearsal_of(method, student, teacher))


@pytest.mark.parametrize("method", ["black_box", "white_box"])
def test_a_mean_of_means(method, sound, student, teacher, counted, monkeypatch):
    def own_mean(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return self._score(model, inputs).loss / inputs["weights"].sum() / self.in_so_many

    monkeypatch.setattr(KdTrainer, "compute_loss", own_mean)
    found = of(check(sound, method, student, teacher), "error")
    assert [one.text for one in found] == [
        f"A step's loss or gradient is not the same for {what}"
        for what in ("micro-batches and one batch", "2 processes and 1")
    ]
    assert found[0].samples == ("s0", "s2", "s5", "s7")
    assert found[0].value.startswith("loss ")
    assert "of their size off" in found[0].value
    assert "over all micro-batches and processes" in found[0].way_out


def test_a_sum_that_forgets_the_other_processes(sound, student, teacher, monkeypatch):
    def own(self, iterator, count, device):
        batch = _batches.collate(next(iterator))
        return [{"parts": [batch]}], batch["weights"].sum()

    monkeypatch.setattr(KdTrainer, "get_batch_samples", own)
    found = of(check(sound, "black_box", student, teacher), "error")
    assert [one.text[-17:] for one in found] == ["2 processes and 1"]


def test_a_gradient_that_is_too_small_by_the_number_of_processes(sound, student, teacher, monkeypatch):
    """TRL's GKDTrainer and GOLDTrainer: the divisor is over all ranks, and DDP takes the mean again."""

    def unscaled(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return self._score(model, inputs).loss / num_items_in_batch

    monkeypatch.setattr(KdTrainer, "compute_loss", unscaled)
    (found,) = of(check(sound, "white_box", student, teacher), "error")
    assert found.text.endswith("2 processes and 1")
    assert "gradients 0.5 of their size off" in found.value


def test_a_gradient_that_the_loss_does_not_show(sound, student, teacher, counted, monkeypatch):
    def louder(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = self._score(model, inputs).loss * self.place.world
        return (loss + (self.in_so_many - 1) * (loss - loss.detach())) / num_items_in_batch

    monkeypatch.setattr(KdTrainer, "compute_loss", louder)
    (found,) = of(check(sound, "black_box", student, teacher), "error")
    assert found.text.endswith("micro-batches and one batch")
    assert "gradients 3 of their size off" in found.value


@pytest.mark.parametrize("method", ["gkd", "distillm"])
def test_a_count_made_before_the_student_has_written(method, sound, student, teacher, monkeypatch):
    """TRL's GKDTrainer: 80 generated tokens divided by the 4 of the answers they replace."""

    def before(self, iterator, count, device):
        batch = next(iterator)
        weight = torch.tensor(sum(one.weight * len(one.completion) for one in batch))
        window = self.plan.source.window(0, batch)
        parts = [_batches.collate(part) for part in _batches.cut(window, self.micro_batch)]
        return [{"parts": parts}], self.accelerator.reduce(weight, "sum")

    monkeypatch.setattr(KdTrainer, "get_batch_samples", before)
    (found,) = of(check(sound, method, student, teacher), "error")
    assert found.text == "A step's loss is not divided by what is learnt in it"
    counted = re.fullmatch(r"divided by 65, and the learnt tokens weigh ([\d.]+)", found.value)
    assert counted is not None
    assert 4 * 0.5 <= float(counted[1]) <= 64  # up to 16 tokens each, at 0.5 and 1.5
    assert "after the student has written" in found.way_out


def test_a_loss_that_is_no_number(student, teacher):
    heavy = case([story(n, weight=1e38) for n in range(4)], reader_of(student), share=0)
    found = only(check_denominator(heavy, rehearsal_of("black_box", student, teacher)))
    assert (found.level, found.samples) == ("error", ("s0", "s1", "s2", "s3"))
    assert found.value in ("nan", "inf")


def test_a_student_that_is_its_teacher_has_no_gradient_and_no_finding(sound, student):
    assert of(check(sound, "white_box", student, student), "error") == []


@pytest.mark.parametrize("settings", [{"lora": {"rank": 2}}, {"token_scaling": 10.0, "ce_weight": 0.5}])
def test_settings_of_the_method_are_its_own(settings, sound, student, teacher):
    found = rehearsed(sound, rehearsal_of("white_box", student, teacher, **settings))
    assert {one.level for one in found} == {"ok"}


def test_one_sample_is_enough(student, teacher):
    alone = case([story(1)], reader_of(student), reader_of(teacher), share=0)
    found = rehearsed(alone, rehearsal_of("white_box", student, teacher))
    assert {one.level for one in found} == {"ok"}


def test_a_rehearsal_changes_no_weight(sound, student, teacher):
    rehearsal = rehearsal_of("gkd", student, teacher)
    before = {name: one.clone() for name, one in rehearsal._model.state_dict().items()}
    rehearsed(sound, rehearsal)
    assert all(torch.equal(before[name], one) for name, one in rehearsal._model.state_dict().items())
    assert all(one.grad is None for one in rehearsal._model.parameters())
