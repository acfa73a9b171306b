"""Dataset and model cards, as the libraries that read them see them."""

from __future__ import annotations

import pytest
from huggingface_hub import DatasetCard, ModelCard

from kdbench.jobs._tables import write_parquet
from kdbench.jsonl import JsonlWriter
from kdbench.records import Completion, Message, Rejection
from kdbench.reporting.dataset_card import write_dataset_card
from kdbench.reporting.model_card import write_model_card


def sample(i):
    return Completion(
        id=f"s{i}",
        prompt=(Message(role="user", content="Hi"),),
        completion=(Message(role="assistant", content=f"Story {i}"),),
    )


INFO = {
    "kind": "generate",
    "recipe": "tinystories",
    "teacher": {"spec": "smollm2", "identity": {"teacher": "smollm2 abc", "judge": "openai:x"}},
    "templates": {"tinystories/story.j2": "f" * 64},
    "seed": 3,
    "licence": "Apache-2.0",
    "config_sha256": "c" * 64,
    "git": {"commit": "d" * 40, "dirty": False},
    "packages": {"kdbench": "0.1.0"},
}


def generated(folder, *, rejected):
    with JsonlWriter(folder / "samples.jsonl") as file:
        for i in range(3):
            file.write(sample(i))
    with JsonlWriter(folder / "rejected.jsonl") as file:
        for i in range(rejected):
            file.write(Rejection(reason="loop", sample=sample(i) if i else None))
    write_parquet(folder / "samples.jsonl", folder / "samples.parquet")
    write_parquet(folder / "rejected.jsonl", folder / "rejected.parquet", rejections=True)
    stats = {
        "accepted": 3,
        "rejected": rejected,
        "seeds": 5,
        "reasons": {"loop": rejected} if rejected else {},
    }
    write_dataset_card(folder, {**INFO, "stats": stats})


def test_the_dataset_card_says_where_the_data_came_from(tmp_path):
    generated(tmp_path, rejected=2)
    card = DatasetCard.load(tmp_path / "README.md")
    assert card.data.license == "Apache-2.0"
    assert [c["config_name"] for c in card.data.configs] == ["default", "rejected"]
    for shown in (
        "`smollm2 abc`",
        "judge: `openai:x`",
        "3 accepted, 2 rejected",
        "| loop | 2 |",
        "d" * 40,
        "f" * 64,
    ):
        assert shown in card.text


@pytest.mark.medium
@pytest.mark.parametrize("rejected", [2, 0])
def test_load_dataset_gives_the_samples_of_a_run_directory(tmp_path, rejected, monkeypatch):
    import datasets

    run = tmp_path / "run"
    run.mkdir()
    generated(run, rejected=rejected)
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset(str(run), cache_dir=cache, split="train")
    assert loaded["id"][:] == ["s0", "s1", "s2"]
    assert loaded[0]["completion"][0]["content"] == "Story 0"
    if rejected:
        turned_down = datasets.load_dataset(str(run), "rejected", cache_dir=cache, split="train")
        assert turned_down["reason"][:] == ["loop", "loop"]


def test_a_card_without_licence_or_teacher_states_none(tmp_path):
    write_dataset_card(tmp_path, {"kind": "generate"})
    card = DatasetCard.load(tmp_path / "README.md")
    assert card.data.license is None
    assert "not stated" in card.text


def test_the_model_card_lists_method_data_and_results(tmp_path):
    (tmp_path / "model").mkdir()
    info = {
        **INFO,
        "kind": "train",
        "trainer": "white_box",
        "teacher": {"spec": "smollm2", "weights_sha256": "a" * 64},
        "student": {"ref": "runs/pruned"},
        "inputs": {"data": "e" * 64},
        "stats": {"steps": 120, "validation_loss": 1.25, "block_influence": [1, 2]},
    }
    write_model_card(tmp_path, info)
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.library_name == "transformers"
    assert "white_box" in card.data.tags
    for shown in ("`smollm2`", "`runs/pruned`", "| steps | 120 |", "| validation loss | 1.25 |", "e" * 64):
        assert shown in card.text
    assert "block influence" not in card.text
