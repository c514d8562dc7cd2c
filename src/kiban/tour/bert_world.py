"""The world of BERT's exhibit: a small language, documents in it, and four tasks about them.

Words. 10 topics have 16 concepts each, and a concept three words that mean it (synonyms). Three kinds of things bear names:
a first part that only one kind has, a second part that all share. A thing has properties; a sentence states one as `name
phrase value .` behind a word of the topic, and each property has three phrases that mean it.
Documents. A document is about four concepts of one topic and two things of one kind. Some sentences tell of the concepts,
each time in any of their words, and name things; others state properties, once and again in other phrases. Values are drawn
anew for each document, so they can be known from the document alone.
Nobody says which words are synonyms, what topic they are of, which kind a name is or what a phrase means: that is what can
be had from reading. Each task needs some of it, and its 500 labels show too few of the words to learn it from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiban.inputs.batch import IGNORE, pad_batch

PAD, CLS, SEP, MASK, STOP, ASK = range(6)
Ints = NDArray[np.int64]
Sentence = list[int]


@dataclass(frozen=True, kw_only=True)
class World:
    """How many there are of everything. num_names: first parts of names of a kind; num_values: of a property."""

    num_topics: int = 10
    num_concepts: int = 16
    num_forms: int = 3
    num_kinds: int = 3
    num_names: int = 300
    num_seconds: int = 40
    num_properties: int = 3
    num_phrases: int = 3
    num_values: int = 12
    told_concepts: int = 4  # of a document
    told_things: int = 2

    @cached_property
    def words(self) -> Words:
        """The vocabulary."""
        return Words(self)


class Words:
    """Token ids by what they mean."""

    def __init__(self, w: World) -> None:
        self.size = ASK + 1
        self.topical = self._take(w.num_topics, w.num_concepts, w.num_forms)
        self.firsts = self._take(w.num_kinds, w.num_names)
        self.seconds = self._take(w.num_seconds)
        self.phrases = self._take(w.num_kinds, w.num_properties, w.num_phrases)
        self.values = self._take(w.num_kinds, w.num_properties, w.num_values)
        self.tails = self._take(w.num_values)  # second parts of values

    def _take(self, *shape: int) -> Ints:
        count = int(np.prod(shape))
        self.size += count
        return np.arange(self.size - count, self.size).reshape(shape)


@dataclass(frozen=True)
class Story:
    """What a document is about."""

    topic: int
    concepts: Ints
    kind: int
    things: list[Sentence]
    facts: list[tuple[int, int, Sentence]]  # thing, property, value


class Author:
    """Writes in a world. What it writes depends on the generator alone."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self.world, self.words, self.rng = world, world.words, rng

    def story(self) -> Story:
        """What a document will be about."""
        w, rng = self.world, self.rng
        kind = int(rng.integers(w.num_kinds))
        things = [self.name(kind) for _ in range(w.told_things)]
        facts = [
            (thing, property, self._value(kind, property))
            for thing in range(w.told_things)
            for property in rng.permutation(w.num_properties)[:2].tolist()
        ]
        concepts = rng.permutation(w.num_concepts)[: w.told_concepts]
        return Story(int(rng.integers(w.num_topics)), concepts, kind, things, facts)

    def name(self, kind: int) -> Sentence:
        """A name of this kind."""
        return [int(self.rng.choice(self.words.firsts[kind])), int(self.rng.choice(self.words.seconds))]

    def _value(self, kind: int, property: int) -> Sentence:
        value = [int(self.rng.choice(self.words.values[kind, property]))]
        return value + [int(self.rng.choice(self.words.tails))] * int(self.rng.random() < 0.5)

    def topical(self, story: Story, names: Sequence[Sentence] = ()) -> Sentence:
        """A word for each concept of the story, and these names, in any order."""
        rng, told = self.rng, story.concepts
        forms = self.words.topical[story.topic, told, rng.integers(self.world.num_forms, size=len(told))]
        parts = [*([int(word)] for word in forms), *names]
        return [id for place in rng.permutation(len(parts)) for id in parts[place]] + [STOP]

    def noise(self, num: int) -> list[Sentence]:
        """Words of any topic."""
        return [[int(word)] for word in self.rng.choice(self.words.topical.ravel(), num)]

    def statement(self, story: Story, fact: int, phrase: int) -> Sentence:
        """A fact of the story in one of its phrases, behind a word for one of its concepts."""
        thing, property, value = story.facts[fact]
        word = self.rng.choice(self.words.topical[story.topic, self.rng.choice(story.concepts)])
        return [int(word), *story.things[thing], int(self.words.phrases[story.kind, property, phrase]), *value, STOP]

    def document(self) -> list[Sentence]:
        """Four topical sentences, each with a name, and two facts three times over, each time in another phrase."""
        story, rng = self.story(), self.rng
        told = [self.topical(story, [story.things[i % len(story.things)]]) for i in range(4)]
        for fact in rng.permutation(len(story.facts))[:2].tolist():
            told += [self.statement(story, fact, phrase) for phrase in rng.permutation(self.world.num_phrases)[:3]]
        return [told[place] for place in rng.permutation(len(told))]


# Tasks --------------------------------------------------------------------------------------------------------------

TAGS = ("O", *(f"{mark}-{kind}" for kind in range(World.num_kinds) for mark in "BI"))


@dataclass(frozen=True)
class Row:
    """[CLS] A [SEP], or [CLS] A [SEP] B [SEP], with what the task asks for."""

    tokens: Sentence
    segments: Sentence
    label: Any


def pair(a: Sequence[int], b: Sequence[int] = (), label: Any = None) -> Row:
    """A row of one or two passages."""
    tokens, segments = [CLS, *a, SEP], [0] * (len(a) + 2)
    return Row([*tokens, *b, SEP], [*segments, *[1] * (len(b) + 1)], label) if b else Row(tokens, segments, label)


def class_row(author: Author) -> Row:
    """Which topic is a sentence of? Half of its words are of any topic."""
    story = author.story()
    return pair(author.topical(story, author.noise(4)), label=story.topic)


def tag_row(author: Author) -> Row:
    """Where are names, and of which kinds? A topical sentence with three names; nothing else in it tells the kind."""
    kinds = author.rng.integers(author.world.num_kinds, size=3)
    firsts = {int(name[0]): int(kind) for kind in kinds for name in [author.name(kind)]}
    names = [[first, int(author.rng.choice(author.words.seconds))] for first in firsts]
    sentence = author.topical(author.story(), names)
    tags = ["O"] * len(sentence)
    for place, word in enumerate(sentence):
        if word in firsts:
            tags[place : place + 2] = [f"B-{firsts[word]}", f"I-{firsts[word]}"]
    return pair(sentence, label=[IGNORE, *map(TAGS.index, tags), IGNORE])


def span_row(author: Author) -> Row:
    """Which value has a thing? All facts of a document in one phrase each, and a question in another."""
    story, rng = author.story(), author.rng
    asked = int(rng.integers(len(story.facts)))
    thing, property, value = story.facts[asked]
    said, *_, other = rng.permutation(author.world.num_phrases)
    question = [*story.things[thing], int(author.words.phrases[story.kind, property, other]), ASK]
    context: Sentence = []
    start = 0
    for fact in rng.permutation(len(story.facts)).tolist():
        phrase = said if fact == asked else rng.integers(author.world.num_phrases)
        context += author.statement(story, fact, int(phrase))
        if fact == asked:
            start = len(context) - 1 - len(value)
    start += len(question) + 2
    return pair(question, context, (start, start + len(value) - 1))


def query(author: Author) -> tuple[Sentence, Sentence]:
    """A passage of two sentences, and a few words to find it by.

    Half of the words are of any topic, so a word in common need not mean much.
    """
    story, rng = author.story(), author.rng
    passage = [id for _ in range(2) for id in author.topical(story, author.noise(4))]
    asked = [[id] for id in rng.permutation(author.topical(story)[:-1])[:2].tolist()] + author.noise(2)
    return passage, [asked[place][0] for place in rng.permutation(len(asked))] + [ASK]


def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
    """tokens, segments (B, T) int64 and mask (B, T) bool."""
    tokens, mask = pad_batch([row.tokens for row in rows], PAD)
    return {"tokens": tokens, "mask": mask, "segments": pad_batch([row.segments for row in rows], 0)[0]}


def collate_classes(rows: Sequence[Row]) -> dict[str, Tensor]:
    """With labels (B,)."""
    return collate(rows) | {"labels": torch.tensor([row.label for row in rows])}


def collate_tags(rows: Sequence[Row]) -> dict[str, Tensor]:
    """With labels (B, T), -100 where there is none."""
    return collate(rows) | {"labels": pad_batch([row.label for row in rows], IGNORE)[0]}


def collate_spans(rows: Sequence[Row]) -> dict[str, Tensor]:
    """With allowed (B, T), start and end (B,)."""
    batch = collate(rows)
    start, end = torch.tensor([row.label for row in rows]).T
    return batch | {"allowed": (batch["segments"] == 1) & batch["mask"], "start": start, "end": end}
