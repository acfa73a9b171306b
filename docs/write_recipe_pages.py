"""docs/recipes/: a page for each recipe, from its module and from real runs.

    python docs/write_recipe_pages.py                     # make the runs that are lacking, write all pages
    python docs/write_recipe_pages.py --only answers      # one recipe's page, and the index
    python docs/write_recipe_pages.py --refresh           # take up runs whose recipe has changed

Which runs a page shows stands in docs/recipes/runs.yaml; they lie in runs/recipes/RECIPE/NAME.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kdbench
from kdbench import plugins
from kdbench.config import load_yaml
from kdbench.errors import NothingLeft
from kdbench.jobs._describing import GROUP, REQUIRED, Key, keys_of, shown
from kdbench.jobs._recipes import load_recipe
from kdbench.jobs.showing import Look, look_at, sampling_text, turns
from kdbench.jsonl import read_rejections, read_samples
from kdbench.records import Completion, Message, Preference, Rejection, Text
from kdbench.rundir import is_done, read_info

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "recipes"
RUNS = ROOT / "runs" / "recipes"
SEEDS = 50  # tried at least, so that a share means something
MOST_SAMPLES = 10
ENOUGH = 10**6  # more samples than any run here gives: the seeds are what ends it
PROMPT_LENGTH, TEXT_LENGTH, FIELDS_LENGTH = 500, 700, 300
DULL = {"entry", "verifier", "choices"}  # fields of the question that its text shows already
AnySample = Completion | Text | Preference


@dataclass(frozen=True)
class PageRun:
    """One entry of runs.yaml."""

    recipe: str
    teacher: str | dict[str, str]
    max_candidates: int = SEEDS
    name: str = ""
    note: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    teacher_config: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Its run directory."""
        return RUNS / self.recipe / re.sub(r"\W+", "-", self.name or self.teacher_text)

    @property
    def teacher_text(self) -> str:
        """The teacher, or the teachers by role, as a reader knows them."""
        if isinstance(self.teacher, str):
            return self.teacher
        return ", ".join(f"{role} {spec}" for role, spec in self.teacher.items())

    def teachers(self) -> Any:
        """What generate is given: specs, or the teachers of a test case for `case:NAME`."""
        if not self.teacher_text.startswith("case:"):
            return self.teacher
        sys.path.insert(0, str(ROOT))
        case = importlib.import_module(f"tests.generators.cases.{self.teacher_text.removeprefix('case:')}")
        return case.teachers()

    def made(self) -> bool:
        """Whether the run came to an end, be it with nothing kept."""
        if not (self.path / "run.json").is_file():
            return False
        return is_done(self.path) or read_info(self.path).get("stats", {}).get("accepted") == 0

    def outdated(self) -> bool:
        """Whether recipe, templates or config have changed since."""
        recipe = load_recipe(self.recipe, self.config)
        before = read_info(self.path)["fingerprint"]
        # A template that was added since is one that nothing here was asked with.
        templates = {name: recipe.prompts.hashes().get(name) for name in before["templates"]}
        now = {
            "recipe_source": recipe.source_sha256,
            "templates": templates,
            "generation": recipe.generation_config(),
            "filters": recipe.filters(),
        }
        return any(before.get(key) != value for key, value in now.items())

    def make(self) -> None:
        """Run it, from the replies it has as far as they still fit."""
        print(f"{self.path.relative_to(ROOT)} ...", file=sys.stderr)
        try:
            kdbench.generate(
                self.recipe,
                teacher=self.teachers(),
                n=ENOUGH,
                max_candidates=self.max_candidates,
                out=self.path,
                config=self.config,
                teacher_config=self.teacher_config,
                refresh=self.path.exists(),
                **self.settings,
            )
        except NothingLeft as exc:
            print(f"  {exc}", file=sys.stderr)  # the page says so, with the table


def main() -> None:
    """Make the runs that are lacking and write the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", metavar="RECIPE", choices=plugins.names("generators"))
    parser.add_argument("--refresh", action="store_true", help="make runs of changed recipes anew")
    asked = parser.parse_args()
    runs = read_runs(PAGES / "runs.yaml")
    for recipe in [asked.only] if asked.only else plugins.names("generators"):
        for run in runs.get(recipe, []):
            if not run.made() or (asked.refresh and run.outdated()):
                run.make()
            elif run.outdated():
                print(f"{run.path.relative_to(ROOT)}: its recipe has changed; --refresh", file=sys.stderr)
        (PAGES / f"{recipe}.md").write_text(page(recipe, runs.get(recipe, [])), encoding="utf-8")
    (PAGES / "README.md").write_text(index(runs), encoding="utf-8")


def read_runs(path: Path) -> dict[str, list[PageRun]]:
    """Recipe -> its runs. Raises ConfigError and TypeError for a key that is none."""
    return {
        recipe: [PageRun(recipe=recipe, **entry) for entry in entries]
        for recipe, entries in load_yaml(path).items()
    }


def page(recipe: str, runs: list[PageRun]) -> str:
    """The page of one recipe."""
    look = look_at(recipe)
    title, _, about = look.about.partition("\n")
    parts = [
        f"# `{recipe}`",
        title,
        about.strip("\n"),
        *facts(look.facts),
        *use(recipe, look.keys),
        config_table(recipe),
        *prompts(look),
        "## Runs",
        "Written by `docs/write_recipe_pages.py`; the figures are read out of the runs' own files.",
        *([part for run in runs for part in run_section(run)] or ["None yet."]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def facts(found: Mapping[str, str]) -> Iterator[str]:
    """What is known of the recipe, papers linked."""
    if found:
        lines = (f"- {key}: {linked(fact) if key == 'arxiv' else fact}" for key, fact in found.items())
        yield "\n".join(lines)


def linked(fact: str) -> str:
    """arXiv numbers as links."""
    return re.sub(r"\d{4}\.\d{4,5}", r"[\g<0>](https://arxiv.org/abs/\g<0>)", fact)


def use(recipe: str, keys: list[Key]) -> Iterator[str]:
    """How to look at it and how to run it."""
    needed = [
        key.name for key in keys_of(config_of(recipe)) if key.default is REQUIRED and "." not in key.name
    ]
    sets = "".join(
        " --set questions.file=questions.jsonl" if name == "questions" else f" --set {name}=..."
        for name in needed
    )
    yield "## Use"
    yield fenced(
        f"kdbench show {recipe}\nkdbench generate {recipe} --teacher smollm2 -n 100 --out runs/{recipe}{sets}"
    )


def config_of(recipe: str) -> Any:
    """The recipe's config class."""
    return plugins.config_class(plugins.load("generators", recipe))


def config_table(recipe: str) -> str:
    """Every key with its default and what it is for; what a stale page is known by."""
    lines = ["## Config", "", "| key | default | what it is |", "|---|---|---|"]
    for key in keys_of(config_of(recipe)):
        default = "required" if key.default is REQUIRED else "" if key.opens else f"`{shown(key.default)}`"
        about = key.about if key.kind == GROUP else f"{key.about} ({key.kind})".strip()
        lines.append(f"| `{key.name}` | {cell(default)} | {cell(about)} |")
    return "\n".join(lines)


def cell(text: str) -> str:
    """A text that stays inside its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def prompts(look: Look) -> Iterator[str]:
    """What the first seed of the example asks, of whom."""
    yield "## Prompts"
    if look.played is None:
        needed = ", ".join(f"`{key.name}`" for key in look.missing)
        yield f"They depend on what has no default: {needed}. `kdbench show` renders them."
        return
    if look.rows:
        rows = "\n".join(json.dumps(row, ensure_ascii=False) for row in look.rows)
        yield f"Example questions, as in a `questions.jsonl`:\n\n{fenced(rows, 'json')}"
    for number, alike in turns(look.played.said):
        times = f", asked {len(alike)} times" if len(alike) > 1 else ""
        to = f"to the {alike[0].role} ({sampling_text(alike[0].sampling)}){times}"
        yield f"Request {number} of seed 0, {to}:"
        yield fenced(said_by(alike[0].messages))
        for one in alike:
            if one.reply is not None:
                yield f"An example of a reply:\n\n{fenced(one.reply)}"
    if look.played.outcomes is None:
        yield f"What comes after depends on the reply: `kdbench show {look.name} --teacher SPEC` shows it."
    for outcome in look.played.outcomes or ():
        if not isinstance(outcome, Rejection):
            yield f"The sample it makes:\n\n{sample_text(outcome)}"


def run_section(run: PageRun) -> Iterator[str]:
    """One run: where it was made, what was kept, samples, and what was turned down."""
    info = read_info(run.path)
    stats = info["stats"]
    rejections = list(read_rejections(run.path / "rejected.jsonl"))
    samples = list(read_samples(run.path / "samples.jsonl"))
    outcomes = len(samples) + len(rejections)
    # Weights on this machine are known by a hash that need not be seen whole.
    identities = ", ".join(f"{role} `{name[:40]}`" for role, name in info["teacher"]["identity"].items())
    machine = info["machine"]
    calls = stats["calls"] + stats["replayed_calls"] + stats["cached_calls"]
    kept = f"{len(samples)} of {outcomes} kept ({share(len(samples), outcomes)})"
    yield f"### {run.name or run.teacher_text}: {kept}"
    yield run.note
    yield (
        f"{info['finished'][:10]}, {machine['cores']} cores, {machine['cpu']}, Python {machine['python']}, "
        f"{run.teacher_text} ({identities}). {stats['seeds']} seeds, {calls:,} calls, "
        f"{stats['completion_tokens']:,} tokens of replies; {len(samples)} samples, "
        f"{len(rejections)} rejections; {sample_lengths(samples)}."
    )
    if run.config or run.teacher_config:
        config = "\n".join(f"{key}: {shown(value)}" for key, value in run.config.items())
        mistakes = "\n".join(f"# the teacher: {key}: {shown(v)}" for key, v in run.teacher_config.items())
        yield fenced("\n".join(part for part in (config, mistakes) if part), "yaml")
    yield from rejection_sections(rejections, outcomes)
    if samples:
        chosen = spread(samples, MOST_SAMPLES)
        yield f"#### {len(chosen)} samples, evenly spread"
        shown_before: tuple[Message, ...] = ()
        for sample in chosen:
            yield f"`{sample.id}`\n\n{sample_text(sample, shown_before)}"
            shown_before = only_the_teachers(sample)
    else:
        yield "Nothing was kept."


def sample_lengths(samples: Iterable[AnySample]) -> str:
    """How long they are, in words."""
    counts = sorted(len(learnt(sample).split()) for sample in samples)
    if not counts:
        return "nothing to learn from"
    return f"{counts[len(counts) // 2]} words in the middle sample ({counts[0]} to {counts[-1]})"


def learnt(sample: AnySample) -> str:
    """What a student learns of a sample."""
    return sample.chosen[-1].content if isinstance(sample, Preference) else sample.text


def rejection_sections(rejections: list[Rejection], outcomes: int) -> Iterator[str]:
    """The table of reasons, and the first rejection of each."""
    if not rejections:
        yield "Nothing was turned down."
        return
    counts = Counter(one.reason for one in rejections)
    lines = ["| turned down for | count | share of all | for example |", "|---|---:|---:|---|"]
    for reason, count in counts.most_common():
        first = next(one for one in rejections if one.reason == reason)
        lines.append(f"| `{reason}` | {count} | {share(count, outcomes)} | {cell(example(first))} |")
    yield "\n".join(lines)


def example(rejection: Rejection) -> str:
    """A rejection in a line: its detail, and the text that was turned down."""
    text = learnt(rejection.sample) if rejection.sample is not None else ""
    if text.startswith(rejection.detail):  # a refusal, for one, is its own detail
        return code(shorten(text, 200))
    parts = (code(shorten(rejection.detail, 120)), f"in: {code(shorten(text, 200))}" if text else "")
    return " ".join(part for part in parts if part)


def code(text: str) -> str:
    """A text as code in a line of Markdown."""
    text = " ".join(text.split())
    if not text:
        return ""
    ticks = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if text[0] == "`" or text[-1] == "`" else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def only_the_teachers(sample: AnySample) -> tuple[Message, ...]:
    """The messages that the teacher saw and the student does not see."""
    seen = (sample.teacher_prompt or ()) if isinstance(sample, Completion) else ()
    shared = sample.prompt if isinstance(sample, Completion) else ()
    return seen[: -len(shared)] if shared and seen[-len(shared) :] == shared else seen


def sample_text(sample: AnySample, shown_before: tuple[Message, ...] = ()) -> str:
    """A sample as a reader wants it: who says what, then the fields that say something.

    What only the teacher saw is not said again where it is the same as in the sample `shown_before`.
    """
    parts: list[str] = []
    if isinstance(sample, Text):
        parts.append(shorten(sample.text, TEXT_LENGTH))
    elif isinstance(sample, Preference):
        parts.append(said_by(sample.prompt, PROMPT_LENGTH))
        parts.append(said_by(sample.chosen, TEXT_LENGTH, "chosen, "))
        parts.append(said_by(sample.rejected, TEXT_LENGTH, "rejected, "))
    else:
        if (hidden := only_the_teachers(sample)) and hidden == shown_before:
            parts.append("[only the teacher saw: the same as above]")
        elif hidden:
            parts.append(said_by(hidden, PROMPT_LENGTH, "only the teacher saw: "))
        parts.append(said_by(sample.prompt, PROMPT_LENGTH))
        parts.append(said_by(sample.completion, TEXT_LENGTH))
        if sample.answer is not None:
            parts.append(f"[answer] {shorten(sample.answer, 120)}")
    if known := telling(json.loads(sample.fields)):
        parts.append(f"[fields] {shorten(json.dumps(known, ensure_ascii=False), FIELDS_LENGTH)}")
    return fenced("\n\n".join(parts))


def telling(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that tell a reader something, figures rounded."""
    known = {k: v for k, v in fields.items() if v not in (None, "", [], {}) and k not in DULL}
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in known.items()}


def said_by(messages: Iterable[Message], length: int | None = None, who: str = "") -> str:
    """Messages one below the other, each under its role."""
    parts = []
    for one in messages:
        if one.reasoning:
            parts.append(f"[{who}{one.role}, thinking]\n{shorten(one.reasoning, length or TEXT_LENGTH)}")
        parts.append(f"[{who}{one.role}]\n{one.content if length is None else shorten(one.content, length)}")
    return "\n\n".join(parts)


def shorten(text: str, length: int) -> str:
    """The beginning and the end of a text that is too long."""
    if len(text) <= length:
        return text
    tail = length // 4
    return f"{text[: length - tail].rstrip()} [...] {text[-tail:].lstrip()}"


def spread(samples: list[AnySample], count: int) -> list[AnySample]:
    """So many of them, evenly spread from the first to the last."""
    if len(samples) <= count:
        return samples
    return [samples[round(i * (len(samples) - 1) / (count - 1))] for i in range(count)]


def share(part: int, whole: int) -> str:
    """A share in percent."""
    return f"{part / whole:.0%}" if whole else "-"


def fenced(text: str, language: str = "text") -> str:
    """A block of code that no fence inside it can end."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`{3,}", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def index(runs: Mapping[str, list[PageRun]]) -> str:
    """All recipes, with how much of each run was kept."""
    lines = [
        "# Recipes",
        "",
        "A page for each, with its config, its prompts, samples and what was turned down. "
        "Written by `docs/write_recipe_pages.py` from [runs.yaml](runs.yaml).",
        "",
        "| recipe | what it is | kept of what came |",
        "|---|---|---|",
    ]
    for recipe in plugins.names("generators"):
        about = linked(plugins.summary(plugins.load("generators", recipe)).rstrip("."))
        kept = "; ".join(kept_of(run) for run in runs.get(recipe, []) if run.made())
        lines.append(f"| [{recipe}]({recipe}.md) | {cell(about)} | {cell(kept) or 'no run yet'} |")
    return "\n".join(lines) + "\n"


def kept_of(run: PageRun) -> str:
    """One run in a few words."""
    stats = read_info(run.path)["stats"]
    kept, whole = stats["accepted"], stats["accepted"] + stats["rejected"]
    return f"{run.name or run.teacher_text}: {kept} of {whole} ({share(kept, whole)})"


if __name__ == "__main__":
    main()
