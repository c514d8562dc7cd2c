"""Fine-tuning an arm of BERT's exhibit on 500 labels, one task after the other, each from the same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kiban.config import Progress, silent
from kiban.data.loader import Loader
from kiban.evaluate.ranking import reciprocal_ranks
from kiban.evaluate.tagging import span_f1
from kiban.families.bert import Bert, BertAnswerer, BertClassifier, BertNextSentence, BertPretraining, BertTagger
from kiban.objectives.base import Objective
from kiban.objectives.classification import Classification
from kiban.objectives.ranking import Ranking
from kiban.objectives.span_qa import SpanQA, best_spans
from kiban.objectives.tagging import Tagging
from kiban.tour import bert_tasks as tasks
from kiban.tour.bert_models import EVALUATED, Arm, Material, Setting, body
from kiban.train.settings import TrainConfig
from kiban.train.trainer import Trainer

QUERIES = 4  # of a batch; each comes with several passages
Module = TypeVar("Module", bound=nn.Module)
Collate = Callable[[list[Any]], dict[str, Tensor]]


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
class Tuner:
    """Measures an arm on the four tasks. The seed draws the labels, the heads and the order."""

    settings: Setting
    material: Material
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
        """Accuracy over the classes of packages."""
        s, labels = self.settings, self.material.labels
        build = partial(tasks.class_rows, labels=labels, tokenizer=self.material.tokenizer, max_len=s.seq_len)
        module = self._headed(BertClassifier(self._body(), len(labels)))
        self._tune("class", module, Classification(module), build(self._labelled()), tasks.collate_classes)
        found = self._ask(module, build(self.material.split.test), tasks.collate_classes)
        return 100 * float(np.mean([int(logits.argmax()) == int(row["labels"]) for logits, row in found]))

    def names(self) -> float:
        """F1 over whole names."""
        build = partial(tasks.tag_rows, tokenizer=self.material.tokenizer, max_len=self.settings.seq_len)
        module = self._headed(BertTagger(self._body(), len(tasks.TAGS)))
        self._tune("names", module, Tagging(module), build(self._labelled()), tasks.collate_tags)
        truth, answers = [], []
        for logits, row in self._ask(module, build(self.material.split.test), tasks.collate_tags):
            wanted = row["labels"] != tasks.IGNORE
            truth.append([tasks.TAGS[i] for i in row["labels"][wanted].tolist()])
            answers.append([tasks.TAGS[i] for i in logits.argmax(-1)[wanted].tolist()])
        return 100 * span_f1(truth, answers)

    def spans(self) -> float:
        """Share of questions whose answer is found exactly."""
        build = partial(tasks.answer_rows, tokenizer=self.material.tokenizer, max_len=self.settings.seq_len)
        module = self._headed(BertAnswerer(self._body()))
        self._tune("span", module, SpanQA(module), build(self._labelled(sentences=2)), tasks.collate_answers)
        right = []
        for logits, row in self._ask(module, build(self.material.split.test), tasks.collate_answers):
            allowed = logits.masked_fill(~row["allowed"][:, None], -torch.inf)
            right.append(best_spans(allowed[None])[0].tolist() == [int(row["start"]), int(row["end"])])
        return 100 * float(np.mean(right))

    def search(self) -> tuple[float, float]:
        """MRR@10 of BM25, and of its best candidates in the re-ranker's order."""
        tokenizer = self.material.tokenizer
        pairs = self._headed(BertNextSentence(self._body()))
        if self.arm in ("bert", "causal"):  # the others have not learned it
            pairs.follows.load_state_dict(self.pretrained.follows.state_dict())
        module = Reranker(pairs)
        collate = partial(tasks.collate_groups, tokenizer=tokenizer, max_len=self.settings.seq_len)
        rows = tasks.training_groups(tasks.collection(self._labelled(sentences=2), tokenizer), self.seed)
        self._tune("search", module, Ranking(module), rows, collate, size=QUERIES)
        asked = tasks.test_groups(tasks.collection(self.material.split.test, tokenizer))
        relevant = [group.relevant for group in asked]
        before = reciprocal_ranks([np.arange(len(group.passages)) for group in asked], relevant)
        module.eval()
        after = reciprocal_ranks([_order(module, collate([group])) for group in asked], relevant)
        return 100 * float(before.mean()), 100 * float(after.mean())

    def _labelled(self, *, sentences: int = 1) -> list[tasks.Description]:
        rows = [row for row in self.material.split.train if len(row.sentences) >= sentences]
        return tasks.sample(rows, self.settings.num_labels, self.seed)

    def _body(self) -> Bert:
        """The pretrained weights; dropout is for fine-tuning only, where few rows are seen often."""
        found = body(self.settings, self.arm, self.material.tokenizer.vocab_size, dropout=0.1)
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
        rows: Sequence[Any],
        collate: Collate,
        *,
        size: int = 0,
    ) -> None:
        s, size = self.settings, size or self.settings.tune_rows
        config = TrainConfig(
            steps=max(1, s.epochs * len(rows) // size),
            batch_size=size,
            micro_batch_size=size,
            lr=s.tune_lr,
            seed=self.seed,
        )

        def tell(stage: str, done: int, total: int | None) -> None:
            self.progress(f"{self.arm}, {name} | {stage}", done, total)

        Trainer(objective, module, Loader(rows, collate, batch_size=size, seed=self.seed), config, progress=tell).run()

    @torch.inference_mode()
    def _ask(self, module: nn.Module, rows: Sequence[Any], collate: Collate) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """Logits of every row, and the row."""
        module.eval()
        found = []
        for start in range(0, len(rows), EVALUATED):
            batch = collate(list(rows[start : start + EVALUATED]))
            known = {"segments": batch["segments"]} if "segments" in batch else {}
            logits = module(batch["tokens"], mask=batch["mask"], **known)
            found += [(logits[i], {name: tensor[i] for name, tensor in batch.items()}) for i in range(len(logits))]
        return found


@torch.inference_mode()
def _order(module: Reranker, batch: dict[str, Tensor]) -> NDArray[np.int64]:
    """Places of a query's passages, best first."""
    scores = module(batch["tokens"], segments=batch["segments"], mask=batch["mask"], prior=batch["prior"])
    return np.argsort(-scores.numpy(), kind="stable")
