"""BERT's pretraining rows: pairs of passages, of which the second follows the first or is from elsewhere.

Devlin et al. 2019, appendix A.2, built as in its released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiban.config import Progress, silent
from kiban.data.corruption import WordMasking
from kiban.errors import ConfigError, DatasetError
from kiban.inputs.batch import IGNORE, pad_batch

Pair = tuple[int, int, int, int, bool]  # begin and end of A and of B among all tokens, and whether B is from elsewhere


@dataclass(frozen=True)
class Row:
    """[CLS] A [SEP] B [SEP] with words hidden. segments: 0 up to the first [SEP], then 1. labels: -100 or what is hidden."""

    tokens: list[int]
    segments: list[int]
    labels: list[int]
    random_next: bool


class SentencePairs(Sequence[Row]):
    """Rows from documents, each a list of sentences, each a list of token ids.

    A row fills max_len as well as whole sentences do, and is cut where they pass it; with probability short the rows of a
    document are shorter. Half of the second passages are of another document; where one sentence fills a row, or is left
    at the end of a document, it always is. num_epochs: passes over the documents, each with other pairs and hidden words
    (the dupe_factor of the released code). A row depends on seed, epoch and its place alone.

    Raises DatasetError if there are not two documents with text, ConfigError if max_len is below 5.
    """

    def __init__(
        self,
        documents: Sequence[Sequence[Sequence[int]]],
        masking: WordMasking,
        *,
        cls_id: int,
        sep_id: int,
        max_len: int,
        seed: int,
        num_epochs: int = 1,
        short: float = 0.1,
        progress: Progress = silent,
    ) -> None:
        if max_len < 5:
            raise ConfigError("sentence pairs", field="max_len", why=f"{max_len} leaves no room for two passages")
        self.masking, self.cls_id, self.sep_id, self.seed = masking, cls_id, sep_id, seed
        self.room, self.short = max_len - 3, short
        kept = [[sentence for sentence in document if len(sentence)] for document in documents]
        kept = [document for document in kept if document]
        if len(kept) < 2:
            raise DatasetError("sentence pairs", why="needs two documents with text", hint="give it more documents")
        lengths = [len(sentence) for document in kept for sentence in document]
        self.tokens = np.fromiter((id for document in kept for s in document for id in s), np.int32, sum(lengths))
        self.ends = np.cumsum(lengths)  # of sentences, among the tokens
        self.documents = np.cumsum([0, *map(len, kept)])  # first sentence of each document, and the end
        pairs: list[Pair] = []
        self.epochs = [0]  # first row of each epoch, and the end
        for epoch in range(num_epochs):
            for document in range(len(kept)):
                pairs += self._pairs(document, np.random.default_rng([seed, epoch, document]))
            self.epochs.append(len(pairs))
            progress("pairs", epoch + 1, num_epochs)
        self.pairs: NDArray[np.int64] = np.array(pairs, dtype=np.int64)

    def _pairs(self, document: int, rng: np.random.Generator) -> list[Pair]:
        """The pairs of a document in one epoch."""
        first, end = int(self.documents[document]), int(self.documents[document + 1])
        target = int(rng.integers(2, self.room + 1)) if rng.random() < self.short else self.room
        pairs = []
        while first < end:
            last = first + 1  # behind the last sentence of this row
            while last < end and self._end(last) - self._end(first) < target:
                last += 1
            middle = int(rng.integers(first + 1, last)) if last - first > 1 else last
            a = (self._end(first), self._end(middle))
            random = middle == last or rng.random() < 0.5
            if random:
                b = self._elsewhere(document, target - (a[1] - a[0]), rng)
                first = middle  # what would have followed begins the next row
            else:
                b = (self._end(middle), self._end(last))
                first = last
            pairs.append((*_cut(a, b, self.room, rng), random))
        return pairs

    def _end(self, sentence: int) -> int:
        """Where the sentences before this one end among the tokens."""
        return int(self.ends[sentence - 1]) if sentence else 0

    def _elsewhere(self, document: int, target: int, rng: np.random.Generator) -> tuple[int, int]:
        """A passage of another document, of whole sentences, at least target tokens if it has so many."""
        other = int(rng.integers(len(self.documents) - 2))
        other += other >= document
        begin, end = int(self.documents[other]), int(self.documents[other + 1])
        first = int(rng.integers(begin, end))
        last = int(np.searchsorted(self.ends[first:end], self._end(first) + target)) + first + 1
        return self._end(first), self._end(min(last, end))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        epoch = int(np.searchsorted(self.epochs, index, side="right")) - 1
        a, a_end, b, b_end, random = self.pairs[index].tolist()
        passages = self.tokens[a:a_end].tolist(), self.tokens[b:b_end].tolist()
        tokens = [self.cls_id, *passages[0], self.sep_id, *passages[1], self.sep_id]
        state = np.random.SeedSequence([self.seed, epoch, index - self.epochs[epoch]]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        hidden, labels = self.masking(torch.tensor([tokens]), generator)
        segments = [0] * (len(passages[0]) + 2) + [1] * (len(passages[1]) + 1)
        return Row(hidden[0].tolist(), segments, labels[0].tolist(), bool(random))

    @property
    def hidden_per_row(self) -> float:
        """Hidden tokens of a row to expect."""
        a, a_end, b, b_end, _ = self.pairs.T
        return self.masking.rate * float((a_end - a + b_end - b).mean())


def _cut(a: tuple[int, int], b: tuple[int, int], room: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A and B in room tokens: the longer loses one at its front or end, by chance, until they fit."""
    (a0, a1), (b0, b1) = a, b
    for front in rng.random(max(0, a1 - a0 + b1 - b0 - room)) < 0.5:
        if a1 - a0 > b1 - b0:
            a0, a1 = (a0 + 1, a1) if front else (a0, a1 - 1)
        else:
            b0, b1 = (b0 + 1, b1) if front else (b0, b1 - 1)
    return a0, a1, b0, b1


def collate(rows: Sequence[Row], *, pad_id: int) -> dict[str, Tensor]:
    """A batch: tokens, segments, labels (B, T) int64, mask (B, T) bool, random_next (B,) int64."""
    tokens, mask = pad_batch([row.tokens for row in rows], pad_id)
    return {
        "tokens": tokens,
        "mask": mask,
        "segments": pad_batch([row.segments for row in rows], 0)[0],
        "labels": pad_batch([row.labels for row in rows], IGNORE)[0],
        "random_next": torch.tensor([row.random_next for row in rows], dtype=torch.int64),
    }
