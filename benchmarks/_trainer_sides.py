"""The sides of benchmarks/trainers.py, one per function; what they are stands there.

run_one("ours_live", steps=6)
-> {"seconds": 5.27, "tokens": 1024, "loss": 0.64371, "padding": 0.0, "memory_mb": 1790.2}
"""

from __future__ import annotations

import gc
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROMPT, COMPLETION, BATCH, LAYERS, NEW_TOKENS = 32, 128, 8, 6, 64


def run_one(side: str, steps: int) -> dict[str, Any]:
    """Run one side in this process."""
    if side.startswith("head"):
        return head(ours=side == "head_ours", steps=steps)
    if side == "floor":
        return floor(steps)
    if side.startswith("trl"):
        return trl_gkd(steps, lmbda=float(side == "trl_on_policy"))
    return ours(side.removeprefix("ours_"), steps)


# --- the work, the same for all


def windows(count: int, length: int) -> list[list[int]]:
    """Token windows of this repository's own pages."""
    from kdbench.models.loading import load_tokenizer

    text = "\n".join(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))[:400_000]
    ids = load_tokenizer("smollm2")(text, add_special_tokens=False)["input_ids"]
    return [ids[i * length : (i + 1) * length] for i in range(count)]


def models() -> tuple[Any, Any]:
    """The teacher, and a student of its first and last layers."""
    from kdbench.models.loading import load_model
    from kdbench.models.pruning import keep_layers

    teacher, student = load_model("smollm2"), load_model("smollm2", dtype="float32")
    keep_layers(student, [0, 1, 2, 27, 28, 29][:LAYERS])
    return teacher.requires_grad_(requires_grad=False), student


def rss_mb() -> float:
    """Memory held now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def peak_mb() -> float:
    """The most memory that this process has held."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Stopwatch:
    """Times steps, and notes memory before the first of them."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._before: float | None = None
        self._began = 0.0

    def begin(self) -> None:
        """A step begins."""
        if self._before is None:
            gc.collect()
            # A peak that loading has left behind is forgotten, where the system can forget it.
            Path("/proc/self/clear_refs").write_text("5")
            self._before = rss_mb()
        self._began = time.perf_counter()

    def end(self) -> None:
        """A step ends."""
        self.steps.append(time.perf_counter() - self._began)

    def result(self, tokens: float, loss: float | None, padding: float | None = None) -> dict[str, Any]:
        """What this side comes to; `tokens` learnt in a step."""
        return {
            "seconds": statistics.median(self.steps[1:]),
            "tokens": tokens,
            "loss": loss,
            "padding": padding,
            "memory_mb": peak_mb() - (self._before or 0),
        }


def callback(watch: Stopwatch) -> Any:
    """The stopwatch as transformers' trainers call it."""
    from transformers import TrainerCallback

    class Watching(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            watch.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.end()

    return Watching()


# --- the sides


def floor(steps: int) -> dict[str, Any]:
    """The models alone."""
    import torch

    teacher, student = models()
    ids = torch.tensor(windows(BATCH, PROMPT + COMPLETION), device=student.device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)
    pull = torch.randn(student.config.vocab_size, device=student.device) * 1e-6
    watch = Stopwatch()
    for _ in range(steps):
        watch.begin()
        with torch.no_grad():
            teacher(ids, use_cache=False)
        logits = student(ids, use_cache=False).logits
        logits.backward(pull.expand_as(logits))
        optimizer.step()
        optimizer.zero_grad()
        watch.end()
    return watch.result(BATCH * COMPLETION, None)


def ours(kind: str, steps: int) -> dict[str, Any]:
    """KdTrainer, as the presets put it together."""
    import torch

    from kdbench.losses.heads import head_of
    from kdbench.losses.signals import HiddenStates, top_k
    from kdbench.models.loading import load_tokenizer
    from kdbench.models.sequences import TokenSequence
    from kdbench.teacher import Sampling
    from kdbench_trainers._models import take_loss_inside
    from kdbench_trainers._sources import Data, Mixed, Writer
    from kdbench_trainers._teacher import Distillation, LiveTeacher
    from kdbench_trainers._trainer import KdTrainer, Plan
    from kdbench_trainers.white_box import Config

    teacher, student = models()
    take_loss_inside(student)
    tokenizer = load_tokenizer("smollm2")
    ragged = kind == "ragged"
    config = Config(
        steps=steps,
        batch_size=16 if ragged else BATCH,
        micro_batch_size=4 if ragged else None,
        divergence="jsd",
        learning_rate=1e-4,
        validation_share=0,
        teacher_cache_mb=0,
    )
    count = config.batch_size * steps
    if ragged:
        lengths = [20 + (i * 97) % 381 for i in range(count)]
        texts = [ids[:n] for ids, n in zip(windows(count, 400), lengths, strict=True)]
        cuts = [n // 5 for n in lengths]
    else:
        texts, cuts = windows(count, PROMPT + COMPLETION), [PROMPT] * count
    train = [
        TokenSequence(i, f"g{i}", tuple(ids[:cut]), tuple(ids[cut:]), tuple(ids[:cut]))
        for i, (ids, cut) in enumerate(zip(texts, cuts, strict=True))
    ]
    live = LiveTeacher("smollm2", teacher, config, student.config.vocab_size)
    lesson: Any = live
    if kind in ("hidden", "top_k"):

        class Stored(Distillation):
            """What was put down before: read as the store gives it."""

            said: dict[int, Any]
            head = head_of(teacher)

            def prepare(self, sequences: list[TokenSequence]) -> None:
                """The teacher reads everything once, outside of what is timed."""
                self.said = {} if sequences else self.said
                for one in sequences:
                    with torch.no_grad():
                        signal = live.read({"sequences": [one]})
                        stored = (
                            signal.hidden.half()
                            if kind == "hidden"
                            else top_k(signal.head.logits(signal.hidden), 50)
                        )
                    self.said[one.key or 0] = stored

            def read(self, batch: dict[str, Any]) -> Any:
                """The rows of a batch."""
                parts = [self.said[one.key or 0] for one in batch["sequences"]]
                if kind == "hidden":
                    return HiddenStates(torch.cat(parts).to(self.head.weight.dtype), self.head)
                joined = (torch.cat([p.ids for p in parts]), torch.cat([p.log_probs for p in parts]))
                return type(parts[0])(*joined, parts[0].vocabulary)

        lesson = Stored(config, student.config.vocab_size)
    source: Any = Data()
    if kind == "on_policy":
        sampling = Sampling(temperature=1.0, max_tokens=NEW_TOKENS)
        source = Mixed(Writer(student, tokenizer, sampling, limit=1024, seed=0), 1.0, 0)
    watch = Stopwatch()
    losses: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as out:
        trainer = KdTrainer(
            student,
            Plan(lesson, source),
            train=train,
            validation=[],
            tokenizer=tokenizer,
            out=Path(out),
            config=config,
        )
        log = trainer._logged
        trainer._logged = lambda: losses.append(log()) or losses[-1]  # type: ignore[method-assign,func-returns-value]
        on_window = trainer.get_batch_samples

        def timed_from_the_window(*args: Any) -> Any:
            watch.begin()  # the student writes here, before transformers says that the step begins
            return on_window(*args)

        trainer.get_batch_samples = timed_from_the_window  # type: ignore[method-assign]
        ending = callback(watch)
        ending.on_step_begin = lambda *_, **__: None
        trainer.add_callback(ending)
        trainer.train()
    tokens = statistics.fmean(line["tokens"] for line in losses[1:])
    return watch.result(tokens, losses[0]["loss"], statistics.fmean(line["padding"] for line in losses))


def trl_gkd(steps: int, lmbda: float) -> dict[str, Any]:
    """GKDTrainer, given the very same tokens by a collator of ours."""
    import torch
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    from kdbench.models.loading import load_tokenizer
    from kdbench_trainers._batches import BatchOrder

    teacher, student = models()
    tokenizer = load_tokenizer("smollm2")
    texts = windows(BATCH * steps, PROMPT + COMPLETION)
    order = BatchOrder(len(texts), batch=BATCH, steps=steps, seed=0)
    texts = [texts[i] for batch in order for i in batch]  # as ours comes by them

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        ids = torch.tensor([row["input_ids"] for row in rows])
        labels = ids.clone()
        labels[:, :PROMPT] = -100
        prompts = ids[:, :PROMPT]
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": labels,
            "prompts": prompts,
            "prompt_attention_mask": torch.ones_like(prompts),
        }

    watch = Stopwatch()
    learnt: list[int] = []
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as out:
        args = GKDConfig(
            output_dir=out,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-4,
            lmbda=lmbda,
            beta=0.5,
            temperature=1.0,
            max_new_tokens=NEW_TOKENS,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            optim="adamw_torch_fused",
            warmup_steps=0,
            use_cpu=not torch.cuda.is_available(),
            bf16=torch.cuda.is_available(),
            dataloader_pin_memory=False,
        )

        class Counting(GKDTrainer):  # type: ignore[misc]
            def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                learnt.append(int((inputs["labels"][:, 1:] != -100).sum()))
                loss = super().compute_loss(model, inputs, *args, **kwargs)
                losses.append(float(loss))
                return loss

            def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
                return torch.utils.data.SequentialSampler(self.train_dataset)

        trainer = Counting(
            model=student,
            teacher_model=teacher,
            args=args,
            data_collator=collate,
            processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"input_ids": texts}),
        )
        trainer.add_callback(callback(watch))
        trainer.train()
    # Without its on-policy fault the loss is per learnt token, as ours.
    return watch.result(statistics.fmean(learnt[1:]), losses[0] if lmbda == 0 else None)


def head(*, ours: bool, steps: int) -> dict[str, Any]:
    """The loss head alone, on the rows of one batch, a quarter of the positions being padding."""
    import torch

    rows, width = BATCH * (PROMPT + COMPLETION), 576
    generator = torch.Generator().manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    hidden, said = (torch.randn(rows, width, generator=generator).to(device, dtype) for _ in range(2))
    weights = [torch.randn(49152, width, generator=generator).mul_(0.03).to(device, dtype) for _ in range(2)]
    valid = torch.arange(rows, device=device) % 4 != 3
    weight = weights[0].requires_grad_()
    watch = Stopwatch()
    loss = torch.zeros(())
    for _ in range(steps):
        states = hidden.clone().requires_grad_()
        weight.grad = None
        watch.begin()
        if ours:
            from kdbench.losses.chunked import Objective, distillation_loss
            from kdbench.losses.divergences import Divergence
            from kdbench.losses.heads import Head
            from kdbench.losses.signals import HiddenStates

            targets = torch.zeros(int(valid.sum()), dtype=torch.long, device=device)
            signal = HiddenStates(said[valid], Head(weights[1]))
            objective = Objective(Divergence("jsd"))
            loss = distillation_loss(states[valid], Head(weight), signal, targets, objective=objective).loss
            loss = loss / int(valid.sum())
        else:
            from trl.trainer.distillation_trainer import _chunked_divergence_loss

            loss, _, _ = _chunked_divergence_loss(
                states[None], said[None], weight, weights[1], valid[None], beta=0.5
            )
        loss.backward()
        watch.end()
    return watch.result(int(valid.sum()), loss.item())
