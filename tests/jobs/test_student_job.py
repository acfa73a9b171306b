"""A student run: made from all of its data, and fit to leave the house, before and after training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdbench.errors import RunDirError, UsageError
from kdbench.jobs.student_job import SAMPLE_TEXTS, make_student
from kdbench.jsonl import JsonlWriter
from kdbench.records import Completion, Message, Origin
from kdbench.rundir import RunDir, is_done, read_info
from tests.support import byte_llama, trained_bpe

pytestmark = pytest.mark.medium

ASK = "Where did the cat go?"


def sample(number: int, answer: str) -> Completion:
    return Completion(
        id=f"ab-{number}-0",
        prompt=(Message(role="user", content=ASK),),
        completion=(Message(role="assistant", content=answer),),
        origin=Origin(seed=number, finish_reason="stop"),
    )


def generated(path: Path, *answers: str) -> Path:
    run = RunDir.create(path, kind="generate", config={}, fingerprint={})
    with JsonlWriter(path / "samples.jsonl") as file:
        for number, answer in enumerate(answers):
            file.write(sample(number, answer))
    run.finish()
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Knows words, and names only the end of a text as its end."""
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = trained_bpe.tokenizer()
    model = byte_llama.model(layers=3, vocab_size=len(tokenizer))
    model.config.eos_token_id = model.generation_config.eos_token_id = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def loaded(folder: Path):
    """As somebody without kdbench would load it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def test_all_of_the_data_says_which_tokens_are_kept(teacher, tmp_path):
    """The last sample counts as much as the first 32, on which pruning is measured."""
    data = generated(tmp_path / "data", *["The cat ran."] * SAMPLE_TEXTS, "They gather feathers together.")
    config = {"kind": "pruned", "layers": 2, "trim_vocabulary": True}
    out = make_student(config, teacher=teacher, data=data, out=tmp_path / "out")
    info = read_info(out)
    assert is_done(out)
    old, (_, small) = trained_bpe.tokenizer(), loaded(out / "model")
    for text in ("The cat ran.", "They gather feathers together.", ASK):
        assert small.tokenize(text) == old.tokenize(text)
    assert info["stats"]["vocabulary"] == len(small) < info["stats"]["vocabulary_before"] == len(old)
    assert info["stats"]["shares_teacher_vocabulary"] is False


def test_trimming_without_data_is_refused(teacher, tmp_path):
    config = {"kind": "weights", "model": teacher, "trim_vocabulary": True}
    with pytest.raises(UsageError, match="--data"):
        make_student(config, teacher=teacher, out=tmp_path / "out")
    assert read_info(tmp_path / "out")["status"] == "failed"


def test_data_that_is_not_finished_is_refused(teacher, tmp_path):
    data = generated(tmp_path / "data", "The cat ran.")
    (data / "DONE").unlink()
    with pytest.raises(RunDirError):
        make_student({"layers": 2}, teacher=teacher, data=data, out=tmp_path / "out")


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "pruned", "layers": 2, "hidden_size": 24, "heads": 2, "trim_vocabulary": True},
        {"kind": "scratch", "layers": 1, "shape": {"hidden_size": 32, "heads": 4, "kv_heads": 2}},
    ],
    ids=["pruned", "scratch"],
)
def test_a_student_leaves_in_the_form_people_use(teacher, tmp_path, config):
    """safetensors, tokenizer, chat template and ends of turn; trained, plain `generate` stops at the end."""
    import kdbench

    answer = "The cat ran to the river."
    data = generated(tmp_path / "data", *[answer] * 8)
    made = make_student(config, teacher=teacher, data=data, out=tmp_path / "made")
    steps = {"steps": 60, "learning_rate": 0.02, "batch_size": 4, "validation_share": 0.0, "warmup_steps": 0}
    trained = kdbench.train("black_box", data=data, student=str(made), out=tmp_path / "out", config=steps)
    for out in (made, trained):
        folder = out / "model"
        files = {path.name for path in folder.iterdir()}
        assert files >= {
            "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
            "chat_template.jinja", "generation_config.json",
        }  # fmt: skip
        assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
        model, tokenizer = loaded(folder)
        ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
        assert tokenizer.convert_tokens_to_ids("<|im_end|>") in ([ends] if isinstance(ends, int) else ends)
        assert model.config.vocab_size == len(tokenizer)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": ASK}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert tokenizer.decode(prompt["input_ids"][0]) == (
        f"<|im_start|>user\n{ASK}<|im_end|>\n<|im_start|>assistant\n"
    )
    reply = model.generate(**prompt, max_new_tokens=60, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(reply) == f"{answer}<|im_end|>"
