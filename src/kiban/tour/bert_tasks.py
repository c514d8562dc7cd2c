"""Four tasks of 500 labels on descriptions of Debian packages: class, names, answer span, re-ranking.

The texts are real (examples/data/README.md). What is asked of them follows from the texts alone, so nobody labelled
anything for it: the class is the package's section; names are what the authors wrote with capitals, in a text put in lower
case; the question of a span is the end of a description, its answer the name of the package among others, as a package
manager lists them; the query of a search is the last sentence of a description, the passage to find its first.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiban.data.corruption import continues
from kiban.errors import DatasetError
from kiban.evaluate.ranking import Bm25, search_words
from kiban.inputs.batch import pad_batch
from kiban.inputs.sentences import sentences
from kiban.inputs.tokenizer import Tokenizer

COLUMNS = (("package", "text", "label"), ("パッケージ", "本文", "区分"))
IGNORE = -100
TAGS = ("O", "B-NAME", "I-NAME")
WORD = re.compile(r"[A-Za-z][\w.+-]*\w|[A-Za-z]")
# They begin sentences, also where no full stop ends the one before: a summary stands in front of many descriptions.
OPENERS = frozenset(
    "I A An As At By For From If In It Its On Of To The This That These There They You Your With When While It's Unlike "
    "Using Some Most Many All Also And But Or Not No It'll Features Currently However Note See".split()
)
NUM_LISTED = 4  # packages among which a question's answer stands
QUESTION, LISTED = 30, 14  # tokens of a question, and of a listed package's sentence
NUM_CANDIDATES = 20  # that BM25 hands to the re-ranker
GROUP = 8  # of them that a training query is shown


@dataclass(frozen=True)
class Description:
    """A package's description in sentences."""

    name: str
    text: str
    sentences: tuple[str, ...]
    label: str


def read_descriptions(path: Path) -> list[Description]:
    """The rows of debian-en.csv or debian-ja.csv. Raises DatasetError if the file is not there or is another."""
    hint = "give the folder examples/data of the source tree"
    if not path.is_file():
        raise DatasetError(path, why="does not exist", hint=hint)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    if not rows or tuple(rows[0]) not in COLUMNS:
        raise DatasetError(path, line=1, why=f"is not {COLUMNS[0]}", hint=hint)
    return [Description(name, text, tuple(sentences(text)), label) for name, text, label in rows[1:]]


@dataclass(frozen=True)
class Split:
    """Descriptions to learn from, of which a few have labels, and descriptions to be asked about."""

    train: list[Description]
    test: list[Description]


def split(rows: Sequence[Description], *, num_test: int) -> Split:
    """The same split for every seed of a model, so that models and their ablations answer the same questions."""
    order = np.random.default_rng(0).permutation(len(rows))
    return Split([rows[i] for i in order[num_test:]], [rows[i] for i in order[:num_test]])


def sample(rows: Sequence[Description], num: int, seed: int) -> list[Description]:
    """num rows that have labels; another seed has others."""
    chosen = np.random.default_rng([1, seed]).permutation(len(rows))[:num]
    return [rows[i] for i in chosen]


# Classes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextRow:
    """[CLS] text [SEP] and its class."""

    tokens: list[int]
    label: int


def class_rows(rows: Sequence[Description], labels: Sequence[str], tokenizer: Tokenizer, max_len: int) -> list[TextRow]:
    """Every description with the place of its class among labels."""
    encoded = tokenizer.encode_batch([row.text for row in rows], max_len=max_len)
    return [TextRow(tokens, labels.index(row.label)) for tokens, row in zip(encoded, rows, strict=True)]


def collate_classes(rows: Sequence[TextRow]) -> dict[str, Tensor]:
    """tokens, mask (B, T), labels (B,)."""
    tokens, mask = pad_batch([row.tokens for row in rows], 0)
    return {"tokens": tokens, "mask": mask, "labels": torch.tensor([row.label for row in rows])}


# Names --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TagRow:
    """[CLS] text [SEP] with a tag for the first piece of each word, -100 elsewhere."""

    tokens: list[int]
    labels: list[int]


def name_spans(text: str) -> list[tuple[int, int]]:
    """Places of names in an English text: words with a capital, neighbours together; not a sentence's first word.

    A first word counts if a later letter is a capital (LaTeX, GNOME).
    """
    spans: list[tuple[int, int]] = []
    firsts, at = set(), 0
    for sentence in sentences(text):
        at = text.index(sentence, at)
        firsts.add(at)
    for match in WORD.finditer(text):
        word = match[0]
        inside = any(character.isupper() for character in word[1:])
        first = match.start() in firsts or word in OPENERS
        if not (inside or (word[0].isupper() and not first)):
            continue
        if spans and text[spans[-1][1] : match.start()] == " ":
            spans[-1] = (spans[-1][0], match.end())
        else:
            spans.append(match.span())
    return spans


def tag_rows(rows: Sequence[Description], tokenizer: Tokenizer, max_len: int) -> list[TagRow]:
    """Every description with the tags of its names. The tokenizer must not tell capitals from small letters."""
    inner = continues(tokenizer).tolist()
    found = []
    for row in rows:
        encoding, spans = tokenizer.encode_with_offsets(row.text), name_spans(row.text)
        labels = []
        for id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            span = next((s for s in spans if s[0] <= start < s[1]), None)
            begins = span is not None and start == span[0]
            labels.append(IGNORE if start == end or inner[id] else 0 if span is None else 1 if begins else 2)
        found.append(TagRow(encoding.ids[:max_len], labels[:max_len]))
    return found


def collate_tags(rows: Sequence[TagRow]) -> dict[str, Tensor]:
    """tokens, mask, labels (B, T)."""
    tokens, mask = pad_batch([row.tokens for row in rows], 0)
    return {"tokens": tokens, "mask": mask, "labels": pad_batch([row.labels for row in rows], IGNORE)[0]}


# Answers ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnswerRow:
    """[CLS] question [SEP] list of packages [SEP]; the answer is from tokens[start] to tokens[end]."""

    tokens: list[int]
    first: int  # of the list
    start: int
    end: int


def answer_rows(rows: Sequence[Description], tokenizer: Tokenizer, max_len: int) -> list[AnswerRow]:
    """Which of four listed packages is the rest of a description about? For descriptions of two sentences and more.

    A list has a package's name and its first sentence, cut, as a package manager prints them. The other three are of the
    same rows, by a chance that the place of a row fixes.
    """
    assert tokenizer.cls_id is not None and tokenizer.sep_id is not None
    rows = [row for row in rows if len(row.sentences) > 1]
    rests = tokenizer.encode_batch([" ".join(row.sentences[1:]) for row in rows], add_special=False)
    names = tokenizer.encode_batch([row.name for row in rows], add_special=False)
    firsts = tokenizer.encode_batch([row.sentences[0] for row in rows], add_special=False)
    found = []
    for place, rest in enumerate(rests):
        rng = np.random.default_rng([2, place])
        others = rng.choice(len(rows) - 1, NUM_LISTED - 1, replace=False)
        listed = [place, *(int(other) + (other >= place) for other in others)]
        rng.shuffle(listed)
        tokens = [tokenizer.cls_id, *rest[:QUESTION], tokenizer.sep_id]
        first = len(tokens)
        answer = (0, 0)
        for other in listed:
            if other == place:
                answer = len(tokens), len(tokens) + len(names[other]) - 1
            tokens += [*names[other], tokenizer.sep_id, *firsts[other][:LISTED], tokenizer.sep_id]
        if len(tokens) <= max_len:
            found.append(AnswerRow(tokens, first, *answer))
    return found


def collate_answers(rows: Sequence[AnswerRow]) -> dict[str, Tensor]:
    """tokens, mask, segments, allowed (B, T), start, end (B,)."""
    tokens, mask = pad_batch([row.tokens for row in rows], 0)
    places = torch.arange(tokens.shape[1])
    second = (places >= torch.tensor([row.first for row in rows])[:, None]) & mask
    return {
        "tokens": tokens,
        "mask": mask,
        "segments": second.long(),
        "allowed": second,
        "start": torch.tensor([row.start for row in rows]),
        "end": torch.tensor([row.end for row in rows]),
    }


# Search -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """A query and what BM25 found for it, best first: places of passages and their scores."""

    query: list[int]
    candidates: NDArray[np.int64]
    scores: NDArray[np.float64]
    relevant: int  # place of the passage that is looked for, among the candidates or not
    relevant_score: float


@dataclass(frozen=True)
class Collection:
    """Passages as token ids, and queries over them."""

    passages: list[list[int]]
    searches: list[Search]


def collection(rows: Sequence[Description], tokenizer: Tokenizer) -> Collection:
    """The first sentences of descriptions as passages, the last ones as queries, and BM25's candidates."""
    rows = [row for row in rows if len(row.sentences) > 1]
    firsts, lasts = [row.sentences[0] for row in rows], [row.sentences[-1] for row in rows]
    engine = Bm25(search_words(firsts))
    queries = tokenizer.encode_batch(lasts, add_special=False)
    searches = []
    for place, (query, words) in enumerate(zip(queries, search_words(lasts), strict=True)):
        scores = engine.scores(words)
        candidates = np.argsort(-scores, kind="stable")[:NUM_CANDIDATES]
        searches.append(Search(query, candidates, scores[candidates], place, float(scores[place])))
    return Collection(tokenizer.encode_batch(firsts, add_special=False), searches)


@dataclass(frozen=True)
class Group:
    """A query with passages to be scored, BM25's scores of them, and which of them is the right one (-1: none)."""

    query: list[int]
    passages: list[list[int]]
    prior: list[float]
    relevant: int


def training_groups(found: Collection, seed: int) -> list[Group]:
    """The relevant passage of every query among wrong ones that BM25 found."""
    groups = []
    for place, search in enumerate(found.searches):
        rng = np.random.default_rng([3, seed, place])
        wrong = [i for i, candidate in enumerate(search.candidates) if candidate != search.relevant]
        chosen = rng.choice(wrong, GROUP - 1, replace=False)
        passages = [found.passages[search.relevant], *(found.passages[search.candidates[i]] for i in chosen)]
        groups.append(Group(search.query, passages, [search.relevant_score, *search.scores[chosen].tolist()], 0))
    return groups


def test_groups(found: Collection) -> list[Group]:
    """Every query with all that BM25 found."""
    groups = []
    for search in found.searches:
        hits = np.flatnonzero(search.candidates == search.relevant)
        passages = [found.passages[i] for i in search.candidates]
        groups.append(Group(search.query, passages, search.scores.tolist(), int(hits[0]) if len(hits) else -1))
    return groups


def collate_groups(groups: Sequence[Group], *, tokenizer: Tokenizer, max_len: int) -> dict[str, Tensor]:
    """tokens, mask, segments (B * K, T), prior (B * K,), relevant (B,): [CLS] passage [SEP] query [SEP], as text goes on."""
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    assert cls is not None and sep is not None
    half = (max_len - 3) // 2
    tokens, segments = [], []
    for group in groups:
        for passage in group.passages:
            a, b = [cls, *passage[:half], sep], [*group.query[:half], sep]
            tokens.append(a + b)
            segments.append([0] * len(a) + [1] * len(b))
    padded, mask = pad_batch(tokens, 0)
    return {
        "tokens": padded,
        "mask": mask,
        "segments": pad_batch(segments, 0)[0],
        "prior": torch.tensor([score for group in groups for score in group.prior]),
        "relevant": torch.tensor([group.relevant for group in groups]),
    }
