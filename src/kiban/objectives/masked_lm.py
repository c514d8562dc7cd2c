"""BERT's pretraining: hidden words, and whether one passage follows another (Devlin et al. 2019, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kiban.inputs.batch import IGNORE
from kiban.objectives.base import Batch, Loss
from kiban.objectives.linear_cross_entropy import linear_cross_entropy


class _Sums(NamedTuple):
    words: Tensor  # -log p of the hidden tokens
    words_right: Tensor
    pairs: Tensor  # -log p of the second passage's origin
    pairs_right: Tensor


class MaskedLM:
    """-sum log p(hidden tokens) - hidden_per_row * sum log p(the second passage is random or not).

    Divided by the number of hidden tokens, that is BERT's loss, the mean over hidden tokens plus the mean over rows, where
    rows hide hidden_per_row tokens on average. Deviation: it is a constant of the data and not the batch's own ratio, so
    that a batch has the same gradient in one part or in many; batches of more hidden tokens weigh the pairs less.

    module: a BertPretraining, or for batches without pairs a BertMaskedLM (Liu et al. 2019 train so). A batch holds tokens
    (B, T), mask (B, T) bool, labels (B, T) int64 with -100 where nothing is hidden, and for pairs segments (B, T) int64 and
    random_next (B,) int64, 0 if the second passage follows and 1 if it is from elsewhere.
    """

    coupled = False

    def __init__(self, module: Any, *, hidden_per_row: float = 0.0) -> None:
        self.module, self.hidden_per_row = module, hidden_per_row

    def count(self, batch: Batch) -> Tensor:
        """Tokens that are hidden."""
        return (batch["labels"] != IGNORE).sum()

    def __call__(self, batch: Batch) -> Loss:
        sums, weight = self._sums(batch), self.hidden_per_row
        metrics = {"masked_loss": sums.words.detach(), "masked_accuracy": sums.words_right}
        if "random_next" in batch:
            metrics["next_sentence_loss"] = weight * sums.pairs.detach()
            metrics["next_sentence_accuracy"] = weight * sums.pairs_right
        return Loss(sums.words + weight * sums.pairs, metrics)

    @torch.inference_mode()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Mean losses and accuracies, each over its own hidden tokens or rows. Leave the module in eval mode before."""
        sums, tokens, rows = [0.0] * 4, 0, 0
        for batch in batches:
            sums = [total + float(value) for total, value in zip(sums, self._sums(batch), strict=True)]
            tokens += int(self.count(batch))
            rows += len(batch.get("random_next", ()))
        names = ("masked_loss", "masked_accuracy", "next_sentence_loss", "next_sentence_accuracy")
        counts = (tokens, tokens, rows, rows)
        return {name: value / count for name, value, count in zip(names, sums, counts, strict=True) if count}

    def _sums(self, batch: Batch) -> _Sums:
        body, predictor = self.module.body, self.module.predictor
        hidden = body(batch["tokens"], segments=batch.get("segments"), mask=batch["mask"])  # (B, T, D)
        wanted = batch["labels"] != IGNORE
        states = predictor.states(hidden[wanted])  # (number of hidden tokens, D)
        words, _, right = linear_cross_entropy(
            states, body.embed.token.weight, batch["labels"][wanted], bias=predictor.bias
        )
        if "random_next" not in batch:
            return _Sums(words, right, words.new_zeros(()), words.new_zeros(()))
        assert self.hidden_per_row > 0, "pairs need a weight"
        answers = batch["random_next"]
        logits = self.module.follows(body.pooled(hidden)).float()  # (B, 2)
        pairs = F.cross_entropy(logits, answers, reduction="sum")
        return _Sums(words, right, pairs, (logits.detach().argmax(-1) == answers).sum())
