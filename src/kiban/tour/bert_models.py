"""The models of BERT's exhibit: what they read, and the arms that are compared.

Every arm has the same sizes, documents, steps and optimiser. "bert" learns hidden words and the next sentence; "causal" does
so while its tokens see only what is before them; "no_nsp" reads the same pairs of passages and learns hidden words alone;
"scratch" reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable
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
from kiban.families.bert import Bert, BertConfig, BertPretraining
from kiban.nn.attention import Context, causal_context
from kiban.objectives.masked_lm import MaskedLM
from kiban.tour.bert_world import ASK, CLS, MASK, PAD, SEP, STOP, Author, World
from kiban.tour.running import fit
from kiban.train.settings import TrainConfig

Arm = Literal["bert", "scratch", "causal", "no_nsp"]
ARMS: tuple[Arm, ...] = ("bert", "scratch", "causal", "no_nsp")
HIDDEN = 0.3  # share of the words; twice the paper's, as Wettig et al. 2022 recommend
EVALUATED = 128  # rows at once


@dataclass(frozen=True, kw_only=True)
class Setting(World):
    """The world, the model and its training.

    seq_len: tokens of a row. num_documents: to read; every arm reads the same ones. num_pairs: pairs that the next sentence
    is measured on. num_labels, num_test: rows of each task; epochs: passes over the labels, tune_rows at a time (queries,
    which come with several passages, are fewer in a batch, and take twice the steps).
    """

    num_layers: int = 3
    dim: int = 128
    num_heads: int = 4
    seq_len: int = 48
    num_documents: int = 20_000
    steps: int = 1200
    batch_size: int = 64
    lr: float = 5e-3
    num_pairs: int = 2000
    num_labels: int = 500
    num_test: int = 1000
    epochs: int = 15
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


def body(s: Setting, arm: Arm, *, dropout: float) -> Bert:
    """The arm's model without a head, its weights not yet drawn."""
    config = BertConfig(
        vocab_size=s.words.size,
        num_layers=s.num_layers,
        dim=s.dim,
        num_heads=s.num_heads,
        ffn_dim=4 * s.dim,
        max_seq_len=s.seq_len,
        dropout=dropout,
    )
    return (CausalBert if arm == "causal" else Bert)(config)


def pretrain(s: Setting, arm: Arm, *, seed: int, folder: Path, progress: Progress = silent) -> BertPretraining:
    """A model that has read the documents, but for "scratch". A run that was stopped in folder goes on."""
    module = BertPretraining(body(s, arm, dropout=0.0))
    zoo.initialise(module, torch.Generator().manual_seed(seed))
    if arm == "scratch":
        return module
    rows = pairs(s, num_documents=s.num_documents, stream=[seed, 0], num_rows=s.steps * s.batch_size)
    objective = MaskedLM(module, hidden_per_row=0.0 if arm == "no_nsp" else rows.hidden_per_row)
    config = TrainConfig(
        steps=s.steps,
        batch_size=s.batch_size,
        micro_batch_size=s.batch_size,
        lr=s.lr,
        optimizer="muon",
        weight_decay=0.0,
        betas=(0.9, 0.99),
        warmup=0.03,
        schedule="wsd",
        checkpoint_every=max(1, s.steps // 8),
        seed=seed,
    )
    fit(objective, module, Loader(rows, _collate(arm), batch_size=s.batch_size, seed=seed), config, folder, progress)
    return module


def _collate(arm: Arm) -> Callable[[list[next_sentence.Row]], dict[str, Tensor]]:
    whole = partial(next_sentence.collate, pad_id=PAD)
    if arm != "no_nsp":
        return whole
    return lambda rows: {name: tensor for name, tensor in whole(rows).items() if name != "random_next"}


def pairs(s: Setting, *, num_documents: int, stream: list[int], num_rows: int) -> next_sentence.SentencePairs:
    """Pairs of passages of documents that stream fixes, in as many passes as give num_rows rows."""
    author = Author(s, np.random.default_rng(stream))
    documents = [author.document() for _ in range(num_documents)]
    continues, special = torch.zeros(2, s.words.size, dtype=torch.bool)
    continues[torch.from_numpy(s.words.seconds)] = continues[torch.from_numpy(s.words.tails)] = True
    special[[PAD, CLS, SEP, MASK, STOP, ASK]] = True
    build = partial(
        next_sentence.SentencePairs,
        documents,
        WordMasking(continues, special, MASK, rate=HIDDEN),
        cls_id=CLS,
        sep_id=SEP,
        max_len=s.seq_len,
        seed=stream[0],
    )
    return build(num_epochs=-(-num_rows // len(build())))


@torch.inference_mode()
def next_sentence_accuracy(s: Setting, module: BertPretraining, seed: int) -> float:
    """Percent of pairs from documents that were not read whose second passage is told to follow or not; half of them do."""
    rows = pairs(s, num_documents=s.num_pairs, stream=[seed, 1], num_rows=1)
    follow, elsewhere = (
        [i for i, pair in enumerate(rows.pairs) if bool(pair[4]) is random] for random in (False, True)
    )
    num = min(s.num_pairs // 2, len(follow), len(elsewhere))
    chosen, right = [*follow[:num], *elsewhere[:num]], 0
    module.eval()
    for start in range(0, len(chosen), EVALUATED):
        batch = next_sentence.collate([rows[i] for i in chosen[start : start + EVALUATED]], pad_id=PAD)
        _, logits = module(batch["tokens"], segments=batch["segments"], mask=batch["mask"])
        right += int((logits.argmax(-1) == batch["random_next"]).sum())
    return 100 * right / len(chosen)
