"""Questions to ask a teacher: from a file, a dataset or a reasoning-gym task, one per seed.

    {task: {chain_sum: {min_terms: 2, max_terms: 3}}}        # endless, made by reasoning-gym
    {file: questions.jsonl, verifier: numeric}               # .jsonl, .csv or .parquet
    {dataset: openai/gsm8k, name: main, columns: {answer: answer}, verifier: numeric}

    -> Question(text="State the final answer ...: 5 - 9 =", answer="-4", kind="chain_sum",
                verifier="reasoning_gym", group="2f6a90c1d3b7", entry='{"question": ...}')

Equal questions share a `group`, so that no split parts them. `part` divides all questions by a hash of
their text: with the same `heldout_share`, what is in "heldout" is never in "train", whatever the seeds and
however small the task.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from kdbench.config import StrictConfig, suggestion
from kdbench.errors import ConfigError, DataError, MissingExtra
from kdbench.extraction import Solution, split_answer
from kdbench.provenance import file_sha256
from kdbench.verify import VerifierName, canonical, check_gold, is_correct

_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
# No task is ever used up: reasoning-gym makes each entry on demand from seed and index.
_ENDLESS = 2**31
_MOST_SKIPPED = 10_000
_TEXT_COLUMNS = ("question", "answer", "context", "kind")


@dataclass(frozen=True, slots=True)
class Question:
    """One question. `answer` is the gold answer where it is known, `kind` the kind of task.

    `entry` is the reasoning-gym entry as JSON, which its verifier needs.
    """

    text: str
    answer: str | None = None
    choices: tuple[str, ...] = ()
    context: str = ""
    kind: str = ""
    verifier: VerifierName = "exact"
    entry: str | None = None

    @property
    def group(self) -> str:
        """The same for equal questions: samples that share it stay on one side of a split."""
        whole = "\0".join((self.context, self.text, *self.choices))
        return hashlib.sha256(" ".join(whole.split()).encode()).hexdigest()[:12]

    def canonical(self, answer: str) -> str | None:
        """The form that equal answers share; None if the verifier cannot read this one."""
        return canonical(self.verifier, answer, self.choices)

    def is_correct(self, answer: str) -> bool:
        """Whether an answer is right. Raises kdbench.errors.DataError for a question without gold."""
        if self.answer is None:
            raise DataError(f"No gold answer to check against for the question: {self.text[:80]}")
        return is_correct(self.verifier, answer, self.answer, choices=self.choices, entry=self.entry)

    def solution(self, text: str, marker: str) -> Solution:
        """The marked answer of a reply and what stands before it.

        Two marked answers are one where the verifier reads them alike: "72" and "72 plums". Raises
        kdbench.errors.Rejected("no_answer") and ("two_answers").
        """
        return split_answer(text, marker, same=self._same)

    def _same(self, one: str, other: str) -> bool:
        read = [self.canonical(answer) or " ".join(answer.casefold().split()) for answer in (one, other)]
        return read[0] == read[1]

    def check_gold(self) -> None:
        """Raises kdbench.errors.Rejected("gold_unreadable") for a gold answer the verifier cannot read."""
        if self.answer is not None:
            check_gold(self.verifier, self.answer, self.choices)


class QuestionFields(BaseModel):
    """What a sample keeps of its question, so that a model's own answer can be judged by it later."""

    kind: str = ""
    verifier: VerifierName = "exact"
    choices: tuple[str, ...] = ()
    entry: str | None = None

    @staticmethod
    def of(question: Question) -> dict[str, Any]:
        """The values of these fields; a recipe's own fields stand beside them."""
        return {
            "kind": question.kind,
            "verifier": question.verifier,
            "choices": question.choices,
            "entry": question.entry,
        }


class Columns(StrictConfig):
    """Which column holds what; a name that the data lacks is an error unless it is a default."""

    question: str = "question"
    answer: str | None = Field("answer", description="gold answers; null: there are none")
    choices: str = Field("choices", description="lists of options of multiple-choice questions")
    context: str = Field("context", description="a text the question is about")
    kind: str = Field("kind", description="kind of task")


class QuestionSource(StrictConfig):
    """Where questions come from: exactly one of `task`, `file` and `dataset`."""

    task: dict[str, dict[str, Any]] | None = Field(
        None, min_length=1, description="reasoning-gym tasks by name, each with its settings; taken in turn"
    )
    file: Path | None = Field(None, description=".jsonl, .csv or .parquet")
    dataset: str | None = Field(None, description="a name on the hub, or a folder, for datasets.load_dataset")
    name: str | None = Field(None, description="the dataset's configuration")
    split: str = Field("train", description="the dataset's split")
    columns: Columns = Columns()
    verifier: VerifierName = Field("exact", description="how answers are compared; tasks bring their own")
    seed: int = Field(0, ge=0, description="of the tasks' entries")
    part: Literal["all", "train", "heldout"] = "all"
    heldout_share: float = Field(0.1, gt=0, lt=1, description="of all questions, by a hash of their text")
    limit: int | None = Field(None, ge=1, description="questions at most")

    @model_validator(mode="after")
    def _one_source(self) -> QuestionSource:
        given = [n for n in ("task", "file", "dataset") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of task, file and dataset; has {', '.join(given) or 'none'}")
        return self


class Questions:
    """The questions of a source, in order, read lazily; `fingerprint` tells whether it is still the same."""

    def __init__(self, source: QuestionSource) -> None:
        self._source = source
        if source.task is not None:
            _check_tasks(source.task)
            self.fingerprint: dict[str, Any] = {"reasoning_gym": version("reasoning-gym")}
        elif source.file is not None:
            self._rows = _load_file(source.file)
            self.fingerprint = {"file": source.file.name, "sha256": file_sha256(source.file)}
        else:
            self._rows = _load_dataset(source)
            self.fingerprint = {"dataset": source.dataset, "datasets_fingerprint": self._rows._fingerprint}
        if source.task is None:
            self._mapping = _mapping(source.columns, self._rows.column_names)

    def __iter__(self) -> Iterator[Question]:
        source = self._source
        every = self._of_tasks(source.task) if source.task is not None else map(self._of_row, self._rows)
        return islice(every if source.part == "all" else self._part(every), source.limit)

    def _part(self, questions: Iterator[Question]) -> Iterator[Question]:
        """The questions of one part. Raises DataError where a small task has none in it."""
        part, share = self._source.part, self._source.heldout_share
        skipped = 0
        for question in questions:
            place = int(question.group, 16) / 16 ** len(question.group)
            if ("heldout" if place < share else "train") == part:
                skipped = 0
                yield question
            elif (skipped := skipped + 1) == _MOST_SKIPPED:
                raise DataError(
                    f"The last {skipped:,} questions were all outside the part '{part}': there are too few "
                    "different ones; widen their settings or change questions.heldout_share"
                )

    def _of_tasks(self, tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[Question]:
        made = [_task(name, settings, self._source.seed) for name, settings in tasks.items()]
        for index in range(_ENDLESS):
            yield from (_of_entry(task[index]) for task in made)

    def _of_row(self, row: Mapping[str, Any]) -> Question:
        given = {key: row[column] for key, column in self._mapping.items()}
        text = {key: _text(given[key]) for key in _TEXT_COLUMNS if key in given}
        return Question(
            text=text["question"] or "",
            answer=text.get("answer"),
            choices=_choices(given.get("choices")),
            context=text.get("context") or "",
            kind=text.get("kind") or "",
            verifier=self._source.verifier,
        )


def _mapping(columns: Columns, present: Sequence[str]) -> dict[str, str]:
    """Our name -> the data's column. Raises DataError for a column that is asked for and not there."""
    found = {}
    for key, column in columns:
        if column is None:
            continue
        if column in present:
            found[key] = column
        elif key == "question" or key in columns.model_fields_set:
            raise DataError(
                f"The questions have no column '{column}' for {key}{suggestion(column, present)}; "
                f"name the right one with questions.columns.{key}"
            )
    return found


def _text(value: Any) -> str | None:
    """A cell as text; lists and mappings keep their JSON form, so that nothing is lost unseen."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _choices(value: Any) -> tuple[str, ...]:
    if isinstance(value, Mapping):  # {"label": ["A", "B"], "text": ["red", "blue"]}, as ARC has it
        value = value.get("text")
    if isinstance(value, str):
        raise DataError(f"The column of choices holds the text {value[:60]!r}; it must hold lists of options")
    return tuple(str(choice) for choice in value or ())


def _load_file(path: Path) -> Any:
    if path.suffix not in _READERS:
        raise ConfigError(f"questions.file = {path}: it must end in {', '.join(sorted(_READERS))}")
    if not path.is_file():
        raise DataError(f"No file of questions at {path}; give the path of one with questions.file")
    return _load(path.name, _READERS[path.suffix], data_files=str(path), split="train")


def _load_dataset(source: QuestionSource) -> Any:
    return _load(str(source.dataset), str(source.dataset), name=source.name, split=source.split)


def _load(shown: str, *args: Any, **kwargs: Any) -> Any:
    import datasets

    quiet = datasets.utils.logging.get_verbosity()
    datasets.utils.logging.set_verbosity_error()
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(*args, **kwargs)
    except Exception as exc:  # whatever a hub, a file or a parser throws: it is the data that is wrong
        cause = exc.__cause__ or exc
        reason = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise DataError(f"The questions {shown} cannot be read: {reason}") from exc
    finally:
        datasets.utils.logging.set_verbosity(quiet)
        if bars:
            datasets.enable_progress_bars()
    if len(rows) == 0:
        raise DataError(f"The questions {shown} hold no row; give some")
    return rows


def _check_tasks(tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """Fail at once for an unknown task or setting, not at the first seed."""
    for name, settings in tasks.items():
        _task(name, settings, 0)


def _task(name: str, settings: Mapping[str, Any], seed: int) -> Any:
    """A reasoning-gym dataset, indexable without end. Raises ConfigError, MissingExtra."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as exc:
        raise MissingExtra("reasoning", "Asking reasoning-gym tasks") from exc
    if name not in DATASETS:
        raise ConfigError(f"reasoning-gym has no task '{name}'{suggestion(name, DATASETS)}")
    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=_ENDLESS, **settings)
    except (TypeError, ValueError, AssertionError) as exc:
        raise ConfigError(f"questions.task.{name} = {dict(settings)}: {exc or 'is out of range'}") from exc


def _of_entry(entry: Mapping[str, Any]) -> Question:
    return Question(
        text=entry["question"],
        # Some tasks have many right answers and name none.
        answer=None if entry["answer"] is None else str(entry["answer"]),
        kind=entry["metadata"]["source_dataset"],
        verifier="reasoning_gym",
        entry=json.dumps(entry, ensure_ascii=False, default=str),
    )
