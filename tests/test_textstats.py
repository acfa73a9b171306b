import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kdbench import textstats as ts

VOWELS = "aeiou"
letters = st.text("abcdefghijklmnopqrstuvwxyz", min_size=3, max_size=10)


@pytest.mark.parametrize(
    ("part", "word", "forms"),
    [
        ("noun", "cat", "cats cat's"),
        ("noun", "box", "boxes"),
        ("noun", "berry", "berries"),
        ("noun", "toy", "toys"),
        ("noun", "mango", "mangos mangoes"),
        ("noun", "leaf", "leaves"),
        ("noun", "snowman", "snowmen"),
        ("noun", "grandchild", "grandchildren"),
        ("noun", "mouse", "mice"),
        ("verb", "run", "runs ran running"),
        ("verb", "jump", "jumps jumped jumping"),
        ("verb", "make", "makes made making"),
        ("verb", "bake", "bakes baked baking"),
        ("verb", "cry", "cries cried crying"),
        ("verb", "play", "plays played playing"),
        ("verb", "hop", "hops hopped hopping"),
        ("verb", "mix", "mixes mixed mixing"),
        ("verb", "tie", "ties tied tying"),
        ("verb", "agree", "agrees agreed agreeing"),
        ("verb", "visit", "visits visited visiting"),
        ("verb", "begin", "begins began begun beginning"),
        ("verb", "travel", "travelled traveled"),
        ("verb", "quack", "quacks quacked quacking"),
        ("verb", "squirt", "squirted squirting"),
        ("verb", "cheer", "cheered cheering"),
        ("verb", "learn", "learned learnt"),
        ("adjective", "happy", "happier happiest"),
        ("adjective", "big", "bigger biggest"),
        ("adjective", "nice", "nicer nicest"),
        ("adjective", "shy", "shyer shiest"),
        ("adjective", "good", "better best"),
    ],
)
def test_inflected_forms_count_as_the_word(part, word, forms):
    for form in (word, word.upper(), *forms.split()):
        assert ts.contains_word(f"Look, {form}!", word, part), form


@pytest.mark.parametrize(
    ("part", "word", "other"),
    [
        ("noun", "cat", "catch"),
        ("noun", "cat", "concatenate"),
        ("noun", "box", "boxen"),
        ("verb", "run", "runned"),
        ("verb", "run", "runner"),
        ("verb", "teach", "teacher"),
        ("verb", "see", "seed"),
        ("verb", "hop", "hoping"),
        ("verb", "hope", "hopping"),
        ("verb", "cheer", "cheerring"),
        ("adjective", "happy", "happily"),
        ("adjective", "happy", "happiness"),
        ("adjective", "big", "biger"),
        ("noun", "sun", "sunny"),
    ],
)
def test_other_words_do_not_count(part, word, other):
    assert not ts.contains_word(f"Look, {other}!", word, part)


def test_without_a_part_of_speech_the_forms_of_all_three_count():
    for form in ("teaches", "taught", "teacher"):
        assert ts.contains_word(form, "teach")
    every = ts.inflections("light")
    assert every == ts.inflections("light", "noun") | ts.inflections("light", "verb") | ts.inflections(
        "light", "adjective"
    )


@given(letters, st.sampled_from(["noun", "verb", "adjective", None]))
def test_a_word_is_among_its_forms_and_all_begin_alike(word, part):
    forms = ts.inflections(word, part)
    assert word in forms
    irregular = (
        word in ts._VERBS or word in ts._COMPARISONS or any(word.endswith(e) for e, _ in ts._PLURAL_ENDINGS)
    )
    if not irregular:
        assert all(form.startswith(word[:-2]) for form in forms)


@given(letters.filter(lambda w: w not in ts._VERBS))
def test_regular_verbs_have_an_s_a_past_and_a_progressive(word):
    forms = ts.inflections(word, "verb")
    assert any(form.endswith("s") for form in forms)
    assert any(form.endswith("ed") for form in forms)
    assert any(form.endswith("ing") for form in forms)


@given(st.text())
@example("It's 'quoted' and the dogs' bowl, rock'n'roll ''twice'' don't")
@example("Über—straße “Zoë’s” 3rd_time")
def test_words_are_runs_of_letters_with_apostrophes_inside(text):
    plain = re.sub("[’‘]", "'", text).replace("…", "...").lower()
    assert ts.words(text) == re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", plain)


def test_missing_words_are_named_in_the_order_given():
    story = "The children sang. It was the biggest day."
    assert ts.missing_words(story, ["moon", "sing", "big", "cat"]) == ["moon", "cat"]
    assert ts.missing_words(story, ["child", "sing", "big"], ["noun", "verb", "adjective"]) == []
    with pytest.raises(ValueError):
        ts.missing_words(story, ["child", "sing"], ["noun"])


@pytest.mark.parametrize(
    "text",
    ["It rained.", "Really?\n", 'He said, "Yes!"', "(So it goes.)", "*It was late.*", "And so on…",
     "**The End**", "They slept.\n\nThe end", "“Good night.”"],
)  # fmt: skip
def test_a_whole_sentence_ends_a_text(text):
    assert ts.ends_properly(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "It rained and",
        "He said,",
        'He said, "',
        'They stopped. "',
        "Once.\n\nThen the",
        "The ending",
        "1, 2, 3:",
    ],
)
def test_a_text_that_is_cut_off_has_no_end(text):
    assert not ts.ends_properly(text)


@pytest.mark.parametrize(
    "text",
    [
        "He was very very very very very glad.",
        "ha ho ha ho ha ho went the crowd",
        "I like you. I like you. I like you. Good night.",
        "She walked to the big house. She walked to the big house. Then she slept.",
        "He sat on the mat all day. The dog ran off. He sat on the mat all day. A bird flew by. "
        "He sat on the mat all day. It was over, and they all went to bed in the end.",
    ],
)
def test_a_text_that_repeats_itself_has_a_loop(text):
    assert ts.has_loop(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No, no, no!",
        "Run, run, run! The ball rolled on and on.",
        "Once there was a cat. The cat had a hat. The cat liked the hat. One day the hat was gone.",
        '"Where is my hat?" said the cat. The dog did not know. "Where is my hat?" the cat asked the bird.',
    ],
)
def test_small_repetitions_are_no_loop(text):
    assert not ts.has_loop(text)


def test_a_text_that_says_most_things_twice_is_a_loop_by_share():
    half = "one two three four five six seven eight nine ten eleven twelve"
    text = f"{half}, then something else came in between, {half}"
    assert ts.has_loop(text, max_repeated=0.25)
    assert not ts.has_loop(text, max_repeated=0.5)


@given(st.lists(letters, min_size=5, max_size=12, unique=True), st.integers(0, 30))
def test_a_long_enough_unit_twice_in_a_row_is_a_loop_wherever_it_stands(unit, before):
    intro = [f"{'x' * (i + 11)}" for i in range(before)]
    assert ts.has_loop(" ".join([*intro, *unit, *unit]), max_repeated=1)
    assert not ts.has_loop(" ".join([*intro, *unit]), max_repeated=1)


@pytest.mark.parametrize(
    "text",
    ["I'm sorry, but I can't help with that.", "I cannot write this story.", "As an AI language model, I ...",
     "Sorry, I am unable to assist with that.", "I’m sorry, but as a language model I do not tell stories.",
     "Unfortunately, I can't continue this."],
)  # fmt: skip
def test_refusals_are_known(text):
    assert ts.is_refusal(text)


@pytest.mark.parametrize(
    "text",
    ['"I\'m sorry," said Tom.', "Tim said, \"I can't help you.\"", "I cannot see the moon, said the owl.",
     "I am sorry I am late, said the hare."],
)  # fmt: skip
def test_a_story_about_being_sorry_is_no_refusal(text):
    assert not ts.is_refusal(text)


def test_an_echo_is_many_runs_of_the_prompt():
    prompt = (
        "Write a short story for a small child.\nIt must have the words cat, jump and happy in it, please."
    )
    assert ts.echoes_prompt(f"Sure! {prompt} A cat jumped.", prompt)
    assert not ts.echoes_prompt("It must have the words, said the happy cat. Jump!", prompt)
    assert ts.echoes_prompt("It must have the words, said the cat.", prompt, limit=2)


def test_names_are_the_capitals_inside_a_sentence():
    found = ts.proper_names("Once Zeb met Ayla, and Zeb ran. Quietly they left.")
    assert found == {"zeb", "zeb's", "ayla", "ayla's"}


def test_sentences_and_paragraphs():
    assert ts.sentences('One day it rained. "Stop!" he said. Now...') == [
        "One day it rained",
        '"Stop',
        "he said",
        "Now",
    ]
    assert ts.paragraph_count("One.\n\nTwo.\nStill two.\n \nThree.") == 3
    assert ts.paragraph_count("One.\nTwo.") == 2
    assert ts.paragraph_count("  \n") == 0


def test_distinct_n_is_the_share_of_different_runs_over_all_texts():
    assert ts.distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    assert ts.distinct_n(["a b c"], 1) == 1.0
    assert ts.distinct_n(["a"], 2) == 0.0
