"""Build the TinyStories vocabulary and the reach list from open data.

    pip install --target WORK/python wordfreq==3.1.1
    pip install --no-deps --target WORK/python textstat==0.7.13
    cd WORK && apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb wordnet
    python generators/build_vocabulary.py WORK

    words.tsv    dog<TAB>noun<TAB>5.36        (word, part of speech, Zipf frequency)
    reach.txt    one word a line

A candidate is a word of the Dale-Chall list of familiar words (as textstat ships it). Its part of
speech is the one that WordNet's sense tag counts (`cntlist.rev`) give the most tagged uses; a word
that was never tagged counts if WordNet knows it as one part of speech only and as no irregular form.
A reader went through the candidates: `vocabulary_review.tsv` holds what was dropped, moved or added.
Of each part of speech stay all that the reader added and the most frequent (wordfreq) of the rest.
Sources and licences: kdbench_generators/_data/NOTICE.md.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
DATA = HERE / "kdbench_generators" / "_data"
SIZES = {"noun": 800, "verb": 400, "adjective": 300}

# WordNet's sense keys hold a number, its index files a name, for each part of speech.
_SENSE_PARTS = {"1": "noun", "2": "verb", "3": "adjective", "4": "adverb", "5": "adjective"}
_INDEX_FILES = {"noun": "noun", "verb": "verb", "adjective": "adj", "adverb": "adv"}


def main(work: Path) -> None:
    """Write words.tsv and reach.txt from the downloads in `work`."""
    sys.path.insert(0, str(work / "python"))
    zipf = importlib.import_module("wordfreq").zipf_frequency
    familiar = _lines(work / "python/textstat/resources/en/easy_words.txt")
    review = _review(HERE / "vocabulary_review.tsv")
    part_of = _parts_of_speech(work / "wordnet/usr/share/wordnet")
    found = {w: part for w in familiar if len(w) > 2 and w.isalpha() and (part := part_of(w)) in SIZES}
    rows = _choose(_reviewed(found, review), review, lambda word: float(zipf(word, "en")))
    (DATA / "words.tsv").write_text(
        "".join(f"{w}\t{part}\t{z:.2f}\n" for w, part, z in rows), encoding="utf-8"
    )
    reach = {w for w in familiar if w.replace("'", "").isalpha()} | {w for w, _, _ in rows} | review["reach"]
    reach -= review["offensive"]
    (DATA / "reach.txt").write_text("".join(f"{w}\n" for w in sorted(reach)), encoding="utf-8")
    print({part: sum(p == part for _, p, _ in rows) for part in SIZES}, "reach", len(reach))


def _lines(path: Path) -> list[str]:
    return [line.strip().lower() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _review(path: Path) -> dict[str, set[str]]:
    """Decision -> words."""
    decisions: dict[str, set[str]] = defaultdict(set)
    for line in _lines(path):
        if not line.startswith("#"):
            decision, _, words = line.partition("\t")
            decisions[decision].update(words.split())
    return decisions


def _parts_of_speech(wordnet: Path) -> Callable[[str], str | None]:
    """A function from a word to its dominant part of speech, None where WordNet cannot tell."""
    uses: dict[str, Counter[str]] = defaultdict(Counter)
    for line in _lines(wordnet / "cntlist.rev"):
        key, _, count = line.split()
        word, _, sense = key.partition("%")
        uses[word][_SENSE_PARTS[sense[0]]] += int(count)
    known = {
        part: {line.split()[0] for line in _lines(wordnet / f"index.{name}")}
        for part, name in _INDEX_FILES.items()
    }
    irregular = {
        line.split()[0] for name in ("noun", "verb", "adj") for line in _lines(wordnet / f"{name}.exc")
    }

    def dominant(word: str) -> str | None:
        if uses[word]:
            return uses[word].most_common(1)[0][0]
        parts = [part for part, words in known.items() if word in words]
        return parts[0] if len(parts) == 1 and word not in irregular else None

    return dominant


def _reviewed(found: dict[str, str], review: dict[str, set[str]]) -> dict[str, str]:
    """What was found, less what was dropped, with what was moved or added."""
    kept = {w: part for w, part in found.items() if w not in review["drop"] | review["offensive"]}
    return kept | {word: part for part in SIZES for word in review[part]}


def _choose(
    words: dict[str, str], review: dict[str, set[str]], zipf: Callable[[str], float]
) -> list[tuple[str, str, float]]:
    """All that was added by hand and the most frequent of the rest, alphabetical within each part."""
    rows = []
    for part, size in SIZES.items():
        ranked = sorted(
            (word not in review[part], -zipf(word), word) for word, p in words.items() if p == part
        )
        rows += sorted((word, part, -rarity) for _, rarity, word in ranked[:size])
        print(part, len(ranked), "candidates; left out:", *[word for _, _, word in ranked[size:]])
    return rows


if __name__ == "__main__":
    main(Path(sys.argv[1]))
