"""Whose sequences a step learns from: the data's, the student's own, one or the other, or replayed ones.

    source.window(step, batch)      # what this step trains on, in place of the data's batch

    Data()                  the batch as it is
    Mixed(writer, 0.5)      on half of the steps the student writes completions to the batch's prompts (GKD);
                            1.0 is on-policy always
    Replay(writer, ...)     DistiLLM's scheduler: own completions more often as validation gets worse, and
                            again and again from a buffer
    Beside(source, text)    what the source gives, and some of the text in every step

Every draw is made from the seed and the step, so it is the same on all ranks and after a resumed training.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, Protocol, TypeVar

from kdbench.models.sampling import BatchSampler, Job
from kdbench.models.sequences import TokenSequence
from kdbench.processes import Place, this_process
from kdbench.teacher import Sampling
from kdbench_trainers._models import own_forward

SequenceT = TypeVar("SequenceT", bound=TokenSequence)


class Source(Protocol):
    """Whose sequences."""

    @property
    def repeats(self) -> int:
        """So many steps in a row get the same batch of the data."""
        ...

    def window(self, step: int, batch: list[TokenSequence]) -> list[TokenSequence]:
        """The sequences of an optimiser step (0 is the first), as many as in `batch` or a multiple of it."""
        ...

    def validated(self, loss: float) -> None:
        """A validation has been made; `loss` is its cross-entropy per token."""
        ...

    def logged(self) -> dict[str, float]:
        """What a line of metrics says of it, since the last call."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep, as JSON values."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        ...


class Data:
    """The data's own completions."""

    repeats = 1

    def window(self, step: int, batch: list[TokenSequence]) -> list[TokenSequence]:
        """The batch."""
        return batch

    def validated(self, loss: float) -> None:
        """Of no consequence."""

    def logged(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing."""


class Paired(Data):
    """Each of the batch's sequences, and with it the one that belongs to it."""

    def __init__(self, partners: Mapping[int, TokenSequence]) -> None:
        """`partners` by the key of the sequence that they belong to."""
        self._partners = partners

    def window(self, step: int, batch: list[TokenSequence]) -> list[TokenSequence]:
        """The batch, twice as long."""
        return [*batch, *(self._partners[one.key] for one in batch if one.key is not None)]


class Beside:
    """What a source gives, and in every step the next of other sequences, all of which come in turn."""

    def __init__(
        self,
        source: Source,
        others: Sequence[TokenSequence],
        *,
        count: int,
        seed: int,
        place: Place | None = None,
    ) -> None:
        """`count` of the others in each step, over all processes."""
        self._source = source
        self._others = others
        self._count = count
        self._seed = seed
        self._place = place or this_process()
        self._orders = dict[int, list[TokenSequence]]()  # by epoch
        self.repeats = source.repeats

    def window(self, step: int, batch: list[TokenSequence]) -> list[TokenSequence]:
        """The source's window, and behind it this process's share of the others."""
        numbers = range(step * self._count, (step + 1) * self._count)[self._place.rank :: self._place.world]
        return [*self._source.window(step, batch), *(self._other(number) for number in numbers)]

    def _other(self, number: int) -> TokenSequence:
        epoch, place = divmod(number, len(self._others))
        if epoch not in self._orders:
            chance = random.Random(f"{self._seed}/text/{epoch}")  # noqa: S311
            self._orders = {epoch: chance.sample(self._others, len(self._others))}
        return self._orders[epoch][place]

    def validated(self, loss: float) -> None:
        """For the source."""
        self._source.validated(loss)

    def logged(self) -> dict[str, float]:
        """What the source says."""
        return self._source.logged()

    def state(self) -> dict[str, Any]:
        """The source's: the others follow from the step."""
        return self._source.state()

    def restore(self, state: dict[str, Any]) -> None:
        """The source goes on."""
        self._source.restore(state)


class Writer:
    """The student writes completions to the prompts of a batch, with its key-value cache, in one go."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        sampling: Sampling,
        *,
        limit: int,
        seed: int,
        place: Place | None = None,
    ) -> None:
        """`limit` bounds prompt and completion together, for student and teacher."""
        self._model = model
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._limit = limit
        self._seed = seed
        self._place = place or this_process()
        self._tokens = 0

    def logged(self) -> dict[str, float]:
        """Tokens written since the last call, by this process."""
        tokens, self._tokens = self._tokens, 0
        return {"generated_tokens": tokens}

    def write(self, step: int, batch: Sequence[TokenSequence]) -> list[TokenSequence]:
        """The batch with completions of the student's own, the end token kept where it wrote one."""
        jobs = [self._job(step, number, sequence) for number, sequence in enumerate(batch)]
        with self._at_rest() as student:
            replies = BatchSampler(student, self._tokenizer, batch=len(jobs)).run(jobs)
        written = [
            replace(one, key=None, completion=reply.ids + (() if reply.end is None else (reply.end,)))
            for one, reply in zip(batch, replies, strict=True)
        ]
        self._tokens += sum(len(one.completion) for one in written)
        return written

    @contextmanager
    def _at_rest(self) -> Iterator[Any]:
        """The student as it writes: its own forward pass, adapters included, and no dropout."""
        whole = self._model.get_base_model() if hasattr(self._model, "get_base_model") else self._model
        trained = self._model.training
        self._model.eval()
        with own_forward(whole):
            yield whole
        self._model.train(trained)

    def _job(self, step: int, number: int, sequence: TokenSequence) -> Job:
        # By the place in the step's whole batch: however many processes share it, they write the same.
        place = self._place.rank + number * self._place.world
        seed = hashlib.sha256(f"{self._seed}/{step}/{place}".encode()).digest()
        room = self._limit - max(len(sequence.prompt), len(sequence.teacher_prompt))
        sampling = self._sampling.model_copy(update={"max_tokens": min(self._sampling.max_tokens, room)})
        return Job(sequence.prompt, sampling, int.from_bytes(seed[:8], "big"))


class Mixed(Data):
    """With probability `share` a step is the student's own, else the data's: GKD's lambda."""

    def __init__(self, writer: Writer, share: float, seed: int) -> None:
        self._writer = writer
        self._share = share
        self._seed = seed

    def window(self, step: int, batch: list[TokenSequence]) -> list[TokenSequence]:
        """The batch, or the student's completions to its prompts (Agarwal et al. 2024, algorithm 1)."""
        return self._writer.write(step, batch) if chance(self._seed, step) < self._share else batch

    def logged(self) -> dict[str, float]:
        """Tokens the student wrote."""
        return self._writer.logged()


class Replay:
    """DistiLLM's adaptive scheduler and replay buffer (Ko et al. 2024, arXiv 2402.03898, section 3.2).

    phi begins at 0 and grows by 0.1 when a validation is worse than the last one that counted by
    `tolerance`. Of a step with a random number r and lambda = phi (1 - step / steps):
    r < lambda, or r < phi while the buffer fills: the student writes, and the buffer takes it;
    r < phi: a batch out of the buffer; else the data's.
    """

    GROWTH = 0.1
    repeats = 1

    def __init__(
        self,
        writer: Writer,
        *,
        steps: int,
        seed: int,
        capacity: int,
        tolerance: float,
        place: Place | None = None,
    ) -> None:
        """`capacity` sequences are kept over all processes, the oldest leave first."""
        self._writer = writer
        self._steps = steps
        self._seed = seed
        self._tolerance = tolerance
        self._place = place or this_process()
        self._buffer: deque[TokenSequence] = deque(maxlen=capacity // self._place.world)
        self._before: float | None = None
        self.phi = 0.0

    def window(self, step: int, batch: list[TokenSequence]) -> list[TokenSequence]:
        """The batch, fresh completions, or replayed ones."""
        r = chance(self._seed, step)
        filling = len(self._buffer) < (self._buffer.maxlen or 0)
        if r < self.phi * (1 - step / self._steps) or (r < self.phi and filling):
            fresh = self._writer.write(step, batch)
            self._buffer.extend(fresh)
            return fresh
        if r < self.phi:
            choose = random.Random(f"{self._seed}/{step}/{self._place.rank}")  # noqa: S311
            return choose.sample(list(self._buffer), len(batch))
        return batch

    def validated(self, loss: float) -> None:
        """Take more of the student's own after a validation that is worse."""
        if self._before is None:
            self._before = loss
        elif loss >= self._before + self._tolerance:
            self.phi = min(round(self.phi + self.GROWTH, 9), 1.0)
            self._before = loss

    def logged(self) -> dict[str, float]:
        """phi, how full the buffer is, and the tokens the student wrote."""
        return {"phi": self.phi, "buffer": len(self._buffer), **self._writer.logged()}

    def state(self) -> dict[str, Any]:
        """phi, what validations are held against, and the buffer."""
        return {"phi": self.phi, "before": self._before, "buffer": [asdict(one) for one in self._buffer]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.phi, self._before = state["phi"], state["before"]
        self._buffer.extend(revived(TokenSequence, one) for one in state["buffer"])


def chance(seed: int, step: int) -> float:
    """A number in [0, 1) for a step, the same wherever it is asked for."""
    return random.Random(f"{seed}/{step}").random()  # noqa: S311 - a schedule, not a secret


def revived(kind: type[SequenceT], kept: Mapping[str, Any]) -> SequenceT:
    """The sequence that `asdict` and JSON made `kept` of."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in kept.items()}
    return kind(**values)
