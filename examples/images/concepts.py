"""What the emoji show: names and keywords in Japanese and English, classes, and which concepts are held out."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

LANGUAGES = ("ja", "en")
HELD_OUT = 10  # one group of concepts in so many
SIMILAR = 0.8  # Dice coefficient of letter pairs from which two names count as nearly the same
PER_CAPTION = 3  # keywords
JOINER, COLOUR = "200D", "FE0F"
NUMBER = re.compile(r"\d+|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b")
# Parts of a sequence that say how somebody looks or which way they face, not what is shown.
MODIFIERS = frozenset(("2640", "2642", "27A1", *(f"1F9B{i}" for i in range(4)), *(f"1F3F{c}" for c in "BCDEF")))
PERSON, CHILD, OLDER = "1F9D1", "1F9D2", "1F9D3"
FAMILY, KISS, COUPLE, HANDS, CLAUS = "1F46A", "1F48F", "1F491", "1F46D", "1F936"
# Men and women that have a sequence of their own, and what stands for all of them.
NEUTRAL = {
    "1F468": PERSON, "1F469": PERSON, "1F466": CHILD, "1F467": CHILD, "1F474": OLDER, "1F475": OLDER,
    "1F934": "1FAC5", "1F478": "1FAC5",  # prince and princess: person with crown
    "1F57A": "1F483", "1FAC3": "1F930", "1FAC4": "1F930",  # dancing; pregnant
    "1F46B": HANDS, "1F46C": HANDS, "1F385": CLAUS,
}  # fmt: skip
# Flags of countries and regions are texts in disguise: nobody can draw, or name, one that was not shown before.
LEFT_OUT = frozenset(("country-flag", "subdivision-flag", "skin-tone"))


@dataclass(frozen=True)
class Concept:
    """An emoji. id: its code points as Unicode writes them, 1F469-200D-1F692. names and keywords are by language."""

    id: str
    names: Mapping[str, str]
    keywords: Mapping[str, tuple[str, ...]]
    category: str
    subcategory: str

    @property
    def text(self) -> str:
        """The characters."""
        return characters(self.id)

    def captions(self, language: str) -> list[str]:
        """The name, then the keywords that say more, a few at a time."""
        name = self.names[language]
        words = [word for word in self.keywords[language] if word.casefold() != name.casefold()]
        if len(words) < 2:  # one alone, such as "face", would fit too many pictures
            return [name]
        count = math.ceil(len(words) / PER_CAPTION)
        cuts = [round(i * len(words) / count) for i in range(count + 1)]
        mark = "、" if language == "ja" else ", "
        return [name, *(mark.join(words[a:b]) for a, b in itertools.pairwise(cuts))]


def characters(id: str) -> str:
    """The text of a sequence of code points."""
    return "".join(chr(int(point, 16)) for point in id.split("-"))


def bare(text: str) -> str:
    """A text without the marks that ask for colour, which some sources write and some don't."""
    return text.replace(chr(int(COLOUR, 16)), "")


def read_annotations(files: Iterable[bytes]) -> dict[str, dict[str, list[str]]]:
    """Emoji without marks -> {"tts": [name], "default": keywords}, from the files of CLDR for one language."""
    found: dict[str, dict[str, list[str]]] = {}
    for data in files:
        (top,) = json.loads(data).values()
        for text, facts in top["annotations"].items():
            found.setdefault(bare(text), facts)
    return found


def read_concepts(emoji: bytes, annotations: Mapping[str, Mapping[str, dict[str, list[str]]]]) -> list[Concept]:
    """The concepts of emoji-datasource's emoji.json, in its order, without skin tones; annotations are by language."""
    concepts = []
    for item in sorted(json.loads(emoji), key=lambda item: item["sort_order"]):
        if item["subcategory"] in LEFT_OUT:
            continue
        facts = {language: annotations[language][bare(characters(item["unified"]))] for language in LANGUAGES}
        names = {language: fact["tts"][0] for language, fact in facts.items()}
        keywords = {language: tuple(fact.get("default", ())) for language, fact in facts.items()}
        concepts.append(Concept(item["unified"], names, keywords, item["category"], item["subcategory"]))
    return concepts


def base(id: str) -> str:
    """The sequence without gender, hair, skin and direction: that of a woman firefighter is that of a firefighter."""
    points = [part.split("-") for part in id.replace(f"-{JOINER}-", "|").split("|")]
    if len(points) == 1 and len(points[0]) <= 2 and points[0][0] in MODIFIERS:
        return points[0][0]  # the sign itself
    parts = [[NEUTRAL.get(p, p) for p in part if p not in MODIFIERS and p != COLOUR] for part in points]
    joined = ["-".join(part) for part in parts if part]
    people = [part for part in joined if part in (PERSON, CHILD)]
    if people and "2764" in joined:  # a heart between two
        return KISS if "1F48B" in joined else COUPLE
    if len(people) == len(joined) > 1:
        return FAMILY
    if joined == [PERSON, "1F91D", PERSON]:
        return HANDS
    return CLAUS if joined == [PERSON, "1F384"] else f"-{JOINER}-".join(joined)


def letter_pairs(name: str, language: str) -> frozenset[str]:
    """The pairs of neighbouring letters of a name, all numbers being one: a clock at two is one at three."""
    name = NUMBER.sub("#", name.lower())
    text = name if language == "ja" else f" {name} "
    return frozenset(text[i : i + 2] for i in range(len(text) - 1)) or frozenset((text,))


def similar_names(concepts: Sequence[Concept]) -> list[tuple[int, int]]:
    """Places of concepts whose names are nearly the same in a language."""
    found = []
    for language in LANGUAGES:
        pairs = [letter_pairs(concept.names[language], language) for concept in concepts]
        for (i, a), (j, b) in itertools.combinations(enumerate(pairs), 2):
            least, total = SIMILAR / 2, len(a) + len(b)
            if min(len(a), len(b)) >= least * total and len(a & b) >= least * total:
                found.append((i, j))
    return found


def group(concepts: Sequence[Concept]) -> list[str]:
    """Of each concept the group that is held out or shown as a whole: one base, or names that are nearly the same.

    A group has the name of its first concept's base.
    """
    bases = [base(concept.id) for concept in concepts]
    parent = {name: name for name in bases}

    def top(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for i, j in similar_names(concepts):
        first, second = sorted((top(bases[i]), top(bases[j])), key=bases.index)
        parent[second] = first
    return [top(name) for name in bases]


def is_held_out(group: str) -> bool:
    """Whether the concepts of a group are held out: a function of its name alone."""
    return int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest(), "big") % HELD_OUT == 0


def distinct_captions(concepts: Sequence[Concept], groups: Sequence[str], language: str) -> list[list[str]]:
    """The captions of each concept, without those that fit concepts of another group just as well."""
    captions = [concept.captions(language) for concept in concepts]
    said: dict[str, set[str]] = {}
    for name, texts in zip(groups, captions, strict=True):
        for text in texts:
            said.setdefault(text, set()).add(name)
    return [[texts[0], *(text for text in texts[1:] if len(said[text]) == 1)] for texts in captions]


def check_split(concepts: Sequence[Concept], held_out: Sequence[bool], captions: Sequence[Sequence[str]]) -> None:
    """Raise ValueError if something is on both sides: a concept as another person, a caption, or nearly the same name.

    captions: of each concept, in all languages.
    """
    people: dict[str, bool] = {}
    said: dict[str, bool] = {}
    for concept, held, texts in zip(concepts, held_out, captions, strict=True):
        if people.setdefault(base(concept.id), held) != held:
            raise ValueError(f"{concept.id} is held out and shown, as another person")
        for text in texts:
            if said.setdefault(text, held) != held:
                raise ValueError(f"{text!r} is said of a concept that is held out and of one that is not")
    for i, j in similar_names(concepts):
        if held_out[i] != held_out[j]:
            raise ValueError(f"{concepts[i].names} and {concepts[j].names} are nearly the same; one is held out")
