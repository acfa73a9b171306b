"""Chain of thought: several reasoning paths per question, of which the right or the agreeing ones are kept.

    seed 0 -> "A crate holds 12 bottles. How many bottles are in 5 crates?", gold answer "60"
    teacher asked four times for one and the same: that question. Think it through step by step ...
    draws:  "12 * 5 = 60. The answer is 60."      a sample: prompt = what was asked, completion = the draw
            "12 + 5 = 17. The answer is 17."      turned down: wrong_answer
            "5 crates: 12 * 5 = 60. The answer is 60."      turned down: same_path, it calculates the same
            "10 * 5 = 50, 50 + 10 = 60. The answer is 60."  a second sample

One recipe for three papers; the defaults are the first, with fewer draws.

    rejection sampling, RFT (arXiv 2308.01825): the paths that reach the gold answer, whose equations hold,
        and of those with equal equations one.                        samples: 100
    self-improvement, LMSI (arXiv 2210.11610): no gold answers; all paths that reach the answer most draws
        agree on.                  filters: {keep: majority, distinct: false, valid_equations: false}
    Specialised FlanT5 (arXiv 2301.12726): right paths, trained on with and without demonstrations, with
        and without reasoning.     shots: 4, student_formats: [few_shot_cot, few_shot_direct, ...]

Each kept path becomes one sample per reasoning format; a direct format has the bare answer as completion and
comes once a question. Where a student's prompt is not what the teacher was asked, `teacher_prompt` is.

The vote is over all draws in the form in which equal answers are equal; a draw that cannot be read counts
in the total. `fields` has its share and, where gold is known, whether it is right, so that with
`keep: majority` the labels can be checked: `answer` is the voted one there.

Unlike the papers: any chat model is the teacher (RFT draws from the student after SFT, LMSI from the model
itself); equations are read in prose where there are no <<48/2=24>>; paths without any are told apart by
their text; RFT adds each question's own worked solution, which a question here does not have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field, model_validator

from kdbench.asking import origin_of
from kdbench.config import StrictConfig
from kdbench.equations import equations, path_key, pick_distinct
from kdbench.errors import Rejected
from kdbench.prompts import Prompts
from kdbench.questions import Question, QuestionFields, Questions, QuestionSource
from kdbench.reasoning import Demonstration, Demonstrations, available, choose, read_solution, turns
from kdbench.records import Completion, Message, Origin, Rejection
from kdbench.teacher import Reply, Sampling
from kdbench.voting import Vote, majority

if TYPE_CHECKING:
    from kdbench.asking import Teachers
    from kdbench.engine import Seed

FACTS = {
    "papers": "Yuan et al. 2023, Scaling Relationship on Learning Mathematical Reasoning with LLMs (RFT); "
    "Huang et al. 2022, Large Language Models Can Self-Improve (LMSI); "
    "Fu et al. 2023, Specializing Smaller Language Models towards Multi-Step Reasoning",
    "arxiv": "2308.01825, 2210.11610, 2301.12726",
    "from the papers": "RFT: 100 draws a question at temperature 0.7, right answer, every equation within "
    "1e-3, one path per list of equations, the one most unlike those kept; LMSI: all paths that agree with "
    "the majority, without gold answers; FlanT5: four formats, with demonstrations (4) or without, with "
    "reasoning or without",
    "ours": "wording and demonstrations, several teachers, min_share, max_per_question, what is turned down "
    "as no reply at all",
    "trap": "what RFT gains goes with the number of distinct paths, not of draws: look at same_path",
}
REPLIES = {
    "teacher": [
        "One crate holds 12 bottles, so 5 crates hold 12 * 5 = 60. The answer is 60.",
        "5 crates with 12 bottles each: 5 + 12 = 17. The answer is 17.",
        "That is 12 * 5 = 60 bottles. The answer is 60.",
        "Five crates of 10 would be 10 * 5 = 50. The other 2 of each are 2 * 5 = 10. Together 50 + 10 = 60. "
        "The answer is 60.",
    ]
}
FormatName = Literal["few_shot_cot", "few_shot_direct", "zero_shot_cot", "zero_shot_direct"]


class Filters(StrictConfig):
    """Which paths are kept; a change here costs no new call and renames no sample.

    Save for questions without a gold answer: those that need one are turned down before they are asked.
    """

    keep: Literal["gold", "majority", "all"] = Field(
        "gold", description="paths to the gold answer, to the answer most draws agree on, or any"
    )
    min_share: float | None = Field(
        None, ge=0, le=1, description="majority: of all draws, the share that must agree"
    )
    valid_equations: bool = Field(
        True, description="turn down a path with an equation that is off by 1e-3 or more, by rounding too"
    )
    distinct: bool = Field(True, description="of paths with the same equations keep one")
    max_per_question: int | None = Field(None, ge=1, description="paths kept at most, in the order of draws")

    @model_validator(mode="after")
    def _fits(self) -> Filters:
        if self.min_share is not None and self.keep != "majority":
            raise ValueError(f"min_share is of the vote: set keep to majority (it is {self.keep})")
        return self


class Config(StrictConfig):
    """Which questions are asked, how often, of whom, and what the student is to learn from."""

    questions: QuestionSource
    samples: int = Field(4, ge=1, le=1000, description="draws for each question and teacher")
    teachers: int = Field(1, ge=1, le=10, description="how many: the roles teacher, teacher_2, ...")
    shots: int = Field(0, ge=0, description="demonstrations that the teacher sees; 0: only the question")
    student_shots: int = Field(4, ge=1, description="demonstrations in the student's few-shot formats")
    demonstrations: Demonstrations = None
    student_formats: tuple[FormatName, ...] = Field(
        ("zero_shot_cot",), min_length=1, description="how the student is asked: one sample for each"
    )
    marker: str = Field(
        "The answer is", min_length=1, description="what stands before the answer, in prompts and replies"
    )
    sampling: Sampling = Sampling(temperature=0.7, max_tokens=512)
    filters: Filters = Filters()

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError("samples above 1 need sampling.temperature above 0: greedy draws are all alike")
        if len(set(self.student_formats)) < len(self.student_formats):
            raise ValueError("student_formats names a format twice")
        few_shot = any(name.startswith("few_shot") for name in self.student_formats)
        for key, needed in (("shots", self.shots), ("student_shots", self.student_shots * few_shot)):
            if needed > (there := len(available(self.demonstrations))):
                raise ValueError(f"{key} is {needed}, but there are only {there} demonstrations")
        return self


class Fields(QuestionFields):
    """What a sample knows of its question, of its path and of the vote.

    `vote_share` is the share of all draws that gave the winning answer, null if none could be read;
    `voted_right` is null where there is no gold answer.
    """

    format: FormatName
    teacher: str
    draw: int
    vote_share: float | None
    voted_right: bool | None


@dataclass(slots=True)
class Path:
    """One draw, and why it is turned down; `answer` as it is written, "" in a draw that is no path at all.

    `counted` is the form in which equal answers are equal; None for one that cannot be read.
    """

    role: str
    draw: int
    reply: Reply | None = None
    text: str = ""
    answer: str = ""
    counted: str | None = None
    fault: tuple[str, str] | None = None


class Ballot(NamedTuple):
    """The vote over all draws of a question, and whether it is right where that is known."""

    vote: Vote | None
    right: bool | None


def roles(config: Config) -> dict[str, set[str]]:
    """teacher, teacher_2, teacher_3, ..."""
    return {f"teacher_{i}" if i > 1 else "teacher": {"chat"} for i in range(1, config.teachers + 1)}


def rows(config: Config) -> Questions:
    """One question a seed."""
    return Questions(config.questions)


async def generate(
    seed: Seed, teachers: Teachers, config: Config, prompts: Prompts
) -> list[Completion | Rejection]:
    """The outcomes of one question: of each draw in turn, one per reasoning format; then the direct ones."""
    question: Question = seed.row
    question.check_gold()
    if config.filters.keep == "gold" and question.answer is None:
        raise Rejected("no_gold", "filters.keep = gold needs the right answer; majority does without")
    style: FormatName = "few_shot_cot" if config.shots else "zero_shot_cot"
    asked = conversation(style, question, config, prompts, config.shots)
    drawn = {
        role: await teachers[role].draws(asked, config.sampling, config.samples) for role in roles(config)
    }
    # The first draw of every teacher, then the second: max_per_question favours none of them.
    numbered = [(draw, role) for draw in range(config.samples) for role in drawn]
    paths = [
        read(drawn[role][draw], role, draw, asked[-1].content, question, config) for draw, role in numbered
    ]
    ballot = hold_vote(paths, question)
    kept = sift(paths, question, ballot.vote, config.filters)
    return Writer(seed.index, question, asked, ballot, config, prompts).outcomes(paths, kept)


def conversation(
    name: FormatName, question: Question, config: Config, prompts: Prompts, shots: int
) -> tuple[Message, ...]:
    """A question in one of the formats, after its demonstrations."""

    def ask(question: Question) -> Message:
        return prompts.user(name, question=question, marker=config.marker)

    def say(one: Demonstration) -> str:
        if name.endswith("direct"):
            return one.answer
        return prompts.render("demonstration", demonstration=one, marker=config.marker)

    shown = choose(config.demonstrations, question, shots) if name.startswith("few_shot") else []
    return (*turns(shown, ask, say), ask(question))


def read(
    reply: Reply | Rejected, role: str, draw: int, asked: str, question: Question, config: Config
) -> Path:
    """A draw as a path, or with the fault that makes it none."""
    if isinstance(reply, Rejected):
        return Path(role, draw, fault=(reply.reason, reply.detail))
    path = Path(role, draw, reply, reply.text.strip())
    try:
        path.answer = read_solution(reply, question, asked=asked, marker=config.marker).answer
    except Rejected as exc:
        path.fault = (exc.reason, exc.detail)
    else:
        path.counted = question.canonical(path.answer)
    return path


def hold_vote(paths: Sequence[Path], question: Question) -> Ballot:
    """The vote: a draw that cannot be read counts in the total and votes for nothing."""
    vote = majority([path.counted for path in paths])
    right = None if vote is None or question.answer is None else question.is_correct(vote.answer)
    return Ballot(vote, right)


def sift(paths: Sequence[Path], question: Question, vote: Vote | None, filters: Filters) -> list[Path]:
    """The paths that pass the filters; the others get the fault they fail for."""
    left = [path for path in paths if path.fault is None]
    for path in left:
        path.fault = find_unwanted(path, question, vote, filters)
    left = [path for path in left if path.fault is None]
    if filters.distinct:
        chosen = distinct(left)
        for i, path in enumerate(left):
            if i not in chosen:
                path.fault = ("same_path", path_key(path.text))
        left = [left[i] for i in sorted(chosen)]
    most = filters.max_per_question or len(left)
    for path in left[most:]:
        path.fault = ("surplus", f"more than {most} paths")
    return left[:most]


def find_unwanted(
    path: Path, question: Question, vote: Vote | None, filters: Filters
) -> tuple[str, str] | None:
    """(reason, detail) of the first filter that a path fails by itself, None if it passes them all."""
    if filters.keep == "gold" and not question.is_correct(path.answer):
        return "wrong_answer", path.answer[:80]
    if filters.keep == "majority":
        if vote is None or path.counted != vote.answer:
            return "outvoted", f"{path.answer[:80]}; the vote: {vote.answer if vote else 'none'}"
        if vote.share < (filters.min_share or 0):
            return "low_share", f"{vote.count} of {vote.total}"
    if filters.valid_equations:
        false = next((one for one in equations(path.text) if not one.is_valid), None)
        if false is not None:
            return "invalid_equation", f"{false.expression}={false.result}"
    return None


def distinct(paths: Sequence[Path]) -> set[int]:
    """The places of paths of which no two calculate the same or, without calculations, say the same."""
    calculating = [i for i, path in enumerate(paths) if path_key(path.text)]
    chosen = {calculating[i] for i in pick_distinct([paths[i].text for i in calculating])}
    said: dict[str, int] = {}
    for i in range(len(paths)):
        if i not in calculating:
            said.setdefault(" ".join(paths[i].text.split()), i)
    return chosen | set(said.values())


@dataclass(frozen=True, slots=True)
class Writer:
    """Makes the samples of one question."""

    seed: int
    question: Question
    asked: tuple[Message, ...]
    ballot: Ballot
    config: Config
    prompts: Prompts

    def outcomes(self, paths: Sequence[Path], kept: Sequence[Path]) -> list[Completion | Rejection]:
        """As many whatever the filters, so that a changed filter renames nothing."""
        formats = self.config.student_formats
        reasoning = [name for name in formats if name.endswith("cot")]
        of_paths = [
            self._of_path(path, name)
            for path in paths
            # What is no path at all is turned down once, not in each format.
            for name in (reasoning if path.answer else reasoning[:1])
        ]
        return [*of_paths, *(self._direct(paths, kept, name) for name in formats if name not in reasoning)]

    def _of_path(self, path: Path, name: FormatName) -> Completion | Rejection:
        if path.reply is None:
            assert path.fault is not None  # there is nothing to keep
            return Rejection(reason=path.fault[0], detail=path.fault[1])
        origin = origin_of(self.seed, path.reply)
        message = Message(role="assistant", content=path.text, reasoning=path.reply.reasoning)
        sample = self._sample(message, path, name, origin)
        if path.fault is None:
            return sample
        return Rejection(reason=path.fault[0], detail=path.fault[1], sample=sample, origin=origin)

    def _direct(
        self, paths: Sequence[Path], kept: Sequence[Path], name: FormatName
    ) -> Completion | Rejection:
        """The bare answer of the kept paths, or of most of them, as the first to give it writes it."""
        if not kept:
            reasons = Counter(path.fault[0] for path in paths if path.fault is not None)
            return Rejection(reason="no_path", detail=", ".join(f"{n} {why}" for why, n in reasons.items()))
        most = majority([path.counted for path in kept])
        path = next((one for one in kept if most is not None and one.counted == most.answer), kept[0])
        assert path.reply is not None  # it was kept
        message = Message(role="assistant", content=path.answer)
        return self._sample(message, path, name, origin_of(self.seed, path.reply))

    def _sample(self, message: Message, path: Path, name: FormatName, origin: Origin) -> Completion:
        prompt = conversation(name, self.question, self.config, self.prompts, self.config.student_shots)
        vote, right = self.ballot
        fields = Fields(
            **QuestionFields.of(self.question),
            format=name,
            teacher=path.role,
            draw=path.draw,
            vote_share=vote and vote.share,
            voted_right=right,
        )
        return Completion(
            prompt=prompt,
            completion=(message,),
            teacher_prompt=None if prompt == self.asked else self.asked,
            answer=vote.answer if vote and self.config.filters.keep == "majority" else self.question.answer,
            group=self.question.group,
            fields=fields.model_dump_json(),
            origin=origin,
        )
