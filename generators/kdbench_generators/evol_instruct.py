"""Evol-Instruct: instructions that grow harder and more varied round by round (WizardLM, arXiv 2304.12244).

    seed 0 -> slot 0 in round 1, "... Correct the spelling and grammar of the text, ...", operation concretise
    teacher asked: ... replace a general term in it by a more particular one ...
                       -> "... Correct the spelling, the verb forms and the word order of the text, ..."
                   ... Are they equal?            -> "not equal"
                   the new instruction itself     -> "My sister and I went to the market, ..."
    sample: prompt = the new instruction, completion = the answer to it
            fields = {"operation": "concretise", "round": 1, "slot": 0, "depth": 1, "parent": null,
                      "verdict": "not equal"}

Every initial instruction has a slot, and a round evolves each slot once, by an operation drawn at random:
five that make the instruction harder (in depth) and one that makes up another (in breadth), which then
takes the slot. An evolution that is turned down leaves the slot as it was: its parent is evolved again in
the next round. `depth` counts the in-depth steps since the initial instruction. All samples of a slot share
a group, so that no split parts a lineage. Seeds end after the last round; to get them all, ask for a large
number of samples. After `--reparse` with other filters a slot may hold another parent: what its evolution
would ask is turned down as `not_in_log`.

Round 0 answers the initial instructions as they are, for the paper trains on them too; an initial
instruction whose answer is turned down is evolved all the same. `include_originals: false` leaves it out.

Unlike the paper: any teacher and any instructions (by default the seed tasks of self_instruct), our wording
and our list of stop words; exact copies, refusals, loops and changes of language are turned down too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import BaseModel, Field

from kdbench.config import StrictConfig
from kdbench.errors import DataError, Rejected
from kdbench.pool import Pool
from kdbench.prompts import Prompts
from kdbench.questions import Columns, Question, Questions, QuestionSource
from kdbench.records import Completion, Message, Rejection
from kdbench.replies import find_fault, other_language
from kdbench.teacher import Reply, Sampling
from kdbench.textstats import echoes_prompt

if TYPE_CHECKING:
    from kdbench.asking import Teachers
    from kdbench.engine import Seed

FACTS = {
    "paper": "Xu et al. 2023, WizardLM: Empowering Large Language Models to Follow Complex Instructions",
    "arxiv": "2304.12244",
    "from the paper": "five in-depth operations and one in breadth, drawn uniformly; 10 to 20 words more for "
    "each step in depth; four rounds; the four eliminations; a failed parent is evolved again",
    "ours": "the wording, the data formats, stop words, round 0, further filters",
    "trap": "the public code lacks complicate_input, the judge and the eliminations, and does one round",
}
Operation = Literal["add_constraint", "deepen", "concretise", "more_steps", "complicate_input", "breadth"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
FORMATS = ("XML", "an SQL table", "Python code", "HTML", "a shell script", "JSON")
# Words of the request, or of models that speak of it, in place of an instruction.
COPIED = (
    "given prompt", "rewritten prompt", "created prompt", "new prompt", "given instruction",
    "rewritten instruction", "new instruction", "changed instruction", "harder instruction", "instruction:",
    "<instruction>", "</instruction>",
)  # fmt: skip
_STOP_WORDS = """
    a about above after again all also am an and any are as at be because been before being below between
    both but by can could did do does doing down during each either else ever every few for from further get
    got had has have having he her here hers herself him himself his how i if in into is it its itself just
    let like may me might mine more most much must my myself neither nor now of off on once only or other
    our ours ourselves out over own quite rather same shall she should since so some such than that the their
    theirs them themselves then there these they this those though through to too under until up upon us very
    was we were what when where whether which while who whom whose why will with within without would yet you
    your yours yourself yourselves
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
EXAMPLE = {"include_originals": False}
REPLIES = {
    "teacher": [
        "Me and my sister has went too the market, but they was closed allready.\n\n"
        "Correct the spelling, the verb forms and the word order of the text, say in a list what you "
        "corrected, and change nothing else.",
        "not equal",
        'My sister and I went to the market, but it was closed already.\n\n- word order: "My sister and I"\n'
        '- verb forms: "went", "was"\n- spelling: "to", "already"\n- "it", for there is one market',
    ]
}


class Filters(StrictConfig):
    """What an evolution must be to be kept, in the order of the paper; a change here costs no new call."""

    require_new_information: bool = Field(
        True, description="the judge must find that the new instruction is not equal to its parent"
    )
    sorry_words: int = Field(80, ge=0, description='an answer with "sorry" must have so many words; 0: any')
    require_content: bool = Field(True, description="an answer must not be punctuation and stop words alone")
    copied: tuple[str, ...] | None = Field(
        None, description="phrases of the request that no new instruction may have; null: our list"
    )
    any_language: bool = Field(
        True, description="keep answers in another language than the instruction, as translations are"
    )


class Config(StrictConfig):
    """Which instructions are evolved, how often, and how."""

    questions: QuestionSource | None = Field(
        None, description="the initial instructions; null: the seed tasks of self_instruct"
    )
    instructions: int = Field(100, ge=1, description="initial instructions at most; equal ones count once")
    rounds: int = Field(4, ge=1, le=100, description="evolutions of each, counting those turned down")
    include_originals: bool = Field(True, description="a round 0 that answers the initial instructions")
    operations: tuple[Operation, ...] = Field(
        OPERATIONS, min_length=1, description="drawn uniformly; one named twice is drawn twice as often"
    )
    judged_by: Literal["teacher", "judge"] = Field(
        "teacher", description="the role that compares new instructions with their parents"
    )
    sampling: Sampling = Field(
        Sampling(temperature=1.0, top_p=0.9, max_tokens=768), description="how instructions are evolved"
    )
    judge_sampling: Sampling = Field(
        Sampling(temperature=0.0, max_tokens=128), description="how they are compared"
    )
    answer_sampling: Sampling = Field(
        Sampling(temperature=0.7, top_p=0.9, max_tokens=1024), description="how they are answered"
    )
    filters: Filters = Filters()


class Fields(BaseModel):
    """What a sample knows of its evolution; `parent` is the id of the sample it grew from, if one was kept.

    `verdict` is null where nothing was compared or the judge gave no verdict.
    """

    operation: Operation | Literal["original"]
    round: int
    slot: int
    depth: int = 0
    parent: str | None = None
    verdict: Literal["equal", "not equal"] | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One slot in one round."""

    round: int
    slot: int
    question: Question


@dataclass(frozen=True, slots=True)
class Parent:
    """What a slot holds: the newest accepted sample, or else the initial instruction."""

    text: str
    id: str | None = None
    depth: int = 0


class Turns:
    """Every slot of every round, in order; `fingerprint` tells whether the instructions are the same."""

    def __init__(self, config: Config) -> None:
        questions = Questions(config.questions or _seed_tasks())
        self.fingerprint = questions.fingerprint
        # Samples find their slot by its group, so a group has but one.
        chosen: dict[str, Question] = {}
        for question in islice(questions, config.instructions):
            chosen.setdefault(question.group, question)
        self.questions = list(chosen.values())
        if not self.questions:
            raise DataError(
                "No initial instruction in this part of the questions; choose another with questions.part"
            )
        self._rounds = range(0 if config.include_originals else 1, config.rounds + 1)

    def __iter__(self) -> Iterator[Turn]:
        for number in self._rounds:
            for slot, question in enumerate(self.questions):
                yield Turn(number, slot, question)


def _seed_tasks() -> QuestionSource:
    return QuestionSource(
        file=Path(str(files("kdbench_generators") / "_data" / "seed_instructions.jsonl")),
        columns=Columns(question="instruction", context="input", answer=None),
    )


def rows(config: Config) -> Turns:
    """One turn a seed, round after round."""
    return Turns(config)


def round_size(config: Config) -> int:
    """As many seeds as there are slots."""
    return len(Turns(config).questions)


def roles(config: Config) -> dict[str, set[str]]:
    """A judge of its own only where it is asked for."""
    return {role: {"chat"} for role in dict.fromkeys(("teacher", config.judged_by))}


async def generate(
    seed: Seed, teachers: Teachers, config: Config, prompts: Prompts, pool: Pool
) -> list[Completion | Rejection]:
    """One slot's step in one round: its original answered, or its parent evolved, judged and answered."""
    turn: Turn = seed.row
    operation = seed.rng.choice(config.operations)
    data_format = seed.rng.choice(FORMATS)
    parent = parent_of(turn, pool, prompts)
    if turn.round == 0:
        instruction, fault = parent.text, None
        fields = Fields(operation="original", round=0, slot=turn.slot)
    else:
        values = {"format": data_format} if operation == "complicate_input" else {}
        ask = prompts.user(operation, instruction=parent.text, **values)
        evolved = await teachers["teacher"].chat([ask], config.sampling)
        if evolved.finish_reason == "length":  # half an instruction, whatever the policy for answers
            raise Rejected("truncated", "the new instruction was cut off")
        instruction = instruction_of(evolved.text)
        check_instruction(instruction, parent.text, operation)
        verdict = await judge(parent.text, instruction, teachers, config, prompts)
        fields = Fields(
            operation=operation,
            round=turn.round,
            slot=turn.slot,
            depth=parent.depth + (operation != "breadth"),
            parent=parent.id,
            verdict=verdict,
        )
        bare = prompts.render(operation, instruction="", **values)
        fault = find_elimination(verdict, instruction, parent.text, bare, config.filters)
    prompt = Message(role="user", content=instruction)
    reply = await teachers["teacher"].chat([prompt], config.answer_sampling)
    sample = Completion(
        prompt=(prompt,),
        completion=(reply.message,),
        group=turn.question.group,
        fields=fields.model_dump_json(),
    )
    fault = fault or find_answer_fault(reply.text, instruction, config.filters)
    return [sample if fault is None else Rejection(reason=fault[0], detail=fault[1], sample=sample)]


def parent_of(turn: Turn, pool: Pool, prompts: Prompts) -> Parent:
    """What the slot of a turn holds."""
    sample = pool.latest.get(turn.question.group)
    if sample is None:
        return Parent(prompts.render("question", question=turn.question))
    assert isinstance(sample, Completion)
    return Parent(sample.prompt[0].content, sample.id, Fields.model_validate_json(sample.fields).depth)


_PREAMBLE = re.compile(
    r"(?:(?:sure|certainly)\b[^\n]{0,160}[!.:]|(?:of course|okay)\b[^\n]{0,160}[!:]"
    r"|here(?:'s| is)\b[^\n]{0,100}\b(?:instruction|prompt|version)\b[^\n]{0,60}:)[ \t*]*\n\s*",
    re.IGNORECASE,
)
_QUOTED = re.compile(
    r'"([^"]+)"|“([^“”]+)”|<instruction>((?:(?!</?instruction>).)+)</instruction>', re.DOTALL
)


def instruction_of(text: str) -> str:
    """The instruction alone: without a preamble ("Sure, here it is:"), quotes or tags around it."""
    text = text.strip()
    if match := _PREAMBLE.match(text):
        text = text[match.end() :].strip()
    if match := _QUOTED.fullmatch(text):
        text = (match[1] or match[2] or match[3]).strip()
    return text


def check_instruction(instruction: str, parent: str, operation: Operation) -> None:
    """Stop what no filter would keep before it costs more calls.

    Raises Rejected("unchanged") and those of kdbench.replies.find_fault.
    """
    fault = find_fault(instruction, "")
    if fault is None and instruction.split() == parent.split():
        fault = "unchanged", ""
    if fault is None and operation != "complicate_input":  # whose data have no language
        language = other_language(instruction, parent)
        fault = None if language is None else ("other_language", language)
    if fault is not None:
        raise Rejected(fault[0], f"in the new instruction: {fault[1] or instruction[:80]}")


async def judge(
    parent: str, instruction: str, teachers: Teachers, config: Config, prompts: Prompts
) -> Literal["equal", "not equal"] | None:
    """The judge's verdict, None where there is none to be read."""
    ask = prompts.user("judge", first=parent, second=instruction)
    (reply,) = await teachers[config.judged_by].draws([ask], config.judge_sampling, 1)
    return verdict_of(reply.text) if isinstance(reply, Reply) else None


_VERDICT = re.compile(r"((?:\bnot|n['’]t)\s+(?:\w+\s+)?equal\b|\bunequal\b)|\bequal\b", re.IGNORECASE)


def verdict_of(text: str) -> Literal["equal", "not equal"] | None:
    """The first verdict in a judge's reply."""
    match = _VERDICT.search(text)
    return None if match is None else "not equal" if match[1] else "equal"


def find_elimination(
    verdict: str | None, instruction: str, parent: str, bare_request: str, filters: Filters
) -> tuple[str, str] | None:
    """(reason, detail) of the first elimination that a new instruction falls to; None if it stays."""
    if filters.require_new_information and verdict != "not equal":
        return ("no_verdict", "") if verdict is None else ("no_new_information", parent[:80])
    phrases = COPIED if filters.copied is None else filters.copied
    lower, before = instruction.lower(), parent.lower()
    if found := next((p for p in phrases if p.lower() in lower and p.lower() not in before), None):
        return "copied_prompt", found
    if phrases and echoes_prompt(instruction, bare_request):
        return "copied_prompt", "ten runs of four words or more"
    return None


def find_answer_fault(answer: str, instruction: str, filters: Filters) -> tuple[str, str] | None:
    """(reason, detail) of the first elimination that an answer falls to, None if it passes them all."""
    fault = find_fault(answer, instruction, quotes=True)
    if fault is not None and not (fault[0] == "other_language" and filters.any_language):
        return fault
    count = len(answer.split())
    if "sorry" in answer.lower() and count < filters.sorry_words:
        return "sorry", f"{count} words"
    if filters.require_content and all(word in STOP_WORDS for word in re.findall(r"[^\W_]+", answer.lower())):
        return "no_content", answer.strip()[:80]
    return None
