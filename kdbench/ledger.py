"""What a run costs: calls, tokens and money, counted as they happen and stopped at a limit.

ledger = Ledger(Prices(prompt=0.15, completion=0.60), max_cost=5.0)
ledger.paid(Usage(prompt_tokens=210, completion_tokens=180))
ledger.cost        # -> 0.0001395
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from kdbench.config import StrictConfig
from kdbench.errors import RunFailed
from kdbench.teacher import Usage


class Prices(StrictConfig):
    """What the teacher charges, in US dollars per million tokens; 0 for a model of your own."""

    prompt: float = Field(0.0, ge=0)
    completion: float = Field(0.0, ge=0)

    def of(self, usage: Usage) -> float:
        """Dollars for these tokens."""
        return (usage.prompt_tokens * self.prompt + usage.completion_tokens * self.completion) / 1e6


class LimitReached(RunFailed):
    """A limit set by the user stops the run; everything answered is kept."""


@dataclass(slots=True)
class Ledger:
    """Counts of one run. Replayed calls were paid for earlier by the same run, cached ones by another."""

    prices: Prices = field(default_factory=Prices)
    max_cost: float | None = None
    max_tokens: int | None = None
    calls: int = 0
    replayed_calls: int = 0
    cached_calls: int = 0
    retries: int = 0
    truncated: int = 0
    usage: Usage = field(default_factory=Usage)
    paid_usage: Usage = field(default_factory=Usage)
    new_usage: Usage = field(default_factory=Usage)

    def paid(self, usage: Usage) -> None:
        """One call answered by the teacher now."""
        self.calls += 1
        self.new_usage += usage
        self.paid_usage += usage
        self.usage += usage

    def replayed(self, usage: Usage) -> None:
        """One call answered from this run's own log."""
        self.replayed_calls += 1
        self.paid_usage += usage
        self.usage += usage

    def cached(self, usage: Usage) -> None:
        """One call answered from another run's log."""
        self.cached_calls += 1
        self.usage += usage

    @property
    def cost(self) -> float:
        """Dollars this run has cost, over all its sittings."""
        return self.prices.of(self.paid_usage)

    def check(self) -> None:
        """Raises LimitReached if the next call may not be made."""
        spent = self.paid_usage.prompt_tokens + self.paid_usage.completion_tokens
        if self.max_cost is not None and self.cost >= self.max_cost:
            raise LimitReached(
                f"Stopped at --max-cost {self.max_cost:g}: {self.cost:.4f} dollars are spent; "
                "what was answered is kept: raise the limit and go on with --resume"
            )
        if self.max_tokens is not None and spent >= self.max_tokens:
            raise LimitReached(
                f"Stopped at --max-tokens-total {self.max_tokens}: {spent} tokens are used; "
                "what was answered is kept: raise the limit and go on with --resume"
            )

    def as_dict(self) -> dict[str, Any]:
        """The counts, for run.json."""
        return {
            "calls": self.calls,
            "replayed_calls": self.replayed_calls,
            "cached_calls": self.cached_calls,
            "retries": self.retries,
            "truncated": self.truncated,
            "prompt_tokens": self.usage.prompt_tokens,
            "completion_tokens": self.usage.completion_tokens,
            "cost": round(self.cost, 6),
            "prices": self.prices.model_dump(),
        }
