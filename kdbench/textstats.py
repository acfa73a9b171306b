"""What can be said of a text without a model: its words, its end, its loops, whom it echoes.

    story = "Once there was a happy cat. She ran and jumped all day.\\n\\nThen she slept."
    missing_words(story, ["cats", "jump", "sad"])     # ["cats", "sad"]
    missing_words(story, ["cat", "run", "happy"])     # []  ("ran" is an inflection of "run")
    ends_properly(story), has_loop(story), paragraph_count(story)      # True, False, 2

An inflection is a form of the same word: number and possessive of a noun, person, tense and participles
of a verb, comparison of an adjective. "happily" and "happiness" are other words than "happy".

Every function takes plain strings. The last few texts stay tokenised, so that a chain of filters over
one text reads it once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import chain
from typing import Literal

Part = Literal["noun", "verb", "adjective"]
Gram = tuple[str, ...]

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
_SENTENCE = re.compile(r"[.!?…]+[\"')\]*_»]*(?:\s+|$)")
_BLANK_LINES = re.compile(r"\n\s*\n")
_END = re.compile(r"(?:[.!?…][\"')\]}*_»]*|\bthe end\W*)$")
_INNER_CAPITAL = re.compile(r"(?<=[\w,;] )[A-Z][^\W\d_]+")
_TYPED = (("’", "'"), ("‘", "'"), ("“", '"'), ("”", '"'), ("—", " - "), ("–", " - "), ("…", "..."))
_LETTERS = {code: " " for code in range(128) if not chr(code).isalpha() and chr(code) != "'"}
_CANNOT = r"(?:can'?t|cannot|can not|won't|will not|am unable to|'m unable to|am not able to|'m not able to)"
_REFUSAL = re.compile(
    rf"(?:(?:i'm |i am )?(?:very |so )?sorry\W+|i apologi[sz]e\W+|unfortunately\W+)?(?:but )?"
    rf"(?:as an? (?:ai|(?:large )?language model|assistant)\b"
    rf"|i ?{_CANNOT} (?:\w+ )?"
    r"(?:help|assist|write|create|provide|fulfill?|generate|comply|produce|continue|do)\b)"
)

# Forms that no rule gives. A verb's line: base, then its other forms.
_IRREGULAR_VERBS = """
arise arose arisen|awake awoke awoken awakened|be am is are was were been|bear bore borne|beat beaten
become became|begin began begun|bend bent|bite bit bitten|blow blew blown|break broke broken|bring brought
build built|burst burst|buy bought|catch caught|choose chose chosen|come came|creep crept|cut cut|deal dealt
dig dug|dive dove dived|do did does done|draw drew drawn|dream dreamt dreamed|drink drank drunk
drive drove driven|eat ate eaten|fall fell fallen|feed fed|feel felt|fight fought|find found|flee fled
fling flung|fly flew flown|forget forgot forgotten|forgive forgave forgiven|freeze froze frozen
get got gotten|give gave given|go went gone|grow grew grown|hang hung hanged|have had has|hear heard
hide hid hidden|hit hit|hold held|hurt hurt|keep kept|kneel knelt kneeled|knit knit knitted|know knew known
lay laid|lead led|lean leant leaned|leap leapt leaped|learn learnt learned|leave left|lend lent|let let
lie lay lain|light lit lighted|lose lost|make made|mean meant|meet met|pay paid|put put|quit quit quitted
read read|rebuild rebuilt|ride rode ridden|ring rang rung|rise rose risen|run ran|say said|see saw seen
seek sought|sell sold|send sent|set set|sew sewn sewed|shake shook shaken|shine shone shined|shoot shot
show shown showed|shrink shrank shrunk|shut shut|sing sang sung|sink sank sunk|sit sat|sleep slept
slide slid|smell smelt smelled|sneak snuck sneaked|speak spoke spoken|spend spent|spill spilt spilled
spin spun|spit spat|spoil spoilt spoiled|spread spread|spring sprang sprung|stand stood|steal stole stolen
stick stuck|sting stung|strike struck|swear swore sworn|sweep swept|swell swollen swelled|swim swam swum
swing swung|take took taken|teach taught|tear tore torn|tell told|think thought|throw threw thrown
understand understood|wake woke woken|wear wore worn|weave wove woven weaved|weep wept|win won|wind wound
write wrote written
"""
_VERBS = {
    forms[0]: frozenset(forms[1:])
    for line in _IRREGULAR_VERBS.split("\n")
    for forms in (entry.split() for entry in line.split("|"))
    if forms
}
# A noun that ends so takes this plural: snowman, grandchild, ...
_PLURAL_ENDINGS = (
    ("man", "men"), ("child", "children"), ("foot", "feet"), ("tooth", "teeth"), ("goose", "geese"),
    ("mouse", "mice"), ("person", "people"), ("leaf", "leaves"), ("loaf", "loaves"), ("shelf", "shelves"),
    ("calf", "calves"), ("half", "halves"), ("elf", "elves"), ("wolf", "wolves"), ("scarf", "scarves"),
    ("hoof", "hooves"), ("thief", "thieves"), ("knife", "knives"), ("life", "lives"), ("wife", "wives"),
    ("cactus", "cacti"), ("louse", "lice"),
)  # fmt: skip
_COMPARISONS = {
    "good": frozenset({"better", "best"}),
    "bad": frozenset({"worse", "worst"}),
    "far": frozenset({"farther", "farthest", "further", "furthest"}),
    "little": frozenset({"littler", "littlest", "less", "least"}),
    "many": frozenset({"more", "most"}),
    "much": frozenset({"more", "most"}),
}


class _Tokenised:
    """One text in lower case, cut into words."""

    def __init__(self, text: str) -> None:
        self.lower = _plain(text).lower()
        self.words: list[str] = _split(self.lower)

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        return frozenset(self.words)

    @cached_property
    def fourgrams(self) -> list[Gram]:
        return ngrams(self.words, 4)

    @cached_property
    def fourgram_set(self) -> frozenset[Gram]:
        return frozenset(self.fourgrams)


def _plain(text: str) -> str:
    """The text with typewriter quotes and dashes."""
    if not text.isascii():
        for fancy, typed in _TYPED:
            text = text.replace(fancy, typed)
    return text


def _split(lower: str) -> list[str]:
    # What _WORD finds, in a sixth of the time, wherever the text is plain ASCII.
    if not lower.isascii() or "''" in lower:
        return _WORD.findall(lower)
    lower = lower.translate(_LETTERS)
    if "'" in lower:  # an apostrophe belongs to a word only inside it
        lower = f" {lower} ".replace(" '", " ").replace("' ", " ")
    return lower.split()


@lru_cache(maxsize=64)
def _tokenised(text: str) -> _Tokenised:
    return _Tokenised(text)


def words(text: str) -> list[str]:
    """The words of a text in lower case, in order; "don't" is one word, "ice-cream" two."""
    return list(_tokenised(text).words)


def vocabulary(text: str) -> frozenset[str]:
    """The distinct words of a text, in lower case."""
    return _tokenised(text).vocabulary


def ngrams(tokens: Sequence[str], n: int) -> list[Gram]:
    """Every run of `n` tokens, in order."""
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


@lru_cache(maxsize=16384)
def inflections(word: str, part: Part | None = None) -> frozenset[str]:
    """The word and its inflected forms, lower case.

    Without a part of speech the forms of all three are given together, so that "teach" takes
    "teacher" along, which looks like a comparative.
    """
    word = word.lower()
    forms = {word}
    if part in ("noun", None):
        forms |= _plurals(word) | {f"{word}'s"}
    if part in ("verb", None):
        forms |= _verb_forms(word)
    if part in ("adjective", None):
        forms |= _comparisons(word)
    return frozenset(forms)


def _plurals(word: str) -> set[str]:
    for ending, plural in _PLURAL_ENDINGS:
        if word.endswith(ending):
            return {word[: -len(ending)] + plural, _with_s(word)}
    return {_with_s(word), f"{word}s"} if word.endswith("o") else {_with_s(word)}


def _with_s(word: str) -> str:
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        return f"{word}es"
    return f"{word[:-1]}ies" if _consonant_y(word) else f"{word}s"


def _verb_forms(word: str) -> set[str]:
    if word.endswith("ie"):
        regular, progressive = {f"{word}d"}, {f"{word[:-2]}ying"}
    else:
        bare = [word] if word.endswith(("ee", "oe", "ye")) else _stems(word)
        regular = {f"{word[:-1]}ied"} if _consonant_y(word) else {f"{stem}ed" for stem in _stems(word)}
        progressive = {f"{stem}ing" for stem in bare}
    return {_with_s(word), *_VERBS.get(word, regular), *progressive}


def _comparisons(word: str) -> set[str]:
    if word in _COMPARISONS:
        return set(_COMPARISONS[word])
    stems = {f"{word[:-1]}i"} if _consonant_y(word) else set(_stems(word))
    if _consonant_y(word) and len(word) == 3:
        stems.add(word)  # shyer and shier
    return {f"{stem}{ending}" for stem in stems for ending in ("er", "est")}


def _stems(word: str) -> list[str]:
    """What stands before a vowel ending: run -> runn, make -> mak, play -> play, visit -> visit, visitt."""
    if word.endswith("e") and len(word) > 2:
        return [word[:-1]]
    if word.endswith("ic"):
        return [f"{word}k"]
    heard = word.replace("qu", "q")  # the u of "quit" is no vowel
    doubles = len(heard) > 2 and re.search(r"(?:^|[^aeiou])[aeiouy][^aeiouwxy]$", heard) is not None
    if not doubles:
        return [word]
    # Of longer words the stress decides (begin, visit), and spelling differs (travelled, traveled).
    one_syllable = len(re.findall(r"[aeiouy]+", heard)) == 1
    return [word + word[-1]] if one_syllable else [word, word + word[-1]]


def _consonant_y(word: str) -> bool:
    return len(word) > 2 and word[-1] == "y" and word[-2] not in "aeiou"


def contains_word(text: str, word: str, part: Part | None = None) -> bool:
    """Whether the text has the word in any of its inflections."""
    return not inflections(word, part).isdisjoint(_tokenised(text).vocabulary)


def missing_words(text: str, required: Iterable[str], parts: Sequence[Part] | None = None) -> list[str]:
    """Those of the required words that the text has in no inflection, in the order given.

    `parts` are their parts of speech, one each, where they are known.
    """
    required = list(required)
    known: Sequence[Part | None] = parts if parts is not None else [None] * len(required)
    return [w for w, part in zip(required, known, strict=True) if not contains_word(text, w, part)]


def ends_properly(text: str) -> bool:
    """Whether the text stops at the end of a sentence (closing quotes allowed) or with "The End"."""
    return _END.search(_plain(text.rstrip()[-24:]).lower()) is not None


def sentences(text: str) -> list[str]:
    """The sentences of a text, without their end marks."""
    return [s for s in (part.strip() for part in _SENTENCE.split(text)) if s]


def paragraph_count(text: str) -> int:
    """Blocks between blank lines; where there is no blank line, lines."""
    blocks = _BLANK_LINES.split(text.strip())
    return sum(bool(block.strip()) for block in (blocks if len(blocks) > 1 else text.splitlines()))


def has_loop(text: str, max_repeated: float = 0.3) -> bool:
    """Whether the text goes round in circles.

    It does if a run of five words or more comes twice in a row, a shorter one three times in a row and
    over at least five words, a sentence of five words or more three times anywhere, or if more than
    the share `max_repeated` of its four-word runs stood in it before.
    """
    tokens = _tokenised(text)
    repeated = len(tokens.fourgrams) - len(tokens.fourgram_set)
    if repeated == 0:  # nothing of four words comes twice, so nothing longer does
        return False
    if repeated > max_repeated * len(tokens.fourgrams) or _stutters(tokens.fourgrams):
        return True
    # A sentence of five words that comes three times repeats two of its four-word runs twice.
    return repeated >= 4 and _has_refrain(tokens.lower)


def _stutters(fourgrams: Sequence[Gram]) -> bool:
    """Whether some unit of words follows itself: its four-word runs come again at one same distance."""
    last = dict(zip(fourgrams, range(len(fourgrams)), strict=True))
    again = [i for i, gram in enumerate(fourgrams) if last[gram] != i]
    unit = length = 0
    previous = -1
    for i in again:
        distance = fourgrams.index(fourgrams[i], i + 1) - i
        length = length + 1 if distance == unit and i == previous + 1 else 1
        unit, previous = distance, i
        # `length` runs at this distance cover length + 3 words that repeat the ones before.
        if length + 3 >= unit * (1 if unit >= 5 else 2):
            return True
    return False


def _has_refrain(lower: str) -> bool:
    counts = Counter(tuple(_split(sentence)) for sentence in sentences(lower))
    return any(n >= 3 and len(sentence) >= 5 for sentence, n in counts.items())


def proper_names(text: str) -> set[str]:
    """Words written with a capital inside a sentence, in lower case: "Then Zeb ran" -> {"zeb", "zeb's"}."""
    names = {name.lower() for name in _INNER_CAPITAL.findall(text)}
    return names | {f"{name}'s" for name in names}


def is_refusal(text: str) -> bool:
    """Whether the text opens by declining to answer, as assistants do."""
    return _REFUSAL.match(_plain(text[:200]).strip().lower()) is not None


@lru_cache(maxsize=4096)
def _line_fourgrams(line: str) -> frozenset[Gram]:
    return _Tokenised(line).fourgram_set


def echoes_prompt(text: str, prompt: str, limit: int = 10) -> bool:
    """Whether the text says again what it was asked: `limit` or more of the prompt's four-word runs.

    Ten of them are thirteen words in a row, or as much in pieces.
    """
    said = _tokenised(text).fourgram_set
    return sum(len(said & _line_fourgrams(line)) for line in prompt.splitlines()) >= limit


def distinct_n(texts: Iterable[str], n: int) -> float:
    """Distinct n-word runs over all n-word runs of the texts (arXiv 1510.03055); 0 if there are none."""
    grams = list(chain.from_iterable(ngrams(words(text), n) for text in texts))
    return len(set(grams)) / len(grams) if grams else 0.0
