"""Domain text from runs, JSON lines, files and folders."""

from __future__ import annotations

import pytest

from kdbench.errors import DataError, RunDirError
from kdbench.records import Text
from kdbench_trainers._texts import read_texts, texts_sha256
from tests.jobs.test_training import generated
from tests.trainers.tiny import stories


def test_every_source_gives_its_documents_in_order(tmp_path):
    run = generated(tmp_path / "run", [Text(id="a", text="one", weight=2.0), *stories(2), Text(text="two")])
    (tmp_path / "notes.jsonl").write_text('{"text": "three", "url": "x"}\n\n{"text": "four"}\n')
    folder = tmp_path / "manuals" / "deep"
    folder.mkdir(parents=True)
    (folder / "b.txt").write_text("six\n")
    (folder.parent / "a.txt").write_text("five")
    (folder.parent / "c.txt").write_text(" \n")
    (folder.parent / "a.md").write_text("not this")
    found = read_texts([str(run), str(tmp_path / "notes.jsonl"), str(folder.parent), str(folder / "b.txt")])
    assert [one.text for one in found] == ["one", "two", "three", "four", "five", "six\n", "six\n"]
    assert found[0].weight == 2.0
    assert len({one.id for one in found[2:6]}) == 4


def test_the_hash_is_that_of_what_lies_there(tmp_path):
    (tmp_path / "a").mkdir()
    files = {"a/a.txt": "one", "b.jsonl": '{"text": "two"}', "c.txt": "three"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    run = generated(tmp_path / "run", [Text(text="four")])
    paths = [str(tmp_path / "a"), str(tmp_path / "b.jsonl"), str(tmp_path / "c.txt"), str(run)]
    before = texts_sha256(paths)
    assert list(before) == paths
    assert texts_sha256(paths) == before
    for number, name in enumerate(("a/a.txt", "b.jsonl", "c.txt", "run/samples.jsonl")):
        with open(tmp_path / name, "a") as file:
            file.write("\n")
        after = texts_sha256(paths)
        assert [before[p] != after[p] for p in paths] == [i == number for i in range(4)]
        before = after
    with pytest.raises(DataError, match="No text at 'nowhere'"):
        texts_sha256(["nowhere"])


def test_what_is_no_text_is_named_with_the_ways_out(tmp_path):
    with pytest.raises(DataError, match=r"No text at 'nowhere'; give the directory of a generate run"):
        read_texts(["nowhere"])
    (tmp_path / "page.html").write_text("x")
    with pytest.raises(DataError, match=r"No text at '.*page.html'"):
        read_texts([str(tmp_path / "page.html")])
    (tmp_path / "bad.jsonl").write_text('{"txt": "x"}\n')
    with pytest.raises(DataError, match=r'bad.jsonl:1 is not a line {"text": ...}: text: Field required'):
        read_texts([str(tmp_path / "bad.jsonl")])
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"latin.txt: .*must be a text in UTF-8"):
        read_texts([str(tmp_path / "latin.txt")])
    with pytest.raises(DataError, match="run holds no text; leave it out of texts"):
        read_texts([str(generated(tmp_path / "run", stories(2)))])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no text"):
        read_texts([str(tmp_path / "empty")])
    with pytest.raises(RunDirError, match="is not finished"):
        read_texts([str(generated(tmp_path / "half", [Text(text="x")], finish=False))])


def test_a_group_of_completions_and_texts_is_on_one_side_of_the_split():
    from kdbench.models.sequences import Reader
    from kdbench_trainers._config import TrainConfig
    from kdbench_trainers._material import divided
    from tests.trainers.tiny import WORDS, story, tokenizer

    tok = tokenizer()
    names = [f"g{n}" for n in range(12)]
    completions = [story(n, group=name) for n, name in enumerate(names)]
    # The text of a group says its number in words that are in no other.
    texts = [Text(text=WORDS[n] + " kind", group=name) for n, name in enumerate(names[:8])]
    config = TrainConfig(validation_share=0.4, max_length=40, batch_size=2)
    train, validation = divided([*completions, *texts], Reader(tok), None, config)
    learnt = {one.group for one in train if one.group in names}
    held = {one.group for one in validation if one.group in names}
    assert learnt.isdisjoint(held)
    words = " ".join(tok.decode(one.completion) for one in validation if one.group not in names)
    assert {name for n, name in enumerate(names[:8]) if WORDS[n] in words.split()} == held & set(names[:8])
    assert held & set(names[:8])
