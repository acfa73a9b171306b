"""feature_matching on tiny models: the loss by hand, every way to cut it, pruned students, bad input."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kdbench.errors import ConfigError  # noqa: E402
from kdbench.losses.features import relation_divergence  # noqa: E402
from kdbench.models.loading import load_model, load_tokenizer  # noqa: E402
from kdbench.records import Message  # noqa: E402
from kdbench_trainers import feature_matching  # noqa: E402
from tests.trainers.test_trainer import lines, run, same, save_as  # noqa: E402
from tests.trainers.tiny import save_model, stories, story  # noqa: E402

pytestmark = pytest.mark.medium

BOTH = {"relation_heads": 4, "hidden_layers": [[0, 1], [-1, -1]]}


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A teacher as wide as the student, and with more layers."""
    return save_model(tmp_path_factory.mktemp("deep"), seed=2, layers=4)


def match(out, student, teacher, samples=None, **settings):
    return run(feature_matching, out, student, teacher, samples, **{"relation_heads": 4, **settings})


def inside(ref, sample, layer):
    """A sample's rows, states behind the layers, one's queries, keys and values, and log-probabilities."""
    model, tok = load_model(ref, device="cpu"), load_tokenizer(ref)
    turns = [{"role": m.role, "content": m.content} for m in sample.prompt]
    prompt = tok.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    ids = torch.tensor([[*prompt, *tok(sample.text)["input_ids"], tok.eos_token_id]])
    states = []
    hooks = [
        one.register_forward_hook(lambda *found: states.append(found[-1][0])) for one in model.model.layers
    ]
    with torch.no_grad():
        logits = model(ids).logits[0].log_softmax(-1)
        for hook in hooks:
            hook.remove()
        block = model.model.layers[layer]
        before = [model.model.embed_tokens(ids)[0], *states][layer]
        normed, attention = block.input_layernorm(before), block.self_attn
        vectors = [project(normed) for project in (attention.q_proj, attention.k_proj, attention.v_proj)]
    return slice(len(prompt) - 1, ids.shape[1] - 1), states, vectors, logits


@pytest.mark.parametrize("hint", [None, "write a happy story about the sad dog who was kind"])
def test_the_loss_is_what_the_docstring_says(student, deep, tmp_path, hint):
    """Against transformers' own forward, one unpadded sample at a time; alpha is of the whole step."""
    told = (Message(role="user", content=hint),) if hint else None
    samples = [story(n, words=2 + 3 * n, weight=0.5 + n, teacher_prompt=told) for n in range(3)]
    settings = {**BOTH, "relation_share": 0.3, "student_layer": 1, "teacher_layer": 2}
    settings |= {"batch_size": 3, "micro_batch_size": 2, "steps": 1, "validation_share": 0}
    match(tmp_path, student, deep, samples, **settings)
    sums = dict.fromkeys(("divergence", "relations", "hidden_states", "weight"), 0.0)
    for sample in samples:
        rows, ours, mine, student_log = inside(student, sample, 1)
        read = sample.model_copy(update={"prompt": told or sample.prompt})
        rows_there, theirs, yours, teacher_log = inside(deep, read, 2)
        there, here = teacher_log[rows_there], student_log[rows]
        kl = (there.exp() * (there - here)).sum(-1)
        if hint:  # look back on the answer alone
            mine, yours = [one[rows] for one in mine], [one[rows_there] for one in yours]
        looking = slice(0, len(kl)) if hint else rows
        pairs = list(zip(mine, yours, strict=True))
        related = sum(
            relation_divergence(one[: looking.stop], other[: looking.stop], heads=4, rows=looking)
            for one, other in pairs
        )
        apart = [(ours[i][rows] - theirs[j][rows_there]).square().mean(-1) for i, j in ((0, 1), (1, 3))]
        found = {"divergence": kl, "relations": related, "hidden_states": sum(apart) / 2}
        for name, value in found.items():
            sums[name] += sample.weight * value.sum().item()
        sums["weight"] += sample.weight * len(kl)
    weight = sums.pop("weight")
    means = {name: value / weight for name, value in sums.items()}
    (line,) = lines(tmp_path)
    assert {name: line[name] for name in means} == pytest.approx(means, rel=1e-4)
    expected = 0.7 * 2 * means["divergence"] + 0.3 * means["relations"]
    assert line["loss"] == pytest.approx(expected, rel=1e-4)


def test_validation_reports_hidden_states_and_leaves_them_out(student, deep, tmp_path):
    match(tmp_path, student, deep, steps=1, **BOTH)
    for line in lines(tmp_path, "validation"):
        assert line["hidden_states"] > 0
        assert line["loss"] == pytest.approx(0.5 * line["divergence"] + 0.5 * line["relations"], rel=1e-5)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(student, tmp_path):
    match(tmp_path, student, student, steps=1, learning_rate=1e-12, relation_heads=8, hidden_layers=[[0, 0]])
    for line in lines(tmp_path):
        found = [line[name] for name in ("loss", "divergence", "relations", "hidden_states")]
        assert found == pytest.approx([0] * 4, abs=1e-5)


@pytest.mark.parametrize(
    "change", [{"micro_batch_size": 1}, {"gradient_checkpointing": True}, {"teacher_cache_mb": 0}]
)
def test_what_costs_memory_changes_nothing(student, deep, tmp_path, change):
    samples = [story(n, words=1 + n % 9, weight=[0.5, 2.0][n % 2]) for n in range(16)]
    # A smaller rate: Adam makes a step of whatever rounding leaves of a gradient.
    settings = {**BOTH, "learning_rate": 1e-3}
    whole = match(tmp_path / "whole", student, deep, samples, **settings)
    cut = match(tmp_path / "cut", student, deep, samples, **settings, **change)
    same(whole, cut)
    for one, other in zip(lines(tmp_path / "whole"), lines(tmp_path / "cut"), strict=True):
        for name in ("loss", "grad_norm", "divergence", "relations", "hidden_states", "tokens"):
            assert one.get(name, 0) == pytest.approx(other.get(name, 0), rel=1e-3)


def pruned(kind, teacher, folder):
    """A student cut out of its teacher, in depth or in width."""
    from kdbench.models.pruning import keep_layers
    from kdbench.models.width import Width, prune_width

    model, tok = load_model(teacher, device="cpu"), load_tokenizer(teacher)
    if kind == "depth":
        keep_layers(model, [0, 3])
    else:
        texts = [one.text for one in stories(8)]
        model = prune_width(model, tok, texts, Width(hidden_size=12, intermediate_size=20), teacher)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "settings", "terms"),
    [
        ("depth", BOTH, ["divergence", "relations", "hidden_states"]),
        ("depth", {"relation_share": 0.0, "hidden_layers": [[-1, -1]]}, ["divergence", "hidden_states"]),
        ("width", {}, ["divergence", "relations"]),
    ],
)
def test_pruned_students_come_nearer_on_held_out_text(kind, settings, terms, deep, tmp_path):
    student = pruned(kind, deep, tmp_path / "student")
    match(tmp_path / "out", student, deep, stories(24), steps=30, eval_every=30, batch_size=8, **settings)
    first, last = lines(tmp_path / "out", "validation")
    for term in terms:
        assert last[term] < 0.8 * first[term], term
    assert ("relations" in first) == (settings.get("relation_share") != 0)


def test_a_training_that_was_cut_off_goes_on_to_the_same_bits(deep, tmp_path, monkeypatch):
    from kdbench_trainers._callbacks import Metrics

    student = save_model(tmp_path / "student", seed=1, dropout=0.3)
    settings = {**BOTH, "steps": 6, "checkpoint_every": 2, "micro_batch_size": 2, "eval_every": 3}
    whole = match(tmp_path / "whole", student, deep, **settings)
    on_log = Metrics.on_log

    def stop(self, args, state, control, logs, **more):
        on_log(self, args, state, control, logs, **more)
        if state.global_step == 3 and "loss" in logs:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Metrics, "on_log", stop)
        with pytest.raises(KeyboardInterrupt):
            match(tmp_path / "cut", student, deep, **settings)
    resumed = match(tmp_path / "cut", student, deep, resume=True, **settings)
    same(whole, resumed, rtol=0, atol=0)
    curves = [
        [[line.get(name) for name in ("step", "loss", "relations", "hidden_states")] for line in lines(path)]
        for path in (tmp_path / "whole", tmp_path / "cut")
    ]
    assert curves[0] == curves[1]


def test_adapters_learn_relations(student, teacher, tmp_path):
    """Relations alone, through the adapters of the very projections that are looked at."""
    lora = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "k_proj", "v_proj"]}
    match(tmp_path, student, teacher, steps=30, eval_every=30, relation_share=1.0, lora=lora)
    first, last = lines(tmp_path, "validation")
    assert last["relations"] < 0.8 * first["relations"]


def test_bfloat16_products_keep_float32_weights(student, deep, tmp_path):
    weights = match(tmp_path / "half", student, deep, dtype="bfloat16", **BOTH)
    assert {one.dtype for one in weights.values()} == {torch.float32}
    sums = [
        line[name] * line["tokens"]
        for line in lines(tmp_path / "half")
        for name in ("relations", "hidden_states")
    ]
    rounded = torch.tensor(sums).bfloat16().tolist()
    assert sums != pytest.approx(
        rounded, rel=1e-4
    )  # autocast would make a dot product of weights and errors so
    same(weights, match(tmp_path / "single", student, deep, **BOTH), rtol=0.5, atol=0.1)


def test_the_doctor_finds_nothing_wrong_with_it(student, deep):
    from kdbench.checks.case import reader_of
    from kdbench.checks.running import rehearsed
    from tests.checks.cases import case

    samples = [story(n, words=1 + 3 * n, weight=0.5 + n % 2) for n in range(8)]
    config = feature_matching.Config(device="cpu", **BOTH)
    rehearsal = feature_matching.rehearse(samples, teacher=deep, student=student, config=config)
    found = rehearsed(case(samples, reader_of(student), reader_of(deep)), rehearsal)
    assert [(one.check, one.level) for one in found] == [
        ("batches", "ok"), ("positions", "ok"), ("denominator", "ok"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"student_layer": 2}, r"has no layer 2: it has 2, which are 0 to 1, or -1 to -2 from the end"),
        ({"teacher_layer": -4}, r"has no layer -4: it has 3, which are 0 to 2, or -1 to -3 from the end"),
        ({"hidden_layers": [[5, 0]]}, "has no layer 5: it has 2"),
        ({"relation_heads": 16}, r"\(16, 8, 8 numbers\) and the teacher's \(24, 12, 12\); these do: 1, 2, 4"),
        (
            {"hidden_layers": [[0, 0]]},
            "the student's have 16 numbers and the teacher's 24; leave hidden_layers",
        ),
    ],
)
def test_what_cannot_be_compared_is_named(settings, message, student, teacher, tmp_path):
    with pytest.raises(ConfigError, match=message):
        match(tmp_path, student, teacher, **settings)


def test_other_tokenizers_and_models_are_refused(student, teacher, tmp_path):
    from tests.trainers.tiny import tokenizer

    other = save_model(tmp_path / "other", tok=tokenizer(words=["some", "other", "words"]))
    with pytest.raises(ConfigError, match=r"has 29 tokens and the teacher .* has 10,.*use black_box"):
        match(tmp_path / "out", student, other)
    fused = save_as("Phi3", tmp_path / "fused")
    with pytest.raises(
        ConfigError, match=r"fused' \(phi3\) has no q_proj, k_proj and v_proj.*relation_share = 0"
    ):
        match(tmp_path / "out", student, fused)
    with pytest.raises(ConfigError, match="no teacher is given; name one with --teacher"):
        match(tmp_path / "out", student, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"relation_share": 0}, "nothing inside is matched; name hidden_layers, or use white_box"),
        ({"relation_share": 1, "hidden_layers": [[0, 0]]}, "leaves hidden_layers no part in the loss"),
        ({"relation_share": 1.5}, "relation_share"),
        ({"relation_heads": 0}, "relation_heads"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    from kdbench.config import build

    with pytest.raises(ConfigError, match=message):
        build(feature_matching.Config, settings, "trainer")
