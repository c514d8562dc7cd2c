"""Next-token prediction."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kiban.data.packing import document_mask
from kiban.inputs.batch import IGNORE
from kiban.objectives.base import Batch, Loss
from kiban.objectives.linear_cross_entropy import linear_cross_entropy


class CausalLM:
    """-sum log p(x_t | x_<t) (Radford et al. 2018, eq. 1), the logits never held at once.

    module.hidden(tokens, mask=mask) gives states (B, T, D) and module.head is the linear layer behind them. A batch holds
    tokens (B, T + 1) int64 and either mask (B, T + 1) bool, True where a token is real, or documents (B, T + 1) int64 of
    packed rows, in which every document begins with the token that ends the one before. If only some tokens count (the
    answers, not the prompts) it holds labels (B, T + 1) int64 too, a copy of tokens with -100 where nothing is learned.
    z_loss: weight of log(Z)^2 (Chowdhery et al. 2022, section 5).
    """

    coupled = False

    def __init__(self, module: Any, *, z_loss: float = 0.0) -> None:
        self.module, self.z_loss = module, z_loss

    def _targets(self, batch: Batch) -> Tensor:
        """What follows each of the first T tokens, (B, T)."""
        targets = batch.get("labels", batch["tokens"])[:, 1:]
        if "documents" in batch:
            return targets
        # The first real token follows nothing, wherever it stands.
        return targets.masked_fill(~(batch["mask"][:, 1:] & batch["mask"][:, :-1]), IGNORE)

    def count(self, batch: Batch) -> Tensor:
        """Tokens that are predicted."""
        return (self._targets(batch) != IGNORE).sum()

    def __call__(self, batch: Batch) -> Loss:
        packed = "documents" in batch
        mask = document_mask(batch["documents"][:, :-1]) if packed else batch["mask"][:, :-1]
        hidden = self.module.hidden(batch["tokens"][:, :-1], mask=mask)  # (B, T, D)
        head = self.module.head
        total, z, _ = linear_cross_entropy(
            hidden.flatten(0, 1), head.weight, self._targets(batch).flatten(), bias=head.bias, z_loss=self.z_loss
        )
        return Loss(total, {"z_loss": z} if self.z_loss else {})
