"""Recipes for tests of the engine: plain async functions, as a user types them into a notebook."""

from __future__ import annotations

from kdbench.asking import Teachers
from kdbench.engine import Outcome, Seed
from kdbench.records import Completion, Message, Rejection
from kdbench.teacher import Sampling

SAMPLING = Sampling(temperature=0.7, max_tokens=50)


def user(text: str) -> Message:
    return Message(role="user", content=text)


async def one_call(seed: Seed, teachers: Teachers) -> list[Outcome]:
    """One call a seed; three seeds in ten are turned down, by a draw of the seed's own."""
    prompt = user(f"question {seed.index} {seed.rng.randint(0, 999)}")
    answer = await teachers["teacher"].chat([prompt], SAMPLING)
    if seed.rng.random() < 0.3:
        return [Rejection(reason="unlucky")]
    return [Completion(prompt=(prompt,), completion=(answer.message,))]


async def chain(seed: Seed, teachers: Teachers) -> list[Outcome]:
    """Three calls, each built on the one before."""
    messages = [user(f"begin {seed.index}")]
    for step in range(3):
        answer = await teachers["teacher"].chat(messages, SAMPLING)
        messages += [answer.message, user(f"go on {step}")]
    return [Completion(prompt=(messages[0],), completion=(answer.message,))]
