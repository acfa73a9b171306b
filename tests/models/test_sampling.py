"""The sampler gives what transformers' own generation gives, whoever else is in the batch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kdbench.errors import UsageError
from kdbench.teacher import Sampling
from tests.support import byte_llama

pytestmark = pytest.mark.medium

GREEDY = Sampling(temperature=0, max_tokens=12)
LENGTHS = (3, 17, 9, 1, 40, 2, 23, 9, 33, 5)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_llama.tokenizer()


@pytest.fixture(scope="module")
def llama():
    return byte_llama.model()


def prompt(length, salt=0):
    return tuple(3 + (i * i * 7 + salt * 31 + length) % 250 for i in range(length))


def jobs(sampling=GREEDY, beginning=(), count=10):
    from kdbench.models.sampling import Job

    return [
        Job(beginning + prompt(LENGTHS[i % len(LENGTHS)], salt=i), sampling, seed=i) for i in range(count)
    ]


def sample(model, tokenizer, work, batch=4, **more):
    from kdbench.models.sampling import BatchSampler

    return BatchSampler(model, tokenizer, batch=batch).run(work, **more)


def generated(model, job):
    """What transformers generates for one prompt alone, without its end token."""
    import torch

    ids = torch.tensor([job.ids])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=job.sampling.max_tokens,
        do_sample=False,
        pad_token_id=2,
    )
    new = out[0, len(job.ids) :].tolist()
    return tuple(new[:-1] if new[-1] == 2 else new)


ARCHITECTURES = {
    "llama": {},
    "tied off": {"tie_word_embeddings": False},
    "one head per group": {"num_key_value_heads": 4},
    "sliding window": {"architecture": "Mistral", "sliding_window": 8},
    "mixed windows": {
        "architecture": "Gemma3",
        "model_class": "Gemma3ForCausalLM",
        "sliding_window": 8,
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "learned positions": {"architecture": "GPT2"},
}


def build(changes):
    changes = dict(changes)
    if changes.pop("model_class", None):
        import torch
        from transformers import Gemma3ForCausalLM, Gemma3TextConfig

        changes.pop("architecture")
        torch.manual_seed(0)
        base = byte_llama.model().config.to_dict()
        keep = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        keep += ("num_key_value_heads", "max_position_embeddings", "initializer_range", "eos_token_id")
        return Gemma3ForCausalLM(Gemma3TextConfig(**{k: base[k] for k in keep}, **changes)).eval()
    if changes.get("architecture") == "GPT2":
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        shape = {"vocab_size": 259, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
        return GPT2LMHeadModel(
            GPT2Config(**shape, initializer_range=0.3, bos_token_id=1, eos_token_id=2)
        ).eval()
    return byte_llama.model(**changes)


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
@pytest.mark.parametrize("beginning", [(), prompt(24, salt=99)], ids=["nothing shared", "shared beginning"])
def test_greedy_replies_are_those_of_transformers(changes, beginning, tokenizer):
    model = build(changes)
    work = jobs(beginning=beginning)
    replies = sample(model, tokenizer, work)
    assert [r.ids for r in replies] == [generated(model, job) for job in work]


def test_a_reply_does_not_depend_on_its_neighbours(llama, tokenizer):
    work = jobs(Sampling(temperature=0.9, max_tokens=30), beginning=prompt(20, salt=5), count=20)
    together = sample(llama, tokenizer, work, batch=8)
    alone = [sample(llama, tokenizer, [job], batch=1)[0] for job in work]
    assert together == alone
    assert len({r.ids for r in together}) > 15


def test_the_seed_and_nothing_else_changes_a_reply(llama, tokenizer):
    from kdbench.models.sampling import Job

    hot = Sampling(temperature=1, max_tokens=20)
    first, again, other = sample(llama, tokenizer, [Job(prompt(9), hot, seed) for seed in (1, 1, 2)])
    assert first == again != other


def test_what_is_said_of_each_token_goes_with_it(llama, tokenizer):
    """Rows leave and others take their place, and the end token is spoken of too."""
    import torch

    from kdbench.models.sampling import BatchSampler

    work = jobs(Sampling(temperature=2, max_tokens=60), count=40)
    plain = sample(llama, tokenizer, work, batch=16)
    told = BatchSampler(llama, tokenizer, batch=16, top_logprobs=3).run(work)
    assert {reply.finish_reason for reply in told} == {"stop", "length"}
    for job, without, reply in zip(work, plain, told, strict=True):
        assert without == replace(reply, drawn=())
        tokens = [drawn.token for drawn in reply.drawn]
        assert tokens == [*reply.ids, *([] if reply.end is None else [reply.end])]
        with torch.no_grad():
            logits = llama(torch.tensor([[*job.ids, *tokens]])).logits[0, len(job.ids) - 1 : -1]
        values, ids = logits.log_softmax(-1).topk(3)
        assert [[token for token, _ in drawn.top] for drawn in reply.drawn] == ids.tolist()
        said = torch.tensor([[at for _, at in drawn.top] for drawn in reply.drawn])
        torch.testing.assert_close(said, values, rtol=1e-4, atol=1e-4)


def test_a_reply_ends_at_the_end_token_which_is_not_part_of_it(llama, tokenizer):
    replies = sample(llama, tokenizer, jobs(Sampling(temperature=2, max_tokens=60), count=40), batch=16)
    ended = [r for r in replies if r.finish_reason == "stop"]
    cut = [r for r in replies if r.finish_reason == "length"]
    assert len(ended) > 2
    assert len(cut) > 2
    assert all(len(r.ids) == 60 for r in cut)
    assert all(len(r.ids) < 60 for r in ended)
    assert all(2 not in r.ids for r in replies)
    assert all(r.text == tokenizer.decode(r.ids, skip_special_tokens=True) for r in replies)


def test_first_tokens_follow_the_models_distribution(llama, tokenizer):
    import torch

    from kdbench.models.sampling import Job

    ids, draws = prompt(11), 4000
    work = [Job(ids, Sampling(temperature=1.5, max_tokens=1), seed) for seed in range(draws)]
    replies = sample(llama, tokenizer, work, batch=512)
    counts = torch.zeros(259)
    for reply in replies:
        counts[reply.ids[0] if reply.ids else 2] += 1
    with torch.inference_mode():
        expected = torch.softmax(llama(torch.tensor([ids])).logits[0, -1] / 1.5, -1) * draws
    likely = expected > 5
    chi2 = float((((counts - expected) ** 2) / expected)[likely].sum())
    freedom = int(likely.sum())
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5


def test_a_stop_string_ends_and_cuts_the_reply(llama, tokenizer):
    plain = sample(llama, tokenizer, jobs(Sampling(temperature=1, max_tokens=40)))
    stops = [next(c for c in r.text[5:] if c.isascii() and c.isprintable()) for r in plain]
    from kdbench.models.sampling import Job

    work = [
        Job(job.ids, Sampling(temperature=1, max_tokens=40, stop=(stop,)), job.seed)
        for job, stop in zip(jobs(), stops, strict=True)
    ]
    for before, after, stop in zip(plain, sample(llama, tokenizer, work), stops, strict=True):
        assert after.finish_reason == "stop"
        assert after.text == before.text[: before.text.index(stop)]
        assert before.ids[: len(after.ids)] == after.ids
        assert after.text.startswith(tokenizer.decode(after.ids, skip_special_tokens=True))


def test_each_reply_is_handed_out_as_it_ends(llama, tokenizer):
    from kdbench.models.sampling import Job

    lengths = (30, 2, 10)
    work = [Job(prompt(5, salt=n), Sampling(temperature=0, max_tokens=n), n) for n in lengths]
    seen = []
    replies = sample(llama, tokenizer, work, on_done=lambda i, r: seen.append((i, len(r.ids))))
    assert [i for i, _ in seen] == [1, 2, 0]
    assert [len(r.ids) for r in replies] == list(lengths)


def test_an_unwanted_row_leaves_without_a_reply(llama, tokenizer):
    from kdbench.models.sampling import BatchSampler

    work = jobs()
    waiting = list(work)
    gone = {work[2], work[3]}
    found = BatchSampler(llama, tokenizer, batch=4).stream(
        lambda room: [waiting.pop(0) for _ in range(min(room, len(waiting)))], lambda job: job not in gone
    )
    replies = {job: reply.ids for job, reply in found}
    assert set(replies) == set(work) - gone
    assert all(replies[job] == generated(llama, job) for job in replies)


def test_a_reply_stops_where_the_context_ends(tokenizer):
    from kdbench.models.sampling import Job

    short = byte_llama.model(max_position_embeddings=32)
    (reply,) = sample(short, tokenizer, [Job(prompt(30), Sampling(temperature=0, max_tokens=50))])
    assert len(reply.ids) == 2
    assert reply.finish_reason == "length"
    with pytest.raises(UsageError, match="prompt of 32 tokens does not fit a model of 32"):
        sample(short, tokenizer, [Job(prompt(32), GREEDY)])


def test_a_model_of_an_unknown_kind_is_refused_at_once(tokenizer):
    odd = byte_llama.model()
    odd.config.layer_types = ["linear_attention"] * 3
    with pytest.raises(UsageError, match="linear_attention"):
        sample(odd, tokenizer, jobs())


def test_the_model_is_left_as_it_was(llama, tokenizer):
    import torch

    before = llama.config._attn_implementation
    sample(llama, tokenizer, jobs(count=2))
    assert llama.config._attn_implementation == before
    assert not any("forward" in module.__dict__ for module in llama.modules())
    assert llama(torch.tensor([[5, 6, 7]])).logits.requires_grad


def test_changed_weights_are_seen(tokenizer):
    import torch

    from kdbench.models.sampling import BatchSampler

    model = byte_llama.model()
    sampler = BatchSampler(model, tokenizer)
    work = jobs(beginning=prompt(20))
    before = sampler.run(work)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.sin(torch.arange(parameter.numel()).float()).view_as(parameter), alpha=0.3)
    after = sampler.run(work)
    assert after != before
    assert [r.ids for r in after] == [generated(model, job) for job in work]
