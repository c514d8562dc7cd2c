"""The loss over candidates is the softmax of their scores, and what is known beforehand counts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kiban.objectives.ranking import Ranking


class ByFirstToken(nn.Module):
    """Scores a candidate by its first token, plus what is known of it."""

    def forward(self, tokens: Tensor, *, segments: Tensor, mask: Tensor, prior: Tensor) -> Tensor:
        return tokens[:, 0].float() + prior


def test_the_loss_is_the_surprise_at_the_relevant_candidate() -> None:
    tokens = torch.tensor([[1, 0], [3, 0], [2, 0], [2, 0], [0, 0], [5, 0]])  # two queries of three candidates
    prior = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, -4.0])
    given = {
        "tokens": tokens,
        "segments": torch.zeros_like(tokens),
        "mask": torch.ones_like(tokens, dtype=torch.bool),
        "prior": prior,
        "relevant": torch.tensor([1, 2]),
    }
    objective = Ranking(ByFirstToken())
    loss = objective(given)
    p = torch.tensor([[1.0, 3.0, 2.0], [2.0, 0.0, 1.0]]).log_softmax(-1)
    assert int(objective.count(given)) == 2
    torch.testing.assert_close(loss.total, -(p[0, 1] + p[1, 2]))
    assert int(loss.metrics["first"]) == 1
