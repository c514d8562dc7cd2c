"""Fine-tuning an arm of BERT's exhibit on 500 labels, one task after the other, each from the same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from kiban.config import Progress, silent
from kiban.data.loader import Loader
from kiban.evaluate.ranking import Bm25, reciprocal_ranks
from kiban.evaluate.tagging import span_f1
from kiban.families.bert import Bert, BertAnswerer, BertClassifier, BertNextSentence, BertPretraining, BertTagger
from kiban.inputs.batch import IGNORE
from kiban.objectives.base import Objective
from kiban.objectives.classification import Classification
from kiban.objectives.ranking import Ranking
from kiban.objectives.span_qa import SpanQA, best_spans
from kiban.objectives.tagging import Tagging
from kiban.tour import bert_world as world
from kiban.tour.bert_models import EVALUATED, Arm, Setting, body
from kiban.train.settings import TrainConfig
from kiban.train.trainer import Trainer

COLLECTION = 40  # passages that a query is searched in
CANDIDATES = 20  # that BM25 finds for a query, and that are ranked anew
GROUP = 10  # passages of a query in training: the right one, and wrong ones that BM25 found
QUERIES = 4  # of a batch
Module = TypeVar("Module", bound=nn.Module)
Batch = dict[str, Tensor]
Collate = Callable[[list[Any]], Batch]


class Reranker(nn.Module):
    """Scores (B,) of passages: how much sooner the query goes on with one than is of elsewhere, plus a weight times BM25's.

    The weight is learned. Raw scores of BM25 are of the size of log-odds times five or so.
    """

    def __init__(self, pairs: BertNextSentence) -> None:
        super().__init__()
        self.pairs, self.weight = pairs, nn.Parameter(torch.tensor(0.2))

    def forward(self, tokens: Tensor, *, segments: Tensor, mask: Tensor, prior: Tensor) -> Tensor:
        logits = self.pairs(tokens, segments=segments, mask=mask)  # (B, 2)
        return torch.as_tensor(logits[:, 0] - logits[:, 1] + self.weight * prior)


@dataclass(frozen=True)
class Group:
    """A query beside each of some passages, BM25's scores of them, and which of them is the right one (-1: none)."""

    rows: list[world.Row]
    prior: list[float]
    relevant: int


def groups(author: world.Author, num: int, *, training: bool) -> list[Group]:
    """num queries, each over a collection of COLLECTION passages.

    Each comes with the CANDIDATES that BM25 finds, best first, or in training with the right passage and GROUP - 1 of the
    wrong ones among those.
    """
    found: list[Group] = []
    while len(found) < num:
        passages, queries = zip(*(world.query(author) for _ in range(COLLECTION)), strict=True)
        engine = Bm25([_words(passage) for passage in passages])
        for place, query in enumerate(queries):
            scores = engine.scores(_words(query))
            chosen = np.argsort(-scores, kind="stable")[:CANDIDATES]
            if training:
                wrong = author.rng.permutation(chosen[chosen != place])[: GROUP - 1]
                chosen = np.array([place, *wrong])
            hits = np.flatnonzero(chosen == place)
            rows = [world.pair(passages[i], query) for i in chosen]
            found.append(Group(rows, scores[chosen].tolist(), int(hits[0]) if len(hits) else -1))
    return found[:num]


def _words(sentence: Sequence[int]) -> list[str]:
    return [str(word) for word in sentence if word not in (world.STOP, world.ASK)]


def collate_groups(some: Sequence[Group]) -> Batch:
    """tokens, segments, mask (B * K, T), prior (B * K,), relevant (B,)."""
    prior = torch.tensor([score for group in some for score in group.prior])
    relevant = torch.tensor([group.relevant for group in some])
    return world.collate([row for group in some for row in group.rows]) | {"prior": prior, "relevant": relevant}


@dataclass(frozen=True)
class Tuner:
    """Measures an arm on the four tasks. The seed draws the labels, the heads and the order."""

    settings: Setting
    arm: Arm
    pretrained: BertPretraining
    seed: int
    progress: Progress = silent

    def measure(self) -> dict[str, float]:
        """class: accuracy; names: F1; span: exact answers; search: MRR@10 behind the re-ranker, bm25: before it. Percent."""
        found = {"class": self.classes(), "names": self.names(), "span": self.spans()}
        before, after = self.search()
        return {**found, "bm25": before, "search": after}

    def classes(self) -> float:
        """Accuracy over the topics."""
        module = self._headed(BertClassifier(self._body(), self.settings.num_topics))
        train, test = self._rows("class", world.class_row)
        self._tune("class", module, Classification(module), train, world.collate_classes)
        asked = self._ask(module, test, world.collate_classes)
        return 100 * float(np.mean([int(logits.argmax()) == int(row["labels"]) for logits, row in asked]))

    def names(self) -> float:
        """F1 over whole names."""
        module = self._headed(BertTagger(self._body(), len(world.TAGS)))
        train, test = self._rows("names", world.tag_row)
        self._tune("names", module, Tagging(module), train, world.collate_tags)
        truth, answers = [], []
        for logits, row in self._ask(module, test, world.collate_tags):
            wanted = row["labels"] != IGNORE
            truth.append([world.TAGS[i] for i in row["labels"][wanted].tolist()])
            answers.append([world.TAGS[i] for i in logits.argmax(-1)[wanted].tolist()])
        return 100 * span_f1(truth, answers)

    def spans(self) -> float:
        """Share of questions whose answer is found exactly."""
        module = self._headed(BertAnswerer(self._body()))
        train, test = self._rows("span", world.span_row)
        self._tune("span", module, SpanQA(module), train, world.collate_spans)
        right = []
        for logits, row in self._ask(module, test, world.collate_spans):
            allowed = logits.masked_fill(~row["allowed"][:, None], -torch.inf)
            right.append(best_spans(allowed[None])[0].tolist() == [int(row["start"]), int(row["end"])])
        return 100 * float(np.mean(right))

    def search(self) -> tuple[float, float]:
        """MRR@10 of BM25, and of its best candidates in the re-ranker's order."""
        s = self.settings
        pairs = self._headed(BertNextSentence(self._body()))
        if self.arm in ("bert", "causal"):  # the others have not learned it
            pairs.follows.load_state_dict(self.pretrained.follows.state_dict())
        module = Reranker(pairs)
        train = groups(self._author("search", 2), s.num_labels, training=True)
        self._tune("search", module, Ranking(module), train, collate_groups, size=QUERIES, longer=2)
        asked = groups(self._author("search", 3), s.num_test, training=False)
        module.eval()
        orders = []
        with torch.inference_mode():
            for start in range(0, len(asked), QUERIES):
                batch = collate_groups(asked[start : start + QUERIES])
                scores = module(batch["tokens"], segments=batch["segments"], mask=batch["mask"], prior=batch["prior"])
                orders += [np.argsort(-row, kind="stable") for row in scores.unflatten(0, (-1, CANDIDATES)).numpy()]
        relevant = [group.relevant for group in asked]
        before = reciprocal_ranks([np.arange(CANDIDATES)] * len(asked), relevant)
        return 100 * float(before.mean()), 100 * float(reciprocal_ranks(orders, relevant).mean())

    def _author(self, task: str, part: int) -> world.Author:
        return world.Author(self.settings, np.random.default_rng([self.seed, part, *task.encode()]))

    def _rows(self, task: str, write: Callable[[world.Author], world.Row]) -> tuple[list[world.Row], list[world.Row]]:
        """num_labels rows to learn from and num_test others; every arm of a seed has the same."""
        s, (learn, test) = self.settings, (self._author(task, 2), self._author(task, 3))
        return [write(learn) for _ in range(s.num_labels)], [write(test) for _ in range(s.num_test)]

    def _body(self) -> Bert:
        """The pretrained weights; dropout is for fine-tuning only, where few rows are seen often."""
        found = body(self.settings, self.arm, dropout=0.1)
        found.load_state_dict(self.pretrained.body.state_dict())
        return found

    def _headed(self, module: Module) -> Module:
        """The module with its head drawn."""
        module.initialise(torch.Generator().manual_seed(self.seed))  # type: ignore[operator]
        return module

    def _tune(
        self,
        name: str,
        module: nn.Module,
        objective: Objective,
        rows: list[Any],
        collate: Collate,
        *,
        size: int = 0,
        longer: int = 1,
    ) -> None:
        s, size = self.settings, size or self.settings.tune_rows
        config = TrainConfig(
            steps=max(1, longer * s.epochs * s.num_labels // s.tune_rows),
            batch_size=size,
            micro_batch_size=size,
            lr=s.tune_lr,
            seed=self.seed,
        )

        def tell(stage: str, done: int, total: int | None) -> None:
            self.progress(f"{self.arm}, {name} | {stage}", done, total)

        Trainer(objective, module, Loader(rows, collate, batch_size=size, seed=self.seed), config, progress=tell).run()

    @torch.inference_mode()
    def _ask(self, module: nn.Module, rows: Sequence[Any], collate: Collate) -> list[tuple[Tensor, Batch]]:
        """Logits of every row, and the row."""
        module.eval()
        found = []
        for start in range(0, len(rows), EVALUATED):
            batch = collate(list(rows[start : start + EVALUATED]))
            logits = module(batch["tokens"], mask=batch["mask"], segments=batch["segments"])
            found += [(logits[i], {name: tensor[i] for name, tensor in batch.items()}) for i in range(len(logits))]
        return found
