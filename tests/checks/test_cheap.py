"""Faults that show without a model: each is put in and found, with sample, value and way out."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

pytest.importorskip("torch")

from kdbench.checks.endings import check_endings
from kdbench.checks.findings import Finding, about
from kdbench.checks.masks import check_masks
from kdbench.checks.running import examine, vet
from kdbench.checks.samples import check_left_out, check_samples
from kdbench.checks.splits import check_split
from kdbench.checks.templates import check_templates
from kdbench.checks.vocabularies import check_vocabularies
from kdbench.errors import ConfigError, DataError
from kdbench.records import Message
from tests.checks.cases import altered, case, of, only, reader
from tests.support import byte_llama
from tests.trainers.tiny import CHATML, WORDS, stories, story

pytestmark = pytest.mark.medium

SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|> system be kind <|im_end|> newline {% endif %}"
    + CHATML
)


def test_a_sound_setup_has_no_finding():
    found = examine(case(stories(12), reader(), reader()))
    assert {one.level for one in found} == {"ok"}
    checks = ["samples", "left out", "vocabularies", "chat templates", "masks", "end of turn", "split"]
    assert [one.check for one in found] == checks


def test_a_line_names_a_few_samples_and_counts_the_others():
    found = only(
        about("masks", "error", "are odd", {f"s{n}": f"value {n}" for n in range(5)}, way_out="mend")
    )
    assert str(found) == "5 samples are odd: s0 (value 0), s1, s2 and 2 more; mend"
    assert found.samples == ("s0", "s1", "s2", "s3", "s4")
    assert str(Finding("masks", "ok", "29 tokens", value="of 30")) == "29 tokens (of 30)"


# samples


def test_a_weight_that_is_no_number():
    found = only(check_samples(case([*stories(4), story(7, weight=float("nan"))])))
    assert (found.level, found.samples, found.value) == ("error", ("s7",), "weight nan")
    assert "give them a weight above 0" in str(found)


def test_an_answer_that_is_the_prompt_again():
    echo = story(7)
    echo = echo.model_copy(update={"prompt": (Message(role="user", content=f" {echo.text} "),)})
    found = only(check_samples(case([*stories(4), echo])))
    assert (found.level, found.samples) == ("warning", ("s7",))
    assert echo.text in found.value
    assert "leave them out" in found.way_out


def test_many_answers_cut_off_are_a_finding_and_few_are_not():
    few = [*stories(10), story(10, finish_reason="length")]
    assert check_samples(case(few)) == []
    found = only(check_samples(case([*few, story(11, finish_reason="length")])))
    assert str(found).startswith("2 samples (17%) were cut off at their token limit")
    assert found.samples == ("s10", "s11")
    assert "max_tokens" in found.way_out


# left out


def blank(number):
    sample = story(number)
    return sample.model_copy(update={"completion": (Message(role="assistant", content=""),)})


def test_what_is_left_out_is_named_with_its_reason():
    samples = [*stories(3), blank(5), story(6, weight=-1.0), story(7, words=40), story(8, words=50)]
    found = check_left_out(case(samples, max_length=30))
    empty, weight, long = found
    assert {one.level for one in found} == {"warning"}
    assert str(empty).startswith("1 of 7 samples (14%) left out whose completion is empty: s5")
    assert (weight.samples, weight.value) == (("s6",), "weight -1")
    assert (long.samples, long.value) == (("s7", "s8"), "52 tokens; at most 30, max_length")
    assert long.way_out == "raise max_length"


@pytest.mark.parametrize(("student", "teacher", "whose"), [(20, 128, "student"), (128, 20, "teacher")])
def test_a_window_that_is_too_small_is_named(student, teacher, whose):
    found = only(
        check_left_out(
            case([*stories(3), story(7, words=20)], reader(window=student), reader(window=teacher))
        )
    )
    assert found.samples == ("s7",)
    assert found.value == f"32 tokens; at most 20, the {whose}'s window"
    assert "longer window" in found.way_out


def test_a_teacher_prompt_that_is_too_long_counts():
    hint = (Message(role="user", content=" ".join(["sun"] * 200)),)
    found = only(check_left_out(case([*stories(3), story(7, teacher_prompt=hint)], reader(), reader())))
    assert (found.samples, found.value) == (("s7",), "213 tokens; at most 128, the student's window")


def test_nothing_left_is_an_error():
    found = only(check_left_out(case(stories(3), max_length=4)))
    assert found.level == "error"
    assert str(found).startswith("3 of 3 samples (100%) left out as too long: s0 (")


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (40, "52 tokens; at most 40, the student's window"),
        (8, "56 tokens; at most 50, the teacher's window"),
    ],
)
def test_a_teacher_with_tokens_of_its_own_counts_them_itself(words, value):
    spelling = replace(reader(window=50), tokenizer=byte_llama.tokenizer("{{ messages[0]['content'] }}"))
    samples = [story(3, words=1), story(7, words=words)]
    found = only(check_left_out(case(samples, reader(window=40), spelling, share=0, two_tokenizers=True)))
    assert (found.samples, found.value) == (("s7",), value)
    assert "longer window" in found.way_out


# masks


@pytest.mark.parametrize(
    ("change", "value"),
    [
        (lambda ids, new: (*ids, new("newline")), "'newline' after the answer"),
        (lambda ids, new: (new("assistant"), *ids), "'assistant' before the answer"),
        (lambda ids, new: ids[:2], "only 2 of its 6 tokens"),
        (lambda ids, new: ids[3:], "only the last 3 of its 6 tokens"),
        (lambda ids, new: (*ids[:1], new("sleep"), *ids[2:]), "'sleep "),
    ],
)
def test_learnt_tokens_that_are_not_the_answers(change, value):
    sound = case([story(n) for n in range(4)])

    def new(word):
        return sound.student.tokenizer.convert_tokens_to_ids(word)

    found = only(check_masks(altered(sound, "s2", completion=lambda ids: change(ids, new))))
    assert (found.level, found.samples) == ("error", ("s2",))
    assert value in found.value
    assert "not the template's rendering" in found.way_out


def test_text_that_the_tokenizer_cannot_write():
    strange = story(7).model_copy(update={"completion": (Message(role="assistant", content="a ☃ ran"),)})
    found = only(check_masks(case([*stories(4), strange])))
    assert (found.level, found.samples) == ("warning", ("s7",))
    assert found.value == "'☃ran' becomes '<unk>ran'"


# end of turn


def test_an_end_that_is_stripped_as_padding_is_missed():
    """Where pad is EOS, as of GPT-2 and of these tokenizers."""
    found = only(check_endings(altered(case(stories(4)), "s2", completion=lambda ids: ids[:-1])))
    assert (found.level, found.samples) == ("error", ("s2",))
    assert "not '<|im_end|>' (2), which is the pad token, too" in found.value
    assert "mask padding by length" in found.way_out


def test_an_end_after_an_answer_that_was_cut_off():
    samples = [*stories(4), story(7, finish_reason="length")]
    assert check_endings(case(samples)) == []
    found = only(check_endings(altered(case(samples), "s7", completion=lambda ids: (*ids, 2))))
    assert (found.level, found.samples) == ("error", ("s7",))
    assert found.value == "'<|im_end|>' (2) after finish_reason length"


def test_a_marker_inside_an_answer():
    marked = story(7).model_copy(
        update={"completion": (Message(role="assistant", content="a <|im_end|> ran"),)}
    )
    found = only(check_endings(case([*stories(4), marked])))
    assert (found.level, found.samples, found.value) == ("warning", ("s7",), "'<|im_end|>' (2) at token 1")


@pytest.mark.parametrize(("eos", "now", "then"), [(None, "null", "2"), (9, "9", "[9, 2]")])
def test_an_end_at_which_the_generation_does_not_stop(eos, now, then):
    found = only(check_endings(case(stories(4), reader(eos=eos))))
    assert found.level == "error"
    assert f"'<|im_end|>' (2); generation_config.eos_token_id = {now}" in str(found)
    assert found.way_out == f"set eos_token_id to {then} in its generation_config.json"


def test_a_template_that_ends_otherwise_than_is_learnt():
    found = only(check_endings(case(stories(4), reader(CHATML.replace("<|im_end|>", "sun")))))
    assert found.level == "warning"
    assert "does not end an answer with the end of turn that is learnt ('<|im_end|>' (2))" in str(found)


def test_a_teacher_that_ends_with_another_token():
    """An instruct teacher over a base student (ms-swift#9526)."""
    sun = reader().tokenizer.convert_tokens_to_ids("sun")
    theirs = reader(CHATML.replace("<|im_end|>", "sun"), eos=[2, sun])
    found = only(check_endings(case(stories(4), reader(), theirs)))
    assert found.level == "error"
    assert found.value == f"teacher 'sun' ({sun}), student '<|im_end|>' (2)"
    assert f"add {sun} to eos_token_id" in found.way_out
    assert check_endings(case(stories(4), reader(eos=[2, sun]), theirs)) == []


# chat templates


def test_a_default_system_message_that_the_student_never_sees():
    own = story(9)
    own = own.model_copy(update={"prompt": (Message(role="system", content="be kind"), *own.prompt)})
    found = only(check_templates(case([*stories(4), own], reader(), reader(SYSTEM))))
    assert found.level == "warning"
    assert found.samples == ("s0", "s1", "s2", "s3")  # not the one that has a message of its own
    assert "a default system message" in found.text
    assert "system be kind" in found.value
    assert "give the samples a system message of their own" in found.way_out
    assert check_templates(case(stories(4), reader(SYSTEM), reader(SYSTEM))) == []


def test_a_sample_that_says_itself_what_the_teacher_reads_is_no_finding():
    hint = (Message(role="user", content="write a happy story"),)
    erased = [story(1, teacher_prompt=hint)]
    assert check_templates(case(erased, reader(), reader(), share=0)) == []
    # What a template adds to that is said by nobody.
    found = only(check_templates(case(erased, reader(), reader(SYSTEM), share=0)))
    assert "a default system message" in found.text
    assert "happy" not in found.value


def test_a_system_message_beside_the_samples_own_is_another_prompt():
    always = reader("<|im_start|> system be kind <|im_end|> newline " + CHATML)
    own = story(9)
    own = own.model_copy(update={"prompt": (Message(role="system", content="sad dog"), *own.prompt)})
    found = only(check_templates(case([own], reader(), always, share=0)))
    assert "made of other tokens for the student than for the teacher" in found.text
    assert "be kind" in found.value


def test_prompts_that_differ_otherwise():
    theirs = reader(CHATML.replace("{{ m['content'] }}", "{{ m['content'] }} ."))
    found = only(check_templates(case([story(1)], reader(), theirs, share=0)))
    assert (found.level, found.samples) == ("warning", ("s1",))
    assert "made of other tokens for the student than for the teacher" in found.text
    assert found.value == "student '', teacher '.'"
    assert found.way_out == "give the student the teacher's chat template"


def test_a_bos_that_comes_twice():
    doubled = reader("<|im_start|> " + CHATML, bos_token="<|im_start|>")
    found = only(check_templates(case(stories(3), doubled)))
    assert (found.level, found.samples) == ("error", ("s0", "s1", "s2"))
    assert found.value == "'<|im_start|>' (1)"
    assert "the student reads with its BOS twice" in found.text
    found = only(of(check_templates(case(stories(3), reader(bos_token="<|im_start|>"), doubled)), "error"))
    assert "the teacher reads with its BOS twice" in found.text


def test_an_answer_that_the_chat_changes():
    """A template that drops what looks like thinking, as Qwen 3's does with <think>."""
    dropping = reader(CHATML.replace("m['content'] }}", "m['content'].replace('sad', 'happy') }}"))
    sad = story(7).model_copy(update={"completion": (Message(role="assistant", content="the sad cat"),)})
    glad = sad.model_copy(
        update={"id": "s8", "completion": (Message(role="assistant", content="the happy cat"),)}
    )
    found = only(check_templates(case([sad, glad], dropping, share=0)))
    assert (found.level, found.samples) == ("warning", ("s7",))
    assert found.value == "answer token 1: 'sad cat' alone, 'happy cat <|im_end|>' in the chat"
    assert "mend the student's chat template" in found.way_out


# vocabularies


def test_padded_heads_are_reported_with_sizes_and_slice():
    found = only(check_vocabularies(case(stories(3), reader(head=40), reader(head=32))))
    assert found.level == "ok"
    assert found.text == "student 29 tokens, head 40; teacher 29 tokens, head 32; compared over the first 29"


def test_other_tokenizers_are_an_error_with_the_way_out():
    found = only(check_vocabularies(case(stories(3), reader(), reader(words=[*WORDS[:5], "moon"]))))
    assert found.level == "error"
    assert found.value == "29 and 13 tokens, 12 alike"
    assert found.way_out == "use black_box, or a student with the teacher's tokenizer"


def test_a_method_for_two_tokenizers_wants_two():
    other = reader(words=[*WORDS[:5], "moon"], head=16)
    found = only(check_vocabularies(case([story(1, words=3)], reader(), other, share=0, two_tokenizers=True)))
    assert found.level == "ok"
    assert (
        found.text
        == "student 29 tokens, head 29; teacher 13 tokens, head 16; compared at 4 of 4 learnt tokens"
    )
    same = only(check_vocabularies(case(stories(3), reader(), reader(), two_tokenizers=True)))
    assert same.level == "error"
    assert same.way_out == "use white_box, which does"
    small = reader(words=[*WORDS[:5], "moon"], head=6)
    beyond = check_vocabularies(case(stories(3), reader(), small, two_tokenizers=True))
    assert [one.level for one in beyond] == ["error", "ok"]
    assert "the teacher has no embedding for" in beyond[0].text
    assert "resize the teacher's embeddings" in beyond[0].way_out


def test_a_head_that_is_smaller_than_the_tokens():
    samples = [story(n) for n in range(4)]
    found = only(check_vocabularies(case(samples, reader(head=20))))
    assert found.level == "error"
    assert found.value.endswith("head of 20 rows")
    assert "resize the student's embeddings" in found.way_out


def test_a_slice_that_cuts_tokens_off():
    """The teacher's head has fewer rows than its tokenizer has tokens."""
    words = [*WORDS, "moon"]
    found = only(
        check_vocabularies(
            case([story(n) for n in range(4)], reader(words=words), reader(words=words, head=29))
        )
    )
    assert found.level == "warning"
    assert found.value.startswith("'moon' (29); student 30 tokens, head 30; teacher 30 tokens, head 29;")
    moon = story(7).model_copy(update={"completion": (Message(role="assistant", content="a moon"),)})
    found = only(check_vocabularies(case([moon], reader(words=words), reader(words=words, head=29), share=0)))
    assert (found.level, found.samples) == ("error", ("s7",))
    assert found.value.startswith("id 29; ")


# split


def test_a_group_on_both_sides():
    found = case([story(n, group=f"g{n // 2}") for n in range(8)])
    assert check_split(found) == []
    first = found.validation[0]
    mixed = altered(found, found.name(found.train[0].sample), group=first.group)
    one = only(check_split(mixed))
    assert one.level == "error"
    assert one.samples[0] == found.name(first.sample)
    assert one.value == f"group {first.group!r}, as {found.name(found.train[0].sample)}"
    assert "whole groups" in one.way_out


def test_a_group_on_both_sides_is_said_once_though_the_prompt_is_too():
    twins = [story(n).model_copy(update={"prompt": story(0).prompt}) for n in range(2)]
    found = case(twins, share=0.5)
    mixed = altered(found, found.name(found.train[0].sample), group=found.validation[0].group)
    assert only(check_split(mixed)).level == "error"


def test_one_prompt_in_two_groups_on_both_sides():
    twins = [story(n).model_copy(update={"prompt": story(0).prompt}) for n in range(8)]
    found = case(twins)
    one = only(check_split(found))
    assert one.level == "warning"
    assert set(one.samples) == {found.name(s.sample) for s in found.validation}
    assert "write a story about write" in one.value
    assert "the same group" in one.way_out


# in a training


def test_a_training_logs_warnings_and_ends_with_errors(caplog):
    caplog.set_level(logging.WARNING, logger="kdbench")
    vet(case(stories(4), reader(), reader(SYSTEM)))
    assert "chat templates: 4 samples before which the teacher's chat template" in caplog.text
    with pytest.raises(ConfigError, match=r"does not stop .* set eos_token_id to 2 in its generation_config"):
        vet(case(stories(4), reader(eos=None)))
    with pytest.raises(DataError, match=r"1 sample with a weight that is no number: s7 \(weight nan\)"):
        vet(case([*stories(4), story(7, weight=float("nan"))]))


def test_what_is_left_out_is_not_said_twice(caplog):
    found = case([*stories(4), blank(7)])
    caplog.clear()
    vet(found)
    assert caplog.text == ""


def test_as_many_samples_are_looked_at_as_are_asked_for():
    found = case(stories(40), most=10)
    assert [one.name for one in found.learnt()] == [f"s{n}" for n in range(0, 40, 4)]
    assert len(case(stories(4), most=10).learnt()) == 4


def test_a_training_says_that_it_looked_at_some_samples_only(caplog):
    caplog.set_level(logging.WARNING, logger="kdbench")
    vet(case(stories(40), reader(), reader(SYSTEM), most=10))
    assert "chat templates: 10 samples before which" in caplog.text
    assert "(seen in 10 of 40 samples; kdbench doctor looks at all)" in caplog.text
    caplog.clear()
    vet(case(stories(4), reader(), reader(SYSTEM), most=10))
    assert "seen in" not in caplog.text
