"""Explanation tuning: questions answered under sixteen kinds of system message (Orca, arXiv 2306.02707).

    seed 0 -> "A crate holds 12 bottles. How many bottles are in 5 crates?", intent "find_information"
    teacher asked: system  People come to you to find things out. Give them all the details, so that ...
                   user    A crate holds 12 bottles. How many bottles are in 5 crates?
    sample: prompt = both messages, as the student sees them too;
            completion = "One crate holds 12 bottles. With every further crate 12 more are added, so ..."
            fields = {"intent": "find_information", "collection": "other", "stage": 1, ...}

Each question draws one of the intents that fit its sub-collection (`FITTING`); the intent `empty` has no
system message. `collections` says to which sub-collection a kind of question belongs. `mix` thins out the
sub-collections that are too frequent: a question is asked with probability share / largest share. Seeds
are taken in order, so shuffle a file that is sorted by kind.

Progressive learning: with `strong_share` above 0 every question goes to the role `teacher` (stage 1) and
that share of them, with the same system message, to the role `strong_teacher` too (stage 2; the paper's
share is 0.2). Train in stages:

    kdbench generate explanation --teacher teacher=T --teacher strong_teacher=S --set strong_share=0.2 ...
    kdbench train black_box --data RUN --student BASE --where stage=1 --out ONE
    kdbench train black_box --data RUN --student ONE --where stage=2 --out TWO

Unlike the paper: any questions rather than FLAN-v2, any teachers, the wording, and the filters. The paper
checked no answer; neither does this by default. `filters.check_answer` turns down a marked answer that is
not the gold one; an answer without the marker, which no system message asks for, stays unchecked.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import Field, model_validator

from kdbench.asking import origin_of
from kdbench.config import StrictConfig
from kdbench.errors import Rejected
from kdbench.prompts import Prompts
from kdbench.questions import Question, QuestionFields, Questions, QuestionSource
from kdbench.records import Completion, Message, Origin, Rejection
from kdbench.replies import find_fault
from kdbench.teacher import Reply, Sampling

if TYPE_CHECKING:
    from kdbench.asking import Teachers
    from kdbench.engine import Seed

FACTS = {
    "paper": "Mukherjee et al. 2023, Orca: Progressive Learning from Complex Explanation Traces of GPT-4",
    "arxiv": "2306.02707",
    "from the paper": "sixteen kinds of system message, each for some parts of FLAN-v2, two of them for "
    "multiple choice alone; 5M answers of a first teacher, then 1M of a stronger one to a uniform "
    "sub-sample; four epochs on each in turn, loss on the response alone",
    "second hand": "which intents go with which part: as open replications have it from the paper's figure 6",
    "ours": "the wording, the set for questions of no known sub-collection, mixing by shares, filters",
    "trap": "the system message stays in the student's prompt; erasing it came with Orca 2 (prompt_erasing)",
}
REPLIES = {
    "teacher": [
        "One crate holds 12 bottles. With every further crate 12 more are added, so 5 crates hold 5 times as "
        "many: 5 x 12 = 60. There are 60 bottles in 5 crates."
    ]
}
IntentName = Literal[
    "empty", "detailed", "long_detailed", "five_year_old", "follow_instructions", "find_information",
    "step_by_step", "choice_explained", "definition_used", "choice_with_knowledge", "faithful_steps",
    "definition_and_input", "teacher_guidelines", "translator", "definition_parts", "search_helper",
]  # fmt: skip
CollectionName = Literal["cot", "niv2", "t0", "flan2021", "other"]
INTENTS: tuple[IntentName, ...] = get_args(IntentName)
CHOICE_INTENTS: tuple[IntentName, ...] = ("choice_explained", "choice_with_knowledge")  # need options
# Which intents the questions of a sub-collection draw from. "other" is ours: whatever needs no definition.
FITTING: dict[CollectionName, tuple[IntentName, ...]] = {
    "cot": ("find_information", "faithful_steps", "search_helper"),
    "niv2": (
        "empty", "detailed", "follow_instructions", "step_by_step", "definition_used", "definition_and_input",
        "teacher_guidelines", "translator", "definition_parts",
    ),
    "t0": ("empty", "detailed", "long_detailed", "follow_instructions", "step_by_step"),
    "flan2021": ("long_detailed", "five_year_old", "step_by_step", *CHOICE_INTENTS),
    "other": (*INTENTS[:7], *CHOICE_INTENTS, "faithful_steps", "search_helper"),
}  # fmt: skip


class Filters(StrictConfig):
    """What a response must be to be kept; a change here costs no new call and renames no sample."""

    min_words: int = Field(1, ge=0)
    max_words: int = Field(2000, ge=1)
    any_language: bool = Field(
        False, description="keep answers in another language than the question, as translations are"
    )
    check_answer: bool = Field(
        False, description="turn down a marked answer that is not the gold one; the paper checked none"
    )
    marker: str = Field("The answer is", min_length=1, description="what stands before a final answer")

    @model_validator(mode="after")
    def _ordered(self) -> Filters:
        if self.min_words > self.max_words:
            raise ValueError("min_words must not be above max_words")
        return self


class Config(StrictConfig):
    """Which questions are asked, under which system messages, and of whom."""

    questions: QuestionSource
    collections: dict[str, CollectionName] = Field(
        {}, description="kind of question -> cot, niv2, t0, flan2021 or other; a kind of such a name is it"
    )
    intents: tuple[IntentName, ...] | None = Field(
        None, min_length=1, description="draw from these alone, where they fit; null: all that fit"
    )
    mix: dict[CollectionName, Annotated[float, Field(ge=0)]] | None = Field(
        None, description="sub-collection -> relative share, 0 for one not named; null: ask all questions"
    )
    strong_share: float = Field(
        0.0, ge=0, le=1, description="share of the questions that strong_teacher answers too, as stage 2"
    )
    sampling: Sampling = Sampling(temperature=0.7, max_tokens=1024)
    filters: Filters = Filters()

    @model_validator(mode="after")
    def _some_share(self) -> Config:
        if self.mix is not None and not any(self.mix.values()):
            raise ValueError("mix must give at least one sub-collection a share above 0")
        return self


class Fields(QuestionFields):
    """What a sample knows of its question, its system message and its teacher.

    `correct` is null where there is no gold answer or no marked final answer.
    """

    intent: IntentName
    collection: CollectionName
    stage: int
    correct: bool | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """How one question is asked."""

    question: Question
    intent: IntentName
    collection: CollectionName
    strong: bool


def roles(config: Config) -> dict[str, set[str]]:
    """The stronger teacher is needed only where it has a share."""
    needed = ["teacher", "strong_teacher"] if config.strong_share > 0 else ["teacher"]
    return {role: {"chat"} for role in needed}


def rows(config: Config) -> Questions:
    """One question per seed."""
    return Questions(config.questions)


async def generate(
    seed: Seed, teachers: Teachers, config: Config, prompts: Prompts
) -> list[Completion | Rejection]:
    """One question's answers: the teacher's and, where it was drawn, the stronger teacher's."""
    plan = draw_plan(seed.rng, seed.row, config)
    plan.question.check_gold()
    user = prompts.user("question", question=plan.question)
    prompt = (user,) if plan.intent == "empty" else (prompts.system(plan.intent), user)
    outcomes: list[Completion | Rejection] = []
    for stage, role in enumerate(roles(config), start=1):
        if stage == 2 and not plan.strong:
            break
        # A draw: one teacher's useless reply is turned down alone, not with the whole seed.
        (reply,) = await teachers[role].draws(prompt, config.sampling, 1)
        if isinstance(reply, Rejected):
            outcomes.append(Rejection(reason=reply.reason, detail=reply.detail))
        else:
            outcomes.append(judge(reply, origin_of(seed.index, reply), prompt, plan, stage, config.filters))
    return outcomes


def draw_plan(rng: random.Random, question: Question, config: Config) -> Plan:
    """The plan of one question. Raises Rejected("not_drawn") and Rejected("no_fitting_intent")."""
    collection = collection_of(question.kind, config)
    if config.mix is not None:
        share = config.mix.get(collection, 0.0)
        if rng.random() >= share / max(config.mix.values()):
            raise Rejected("not_drawn", f"sub-collection {collection}")
    offered = fitting_intents(collection, question, config)
    if not offered:
        raise Rejected("no_fitting_intent", f"sub-collection {collection}")
    intent = rng.choice(offered)
    return Plan(question, intent, collection, strong=rng.random() < config.strong_share)


def collection_of(kind: str, config: Config) -> CollectionName:
    """The sub-collection that a kind of question belongs to."""
    named: CollectionName = next((name for name in FITTING if name == kind), "other")
    return config.collections.get(kind, named)


def fitting_intents(collection: CollectionName, question: Question, config: Config) -> list[IntentName]:
    """The intents that a question may draw."""
    return [
        intent
        for intent in FITTING[collection]
        if (question.choices or intent not in CHOICE_INTENTS)
        and (config.intents is None or intent in config.intents)
    ]


def judge(
    reply: Reply, origin: Origin, prompt: tuple[Message, ...], plan: Plan, stage: int, filters: Filters
) -> Completion | Rejection:
    """The reply as a sample, or as a rejection that carries it."""
    question = plan.question
    correct = is_right(reply.text, question, filters.marker)
    fields = Fields(
        **QuestionFields.of(question),
        intent=plan.intent,
        collection=plan.collection,
        stage=stage,
        correct=correct,
    )
    sample = Completion(
        prompt=prompt,
        completion=(reply.message,),
        answer=question.answer,
        group=question.group,
        fields=fields.model_dump_json(),
        origin=origin,
    )
    fault = find_wrong(reply.text, prompt[-1].content, correct, filters)
    if fault is None:
        return sample
    return Rejection(reason=fault[0], detail=fault[1], sample=sample, origin=origin)


def is_right(text: str, question: Question, marker: str) -> bool | None:
    """Whether the marked answer is the gold one; None where one of them is missing."""
    if question.answer is None:
        return None
    try:
        return question.is_correct(question.solution(text, marker).answer)
    except Rejected:
        return None


def find_wrong(text: str, asked: str, correct: bool | None, filters: Filters) -> tuple[str, str] | None:
    """(reason, detail) of the first filter that the response fails, None if it passes them all."""
    fault = find_fault(text, asked, quotes=True)
    if fault is not None and not (filters.any_language and fault[0] == "other_language"):
        return fault
    count = len(text.split())  # numbers and formulas count
    if count < filters.min_words:
        return "too_short", f"{count} words"
    if count > filters.max_words:
        return "too_long", f"{count} words"
    if filters.check_answer and correct is False:
        return "wrong_answer", ""
    return None
