"""Prompt erasing: the teacher is told how to solve a task, the student is not (Orca 2, arXiv 2311.11045).

    seed 0 -> "A crate holds 12 bottles. How many bottles are in 5 crates?", strategy "step_by_step"
    teacher asked: system  Solve the task one step at a time. Write each step on a line of its own ...
                   user    A crate holds 12 bottles. How many bottles are in 5 crates?
    sample: prompt = system  You are a careful assistant. You pay close attention to what you are told ...
                     user    A crate holds 12 bottles. How many bottles are in 5 crates?
            completion = "Step 1: There are 5 crates. ... The answer is 60.",
            teacher_prompt = what the teacher was asked

The strategy comes from one of three places: `strategy` for all, `per_kind` by hand, or `strategy_table`,
which is made by measuring. The paper chose by hand per group of tasks, guided by how well a model like the
student does with each; here the student itself is asked every question with every strategy,

    kdbench generate prompt_erasing --measure-strategies --teacher STUDENT -n 700 --out measured ...
    kdbench generate prompt_erasing --set strategy_table=measured/strategies.yaml --teacher TEACHER ...

-n counts replies there, so 700 are 100 questions with seven strategies each. A wrong answer is a sample
like a right one, for it is what is measured; a reply that cannot be used at all is a rejection and counts
as not right. Only questions that were asked with every strategy count, so the strategies are compared on
equal questions.

To see what erasing does, make three data sets and train a student on each; one setting differs:

    erase: kept      the student's prompt holds the strategy as well
    erase: erased    the student's prompt is the cautious one          (with --cache KEPT: the same replies)
    erase: random    erased, and each kind of question has a strategy drawn at random

No ablation in the paper isolates erasing. Checking answers by gold and the measured table are ours.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from kdbench.asking import origin_of
from kdbench.config import StrictConfig, dump_yaml
from kdbench.errors import NothingLeft, Rejected
from kdbench.jsonl import read_rejections, read_samples
from kdbench.prompts import Prompts
from kdbench.questions import Question, QuestionFields, Questions, QuestionSource
from kdbench.records import Completion, Message, Rejection
from kdbench.replies import find_fault
from kdbench.teacher import Reply, Sampling
from kdbench_generators._strategies import (
    STRATEGIES,
    TABLE_FORMAT,
    KindScores,
    Score,
    StrategyName,
    StrategyTable,
    best_of,
    read_table,
    simplest_best,
)

if TYPE_CHECKING:
    from kdbench.asking import Teachers
    from kdbench.engine import Seed

FACTS = {
    "paper": "Mitra et al. 2023, Orca 2: Teaching Small Language Models How to Reason",
    "arxiv": "2311.11045",
    "from the paper": "the seven strategies, one per kind of task and chosen by what a small model can do; "
    "the generic cautious system message in the student's rows; loss on the response alone",
    "ours": "the wording, the marked final answer, the gold filter, choosing by measuring, the three arms",
    "trap": "no ablation in the paper isolates erasing: it cannot be cited for what erasing alone brings",
}
ROLES = {"teacher": {"chat"}}
EXAMPLE = {"strategy": "step_by_step"}
REPLIES = {
    "teacher": [
        "Step 1: There are 5 crates.\nStep 2: Each of them holds 12 bottles, and 5 x 12 = 60.\n"
        "The answer is 60."
    ]
}
Arm = Literal["erased", "kept", "random"]
TABLE = "strategies.yaml"


class Filters(StrictConfig):
    """What a reply must be to be kept; a change here costs no new call and renames no sample."""

    keep: Literal["gold", "all"] = Field(
        "gold", description="gold: where the gold answer is known, keep right answers alone"
    )
    require_answer: bool = Field(
        True, description="turn down what marks no single final answer; with keep: gold it counts as wrong"
    )


class Config(StrictConfig):
    """Which questions, how they are to be solved, and what the student sees of that."""

    questions: QuestionSource
    strategies: tuple[StrategyName, ...] = Field(
        STRATEGIES, min_length=1, description="those offered: to measure, to choose from, to draw from"
    )
    strategy: StrategyName | None = Field(None, description="one for all kinds of question")
    strategy_table: Path | None = Field(None, description="the strategies.yaml of a measuring run")
    per_kind: dict[str, StrategyName] | None = Field(
        None, min_length=1, description="kind of question -> strategy"
    )
    default_strategy: StrategyName | None = Field(
        None, description="for kinds that strategy_table or per_kind lacks; null: they are turned down"
    )
    measure_strategies: bool = Field(
        False, description="ask a student every question with every strategy, and write strategies.yaml"
    )
    erase: Arm = Field(
        "erased",
        description="the student sees the cautious message; kept: the strategy's; random: the cautious one, "
        "and each kind of question has a strategy drawn at random",
    )
    assignment_seed: int = Field(0, ge=0, description="of erase: random; another number, other strategies")
    marker: str = Field("The answer is", min_length=1, description="what stands before the final answer")
    samples: int = Field(1, ge=1, le=100, description="replies asked for per question")
    sampling: Sampling = Sampling(temperature=0.7, max_tokens=768)
    filters: Filters = Filters()

    @model_validator(mode="after")
    def _one_way(self) -> Config:
        given = [n for n in ("strategy", "strategy_table", "per_kind") if getattr(self, n) is not None]
        if self.measure_strategies or self.erase == "random":
            every = "measure_strategies" if self.measure_strategies else "erase: random"
            if given:
                raise ValueError(f"{every} uses every one of `strategies`; leave out {' and '.join(given)}")
        elif len(given) != 1:
            raise ValueError(
                "needs exactly one of strategy, strategy_table and per_kind; has "
                f"{' and '.join(given) or 'none'} (--measure-strategies makes a table)"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if len(set(self.strategies)) < len(self.strategies):
            raise ValueError("strategies names one of them twice")
        for name in (self.strategy, self.default_strategy, *(self.per_kind or {}).values()):
            if name is not None and name not in self.strategies:
                raise ValueError(f"'{name}' is not among the strategies offered; add it to strategies")
        if self.samples > 1 and self.measure_strategies:
            raise ValueError("measure_strategies asks once with each strategy; leave out samples")
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError("samples above 1 would all be equal at sampling.temperature 0; raise one")
        return self


class Fields(QuestionFields):
    """What a sample knows of its question and its making.

    `correct` is null where there is no gold answer, false where no single final answer is marked.
    """

    strategy: StrategyName
    erase: Arm
    correct: bool | None


def rows(config: Config) -> Questions:
    """One question per seed. Raises DataError, ConfigError for a table that cannot be read."""
    if config.strategy_table is not None:
        read_table(config.strategy_table)
    return Questions(config.questions)


def strategy_for(kind: str, config: Config) -> StrategyName | None:
    """The strategy for a kind of question, if there is one."""
    if config.erase == "random":
        # By the kind, not by the seed: even a random strategy goes with a kind of task.
        return random.Random(f"{config.assignment_seed}/{kind}").choice(config.strategies)  # noqa: S311
    if config.strategy is not None:
        return config.strategy
    if config.strategy_table is not None:
        found = best_of(read_table(config.strategy_table).kinds.get(kind), config.strategies)
    else:
        found = (config.per_kind or {}).get(kind)
    return found or config.default_strategy


async def generate(
    seed: Seed, teachers: Teachers, config: Config, prompts: Prompts
) -> list[Completion | Rejection]:
    """One question's replies: with its strategy, or, to measure, one with each of them."""
    question: Question = seed.row
    question.check_gold()
    if config.measure_strategies:
        if question.answer is None:
            raise Rejected("no_gold", "without a gold answer nothing can be measured")
        asks = [(strategy, 1) for strategy in config.strategies]
    elif (chosen := strategy_for(question.kind, config)) is None:
        raise Rejected("no_strategy", f"for questions of kind '{question.kind}'; set default_strategy")
    else:
        asks = [(chosen, config.samples)]
    outcomes: list[Completion | Rejection] = []
    for strategy, count in asks:
        asked = Asked.of(question, strategy, config, prompts)
        for reply in await teachers["teacher"].draws(asked.teacher_prompt, config.sampling, count):
            outcomes.append(asked.judge(reply, seed.index, config))
    return outcomes


@dataclass(frozen=True, slots=True)
class Asked:
    """One question as the teacher gets it and as the student will see it."""

    question: Question
    strategy: StrategyName
    erase: Arm
    teacher_prompt: tuple[Message, Message]
    prompt: tuple[Message, Message]

    @classmethod
    def of(cls, question: Question, strategy: StrategyName, config: Config, prompts: Prompts) -> Asked:
        """What is asked of one question with one strategy."""
        told = prompts.system(strategy, question=question, marker=config.marker)
        user = prompts.user("question", question=question)
        kept = config.measure_strategies or config.erase == "kept"
        seen = told if kept else prompts.system("cautious")
        return cls(question, strategy, "kept" if kept else config.erase, (told, user), (seen, user))

    def judge(self, reply: Reply | Rejected, seed: int, config: Config) -> Completion | Rejection:
        """The reply as a sample, or as a rejection that carries it."""
        if isinstance(reply, Rejected):
            # Nothing to read, but the sample says which strategy failed.
            empty = self._sample(Message(role="assistant", content=""), correct=False)
            return Rejection(reason=reply.reason, detail=reply.detail, sample=empty)
        correct, unmarked = self._check(reply.text, config.marker)
        origin = origin_of(seed, reply)
        sample = self._sample(reply.message, correct).model_copy(update={"origin": origin})
        # To extract is to say again what the prompt says.
        again = "" if self.strategy == "extract_generate" else self.prompt[-1].content
        fault = find_fault(reply.text, again, quotes=True)
        if fault is None and not config.measure_strategies:
            fault = find_unwanted(correct, unmarked, config.filters)
        if fault is None:
            return sample
        return Rejection(reason=fault[0], detail=fault[1], sample=sample, origin=origin)

    def _check(self, text: str, marker: str) -> tuple[bool | None, Rejected | None]:
        """(whether the marked answer is right, what is wrong with the marking)."""
        gold = self.question.answer is not None
        try:
            answer = self.question.solution(text, marker).answer
        except Rejected as exc:
            return (False if gold else None), exc
        return (self.question.is_correct(answer) if gold else None), None

    def _sample(self, completion: Message, correct: bool | None) -> Completion:
        fields = Fields(
            **QuestionFields.of(self.question), strategy=self.strategy, erase=self.erase, correct=correct
        )
        return Completion(
            prompt=self.prompt,
            completion=(completion,),
            teacher_prompt=None if self.prompt == self.teacher_prompt else self.teacher_prompt,
            answer=self.question.answer,
            group=self.question.group,
            fields=fields.model_dump_json(),
        )


def find_unwanted(
    correct: bool | None, unmarked: Rejected | None, filters: Filters
) -> tuple[str, str] | None:
    """(reason, detail) of the filter that a readable reply fails, None if it passes both."""
    if unmarked is not None and filters.require_answer:
        return unmarked.reason, unmarked.detail
    if correct is False and filters.keep == "gold":
        return "wrong_answer", ""
    return None


def finish(config: Config, out: Path) -> None:
    """Write strategies.yaml after a measuring run. Raises NothingLeft if no question was asked in full."""
    if not config.measure_strategies:
        return
    tally: dict[str, dict[StrategyName, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for kind, by_strategy in _asked_in_full(out, len(config.strategies)):
        for strategy, right in by_strategy.items():
            tally[kind][strategy].append(right)
    if not tally:
        raise NothingLeft(
            f"No question was answered with all {len(config.strategies)} strategies: raise -n to a multiple "
            "of that and go on with --resume"
        )
    kinds = {}
    for kind, found in sorted(tally.items()):
        scores = {name: Score.of(sum(found[name]), len(found[name])) for name in config.strategies}
        kinds[kind] = KindScores(best=simplest_best(scores), strategies=scores)
    table = StrategyTable(format=TABLE_FORMAT, kinds=kinds).model_dump(mode="json")
    (out / TABLE).write_text(dump_yaml(table), encoding="utf-8")


def _asked_in_full(out: Path, strategies: int) -> Iterator[tuple[str, dict[StrategyName, bool]]]:
    """(kind, strategy -> right) of each question whose replies are all there: -n may cut the last short."""
    by_seed: dict[int, dict[StrategyName, bool]] = defaultdict(dict)
    kinds: dict[int, str] = {}
    rejections = read_rejections(out / "rejected.jsonl")
    turned_down = ((r.sample, r.origin, False) for r in rejections if isinstance(r.sample, Completion))
    samples = ((s, s.origin, True) for s in read_samples(out / "samples.jsonl") if isinstance(s, Completion))
    for sample, origin, usable in chain(samples, turned_down):
        if origin is None:
            continue
        fields = Fields.model_validate_json(sample.fields)
        by_seed[origin.seed][fields.strategy] = usable and fields.correct is True
        kinds[origin.seed] = fields.kind
    return ((kinds[seed], found) for seed, found in sorted(by_seed.items()) if len(found) == strategies)
