"""Distilling step-by-step: a label and a rationale as two tasks of one student (arXiv 2305.02301).

    seed 0 -> "A crate holds 12 bottles. How many bottles are in 5 crates?"
    teacher asked, after four demonstrations: that question. Explain step by step how to get to the answer ...
    it says: "Five crates of 12 bottles hold 5 * 12 = 60. The answer is 60."
    two samples of one group, told apart by a prefix:
        prompt "[label] A crate holds ..."      -> "60"                                           weight 1
        prompt "[rationale] A crate holds ..."  -> "Five crates of 12 bottles hold 5 * 12 = 60."  weight 1

The rationale teaches the student why, and costs nothing later: **ask the trained student with the label
prefix alone**, `[label] QUESTION`; it answers at once, without reasoning.

The loss is alpha * L_label + (1 - alpha) * L_rationale. It is carried by the samples' weights, 2 * alpha and
2 * (1 - alpha), which are both 1 at the usual alpha = 0.5. A mean over tokens, as kdbench's trainers take
it, gives a long rationale more of the loss than a label of one word; in the authors' code each loss is the
mean over its own task. Raise alpha to come closer to that.

An even -n keeps the pairs whole: a run ends with the sample that makes n.

Unlike the paper: any chat model is the teacher, any questions, the wording; of a T5 encoder's input and
output it is prompt and completion here; and `filters.keep: gold` turns down a pair whose teacher was wrong,
which the paper does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from kdbench.asking import origin_of
from kdbench.config import StrictConfig
from kdbench.errors import Rejected
from kdbench.prompts import Prompts
from kdbench.questions import Question, QuestionFields, Questions, QuestionSource
from kdbench.reasoning import Demonstration, Demonstrations, available, choose, read_solution, turns
from kdbench.records import Completion, Message, Rejection
from kdbench.teacher import Reply, Sampling

if TYPE_CHECKING:
    from kdbench.asking import Teachers
    from kdbench.engine import Seed

FACTS = {
    "paper": "Hsieh et al. 2023, Distilling Step-by-Step! Outperforming Larger Language Models with Less "
    "Training Data and Smaller Model Sizes",
    "arxiv": "2305.02301",
    "from the paper": "about ten worked examples; one reply, cut at the answer's marker into rationale and "
    "label; two tasks by prefix, alpha 0.5; inference with the label prefix alone; labels from the data or "
    "the teacher",
    "ours": "wording and demonstrations, greedy replies, the check against gold",
    "trap": "the paper's prefixes are [label] and [rationale], its code has 'predict: ' and 'explain: '; the "
    "paper writes L_label + lambda * L_rationale, its code alpha * L_label + (1 - alpha) * L_rationale",
}
REPLIES = {"teacher": ["Five crates of 12 bottles hold 5 * 12 = 60. The answer is 60."]}
ViewName = Literal["label", "rationale"]


class Filters(StrictConfig):
    """Which pairs are kept; a change here costs no new call and renames no sample.

    Save for questions without a gold answer: those that need one are turned down before they are asked.
    """

    keep: Literal["all", "gold"] = Field("all", description="all pairs, or those whose teacher was right")


class Config(StrictConfig):
    """Which questions are asked, and how label and rationale are told apart."""

    questions: QuestionSource
    shots: int = Field(4, ge=0, description="demonstrations that the teacher sees; the student sees none")
    demonstrations: Demonstrations = None
    marker: str = Field(
        "The answer is", min_length=1, description="what stands before the answer, in prompt and reply"
    )
    label_from: Literal["teacher", "gold"] = Field("teacher", description="whose answer the label is")
    label_prefix: str = Field("[label] ", description="as the paper has it; its code: 'predict: '")
    rationale_prefix: str = Field("[rationale] ", description="as the paper has it; its code: 'explain: '")
    alpha: float = Field(
        0.5, gt=0, lt=1, description="weight of the label; the rationale's is 1 - alpha, both times 2"
    )
    sampling: Sampling = Sampling(temperature=0.0, max_tokens=512)
    filters: Filters = Filters()

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.shots > (there := len(available(self.demonstrations))):
            raise ValueError(f"shots is {self.shots}, but there are only {there} demonstrations")
        if self.label_prefix == self.rationale_prefix:
            raise ValueError(
                "label_prefix and rationale_prefix must differ: nothing else tells the tasks apart"
            )
        return self


class Fields(QuestionFields):
    """What a sample knows of its question and of its task.

    `correct` says whether the teacher's answer is right; null where there is no gold answer.
    """

    view: ViewName
    correct: bool | None


def rows(config: Config) -> Questions:
    """One question a seed."""
    return Questions(config.questions)


async def generate(
    seed: Seed, teachers: Teachers, config: Config, prompts: Prompts
) -> list[Completion | Rejection]:
    """One question's label and rationale, both or neither."""
    question: Question = seed.row
    question.check_gold()
    if question.answer is None and (config.filters.keep == "gold" or config.label_from == "gold"):
        raise Rejected("no_gold", "filters.keep = gold and label_from = gold need the right answer")
    asked = conversation(question, config, prompts)
    reply = await teachers["teacher"].chat(asked, config.sampling)
    writer = Writer(seed.index, question, asked, reply, config, prompts)
    try:
        solution = read_solution(reply, question, asked=asked[-1].content, marker=config.marker)
        if not solution.reasoning:
            raise Rejected("no_rationale", reply.text.strip()[:80])
    except Rejected as exc:
        return [writer.unread(exc)]
    correct = None if question.answer is None else question.is_correct(solution.answer)
    label = question.answer if config.label_from == "gold" else solution.answer
    assert label is not None  # without gold the seed was turned down above
    pair = [writer.sample("label", label, correct), writer.sample("rationale", solution.reasoning, correct)]
    if config.filters.keep == "gold" and not correct:
        wrong = solution.answer[:80]
        return [Rejection(reason="wrong_answer", detail=wrong, sample=one, origin=one.origin) for one in pair]
    return [*pair]


def conversation(question: Question, config: Config, prompts: Prompts) -> tuple[Message, ...]:
    """The request to the teacher, after its demonstrations."""

    def ask(question: Question) -> Message:
        return prompts.user("ask", question=question, marker=config.marker)

    def say(one: Demonstration) -> str:
        return prompts.render("demonstration", demonstration=one, marker=config.marker)

    return (*turns(choose(config.demonstrations, question, config.shots), ask, say), ask(question))


def weight_of(view: ViewName, alpha: float) -> float:
    """The factor of a task's loss, so scaled that both are 1 at alpha 0.5."""
    return 2 * (alpha if view == "label" else 1 - alpha)


@dataclass(frozen=True, slots=True)
class Writer:
    """Makes the samples of one question."""

    seed: int
    question: Question
    asked: tuple[Message, ...]
    reply: Reply
    config: Config
    prompts: Prompts

    def sample(self, view: ViewName, target: str, correct: bool | None) -> Completion:
        """One of the two tasks. The teacher's own thinking is in neither: it would be a second rationale."""
        config = self.config
        prefix = config.label_prefix if view == "label" else config.rationale_prefix
        return Completion(
            prompt=(self.prompts.user("view", question=self.question, prefix=prefix),),
            completion=(Message(role="assistant", content=target),),
            teacher_prompt=self.asked,
            answer=self.question.answer,
            group=self.question.group,
            weight=weight_of(view, config.alpha),
            fields=Fields(**QuestionFields.of(self.question), view=view, correct=correct).model_dump_json(),
            origin=origin_of(self.seed, self.reply),
        )

    def unread(self, fault: Rejected) -> Rejection:
        """A reply that cannot be cut in two, kept whole as a rationale."""
        whole = self.sample("rationale", self.reply.text.strip(), None)
        return Rejection(reason=fault.reason, detail=fault.detail, sample=whole, origin=whole.origin)
