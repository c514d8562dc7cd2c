"""Answer spans: the loss is its formula, and the best span is the one that a search of all spans finds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kiban.errors import ConfigError
from kiban.objectives.span_qa import SpanQA, best_spans


class Fixed(nn.Module):
    """Gives the same logits whatever it is asked."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, tokens: Tensor, *, segments: Tensor, mask: Tensor) -> Tensor:
        return self.logits


def batch() -> dict[str, Tensor]:
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 5] = False
    allowed = mask.clone()
    allowed[:, :2] = False
    return {
        "tokens": torch.zeros(2, 6, dtype=torch.int64),
        "segments": allowed.long(),
        "mask": mask,
        "allowed": allowed,
        "start": torch.tensor([2, 3]),
        "end": torch.tensor([4, 3]),
    }


def test_the_loss_is_half_of_the_log_probabilities_of_start_and_end_among_allowed_places() -> None:
    logits = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0))
    logits[:, 0] = 50.0  # where no answer may stand: must change nothing
    given, expected = batch(), 0.0
    for row, places in enumerate(([2, 3, 4, 5], [2, 3, 4])):
        p = logits[row, places].log_softmax(0)  # (places, 2)
        expected -= float(p[places.index(int(given["start"][row])), 0] + p[places.index(int(given["end"][row])), 1]) / 2
    objective = SpanQA(Fixed(logits))
    assert int(objective.count(given)) == 2
    torch.testing.assert_close(objective(given).total.item(), expected)


def test_exact_answers_are_counted() -> None:
    logits = torch.zeros(2, 6, 2)
    logits[0, 2, 0] = logits[0, 4, 1] = 9.0
    logits[1, 4, 0] = logits[1, 4, 1] = 9.0
    assert int(SpanQA(Fixed(logits))(batch()).metrics["exact"]) == 1


@pytest.mark.parametrize("max_len", [1, 3, 30])
def test_the_best_span_is_the_best_of_all(max_len: int) -> None:
    logits = torch.randn(20, 9, 2, generator=torch.Generator().manual_seed(2))
    for row, found in zip(logits, best_spans(logits, max_len=max_len).tolist(), strict=True):
        every = [(s, e) for s in range(9) for e in range(s, min(9, s + max_len))]
        assert tuple(found) == max(every, key=lambda span: float(row[span[0], 0] + row[span[1], 1]))


def test_a_span_of_no_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_len"):
        best_spans(torch.zeros(1, 3, 2), max_len=0)
