"""adapt_then_distill and its stages: every order by hand, growth, resumption, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from kdbench.config import build  # noqa: E402
from kdbench.errors import ConfigError, NothingLeft, RunDirError, UsageError  # noqa: E402
from kdbench.jobs.training import train  # noqa: E402
from kdbench.models.loading import load_model, load_tokenizer  # noqa: E402
from kdbench.records import Text  # noqa: E402
from kdbench.rundir import is_done, read_info  # noqa: E402
from kdbench_trainers import adapt_then_distill, black_box, gkd, white_box  # noqa: E402
from tests.jobs.test_training import generated  # noqa: E402
from tests.support import byte_llama, trained_bpe  # noqa: E402
from tests.trainers.test_trainer import lines, same  # noqa: E402
from tests.trainers.tiny import WORDS, save_model, stories, tokenizer  # noqa: E402

pytestmark = pytest.mark.medium

ROOT = Path(__file__).parents[2]
SMALL = {
    "steps": 2, "batch_size": 2, "learning_rate": 0.01, "warmup_steps": 0, "device": "cpu", "max_length": 24,
    "validation_share": 0.2,
}  # fmt: skip
TEXTS = [
    Text(id=f"t{n}", text=" ".join(WORDS[(n + i * i) % len(WORDS)] for i in range(12 + n))) for n in range(8)
]


def adapt(out, student, teacher=None, samples=(), resume=False, **settings):
    """Run the trainer; the names of its stages."""
    config = adapt_then_distill.Config(**{"adaptation": SMALL, "method_config": SMALL, **settings})
    adapt_then_distill.train(
        [*samples, *TEXTS], teacher=teacher, student=student, out=out, config=config, resume=resume
    )
    return [path.name for path in sorted((out / "stages").iterdir())]


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def by_hand(module, out, samples, student, teacher=None, **settings):
    """One training by itself; the folder of its model."""
    config = module.Config(**{**SMALL, **settings})
    module.train(samples, teacher=teacher, student=student, out=out, config=config, resume=False)
    return str(out / "model")


@pytest.mark.parametrize(
    ("order", "stages", "grown"),
    [
        ("from_scratch", ["adapt_student"], ["grow_student", "adapt_student"]),
        (
            "distil_then_adapt",
            ["distil", "adapt_student"],
            ["distil", "grow_student", "adapt_student"],
        ),
        (
            "adapt_teacher",
            ["adapt_teacher", "distil"],
            ["grow_teacher", "grow_student", "adapt_teacher", "distil"],
        ),
        (
            "adapt_both",
            ["adapt_teacher", "adapt_student", "distil"],
            ["grow_teacher", "grow_student", "adapt_teacher", "adapt_student", "distil"],
        ),
    ],
)
def test_the_stages_of_each_order(order, stages, grown):
    config = adapt_then_distill.Config(order=order)
    assert list(config.stages) == stages
    assert list(adapt_then_distill.Config(order=order, grow={}).stages) == grown
    assert adapt_then_distill.needs_teacher(config) == (order != "from_scratch")


@pytest.mark.parametrize("order", ["distil_then_adapt", "adapt_both"])
def test_an_order_is_what_one_would_do_by_hand(order, student, teacher, tmp_path):
    learnt = {"steps": 3}
    stages = adapt(
        tmp_path / "out", student, teacher, stories(6), order=order, method_config={**SMALL, **learnt},
        teacher_adaptation={**SMALL, "learning_rate": 0.02},
    )  # fmt: skip
    expected, made, names = student, teacher, []
    if order == "distil_then_adapt":
        expected = by_hand(white_box, tmp_path / "first", stories(6), expected, made, **learnt)
        names.append("distil")
    if order == "adapt_both":
        made = by_hand(black_box, tmp_path / "teacher", TEXTS, made, learning_rate=0.02)
        names.append("adapt_teacher")
    expected = by_hand(black_box, tmp_path / "student", TEXTS, expected)
    names.append("adapt_student")
    if order == "adapt_both":
        expected = by_hand(white_box, tmp_path / "last", stories(6), expected, made, **learnt)
        names.append("distil")
    assert stages == [f"{n:02d}_{name}" for n, name in enumerate(names, start=1)]
    same(weights(tmp_path / "out" / "model"), weights(expected), rtol=0, atol=0)
    assert load_model(str(tmp_path / "out" / "model"), device="cpu")
    for stage in stages:
        folder = tmp_path / "out" / "stages" / stage
        assert {path.name for path in folder.iterdir()} == {"model", "metrics.jsonl", "stage.json", "DONE"}


def test_the_metrics_of_all_stages_are_in_one_file(student, teacher, tmp_path):
    adapt(tmp_path, student, teacher, stories(6))
    found = lines(tmp_path)
    steps = [(line["stage"], line["step"]) for line in found if line["split"] == "train"]
    names = ["01_adapt_teacher", "02_adapt_student", "03_distil"]
    assert steps == [(name, 2 * n + step) for n, name in enumerate(names) for step in (1, 2)]
    own = lines(tmp_path / "stages" / "03_distil")
    assert [{**line, "step": line["step"] - 4} for line in found if line.pop("stage") == "03_distil"] == own


def test_to_adapt_is_to_predict_each_token_of_the_windows(student, tmp_path):
    """The first loss against transformers' own forward over each window."""
    settings = {**SMALL, "steps": 1, "batch_size": 6, "validation_share": 0}
    adapt(tmp_path, student, order="from_scratch", adaptation=settings)
    model, tok = load_model(student, device="cpu"), load_tokenizer(student)
    stream = [tok.eos_token_id]
    for one in TEXTS:
        stream += [*tok(one.text)["input_ids"], tok.eos_token_id]
    losses = []
    for start in range(0, len(stream) - 1, 23):
        ids = torch.tensor([stream[start : start + 24]])
        logits = model(ids).logits[0, :-1]
        losses += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").tolist()
    assert len(losses) == len(stream) - 1
    (line,) = lines(tmp_path)
    assert line["tokens"] == len(losses)
    assert line["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@pytest.mark.parametrize("method", ["white_box", "gkd", "distillm", "feature_matching"])
def test_without_completions_the_domains_text_is_distilled_on(method, student, teacher, tmp_path):
    own = {
        "white_box": {}, "gkd": {"max_new_tokens": 4, "lmbda": 1.0}, "distillm": {"max_new_tokens": 4},
        "feature_matching": {"relation_heads": 4},
    }  # fmt: skip
    settings = {**SMALL, **own[method]}
    adapt(tmp_path, student, teacher, order="adapt_teacher", method=method, method_config=settings)
    found = lines(tmp_path / "stages" / "02_distil", "train")
    assert all(line["divergence"] > 0 for line in found)
    windows = [line["tokens"] for line in lines(tmp_path / "stages" / "01_adapt_teacher", "train")]
    if method in ("white_box", "feature_matching"):
        assert [line["tokens"] for line in found] == windows
    if method == "gkd":
        assert all(line["generated_tokens"] <= 8 for line in found)


def test_what_is_done_is_not_done_again(student, teacher, tmp_path, monkeypatch):
    adapt(tmp_path / "whole", student, teacher, stories(6))
    begun = []
    own = white_box.train

    def fails(*args, **more):
        begun.append(more["resume"])
        if len(begun) == 1:
            raise KeyboardInterrupt
        own(*args, **more)

    monkeypatch.setattr(white_box, "train", fails)
    out = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        adapt(out, student, teacher, stories(6))
    assert not (out / "model").exists()
    assert {line["stage"] for line in lines(out)} == {"01_adapt_teacher", "02_adapt_student"}
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    assert len(stamps) == 2
    adapt(out, student, teacher, stories(6), resume=True)
    assert begun == [False, True]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    same(weights(out / "model"), weights(tmp_path / "whole" / "model"), rtol=0, atol=0)
    assert [line["step"] for line in lines(out)] == [line["step"] for line in lines(tmp_path / "whole")]
    # Not asked to resume, it begins anew.
    adapt(out, student, order="from_scratch")
    assert [path.name for path in (out / "stages").iterdir()] == ["01_adapt_student"]


def test_a_stage_that_was_cut_off_goes_on_from_its_checkpoint(student, tmp_path, monkeypatch):
    from kdbench_trainers import _fit

    settings = {**SMALL, "steps": 6, "checkpoint_every": 2}
    adapt(tmp_path / "whole", student, order="from_scratch", adaptation=settings)
    on_log = _fit.Metrics.on_log

    def stop(self, args, state, control, logs, **more):
        on_log(self, args, state, control, logs, **more)
        if state.global_step == 5 and "loss" in logs:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_fit.Metrics, "on_log", stop)
        with pytest.raises(KeyboardInterrupt):
            adapt(tmp_path / "cut", student, order="from_scratch", adaptation=settings)
    kept = [line for line in lines(tmp_path / "cut", "train") if line["step"] <= 4]
    adapt(tmp_path / "cut", student, order="from_scratch", adaptation=settings, resume=True)
    assert lines(tmp_path / "cut", "train")[:4] == kept
    same(weights(tmp_path / "cut" / "model"), weights(tmp_path / "whole" / "model"))


def test_other_text_is_not_gone_on_with(student, tmp_path):
    (tmp_path / "a.txt").write_text("the cat was happy")
    settings = {"order": "from_scratch", "texts": [str(tmp_path / "a.txt")]}
    adapt(tmp_path / "out", student, **settings)
    (tmp_path / "a.txt").write_text("the dog was sad")
    with pytest.raises(RunDirError, match=r"01_adapt_student cannot go on: other texts than when it began"):
        adapt(tmp_path / "out", student, **settings, resume=True)


@pytest.fixture(scope="module")
def speakers(tmp_path_factory):
    """(student, teacher) with one byte-level BPE; the student has a template of its own."""
    found = []
    for seed, layers in ((1, 1), (2, 2)):
        folder = tmp_path_factory.mktemp(f"bpe{seed}")
        byte_llama.model(seed=seed, layers=layers, vocab_size=400).save_pretrained(folder)
        tok = trained_bpe.tokenizer(size=400)
        if seed == 1:
            tok.chat_template = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
        tok.save_pretrained(folder)
        found.append(str(folder))
    return found


MANUAL = ["The hypervisor mounts the filesystem; the hypervisor unmounts the filesystem again."] * 6


@pytest.mark.parametrize("order", ["from_scratch", "distil_then_adapt", "adapt_both"])
def test_both_models_grow_by_the_same_words(order, speakers, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (tmp_path / "manual.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in MANUAL))
    config = adapt_then_distill.Config(
        order=order, texts=[str(tmp_path / "manual.jsonl")], grow={"step": 15}, adaptation=SMALL,
        method_config=SMALL,
    )  # fmt: skip
    out = tmp_path / "out"
    adapt_then_distill.train(
        [], teacher=speakers[1], student=speakers[0], out=out, config=config, resume=False
    )
    names = {path.name[3:]: path for path in (out / "stages").iterdir()}
    grows = [name for name in names if name.startswith("grow")]
    assert sorted(grows) == (["grow_student", "grow_teacher"] if order == "adapt_both" else ["grow_student"])
    tok, old = AutoTokenizer.from_pretrained(out / "model"), load_tokenizer(speakers[0])
    growth = json.loads((names["grow_student"] / "growth.json").read_text())
    assert len(tok) == 400 + len(growth["merges"]) == growth["rounds"][-1]["vocabulary"] > 400
    assert len(tok(MANUAL[0])["input_ids"]) < 0.7 * len(old(MANUAL[0])["input_ids"])
    assert tok.decode(tok(MANUAL[0])["input_ids"]) == MANUAL[0]
    assert tok.chat_template == old.chat_template
    assert AutoModelForCausalLM.from_pretrained(out / "model").config.vocab_size == len(tok)
    if order == "adapt_both":
        assert load_tokenizer(str(names["adapt_teacher"] / "model")).get_vocab() == tok.get_vocab()
        assert lines(out / "stages" / names["distil"].name, "train")[0]["divergence"] > 0
    if order == "distil_then_adapt":  # with the old vocabulary still
        assert len(load_tokenizer(str(names["distil"] / "model"))) == 400


def test_models_of_other_vocabularies_are_refused_before_anything_is_adapted(student, tmp_path):
    other = save_model(tmp_path / "other", tok=tokenizer(words=["some", "other", "words"]))
    with pytest.raises(ConfigError, match=r"has 29 tokens and the teacher .* has 10"):
        adapt(tmp_path / "out", student, other, stories(4))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": "adapt_both", "method": "black_box"}, "order adapt_both adapts the teacher, and black"),
        ({"method": "gkd", "method_config": {"lmbd": 1}}, "trainer gkd: no key 'lmbd'. Did you mean 'lmbda'"),
        ({"method": "gdk"}, "No trainer named 'gdk'. Did you mean 'gkd'"),
        ({"grow": {"tolerance": 2}}, r"grow.tolerance = 2: input should be less than 1"),
        ({"order": "adapt_all"}, "order = \"adapt_all\""),
        ({"adaptation": {"lora": {"merge": False}}}, "adaptation.lora.merge = false saves adapters alone"),
        (
            {"order": "distil_then_adapt", "method_config": {"lora": {"merge": False}}},
            "method_config.lora.merge = false",
        ),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UsageError, match=message):
        build(adapt_then_distill.Config, settings, "trainer adapt_then_distill")


def test_only_the_last_stage_may_keep_its_adapters_apart():
    adapters = {"lora": {"merge": False}}
    build(adapt_then_distill.Config, {"method_config": adapters}, "it")
    build(adapt_then_distill.Config, {"order": "from_scratch", "adaptation": adapters}, "it")
    build(adapt_then_distill.Config, {"order": "distil_then_adapt", "adaptation": adapters}, "it")


def test_the_methods_settings_are_written_out():
    config = adapt_then_distill.Config(method="gkd", method_config={"lmbda": 0.25})
    assert config.method_config == gkd.Config(lmbda=0.25).model_dump(mode="json")


def test_a_run_needs_text_and_no_samples(student, teacher, tmp_path):
    settings = {"adaptation": SMALL, "method_config": SMALL}
    asked = {"student": student, "teacher": teacher, "out": tmp_path / "out"}
    with pytest.raises(ConfigError, match="adapts to a domain's text and none is given; name some in texts"):
        train("adapt_then_distill", **asked, config=settings)
    (tmp_path / "a.txt").write_text(" ".join(WORDS * 9))
    out = train(
        "adapt_then_distill", **asked, config={**settings, "texts": [str(tmp_path / "a.txt")]}, overwrite=True
    )
    info = read_info(out)
    assert is_done(out)
    assert (info["stats"]["samples"], info["stats"]["steps"]) == (0, 6)
    assert info["teacher"]["weights_sha256"]
    assert info["stats"]["validation_loss"] == lines(out, "validation")[-1]["loss"]
    assert (out / "model" / "README.md").is_file()
    assert list(info["fingerprint"]["inputs"]) == [str(tmp_path / "a.txt")]
    (tmp_path / "a.txt").write_text("the cat")
    with pytest.raises(RunDirError, match="cannot go on: other inputs than when it began"):
        train("adapt_then_distill", **asked, config=read_info(out)["fingerprint"]["config"], resume=True)


def test_a_run_of_text_samples_is_domain_text(student, tmp_path):
    data = generated(tmp_path / "data", TEXTS)
    asked = {"data": data, "student": student, "config": {"order": "from_scratch", "adaptation": SMALL}}
    out = train("adapt_then_distill", **asked, out=tmp_path / "out")
    assert read_info(out)["stats"]["samples"] == len(TEXTS)
    assert read_info(out)["stats"]["steps"] == 2
    again = train("adapt_then_distill", **asked, out=tmp_path / "out", resume=True)
    assert again == out
    # black_box on text is the same pre-training.
    plain = train("black_box", data=data, student=student, out=tmp_path / "plain", config=SMALL)
    same(weights(plain / "model"), weights(out / "model"), rtol=0, atol=0)


def test_who_takes_no_text_and_who_needs_a_teacher(student, tmp_path):
    data = generated(tmp_path / "data", TEXTS)
    with pytest.raises(
        NothingLeft, match=r"No completion to train on in .*; the trainer step_by_step does not"
    ):
        train("step_by_step", data=data, student=student, out=tmp_path / "out")
    with pytest.raises(UsageError, match="black_box learns from samples and none are given; name a finished"):
        train("black_box", student=student, out=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"adapt_then_distill learns .* no teacher is given; name one"):
        train("adapt_then_distill", data=data, student=student, out=tmp_path / "out")
    settings = {"order": "distil_then_adapt", "method": "step_by_step"}
    with pytest.raises(
        ConfigError, match="method step_by_step with these settings does not learn from plain"
    ):
        train("adapt_then_distill", data=data, student=student, out=tmp_path / "out", config=settings)


SHARED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.trainers import test_adapt as t
config = t.adapt_then_distill.Config(
    adaptation=t.SMALL, method_config=t.SMALL, grow={"step": 15}, texts=[sys.argv[5]])
t.adapt_then_distill.train(
    [], teacher=sys.argv[4], student=sys.argv[3], out=Path(sys.argv[2]), config=config, resume=False)
"""


def test_two_processes_go_through_the_stages_together(speakers, tmp_path):
    (tmp_path / "manual.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in MANUAL))
    (tmp_path / "shared.py").write_text(SHARED)
    arguments = [str(ROOT), str(tmp_path / "two"), *speakers, str(tmp_path / "manual.jsonl")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "shared.py"), *arguments],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    arguments[1] = str(tmp_path / "one")
    alone = subprocess.run(
        [sys.executable, str(tmp_path / "shared.py"), *arguments],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [(line["stage"], line["step"]) for line in one] == [(line["stage"], line["step"]) for line in two]
    for mine, theirs in zip(one, two, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    same(*(weights(tmp_path / n / "model") for n in ("one", "two")), rtol=1e-2, atol=1e-3)
