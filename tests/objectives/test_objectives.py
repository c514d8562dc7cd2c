"""Losses are sums over the items that are counted, equal to their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kiban import zoo
from kiban.objectives.causal_lm import CausalLM
from kiban.objectives.classification import Classification


class Fixed(nn.Module):
    """Gives the same logits whatever it is asked."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, size = logits, logits.shape[-1]
        self.head = nn.Linear(size, size, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(size))

    def hidden(self, tokens: Tensor, *, mask: Tensor) -> Tensor:
        return self.logits[:, : tokens.shape[1]]

    def forward(self, tokens: Tensor, *, mask: Tensor) -> Tensor:
        return self.logits


def test_next_token_loss_sums_over_real_tokens_that_follow_another() -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[1, 2, 3, 4, 5], [6, 0, 1, 0, 0]])
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    objective, batch = CausalLM(Fixed(logits)), {"tokens": tokens, "mask": mask}
    p = logits.log_softmax(-1)
    expected = -sum(float(p[0, t, tokens[0, t + 1]]) for t in range(4)) - sum(
        float(p[1, t, tokens[1, t + 1]]) for t in range(2)
    )
    assert int(objective.count(batch)) == 6
    torch.testing.assert_close(objective(batch).total, torch.tensor(expected))


def test_only_labelled_tokens_count_when_labels_are_given() -> None:
    logits = torch.randn(1, 4, 7, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[1, 2, 3, 4]])
    labels = torch.tensor([[-100, -100, 3, 4]])
    batch = {"tokens": tokens, "mask": torch.ones(1, 4, dtype=torch.bool), "labels": labels}
    objective, p = CausalLM(Fixed(logits)), logits.log_softmax(-1)
    assert int(objective.count(batch)) == 2
    torch.testing.assert_close(objective(batch).total, -(p[0, 1, 3] + p[0, 2, 4]))


def test_padding_on_the_left_is_not_predicted_from() -> None:
    """The first real token has padding before it, which says nothing about it."""
    logits = torch.randn(1, 3, 7, generator=torch.Generator().manual_seed(1))
    batch = {"tokens": torch.tensor([[0, 5, 6]]), "mask": torch.tensor([[False, True, True]])}
    assert int(CausalLM(Fixed(logits)).count(batch)) == 1


def test_classification_is_the_cross_entropy_summed_over_rows() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [1.0, 0.0, 0.0]])
    labels = torch.tensor([0, 1, 2])
    batch = {"tokens": torch.zeros(3, 1), "mask": torch.ones(3, 1), "labels": labels}
    objective = Classification(Fixed(logits))
    loss = objective(batch)
    torch.testing.assert_close(loss.total, -logits.log_softmax(-1)[torch.arange(3), labels].sum())
    assert (int(loss.metrics["accuracy"]), int(objective.count(batch))) == (2, 3)
    smooth = Classification(Fixed(logits), label_smoothing=0.3)(batch).total
    log_p = logits.log_softmax(-1)
    torch.testing.assert_close(smooth, -(0.7 * log_p[torch.arange(3), labels] + 0.3 * log_p.mean(-1)).sum())


def test_packed_documents_do_not_see_each_other_and_every_next_token_counts() -> None:
    loaded = zoo.create("gpt-tiny", generator=torch.Generator().manual_seed(0))
    first, second = torch.randint(1, 512, (2, 9), generator=torch.Generator().manual_seed(1))
    end = torch.zeros(1, dtype=torch.long)
    batch = {
        "tokens": torch.cat((end, first, end, second, end))[None],
        "documents": torch.tensor([[0] * 10 + [1] * 10 + [2]]),
    }
    objective = CausalLM(loaded.module)
    apart = 0.0
    for text in (first, second):  # each alone, between two end-of-text tokens
        logits = loaded.module(torch.cat((end, text))[None])[0].detach().log_softmax(-1)
        apart -= float(logits.gather(1, torch.cat((text, end))[:, None]).sum())
    assert int(objective.count(batch)) == 20
    assert float(objective(batch).total.detach()) == pytest.approx(apart, rel=1e-5)


def test_z_loss_adds_the_square_of_log_z() -> None:
    logits = torch.randn(1, 3, 7, generator=torch.Generator().manual_seed(2))
    batch = {"tokens": torch.tensor([[1, 2, 3]]), "mask": torch.ones(1, 3, dtype=torch.bool)}
    plain, extra = (CausalLM(Fixed(logits), z_loss=z)(batch) for z in (0.0, 0.5))
    expected = 0.5 * logits[0, :2].logsumexp(-1).square().sum()
    torch.testing.assert_close((extra.total - plain.total).detach(), expected)
    torch.testing.assert_close(extra.metrics["z_loss"], expected)
