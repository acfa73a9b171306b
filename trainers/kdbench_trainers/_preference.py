"""The trainer of preference pairs: TRL's DPOTrainer in the loop of all our trainers.

    PreferenceTrainer(model, train=pairs, validation=[], tokenizer=..., out=..., config=config).train()

TRL's are the setting up and the head that gives log-probabilities without the logits. The loss is ours: TRL
takes a mean over each micro-batch and the mean of these means, so that a pair counts by what it was batched
with. The reference is the student as it begins, asked once about every pair before the first step: it is
neither held beside the student nor asked again in each epoch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from kdbench.losses import preference
from kdbench.progress import log
from kdbench_trainers._batches import collate
from kdbench_trainers._loop import Loop, Scored, arguments
from kdbench_trainers._pairs import Pair
from kdbench_trainers._sources import Data

if TYPE_CHECKING:
    from kdbench_trainers.dpo import Config

_UNSCORED = -100  # what TRL's head passes over
_READ = ("input_ids", "attention_mask", "position_ids", "shift_labels")


class PreferenceTrainer(Loop, DPOTrainer):
    """DPOTrainer with our windows of pairs, one loss over all pairs of a step, and a reference read once."""

    sums = (
        "loss", "reward_chosen", "reward_rejected", "accuracy", "cross_entropy", "chosen_tokens", "weight",
    )  # fmt: skip

    def __init__(
        self,
        model: Any,
        *,
        train: list[Pair],
        validation: list[Pair],
        tokenizer: Any,
        out: Path,
        config: Config,
        resumed: Path | None = None,
    ) -> None:
        self.settings = config
        super().__init__(
            model,
            arguments(DPOConfig, out, config, precompute_ref_log_probs=True),  # no second model is loaded
            source=Data(),
            train=train,
            validation=validation,
            tokenizer=tokenizer,
            config=config,
            resumed=resumed,
        )
        if config.lora is not None:
            self.model.delete_adapter("ref")  # TRL's copy of the adapters, which are nothing yet
        without_dropout(self.model)
        self.reference: dict[int | None, float] = {}
        log.info("The student as it begins reads every pair once")
        for pairs in (self.own(), validation):
            self._ask_reference(pairs)

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        """Tokenised already, by our rules."""
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
        """Done for the pairs themselves, once TRL has set up the model."""
        return dataset

    @torch.no_grad()
    def _ask_reference(self, pairs: list[Pair]) -> None:
        """Keep what the student as it begins makes of every answer; its adapters, if any, are nothing yet."""
        self.model.eval()
        for part in self.cut(pairs, self.micro_batch):
            inputs = self._prepare_inputs(self.collate(part))
            found = self._log_probs(self.model, inputs).tolist()
            self.reference |= {one.key: value for one, value in zip(inputs["sequences"], found, strict=True)}

    def collate(self, sequences: list[Pair]) -> dict[str, Any]:
        """A micro-batch of B pairs, and so of 2 B rows: the chosen answers and then the rejected ones."""
        answers = [one.chosen for one in sequences] + [one.rejected for one in sequences]
        batch = collate(answers)
        labels = torch.full_like(batch["input_ids"], _UNSCORED)
        labels[batch["rows"]] = batch["targets"]
        return {
            **batch,
            "shift_labels": labels,
            "counts": torch.tensor([len(one.completion) for one in answers]),
            "weights": torch.tensor([one.weight for one in sequences]),
        }

    def _log_probs(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Log-probabilities [2 B] of the answers, the end marker included."""
        read = {name: inputs[name] for name in _READ}
        with self.accelerator.autocast():
            return model(**read, fused_lm_head=True).log_probs.sum(1)

    def _score(self, model: Any, inputs: dict[str, Any]) -> Scored:
        log_probs, counts = self._log_probs(model, inputs), inputs["counts"]
        with self.clock("loss"):
            reference = log_probs.new_tensor([self.reference[one.key] for one in inputs["sequences"]])
            ratios = log_probs - reference
            entropy, tokens = -log_probs.chunk(2)[0], counts.chunk(2)[0]
            losses = self._losses(ratios, counts) + self.settings.sft_weight * entropy / tokens
            liked, disliked = (self.settings.beta * ratios).chunk(2)
            of_pairs = (losses, liked, disliked, liked > disliked, entropy, tokens, torch.ones_like(losses))
            sums = [(inputs["weights"] * one).sum() for one in of_pairs]
        return Scored(sums[0], torch.stack(sums).detach())

    def _losses(self, ratios: Tensor, counts: Tensor) -> Tensor:
        """Of each of the B pairs, from the log-ratios [2 B] of answers with `counts` tokens."""
        beta = self.settings.beta
        if self.settings.loss == "ipo":
            return preference.ipo(*(ratios / counts).chunk(2), beta=beta)
        return preference.dpo(*ratios.chunk(2), beta=beta)

    def _means(self, sums: dict[str, float]) -> dict[str, float]:
        """Per pair, and the cross-entropy per token of the chosen answers."""
        entropy = sums.pop("cross_entropy") / sums.pop("chosen_tokens")
        weight = sums.pop("weight")
        means = {name: value / weight for name, value in sums.items()}
        margin = means["reward_chosen"] - means["reward_rejected"]
        return {**means, "margin": margin, "cross_entropy": entropy}


def without_dropout(model: torch.nn.Module) -> None:
    """Turn dropout off, in training too, as the paper's code does; a model that drops is not the reference.

    TRL turns off the modules of that name. Attention has its share as a plain number.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
