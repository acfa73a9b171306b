"""A job directory as `kdbench run` leaves it, made up but rightly shaped: for the report's tests and eyes.

python -m tests.support.job_fixture DIR      # then: kdbench report DIR
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import sys
from pathlib import Path

from kdbench.evaluation import Generation, Score, _generations
from kdbench.jsonl import JsonlWriter
from kdbench.provenance import file_sha256
from kdbench.records import Completion, Message, Origin, Rejection
from kdbench.reporting.scores_file import ModelEntry, ModelScore, Scores
from kdbench.rundir import RunDir

NOUNS = ["kite", "pond", "drum", "lamp", "bear", "ladder", "cake", "river", "button", "stone"]
VERBS = ["listen", "jump", "carry", "share", "climb", "paint", "whisper", "find", "dance", "hide"]
ADJECTIVES = ["windy", "brave", "tiny", "silly", "red", "sleepy", "shiny", "kind", "quiet", "warm"]
NAMES = ["Mia", "Tom", "Ana", "Ben", "Lily", "Sam"]
REASONS = {
    "missing_words": 171,
    "cut_off": 118,
    "truncated": 64,
    "loop": 23,
    "too_short": 11,
    "prompt_echoed": 4,
}
TEACHER_SHA, PRUNED_SHA, BLACK_SHA, WHITE_SHA = (
    hashlib.sha256(name.encode()).hexdigest() for name in ("teacher", "pruned", "black", "white")
)
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"


def words_of(rng):
    return [rng.choice(NOUNS), rng.choice(VERBS), rng.choice(ADJECTIVES)]


def write_story(rng, words, *, quality=1.0, sentences=None):
    """A story; below a quality of 1 words go missing, sentences break off, phrases come again."""
    noun, verb, adjective = words
    name = rng.choice(NAMES)
    lines = [
        f"One day, {name} saw a {adjective} {noun} by the old tree.",
        f"{name} wanted to {verb}, but the {noun} was too far away.",
        f'"Can you help me?" asked {name}. "Yes, I can," said the little bird.',
        f"They went over the hill and down to the water, where it was {adjective} and still.",
        f"Then they began to {verb} together until the sun went down.",
        f"{name} felt happy and said thank you to the bird.",
        "At home, Mother made some soup and they all sat by the fire.",
    ]
    count = sentences or rng.randint(4, 7)
    chosen = lines[:count]
    if rng.random() > quality:
        chosen = [line.replace(verb, "go").replace(noun, "thing") for line in chosen]
    text = " ".join(chosen)
    if rng.random() > quality:
        text = text[: int(len(text) * rng.uniform(0.5, 0.9))]
    if rng.random() > quality + 0.3:
        text += " and the" * 30
    return text


def sample(rng, prefix, seed, words=None):
    words = words or words_of(rng)
    prompt = "Write a short story. It must use the noun {}, the verb {} and the adjective {}.".format(*words)
    return Completion(
        id=f"{prefix}-{seed}-0",
        prompt=(Message(role="user", content=prompt),),
        completion=(Message(role="assistant", content=write_story(rng, words)),),
        fields=json.dumps({"words": words, "features": ["dialogue"]}),
        origin=Origin(seed=seed, prompt_tokens=96, completion_tokens=140, finish_reason="stop"),
    )


def generate_run(path, *, n, seed, hostile=False):
    rng = random.Random(seed)
    prefix = hashlib.sha256(str(seed).encode()).hexdigest()[:12]
    scale = n / 160
    reasons = {reason: max(1, round(count * scale)) for reason, count in REASONS.items()}
    templates = {"tinystories/short.j2": hashlib.sha256(b"short").hexdigest()}
    fingerprint = {
        "recipe": "tinystories",
        "seed": seed,
        "templates": templates,
        "recipe_source": hashlib.sha256(b"recipe").hexdigest(),
        "teachers": {"teacher": TEACHER_SHA},
    }
    config = {"recipe": "tinystories", "settings": {"n": n, "seed": seed}}
    run = RunDir.create(path, kind="generate", config=config, fingerprint=fingerprint)
    with JsonlWriter(path / "samples.jsonl") as file:
        made = [sample(rng, prefix, i) for i in range(n)]
        if hostile:
            bad = made[1].completion[0].model_copy(update={"content": f"A kite. {HOSTILE} The end."})
            made[1] = made[1].model_copy(update={"completion": (bad,)})
        for one in made:
            file.write(one)
    with JsonlWriter(path / "rejected.jsonl") as file:
        for reason, count in reasons.items():
            for i in range(count):
                one = None if reason == "truncated" else sample(rng, prefix, n + i)
                file.write(
                    Rejection(reason=reason, detail=detail_of(reason), id=f"{prefix}-{n + i}-1", sample=one)
                )
    run.finish(
        recipe="tinystories",
        teacher={"spec": "smollm2", "identity": {"teacher": f"smollm2 {TEACHER_SHA}"}},
        templates=templates,
        seed=seed,
        licence="Apache-2.0",
        stats={
            "accepted": n,
            "rejected": sum(reasons.values()),
            "seeds": n + 60,
            "reasons": reasons,
            "seconds": 210.4 * scale,
            "calls": n + sum(reasons.values()),
            "replayed_calls": 0,
            "cached_calls": 12,
            "retries": 3,
            "truncated": reasons["truncated"],
            "prompt_tokens": 96 * 4 * n,
            "completion_tokens": 140 * 4 * n,
            "cost": 0.0,
            "prices": {"prompt": 0.0, "completion": 0.0},
        },
    )


def detail_of(reason):
    return {"missing_words": "kite, windy", "cut_off": "ends with 'and then the'", "loop": ""}.get(reason, "")


def student_run(path):
    rng = random.Random(5)
    influence = [round(0.35 * math.exp(-i / 3) + 0.02 + 0.02 * rng.random(), 4) for i in range(30)]
    influence[29] += 0.3
    kept = sorted(sorted(range(30), key=lambda i: -influence[i])[:16])
    data_sha256 = file_sha256(path.parent.parent / "data/train/samples.jsonl")
    run = RunDir.create(
        path,
        kind="student",
        config={"student": {"kind": "prune", "layers": 16}, "teacher": "smollm2"},
        fingerprint={"teacher_weights": TEACHER_SHA, "data_sha256": data_sha256},
    )
    (path / "model").mkdir()
    run.finish(
        teacher={"spec": "smollm2", "weights_sha256": TEACHER_SHA},
        weights_sha256=PRUNED_SHA,
        stats={"parameters": 84_900_000, "layers": 16, "block_influence": influence, "kept_layers": kept},
    )


def train_run(path, method, *, floor, seed, weights):
    root = path.parent.parent
    student = str(root / "students/pruned")
    run = RunDir.create(
        path,
        kind="train",
        config={"trainer": method, "student": student, "teacher": "smollm2", "config": {"steps": 120}},
        fingerprint={
            "data_sha256": file_sha256(root / "data/train/samples.jsonl"),
            "student_weights": PRUNED_SHA,
            "teacher_weights": TEACHER_SHA,
        },
    )
    (path / "model").mkdir()
    with open(path / "metrics.jsonl", "w") as file:
        for line in metrics(floor, random.Random(seed)):
            file.write(json.dumps(line) + "\n")
    run.finish(
        trainer=method,
        student={"ref": student, "weights_sha256": PRUNED_SHA},
        teacher={"spec": "smollm2", "weights_sha256": TEACHER_SHA},
        weights_sha256=weights,
        stats={
            "samples": 160,
            "steps": 120,
            "tokens": 216_000,
            "seconds": 530.2,
            "tokens_per_second": 407.4,
            "phases": {"generate": 0.0, "teacher": 61.5, "student": 320.2, "loss": 130.0, "optimizer": 18.5},
            "peak_memory_mb": 2450.4,
            "parameters": 84_900_000,
            "validation_loss": floor + 0.27,
        },
    )


def metrics(floor, rng):
    for step in range(1, 121):
        loss = floor + (8.5 - floor) * math.exp(-step / 22) + rng.gauss(0, 0.08)
        speed = 410 + rng.gauss(0, 20)
        yield {"step": step, "split": "train", "loss": loss, "tokens": 1800, "tokens_per_second": speed}
        if step % 20 == 0:
            loss = floor + 0.25 + (8.3 - floor) * math.exp(-step / 21)
            yield {"step": step, "split": "validation", "loss": loss, "tokens": 4000}


MODELS = {  # name -> role, quality, perplexity, KL, top-1, tokens/s, parameters
    "teacher": ("teacher", 0.75, 4.92, 0.0, 1.0, 142.0, 134_515_008),
    "pruned": ("baseline", 0.0, 48_210.0, 9.31, 0.021, 268.0, 84_900_000),
    "black_box": ("student", 0.45, 14.1, 1.12, 0.534, 271.0, 84_900_000),
    "white_box": ("student", 0.55, 12.3, 0.88, 0.571, 266.0, 84_900_000),
}
NOISE = ["rr", "the", "of", "of", "zz", "blue", "to", "to", "to", "and", "and", "qu", "in", "it", "it"]


def evaluate_run(path, *, hostile=False):
    root = path.parent
    source = root / "data/heldout/samples.jsonl"
    samples = [Completion.model_validate_json(line) for line in source.read_text().splitlines()]
    shas = dict(zip(MODELS, (TEACHER_SHA, PRUNED_SHA, BLACK_SHA, WHITE_SHA), strict=True))
    refs = {"teacher": "smollm2", "pruned": str(root / "students/pruned")}
    fingerprint = {"data_sha256": file_sha256(source), "models": shas}
    run = RunDir.create(path, kind="evaluate", config={"models": list(MODELS)}, fingerprint=fingerprint)
    (path / "samples.jsonl").write_bytes(source.read_bytes())
    rng = random.Random(11)
    made = {name: generations(rng, samples, row[1], hostile) for name, row in MODELS.items()}
    _generations.write(path, made)
    models = tuple(
        ModelEntry(
            name=name,
            ref=refs.get(name, str(root / "trained" / name)),
            role=row[0],
            weights_sha256=shas[name],
            parameters=row[6],
            bytes=4 * row[6],
        )
        for name, row in MODELS.items()
    )
    scores = tuple(
        ModelScore.of(name, score)
        for name, row in MODELS.items()
        for score in scores_of(len(samples), *row[1:])
    )
    settings = {"n": len(samples), "max_tokens": 192, "temperature": 0.7, "top_p": 1.0, "seed": 0}
    Scores(models=models, scores=scores, settings=settings).write(path)
    run.finish(inputs={"data": "heldout"}, stats={"samples": len(samples), "models": 4})


def generations(rng, samples, quality, hostile):
    made = []
    for number, one in enumerate(samples):
        words = json.loads(one.fields)["words"]
        text = write_story(rng, words, quality=quality) if quality else " ".join(rng.choices(NOISE, k=120))
        text = HOSTILE + text if hostile and number == 0 else text
        made.append(Generation(one.id, text, len(text) // 4, "stop" if quality else "length", 0.3))
    return tuple(made)


def scores_of(n, quality, perplexity, kl, top1, speed, parameters):
    def share(metric, value):
        half = 1.96 * math.sqrt(max(value * (1 - value), 0) / n)
        return Score(metric, value, max(0, value - half), min(1, value + half), n, "fraction", True)

    return [
        Score("agreement_kl", kl, kl * 0.95, kl * 1.05, n, "nats", False),
        share("agreement_top1", top1),
        Score("perplexity", perplexity, perplexity * 0.94, perplexity * 1.06, n, "", False),
        Score(
            "rouge_l", 0.12 + 0.14 * quality, 0.1 + 0.14 * quality, 0.14 + 0.14 * quality, n, "fraction", True
        ),
        Score("tokens_per_second", speed, n=n, unit="tokens/s", higher_is_better=True),
        Score("parameters", float(parameters), unit="parameters"),
        Score("bytes", 4.0 * parameters, unit="bytes"),
        share("rules_words", quality * 0.55),
        share("rules_ends", quality * 0.8),
        share("rules_no_loop", 0.4 + quality * 0.55),
        share("rules_all", quality * 0.4),
        Score("distinct_2", 0.9 - quality / 2, n=n, unit="fraction"),
    ]


def build(root: Path, *, hostile: bool = False, n: int = 160, held_out: int = 48) -> Path:
    """Write the whole job directory."""
    generate_run(root / "data/train", n=n, seed=0)
    generate_run(root / "data/heldout", n=held_out, seed=1, hostile=hostile)
    student_run(root / "students/pruned")
    train_run(root / "trained/black_box", "black_box", floor=2.6, seed=1, weights=BLACK_SHA)
    train_run(root / "trained/white_box", "white_box", floor=0.9, seed=2, weights=WHITE_SHA)
    evaluate_run(root / "evaluation", hostile=hostile)
    RunDir.create(root / "curated", kind="deduplicate", config={"steps": ["exact"]}, fingerprint={}).finish()
    return root


if __name__ == "__main__":
    build(Path(sys.argv[1]))
