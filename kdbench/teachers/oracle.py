"""`oracle`: a teacher that knows arithmetic and errs at a stated rate, to try out recipes that check answers.

    asked:  State the final answer to the following arithmetic problem: 5 - 9 + 3 = ... step by step ...
    says:   First, 5 - 9 = -4. Then -4 + 3 = -1. The answer is -1.
    or:     5 + 3 = 8.
            8 - 9 = -1.
            So the answer is -1.
    told to begin its steps with "Step 1:" and so on:
            Step 1: 5 - 9 = -4.
            Step 2: -4 + 3 = -1.
            The answer is -1.

It works out the last arithmetic expression (numbers, + - * /, brackets) in the last user message; one
that stands there solved ("5 - 9 = -4") is passed over. Each draw takes another order of the steps, all
of them valid, and another wording. It keeps to a form that it is told to keep to: steps that are labelled,
facts under "Recall:", reasons under "Reason:", the answer straight away. A request for a Python program
gets one in a fenced block; one for the answer alone gets that; one without arithmetic is told that it does
not know.

`error_rate` is the share of replies with a wrong result: one step slips and the others follow from it. The
slip is drawn anew each time, so wrong answers seldom agree. Equal requests with equal seeds get equal
replies, and a reply that is right at one rate stays the same at any lower one.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache

from pydantic import Field

from kdbench.config import StrictConfig, canonical_hash
from kdbench.errors import UsageError
from kdbench.teacher import Capability, Request, Sampling, Usage, chat_completion
from kdbench.teachers._arithmetic import Node, Slip, Step, find_problem, solve, written

SCHEMES = ("oracle",)
VERSION = 2  # goes up with every change of what it says
DONT_KNOW = "I see no arithmetic problem here, so this is beyond me."

_PROGRAM = re.compile(r"\bpython\b", re.IGNORECASE)
_STEPS = re.compile(
    r"(?<!without )(?<!without any )(?<!no )\bsteps?\b|\bexplain\b|\breason(?:ing)?\b", re.IGNORECASE
)
_ANSWER_ALONE = re.compile(
    r"\b(?:only|just|nothing but)\b[^.\n]{0,30}\b(?:answer|result|number|value)\b"
    r"|\banswer\b[^.\n]{0,20}\b(?:alone|only)\b",
    re.IGNORECASE,
)
_STRAIGHT_AWAY = re.compile(r"\bstraight away\b", re.IGNORECASE)
_FACTS = "Factors are multiplied before terms are added, and the terms of a sum may come in any order."
_STARTS = ("First, ", "Then ", "Next, ", "After that, ", "Now ", "From there, ")
_ENDINGS = ("The answer is {}.", "So the answer is {}.", "Therefore, the answer is {}.")


class Config(StrictConfig):
    """How often it errs."""

    error_rate: float = Field(0.0, ge=0, le=1, description="share of the replies whose result is wrong")
    no_marker: float = Field(
        0.0, ge=0, le=1, description='share of the worked replies that forget the final "The answer is"'
    )
    latency: float = Field(0.0, ge=0, le=60, description="seconds until each reply")


def connect(spec: str, config: Config) -> OracleTeacher:
    """The oracle. Raises UsageError for a spec with a model name: there is no model."""
    if spec.partition(":")[2]:
        raise UsageError(f"Teacher '{spec}': the oracle has no models; write 'oracle'")
    return OracleTeacher(config)


class OracleTeacher:
    """A kdbench.teacher.Teacher whose reply is a pure function of messages, sampling and seed."""

    capabilities: frozenset[Capability] = frozenset({"chat"})
    preferred_concurrency = 64

    def __init__(self, config: Config | None = None) -> None:
        self._config = config or Config()
        self.identity = f"oracle-{VERSION}"
        # Other replies, other identity: the call log must never take one for the other.
        mistakes = {"error_rate": self._config.error_rate, "no_marker": self._config.no_marker}
        if any(mistakes.values()):
            self.identity += "-" + canonical_hash(mistakes)[:8]

    async def ask(self, request: Request) -> bytes:
        """One worked answer as a raw chat completion."""
        if self._config.latency:
            await asyncio.sleep(self._config.latency)
        text, finish_reason = self._reply(request), "stop"
        tokens = text.split(" ")
        if len(tokens) > request.sampling.max_tokens:
            text, finish_reason = " ".join(tokens[: request.sampling.max_tokens]), "length"
        asked = sum(len(message.content.split()) for message in request.messages)
        usage = Usage(prompt_tokens=asked, completion_tokens=len(text.split()))
        return chat_completion(text, model=self.identity, finish_reason=finish_reason, usage=usage)

    async def close(self) -> None:
        """Nothing to let go of."""

    def _reply(self, request: Request) -> str:
        # A greedy reply does not depend on the seed, here as with any teacher.
        seed = request.seed if request.sampling.temperature > 0 else 0
        turns = "\x1f".join([message.content for message in request.messages])
        whole = f"{VERSION}\x1f{seed}\x1f{_sampling_key(request.sampling)}\x1f{turns}"
        rng = random.Random(whole.encode("utf-8", "surrogatepass"))  # noqa: S311 - not for secrets
        errs, forgets = rng.random() < self._config.error_rate, rng.random() < self._config.no_marker
        problem = find_problem(request.messages[-1].content)
        if problem is None:
            return DONT_KNOW
        steps = _work_out(problem, rng, errs=errs)
        instructions = [m.content for m in request.messages if m.role == "system"]
        asked = "\n".join([*instructions, request.messages[-1].content])
        if _PROGRAM.search(asked):
            return _as_program(steps)
        if _ANSWER_ALONE.search(asked) and not _STEPS.search(asked):
            return written(steps[-1].result.value)
        return _in_form(asked, steps, marked=not forgets) or _as_text(steps, rng, marked=not forgets)


@lru_cache(maxsize=256)
def _sampling_key(sampling: Sampling) -> str:
    return sampling.model_dump_json()


def _work_out(problem: Node, rng: random.Random, *, errs: bool) -> list[Step]:
    """The steps of one valid order, or of that order with one slip that makes the result wrong."""
    order, place = rng.getrandbits(32), rng.random()
    by = rng.choice([-1, 1]) * rng.randint(1, 9)
    steps = solve(problem, random.Random(order))  # noqa: S311
    if not errs:
        return steps
    last = len(steps) - 1
    with suppress(ZeroDivisionError):
        wrong = solve(problem, random.Random(order), Slip(int(place * len(steps)), by))  # noqa: S311
        if wrong[last].result.value != steps[last].result.value:
            return wrong
    # A slip that is undone by a factor 0, or divides by one, is made at the last step instead.
    return solve(problem, random.Random(order), Slip(last, by))  # noqa: S311


def _in_form(asked: str, steps: Sequence[Step], *, marked: bool) -> str:
    """The steps in the form that the request asks for, "" where it asks for none that is known here."""
    lines = list[str]()
    if '"Recall:"' in asked:
        lines.append(f"Recall: {_FACTS}")
    if '"Reason:"' in asked:
        lines.append(f"Reason: {' '.join(f'{step.equation}.' for step in steps)}")
    if '"Step 1:"' in asked:
        lines += [f"Step {number}: {step.equation}." for number, step in enumerate(steps, start=1)]
    if not lines and not _STRAIGHT_AWAY.search(asked):
        return ""
    result = written(steps[-1].result.value)
    return "\n".join([*lines, f"The answer is {result}." if marked else f"{result}."])


def _as_text(steps: Sequence[Step], rng: random.Random, *, marked: bool) -> str:
    counted = rng.random() < 0.5 and 1 < len(steps) <= len(_STARTS)
    starts = _STARTS if counted else ("",) * len(steps)
    between = rng.choice([" ", " ", "\n"])
    ending = rng.choice(_ENDINGS).format(written(steps[-1].result.value))
    worked = [f"{start}{step.equation}." for start, step in zip(starts, steps, strict=False)]
    return between.join([*worked, ending] if marked else worked)


def _as_program(steps: Sequence[Step]) -> str:
    lines, integers = list[str](), set[str]()
    for step in steps:
        operands = (step.left, step.right)
        exact = all(n.name in integers or (not n.name and n.value.denominator == 1) for n in operands)
        if exact and step.result.value.denominator == 1:
            integers.add(step.result.name)
        # Only of integers: 0.8 * 10 may be 7.999... in Python, and // would drop the rest.
        sign = "//" if step.sign == "/" and step.result.name in integers else step.sign
        operation = f"{step.left.in_code} {sign} {step.right.in_code}"
        value = f"{written(step.result.value)}  # {operation}" if step.slipped else operation
        lines.append(f"{step.result.name} = {value}")
    name = steps[-1].result.name
    lines.append(f"print({name if name in integers else f'round({name}, 10)'})")
    return "\n".join(["```python", *lines, "```"])
