"""Seeds of a recipe played through, and everything that is said: for previews and `kdbench show`.

    play(recipe, seeds, {"teacher": Scripted(["The answer is 5."])})
    -> [Played(said=[Said("teacher", messages, sampling, reply="The answer is 5.")], outcomes=[...])]

The recipe gets the same teachers as in a run, so that draws, truncation and keys are what they are there;
only the call log is thrown away. A teacher that has nothing to say ends its seed: `outcomes` is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from kdbench.asking import Asker, AskPolicy, SeedTeacher, Teachers, Trace
from kdbench.calls import FILE_NAME, CallLog
from kdbench.engine import Outcome, Seed
from kdbench.errors import EmptyReply, Rejected
from kdbench.jobs._recipes import LoadedRecipe
from kdbench.ledger import Ledger
from kdbench.pool import Pool
from kdbench.records import Message, Rejection
from kdbench.teacher import Capability, Request, Sampling, Teacher, Usage, chat_completion, read_reply


@dataclass(slots=True)
class Said:
    """One request, and the reply where there was one."""

    role: str
    messages: tuple[Message, ...]
    sampling: Sampling
    reply: str | None = None


@dataclass(slots=True)
class Played:
    """What was said for one seed, and what came of it; None where a teacher had nothing to say."""

    seed: int
    said: list[Said] = field(default_factory=list)
    outcomes: list[Outcome] | None = None


class Silent(Exception):
    """A teacher that has nothing to say was asked."""


class Scripted:
    """A teacher that gives these replies in this order, and then has nothing more to say."""

    identity = "example"
    preferred_concurrency = 1

    def __init__(self, replies: Sequence[str], capabilities: Iterable[Capability] = ("chat",)) -> None:
        self.capabilities = frozenset(capabilities)
        self._replies = iter(replies)

    async def ask(self, request: Request) -> bytes:
        """The next reply. Raises Silent."""
        for text in self._replies:
            return chat_completion(text, model=self.identity, finish_reason="stop", usage=Usage())
        raise Silent

    async def close(self) -> None:
        """Nothing to let go of."""


class _Noting:
    """A teacher whose every word is noted down."""

    def __init__(self, role: str, teacher: Teacher, said: list[Said]) -> None:
        self.identity = teacher.identity
        self.capabilities = teacher.capabilities
        self.preferred_concurrency = teacher.preferred_concurrency
        self._role, self._teacher, self._said = role, teacher, said

    async def ask(self, request: Request) -> bytes:
        note = Said(self._role, request.messages, request.sampling)
        self._said.append(note)
        raw = await self._teacher.ask(request)
        try:
            note.reply = read_reply(raw).text
        except EmptyReply:
            note.reply = ""
        return raw

    async def close(self) -> None:
        await self._teacher.close()


async def play(
    recipe: LoadedRecipe, seeds: Iterable[Seed], teachers: Mapping[str, Teacher] | None = None
) -> list[Played]:
    """Each seed played through, one after the other, every one as in the first round.

    A role without a teacher has nothing to say. Raises kdbench.errors.TeacherError and UsageError.
    """
    with TemporaryDirectory() as folder:
        log = CallLog(Path(folder) / FILE_NAME)
        try:
            given = {role: (teachers or {}).get(role) or Scripted([]) for role in recipe.roles}
            return [await _play_one(recipe, seed, given, log) for seed in seeds]
        finally:
            log.close()


async def _play_one(
    recipe: LoadedRecipe, seed: Seed, teachers: Mapping[str, Teacher], log: CallLog
) -> Played:
    played, trace = Played(seed.index), Trace()

    def ready(role: str, teacher: Teacher) -> SeedTeacher:
        noting = _Noting(role, teacher, played.said)
        asker = Asker(role, noting, log, Ledger(), AskPolicy(retries=2), in_flight=64)
        return SeedTeacher(asker, 0, seed.index, trace)

    given = Teachers({role: ready(role, teacher) for role, teacher in teachers.items()})
    try:
        played.outcomes = list(await recipe.run(seed, given, Pool()))
    except Rejected as exc:
        played.outcomes = [Rejection(reason=exc.reason, detail=exc.detail)]
    except Silent:
        pass
    return played
