"""`scripted`: a teacher that needs no model, for tests, notebooks and trying out a job.

    asked:  Write a story ... in 3 short sentences ... "kite", "listen" and "windy" ...
    says:   Ben the rabbit could not stop thinking about the kite. "Do you want to listen with me?"
            asked Zoe. It had never been so windy before.

It reads the first three quoted words of the request as noun, verb and adjective, and how many
paragraphs or sentences are asked for, and puts a story together. Equal requests with equal seeds get
equal replies. `mistakes` makes it fail as real teachers do, at a chosen rate.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

from pydantic import Field, model_validator

from kdbench.config import StrictConfig, canonical_hash
from kdbench.errors import TeacherUnavailable, UsageError
from kdbench.teacher import Capability, Request, Sampling, Usage, chat_completion

SCHEMES = ("scripted",)
VERSION = 1  # goes up with every change of what the script says

_QUOTED = re.compile(r'"([^"\n]{1,40})"')
_PARAGRAPHS = re.compile(r"(\d{1,2})(?: to (\d{1,2}))? (?:\w+ )?paragraphs?\b")
_SENTENCES = re.compile(r"(\d{1,2}) (?:\w+ )?sentences?\b")
_UNQUOTED = ("ball", "play", "happy")  # for a request that quotes nothing
_OTHER_WORDS = ("moon", "sing", "soft")  # for a story that misses what was asked for

_NAMES = ("Tom", "Mia", "Ben", "Lily", "Sam", "Anna", "Max", "Ella", "Tim", "Lucy", "Leo")
_FRIENDS = ("Zoe", "Jack", "Rosie", "Oscar", "Molly", "Finn", "Daisy", "Theo", "Polly", "Noah", "Emma")
_KINDS = ("rabbit", "mouse", "bear", "fox", "duck", "squirrel", "kitten", "puppy", "frog", "pony", "owl")
_PLACES = ("by the pond", "under the big tree", "in the garden", "near the old bridge", "on the hill",
           "behind the house", "at the edge of the forest", "in the tall grass", "next to the river",
           "in the kitchen", "outside the barn")  # fmt: skip

_ABOUT_NOUN = (
    "{name} the {kind} could not stop thinking about the {noun}.",
    "One day {name} the {kind} drew a picture of the {noun} {here}.",
    "Once upon a time, {name} the {kind} had a dream about the {noun}.",
    "Long ago there was a little {kind} called {name}, who knew a song about the {noun}.",
    "Early one morning, {name} the {kind} asked everybody about the {noun}.",
)
_WITH_VERB = (
    '"Do you want to {verb} with me?" asked {friend}.',
    '"I have always wanted to {verb}!" said {friend} {here}.',
    "Nobody had ever shown {name} how to {verb}, so {friend} helped.",
    '{friend} smiled and said, "First we can eat, and then we can {verb}."',
    "{friend} and {name} made up their minds to {verb} before dinner.",
)
_WITH_ADJECTIVE = (
    "It had never been so {adjective} before.",
    '"How {adjective} it is today!" they both said.',
    "They looked at each other and thought that this was very {adjective} indeed.",
    '"Is it always this {adjective}?" {name} asked in a small voice.',
    'Mother laughed and said, "My word, how {adjective}!"',
)
_ENDINGS = (
    "At last the sun went down, and {name} went home with a warm heart.",
    "From that day on, {name} and {friend} were the best of friends.",
    "That night {name} fell asleep with a big smile.",
    "And so {name} learned that a good friend makes every day better.",
    "They waved goodbye and promised to meet again in the morning.",
)
# A prime number of lines, so that any step walks through all of them.
_BETWEEN = (
    "{friend} came running {here} to see what was going on.",
    "A soft wind blew, and the leaves danced all around.",
    "They sat down {here} and shared a sweet red apple.",
    "Suddenly there was a funny noise {here}.",
    '"What was that?" whispered {friend}.',
    "{name} took a deep breath and was very brave.",
    "It was only a tiny bird that had lost its nest.",
    "Together they carried the nest back {there}.",
    "The little bird sang a song to say thank you.",
    "{friend} had brought some bread and a jar of honey.",
    "Then the rain began to fall, first a little and soon a lot.",
    "They ran as fast as they could and hid {away}.",
    "When the rain was over, they saw a rainbow {there}.",
    "{name} felt a bit sad, but did not know why.",
    '"You can tell me anything," {friend} said kindly.',
    "Grandmother gave them both a cup of warm milk.",
    "{friend} told a joke, and {name} laughed out loud.",
    "They counted the clouds until they came to twenty.",
    "A yellow butterfly landed on the nose of {name}.",
    "Nobody wanted to go home yet.",
    "{name} found a shiny stone {away} and kept it.",
    "They took turns, because that was fair.",
    "Once {friend} fell down, but {name} helped right away.",
)
LONGEST = len(_BETWEEN) + 4  # sentences in the longest story that says nothing twice


class Mistakes(StrictConfig):
    """Shares of the replies (0 to 1) that go wrong, each in its own way; their sum is at most 1."""

    missing_words: float = Field(0.0, ge=0, le=1, description="the story uses none of the words")
    cut_off: float = Field(0.0, ge=0, le=1, description="it stops in the middle, with finish_reason length")
    loop: float = Field(0.0, ge=0, le=1, description="it says the same again and again")
    refusal: float = Field(0.0, ge=0, le=1, description="it declines to write")
    empty: float = Field(0.0, ge=0, le=1, description="it says nothing")

    @model_validator(mode="after")
    def _shares(self) -> Mistakes:
        if sum(rate for _, rate in self) > 1:
            raise ValueError("the rates of all mistakes must not add up to more than 1")
        return self


class Config(StrictConfig):
    """How the script behaves."""

    latency: float = Field(0.0, ge=0, le=60, description="seconds until each reply")
    mistakes: Mistakes = Mistakes()
    unavailable: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description="share of calls that fail as a broken connection does; a retry may work",
    )


def connect(spec: str, config: Config) -> ScriptedTeacher:
    """The scripted teacher. Raises UsageError for a spec with a model name: there is no model."""
    if spec.partition(":")[2]:
        raise UsageError(f"Teacher '{spec}': the scripted teacher has no models; write 'scripted'")
    return ScriptedTeacher(config)


class ScriptedTeacher:
    """A kdbench.teacher.Teacher whose reply is a pure function of messages, sampling and seed."""

    capabilities: frozenset[Capability] = frozenset({"chat"})
    preferred_concurrency = 64

    def __init__(self, config: Config | None = None) -> None:
        self._config = config or Config()
        self.identity = f"scripted-{VERSION}"
        # Other replies, other identity: the call log must never take one for the other.
        if self._config.mistakes != Mistakes():
            self.identity += "-" + canonical_hash(self._config.mistakes.model_dump())[:8]
        self._calls = 0

    async def ask(self, request: Request) -> bytes:
        """One story as a raw chat completion. Raises TeacherUnavailable at the rate of the config."""
        self._calls += 1
        if self._config.latency:
            await asyncio.sleep(self._config.latency)
        if self._config.unavailable and _Draws(str(self._calls)).share() < self._config.unavailable:
            raise TeacherUnavailable("The scripted teacher broke the connection, as it was told to")
        text, finish_reason = self._reply(request)
        asked = sum(len(message.content.split()) for message in request.messages)
        usage = Usage(prompt_tokens=asked, completion_tokens=len(text.split()))
        return chat_completion(text, model=self.identity, finish_reason=finish_reason, usage=usage)

    async def close(self) -> None:
        """Nothing to let go of."""

    def _reply(self, request: Request) -> tuple[str, str]:
        # A greedy reply does not depend on the seed, here as with any teacher.
        seed = request.seed if request.sampling.temperature > 0 else 0
        turns = "\x1f".join([message.content for message in request.messages])
        draws = _Draws(f"{VERSION}\x1f{seed}\x1f{_sampling_key(request.sampling)}\x1f{turns}")
        mistake = self._mistake(draws.share())
        text = _with_mistake(mistake, request.messages[-1].content, draws)
        tokens = text.split(" ")
        if mistake == "cut_off":
            return " ".join(tokens[: len(tokens) // 2]).rstrip(" .!?\"'"), "length"
        if len(tokens) > request.sampling.max_tokens:
            return " ".join(tokens[: request.sampling.max_tokens]), "length"
        return text, "stop"

    def _mistake(self, share: float) -> str | None:
        for name, rate in self._config.mistakes:
            if share < rate:
                return str(name)
            share -= rate
        return None


class _Draws:
    """256 bits made from a text, drawn from one choice at a time; far quicker than a random.Random."""

    def __init__(self, text: str) -> None:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=32).digest()
        self._left = int.from_bytes(digest, "big")

    def below(self, n: int) -> int:
        self._left, drawn = divmod(self._left, n)
        return drawn

    def pick(self, pool: Sequence[str]) -> str:
        return pool[self.below(len(pool))]

    def share(self) -> float:
        """A number in [0, 1)."""
        return self.below(2**32) / 2**32


@lru_cache(maxsize=256)
def _sampling_key(sampling: Sampling) -> str:
    return sampling.model_dump_json()


def _with_mistake(mistake: str | None, request: str, draws: _Draws) -> str:
    if mistake == "empty":
        return ""
    if mistake == "refusal":
        return "I'm sorry, but I can't help with that."
    if mistake == "missing_words":
        return _tell(_OTHER_WORDS, _lengths(request, draws), draws)
    story = _tell(_words(request), _lengths(request, draws), draws)
    return story + " And then they did it again." * 6 if mistake == "loop" else story


def _words(request: str) -> Sequence[str]:
    quoted = _QUOTED.findall(request)
    return quoted[:3] if len(quoted) >= 3 else _UNQUOTED


def _lengths(request: str, draws: _Draws) -> list[int]:
    """Sentences in each paragraph, as asked for, as far as the script goes; else four times four."""
    if sentences := _SENTENCES.search(request):
        return [min(max(1, int(sentences[1])), LONGEST)]
    fewest, most = 4, 4
    if paragraphs := _PARAGRAPHS.search(request):
        fewest = min(max(1, int(paragraphs[1])), LONGEST)
        most = min(max(fewest, int(paragraphs[2] or fewest)), LONGEST)
    count = fewest + draws.below(most - fewest + 1)
    return [min(3 + draws.below(2), LONGEST // count) for _ in range(count)]


def _tell(words: Sequence[str], lengths: Sequence[int], draws: _Draws) -> str:
    noun, verb, adjective = words
    name, friend, kind = draws.pick(_NAMES), draws.pick(_FRIENDS), draws.pick(_KINDS)
    places = draws.below(len(_PLACES))  # three of them, side by side in the list
    here, there, away = (_PLACES[(places + i) % len(_PLACES)] for i in range(3))
    lines = iter(_lines(sum(lengths), draws))
    story = "\n\n".join([" ".join([next(lines) for _ in range(length)]) for length in lengths])
    return story.format(
        noun=noun, verb=verb, adjective=adjective,
        name=name, friend=friend, kind=kind, here=here, there=there, away=away,
    )  # fmt: skip


def _lines(count: int, draws: _Draws) -> list[str]:
    """The sentences of a story, with places to fill; all three words are used however few there are."""
    if count == 1:
        return ["{name} told {friend} about the {noun}, how {adjective} it was, and how to {verb}."]
    about, action, quality = draws.pick(_ABOUT_NOUN), draws.pick(_WITH_VERB), draws.pick(_WITH_ADJECTIVE)
    if count == 2:
        return [about, "{friend} wanted to {verb} too, because it all sounded so {adjective}."]
    if count == 3:
        return [about, action, quality]
    first, step = draws.below(len(_BETWEEN)), 1 + draws.below(len(_BETWEEN) - 1)
    between = [_BETWEEN[(first + i * step) % len(_BETWEEN)] for i in range(count - 4)]
    third = len(between) // 3
    ending = draws.pick(_ENDINGS)
    return [
        about,
        *between[:third],
        action,
        *between[third : 2 * third],
        quality,
        *between[2 * third :],
        ending,
    ]
