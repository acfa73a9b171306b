"""What self_instruct keeps: instances read from replies, and the filters on instructions and instances."""

from __future__ import annotations

import re
import string
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from pydantic import Field, model_validator

from kdbench.config import StrictConfig
from kdbench.errors import Rejected
from kdbench.lists import labelled_entries
from kdbench.replies import find_fault
from kdbench.teacher import Reply
from kdbench.textstats import is_refusal

Mode = Literal["self_instruct", "alpaca"]
# What a model of text cannot work on; each mode's own list.
KEYWORDS: dict[Mode, tuple[str, ...]] = {
    "self_instruct": (
        "image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw",
        "plot", "go to",
    )
}  # fmt: skip
KEYWORDS["alpaca"] = (*KEYWORDS["self_instruct"], "video", "audio", "music", "flowchart", "diagram")
NO_INPUT = frozenset({"", "none", "no input", "noinput", "n/a", "not needed"})
Fault = tuple[str, str]  # (reason, detail)
EntryT = TypeVar("EntryT")


@dataclass(frozen=True, slots=True)
class Instance:
    """An input, which may be empty, and its output."""

    input: str
    output: str


class Filters(StrictConfig):
    """What instructions and instances must be to be kept; a change here costs no new call."""

    rouge_threshold: float = Field(
        0.7, gt=0, le=1, description="ROUGE-L to a seed task or an earlier instruction that is too much"
    )
    min_words: int = Field(4, ge=1, description="of an instruction")
    max_words: int = Field(150, ge=1, description="of an instruction")
    keywords: tuple[str, ...] | None = Field(
        None, description="words that no instruction may have; null: the list of the mode"
    )
    programs: bool = Field(False, description='keep instructions that begin with "Write a program"')
    any_start: bool = Field(
        False, description="keep instructions that begin with punctuation or a letter outside ASCII"
    )
    any_language: bool = Field(
        True, description="keep outputs in another language than the instruction, as translations are"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Filters:
        if self.min_words > self.max_words:
            raise ValueError("min_words must not be above max_words")
        if not all(keyword.strip() for keyword in self.keywords or ()):
            raise ValueError("keywords must not hold an empty one")
        return self


def whole(found: list[EntryT], reply: Reply) -> list[EntryT]:
    """The entries of a list without the last one if that was cut off. Raises Rejected("truncated")."""
    if reply.finish_reason != "length":
        return found
    if len(found) == 1:
        raise Rejected("truncated", "cut off within the first entry")
    return found[:-1]


def bare_input(text: str) -> str:
    """An input, "" where it says that there is none."""
    return "" if text.strip("<>()[].*_- ").lower() in NO_INPUT else text


def says_yes(text: str) -> bool | None:
    """Whether the first yes or no of a reply is a yes; None where there is neither."""
    said = (word.strip(string.punctuation) for word in text.lower().split())
    return next((word == "yes" for word in said if word in ("yes", "no")), None)


def instances_of(reply: Reply, is_classification: bool) -> list[Instance | Rejected]:
    """The instances of a reply. Raises Rejected("refusal"), ("no_list") and ("truncated")."""
    if is_refusal(reply.text):
        raise Rejected("refusal", reply.text.strip()[:80])
    labels = ("Label", "Input") if is_classification else ("Input", "Output")
    output = "Label" if is_classification else "Output"
    return [
        one if isinstance(one, Rejected) else Instance(bare_input(one["Input"]), one[output])
        for one in whole(labelled_entries(reply.text, labels), reply)
    ]


def find_instruction_fault(instruction: str, filters: Filters, mode: Mode) -> Fault | None:
    """(reason, detail) of the first filter that an instruction fails, None if it passes them all."""
    count = len(instruction.split())
    said = f"{count} word{'' if count == 1 else 's'}"
    if count < filters.min_words:
        return "too_short", said
    if count > filters.max_words:
        return "too_long", said
    keywords = KEYWORDS[mode] if filters.keywords is None else filters.keywords
    for keyword in keywords:
        if re.search(rf"(?<!\w){re.escape(keyword)}(?!\w)", instruction, re.IGNORECASE):
            return "keyword", keyword
    if not filters.programs and re.match(r"write a program\b", instruction, re.IGNORECASE):
        return "write_a_program", ""
    if not filters.any_start and (instruction[0] in string.punctuation or not instruction[0].isascii()):
        return "odd_start", instruction[:20]
    return find_fault(instruction, "")


def find_instance_faults(instances: Sequence[Instance]) -> list[Fault | None]:
    """What is wrong with each instance of an instruction, by itself and beside the others."""
    faults = [_own_fault(one) for one in instances]
    outputs: dict[str, set[str]] = defaultdict(set)
    for one, fault in zip(instances, faults, strict=True):
        if fault is None:
            outputs[one.input].add(one.output)
    seen: set[Instance] = set()
    for i, one in enumerate(instances):
        if faults[i] is None and one.input and len(outputs[one.input]) > 1:
            faults[i] = "ambiguous_input", " / ".join(sorted(outputs[one.input]))[:80]
        elif faults[i] is None and one in seen:
            faults[i] = "duplicate_instance", ""
        seen.add(one)
    return faults


def _own_fault(instance: Instance) -> Fault | None:
    if not instance.output:
        return "empty_output", ""
    if instance.output == instance.input:
        return "output_is_input", instance.output[:80]
    if instance.input.endswith(":") or instance.output.endswith(":"):
        return "ends_with_colon", ""
    return None


def find_output_fault(output: str, instruction: str, filters: Filters) -> Fault | None:
    """What makes an output useless by itself; an input may be said again, as corrected texts do."""
    fault = find_fault(output, instruction, quotes=True)
    return None if fault and fault[0] == "other_language" and filters.any_language else fault
