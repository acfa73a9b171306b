"""Self-Instruct and Alpaca: new tasks made from a few seed tasks, with inputs and outputs (arXiv 2212.10560).

    seed 0 -> eight seed tasks, among them "Solve the equation for x and show each step."
    teacher asked: ... Go on with the list: write 8 new tasks   -> "9. Say whether the word is a verb, ..."
                   ... Is it a classification task?             -> "yes"
                   ... first choose a label, then ... an input  -> "Label: verb\\nInput: to sing"
    sample: prompt = "Say whether the word is a verb, a noun or an adjective.\\n\\nto sing"
            completion = "verb"
            fields = {"instruction": "Say whether the word is a verb, a noun or an adjective.",
                      "input": "to sing", "is_classification": true, "demos": ["seed 89", "seed 50", ...]}

Seeds work in rounds: the tasks that a seed shows to the teacher come from 101 seed tasks (or `seeds_file`)
and from the instructions that earlier rounds accepted; seed tasks stand in while there are none. A new
instruction must not be like any seed task or any instruction accepted before it (ROUGE-L, in seed order).
`mode: alpaca` asks for instruction, input and output of twenty tasks at once, shows seed tasks only, asks
for no kind, and takes one instance each.

Unlike the paper: chat models, so prompts in our words and no presence penalty; new seed tasks; a threshold
that is met turns down (the code lets exactly 0.7 pass); of contradicting instances only those with the same
input are dropped (the code drops all of the instruction); instructions keep their capitals (the code lowers
them); refusals and loops are turned down.

All calls for an instruction are made before it is judged, unless it is an exact copy, so that `--reparse`
can change the filters. Where that changes the pool, later rounds show other tasks and ask for what the log
lacks: their seeds are turned down as `not_in_log`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, TypeAdapter, model_validator

from kdbench.asking import origin_of
from kdbench.config import StrictConfig
from kdbench.errors import DataError, Rejected
from kdbench.jsonl import read_records
from kdbench.lists import labelled_entries, numbered_items
from kdbench.pool import AnySample, Pool
from kdbench.prompts import Prompts
from kdbench.provenance import file_sha256
from kdbench.questions import Question
from kdbench.records import Completion, Message, Record, Rejection
from kdbench.similarity import RougePool
from kdbench.teacher import Reply, Sampling
from kdbench.textstats import is_refusal
from kdbench_generators._instructions import (
    Filters,
    Instance,
    Mode,
    bare_input,
    find_instance_faults,
    find_instruction_fault,
    find_output_fault,
    instances_of,
    says_yes,
    whole,
)

if TYPE_CHECKING:
    import random

    from kdbench.asking import Teachers
    from kdbench.engine import Seed

FACTS = {
    "paper": "Wang et al. 2022, Self-Instruct: Aligning Language Models with Self-Generated Instructions",
    "arxiv": "2212.10560",
    "from the paper": "six seed tasks and two generated ones as demonstrations, the question about the kind, "
    "output-first instances of classification tasks and input-first instances of others, ROUGE-L below 0.7 "
    "to seeds and pool, the instruction and instance filters, five instances at most",
    "from Alpaca": "three seed tasks, twenty tasks in one call, temperature 1, one instance, no kinds, five "
    "more keywords",
    "ours": "seed tasks, wording, rounds, demonstrations of kinds and instances drawn from the seed tasks, "
    "exact copies turned down before they cost a call, refusals and loops turned down",
    "trap": "classification tasks are output-first: input-first, a model's made-up inputs lean to one label",
    "trap: same input": "as in the code, different outputs to no input at all are no contradiction",
}
ROLES = {"teacher": {"chat"}}
REPLIES = {
    "teacher": [
        "9. Say whether the word is a verb, a noun or an adjective.\n"
        "10. Write a haiku about the first frost of the year.",
        "yes",
        "no",
        "Label: verb\nInput: to sing\n\nLabel: noun\nInput: a teapot",
        "Input: none\nOutput: White breath on the pane,\nthe last rose holds its colour,\nsugar on a thorn.",
    ]
}
# What each mode's paper or code has where the config says nothing.
MODES: dict[str, dict[str, Any]] = {
    "alpaca": {
        "demos_seed": 3,
        "demos_pool": 0,
        "instructions_per_call": 20,
        "sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 3072},
    }
}


class Task(Record):
    """One line of a file of seed tasks."""

    instruction: str = Field(min_length=1)
    input: str = ""
    output: str = Field(min_length=1)
    is_classification: bool


class Config(StrictConfig):
    """What the teacher is shown and asked for."""

    mode: Mode = Field(
        "self_instruct",
        description="alpaca: instruction, input and output in one call, with defaults of its own "
        "(demos_seed 3, demos_pool 0, instructions_per_call 20, temperature 1, 3072 tokens)",
    )
    seeds_file: Path | None = Field(
        None,
        description=".jsonl of {instruction, input, output, is_classification}; null: 101 tasks of our own",
    )
    round_size: int = Field(16, ge=1, description="seeds that see the same pool")
    demos_seed: int = Field(6, ge=0, description="seed tasks shown when new instructions are asked for")
    demos_pool: int = Field(
        2, ge=0, description="accepted instructions shown with them; seed tasks where there are too few"
    )
    instructions_per_call: int = Field(8, ge=1, le=100, description="new instructions asked for, and taken")
    examples: int = Field(
        3, ge=0, description="seed tasks of each kind shown when kind and instances are asked for"
    )
    max_instances: int = Field(5, ge=1, le=50, description="instances of an instruction; alpaca: always one")
    sampling: Sampling = Field(
        Sampling(temperature=0.7, top_p=0.5, max_tokens=1024), description="how instructions are asked for"
    )
    instance_sampling: Sampling = Field(
        Sampling(temperature=0.0, max_tokens=768), description="how kinds and instances are asked for"
    )
    filters: Filters = Filters()

    @model_validator(mode="before")
    @classmethod
    def _as_the_mode_has_it(cls, values: Any) -> Any:
        usual = MODES.get(str(values.get("mode")), {}) if isinstance(values, dict) else {}
        if not usual:
            return values
        found = {**usual, **values}
        if isinstance(found["sampling"], dict):
            found["sampling"] = {**usual["sampling"], **found["sampling"]}
        return found

    @model_validator(mode="after")
    def _some_demos(self) -> Config:
        if self.demos_seed + self.demos_pool == 0:
            raise ValueError("demos_seed and demos_pool must not both be 0")
        return self


class Fields(BaseModel):
    """What a sample knows of its task; `demos` are seed tasks by line and earlier samples by id."""

    instruction: str
    input: str
    is_classification: bool | None
    demos: tuple[str, ...]


class SeedTasks:
    """The seed tasks, which every seed gets alike; `fingerprint` tells whether they are still the same."""

    def __init__(self, path: Path | None) -> None:
        self.path = path or Path(str(files("kdbench_generators") / "_data" / "seed_instructions.jsonl"))
        self.tasks = tuple(read_records(self.path, TypeAdapter(Task), "seed task"))
        if not self.tasks:
            raise DataError(f"{self.path} holds no seed task; give at least one with seeds_file")
        self.groups = frozenset(group_of(task.instruction) for task in self.tasks)
        self.fingerprint = {"seed_tasks": file_sha256(self.path)}

    def __iter__(self) -> Iterator[SeedTasks]:
        return repeat(self)


@dataclass(frozen=True, slots=True)
class Demo:
    """A task that is shown to the teacher."""

    name: str
    instruction: str
    input: str = ""
    output: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one seed shows: demonstrations of tasks, of the kinds mixed, and of each kind."""

    demos: tuple[Demo, ...]
    kinds: tuple[Task, ...]
    examples: dict[bool, tuple[Task, ...]]


@dataclass(slots=True)
class Draft:
    """A new instruction on its way: what it was asked, what came of it, and what is wrong with all of it."""

    instruction: str
    replies: list[Reply]
    request: tuple[Message, ...] = ()
    is_classification: bool | None = None
    instances: list[Instance | Rejected] = field(default_factory=list)
    problem: Rejected | None = None


def rows(config: Config) -> SeedTasks:
    """The seed tasks, once per seed and without end. Raises kdbench.errors.DataError."""
    return SeedTasks(config.seeds_file)


def round_size(config: Config) -> int:
    """Seeds that see the same pool."""
    return config.round_size


def admission(config: Config) -> Callable[[AnySample], AnySample | Rejection]:
    """Turns down what is too like a seed task or an instruction accepted before, of another seed or not."""
    pool = RougePool()
    for task in SeedTasks(config.seeds_file).tasks:
        pool.add(task.instruction)
    accepted: dict[str, int] = {}  # group -> the seed that made it

    def admit(sample: AnySample) -> AnySample | Rejection:
        group, seed = str(sample.group), sample.origin.seed if sample.origin else -1
        if accepted.get(group) == seed:
            return sample  # another instance of an instruction that was accepted
        instruction = Fields.model_validate_json(sample.fields).instruction
        close = pool.too_close(instruction, config.filters.rouge_threshold)
        if group in accepted:  # in another script there is nothing for ROUGE-L to compare
            close = 1.0, instruction
        if close is not None:
            return Rejection(reason="too_similar", detail=f"{close[0]:.3f} to: {close[1]}", sample=sample)
        pool.add(instruction)
        accepted[group] = seed
        return sample

    return admit


def group_of(instruction: str) -> str:
    """The same for equal instructions."""
    return Question(instruction).group


async def generate(
    seed: Seed, teachers: Teachers, config: Config, prompts: Prompts, pool: Pool
) -> list[Completion | Rejection]:
    """The instances of a seed's new instructions; an instruction that comes to none is one rejection."""
    plan = draw_plan(seed.rng, seed.row, pool, config)
    template = "tasks" if config.mode == "alpaca" else "instructions"
    ask = prompts.user(template, demos=plan.demos, count=config.instructions_per_call)
    reply = await teachers["teacher"].chat([ask], config.sampling)
    if is_refusal(reply.text):
        raise Rejected("refusal", reply.text.strip()[:80])
    drafts = whole_tasks(reply, ask, config) if config.mode == "alpaca" else bare_tasks(reply, config)
    drop_copies(drafts, seed.row, pool)
    if config.mode == "self_instruct":
        await ask_for_kinds(drafts, plan, teachers, config, prompts)
        await ask_for_instances(drafts, plan, teachers, config, prompts)
    demos = tuple(demo.name for demo in plan.demos)
    return [one for draft in drafts for one in outcomes_of(draft, seed.index, demos, config, prompts)]


def draw_plan(rng: random.Random, seeds: SeedTasks, pool: Pool, config: Config) -> Plan:
    """What one seed shows the teacher."""
    earlier = list(pool.latest.values())
    shown = [of_sample(one) for one in rng.sample(earlier, min(config.demos_pool, len(earlier)))]
    lacking = config.demos_seed + config.demos_pool - len(shown)
    tasks = seeds.tasks
    for number in rng.sample(range(len(tasks)), min(lacking, len(tasks))):
        task = tasks[number]
        shown.append(Demo(f"seed {number + 1}", task.instruction, task.input, task.output))
    rng.shuffle(shown)
    examples = {}
    for kind in (True, False):
        fitting = [task for task in tasks if task.is_classification is kind]
        examples[kind] = tuple(rng.sample(fitting, min(config.examples, len(fitting))))
    mixed = [*examples[True], *examples[False]]
    rng.shuffle(mixed)
    return Plan(tuple(shown), tuple(mixed), examples)


def of_sample(sample: AnySample) -> Demo:
    """An accepted sample as a demonstration."""
    assert isinstance(sample, Completion)
    fields = Fields.model_validate_json(sample.fields)
    return Demo(sample.id, fields.instruction, fields.input, sample.text)


def bare_tasks(reply: Reply, config: Config) -> list[Draft]:
    """The instructions of a numbered list. Raises Rejected("no_list") and Rejected("truncated")."""
    items = whole(numbered_items(reply.text), reply)[: config.instructions_per_call]
    return [Draft(item, [reply]) for item in items]


def whole_tasks(reply: Reply, ask: Message, config: Config) -> list[Draft]:
    """The tasks of Alpaca's one call. Raises Rejected("no_list") and Rejected("truncated")."""
    drafts = []
    entries = whole(labelled_entries(reply.text, ("Instruction", "Input", "Output")), reply)
    for entry in entries[: config.instructions_per_call]:
        if isinstance(entry, Rejected):
            drafts.append(Draft("", [reply], problem=entry))
        else:
            instance = Instance(bare_input(entry["Input"]), entry["Output"])
            instruction = " ".join(entry["Instruction"].split())
            drafts.append(Draft(instruction, [reply], request=(ask,), instances=[instance]))
    return drafts


def drop_copies(drafts: Sequence[Draft], seeds: SeedTasks, pool: Pool) -> None:
    """Stop instructions that are known word by word: no threshold would let them through."""
    seen: set[str] = set()
    for draft in drafts:
        if draft.problem is None:
            group = group_of(draft.instruction)
            if group in seen or group in seeds.groups or group in pool.latest:
                draft.problem = Rejected("copied_instruction", draft.instruction)
            seen.add(group)


async def ask_for_kinds(
    drafts: Sequence[Draft], plan: Plan, teachers: Teachers, config: Config, prompts: Prompts
) -> None:
    """Find out which instructions are classification tasks."""
    alive = [draft for draft in drafts if draft.problem is None]
    requests = [[prompts.user("kind", demos=plan.kinds, instruction=draft.instruction)] for draft in alive]
    replies = await teachers["teacher"].each(requests, config.instance_sampling)
    for draft, reply in zip(alive, replies, strict=True):
        if isinstance(reply, Rejected):
            draft.problem = reply
            continue
        draft.replies.append(reply)
        draft.is_classification = says_yes(reply.text)
        if draft.is_classification is None:
            draft.problem = Rejected("no_kind", f"neither yes nor no: {reply.text.strip()[:80]}")


async def ask_for_instances(
    drafts: Sequence[Draft], plan: Plan, teachers: Teachers, config: Config, prompts: Prompts
) -> None:
    """Output-first for classification tasks, input-first for all others."""
    alive = [draft for draft in drafts if draft.problem is None]
    for draft in alive:
        template = "output_first" if draft.is_classification else "input_first"
        shown = plan.examples[bool(draft.is_classification)]
        count = config.max_instances
        draft.request = (prompts.user(template, demos=shown, instruction=draft.instruction, count=count),)
    replies = await teachers["teacher"].each([draft.request for draft in alive], config.instance_sampling)
    for draft, reply in zip(alive, replies, strict=True):
        try:
            if isinstance(reply, Rejected):
                raise reply
            draft.replies.append(reply)
            draft.instances = instances_of(reply, draft.is_classification is True)[: config.max_instances]
        except Rejected as exc:
            draft.problem = exc


def outcomes_of(
    draft: Draft, seed: int, demos: tuple[str, ...], config: Config, prompts: Prompts
) -> Iterator[Completion | Rejection]:
    """One outcome per instance, whatever the filters: so a changed filter keeps the names."""
    origin = origin_of(seed, *draft.replies)
    if draft.problem is not None:
        yield Rejection(reason=draft.problem.reason, detail=draft.problem.detail, origin=origin)
        return
    wrong = find_instruction_fault(draft.instruction, config.filters, config.mode)
    faults = iter(find_instance_faults([one for one in draft.instances if isinstance(one, Instance)]))
    for one in draft.instances:
        if isinstance(one, Rejected):
            yield Rejection(reason=one.reason, detail=one.detail, origin=origin)
            continue
        own = next(faults)
        fields = Fields(
            instruction=draft.instruction,
            input=one.input,
            is_classification=draft.is_classification,
            demos=demos,
        )
        sample = Completion(
            prompt=(prompts.user("task", instruction=draft.instruction, input=one.input),),
            completion=(Message(role="assistant", content=one.output),),
            teacher_prompt=draft.request,
            group=group_of(draft.instruction),
            fields=fields.model_dump_json(),
            origin=origin,
        )
        fault = wrong or own or find_output_fault(one.output, draft.instruction, config.filters)
        yield (
            sample
            if fault is None
            else Rejection(reason=fault[0], detail=fault[1], sample=sample, origin=origin)
        )
