"""What the checks look at: the samples, who reads them, and the sequences they became.

train, validation = split(encode(samples, student, teacher, 1024), 0.1, seed=0)
Case(samples, student, teacher, 1024, train, validation)
reader_of("smollm2")     # tokenizer and configs; no weights are loaded
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kdbench.errors import CallRefused, UsageError
from kdbench.models.chat import prompt_ids
from kdbench.models.loading import first_line, load_tokenizer
from kdbench.models.sequences import Reader, TokenSequence
from kdbench.models.weights import local_weights
from kdbench.records import Completion, Message


class Learnt(NamedTuple):
    """A sample that is trained on, and what it became."""

    name: str
    sample: Completion
    sequence: TokenSequence


@dataclass(frozen=True, slots=True)
class Case:
    """A training before it begins."""

    samples: Sequence[Completion]
    student: Reader
    teacher: Reader | None  # None where no teacher's distribution is learnt
    max_length: int
    train: Sequence[TokenSequence]
    validation: Sequence[TokenSequence]
    two_tokenizers: bool = False  # the method compares models that write the answer in different tokens
    most: int | None = None  # samples whose text is looked at, spread over all; None: every one

    @property
    def sequences(self) -> list[TokenSequence]:
        """All that is trained or validated on."""
        return [*self.train, *self.validation]

    @property
    def same_vocabulary(self) -> bool:
        """Whether there is a teacher that gives every token the student's id."""
        return (
            self.teacher is not None
            and self.student.tokenizer.get_vocab() == self.teacher.tokenizer.get_vocab()
        )

    @property
    def readers(self) -> dict[str, Reader]:
        """The student, and the teacher if there is one."""
        return {"student": self.student, **({"teacher": self.teacher} if self.teacher else {})}

    @property
    def tokenizing(self) -> dict[str, Reader]:
        """Who has tokens of its own for the answer: the student, and a teacher of another tokenizer."""
        return self.readers if self.two_tokenizers else {"student": self.student}

    def name(self, number: int | None) -> str:
        """What the user knows a sample by: its id."""
        if number is None:
            return "a window of plain text"
        return self.samples[number].id or f"sample {number}"

    def learnt(self) -> list[Learnt]:
        """The samples trained on, in order; `most` of them."""
        known = sorted((one.sample, one) for one in self.sequences if one.sample is not None)
        step = -(-len(known) // self.most) if self.most else 1
        return [Learnt(self.name(i), self.samples[i], one) for i, one in known[:: max(step, 1)]]


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """Tokens as text, special ones included, as they are."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def alone(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text by itself."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def whole_chat(tokenizer: Any, messages: Sequence[Message]) -> list[int] | None:
    """The tokens of a chat with its answer, in the template; None where that refuses such a chat."""
    from jinja2 import TemplateError

    turns = [{"role": m.role, "content": m.content} for m in messages]
    try:
        ids: list[int] = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    except TemplateError:
        return None
    return ids


def reader_of(ref: str) -> Reader:
    """A model as a reader, from its tokenizer and configs alone. Raises UsageError."""
    from transformers import AutoConfig, GenerationConfig

    tokenizer = load_tokenizer(ref)
    folder = local_weights(ref)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if (folder / "generation_config.json").is_file():
            generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
        else:  # what transformers does then
            generation = GenerationConfig.from_model_config(config)
    except (OSError, ValueError, KeyError) as exc:
        raise UsageError(f"The config of '{ref}' cannot be read: {first_line(exc)}") from exc
    return Reader(tokenizer, (generation, config))


def unreadable(samples: Sequence[Completion], student: Reader, teacher: Reader | None) -> dict[str, str]:
    """The samples whose messages a chat template turns down, and what it says."""
    found: dict[str, str] = {}
    for number, sample in enumerate(samples):
        for reader, prompt in ((student, sample.prompt), (teacher, sample.teacher_prompt or sample.prompt)):
            try:
                if reader is not None:
                    prompt_ids(reader.tokenizer, prompt)
            except CallRefused as exc:
                found[sample.id or f"sample {number}"] = str(exc)
    return found
