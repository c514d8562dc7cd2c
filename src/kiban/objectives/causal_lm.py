"""Next-token prediction."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kiban.objectives.base import Batch, Loss

IGNORE = -100


class CausalLM:
    """-sum log p(x_t | x_<t) of module(tokens, mask=mask) (Radford et al. 2018, eq. 1).

    A batch holds tokens (B, T), mask (B, T) bool, and if only some tokens count (the answers, not the prompts) labels
    (B, T) int64, a copy of tokens with -100 where nothing is to be learned.
    """

    coupled = False

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def _targets(self, batch: Batch) -> Tensor:
        # (B, T - 1): the first real token follows nothing, wherever it stands.
        follows = batch["mask"][:, 1:] & batch["mask"][:, :-1]
        return batch.get("labels", batch["tokens"])[:, 1:].masked_fill(~follows, IGNORE)

    def count(self, batch: Batch) -> Tensor:
        """Tokens that are predicted."""
        return (self._targets(batch) != IGNORE).sum()

    def __call__(self, batch: Batch) -> Loss:
        logits = self.module(batch["tokens"], mask=batch["mask"])[:, :-1].float()  # (B, T - 1, V)
        total = F.cross_entropy(
            logits.flatten(0, 1), self._targets(batch).flatten(), ignore_index=IGNORE, reduction="sum"
        )
        return Loss(total)
