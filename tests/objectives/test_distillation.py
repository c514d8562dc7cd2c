"""The distillation loss equals its formula, leaves out false negatives, and teaches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kiban import zoo
from kiban.families.bert import Bert, BertConfig, mean_pool
from kiban.objectives.distillation import EmbeddingDistillation

VOCAB, ROWS, LENGTH, DIM = 50, 6, 9, 16


def module() -> Any:
    config = BertConfig(vocab_size=VOCAB, num_layers=1, dim=DIM, num_heads=2, ffn_dim=32, max_seq_len=16, dropout=0.0)
    return zoo.initialise(Bert(config), torch.Generator().manual_seed(0))


def batch() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    mask = torch.arange(LENGTH) < torch.randint(2, LENGTH + 1, (ROWS, 1), generator=g)
    tokens = torch.randint(1, VOCAB, (ROWS, LENGTH), generator=g).masked_fill(~mask, 0)
    return {"tokens": tokens, "mask": mask, "targets": F.normalize(torch.randn(ROWS, DIM, generator=g), dim=-1)}


def part(whole: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in whole.items()}


def test_the_loss_is_its_formula() -> None:
    student, inputs = module(), batch()
    loss = EmbeddingDistillation(student, contrast=0.7, temperature=0.1)(inputs)
    found = mean_pool(student(inputs["tokens"], mask=inputs["mask"]), inputs["mask"])
    expected = torch.zeros(())
    for i in range(ROWS):
        scores = torch.stack([found[i] @ target / 0.1 for target in inputs["targets"]])
        expected = expected + (found[i] - inputs["targets"][i]).pow(2).sum() + 0.7 * (scores.logsumexp(0) - scores[i])
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.metrics["cosine"], (found * inputs["targets"]).sum().detach())


def test_without_the_contrastive_term_parts_add_up_to_the_whole_and_with_it_they_do_not() -> None:
    student, inputs = module(), batch()
    for contrast, coupled in ((0.0, False), (1.0, True)):
        objective = EmbeddingDistillation(student, contrast=contrast)
        parts = [part(inputs, slice(0, 2)), part(inputs, slice(2, ROWS))]
        added = sum(float(objective(p).total.detach()) for p in parts)
        assert objective.coupled is coupled
        assert (added == pytest.approx(float(objective(inputs).total.detach()), rel=1e-5)) is not coupled
        assert sum(int(objective.count(p)) for p in parts) == int(objective.count(inputs)) == ROWS


def test_a_row_with_the_same_target_is_no_negative() -> None:
    student, inputs = module(), batch()
    twice = {name: torch.cat([value, value[:1]]) for name, value in inputs.items()}
    objective = EmbeddingDistillation(student)
    once, first = objective(inputs).total, objective(part(inputs, slice(0, 1))).total
    # The double sees the same negatives as the first row, and others see one answer of theirs twice among the wrong ones.
    scores = mean_pool(student(inputs["tokens"], mask=inputs["mask"]), inputs["mask"]) @ inputs["targets"].mT / 0.05
    others = torch.cat([scores[1:], scores[1:, :1]], 1).logsumexp(1) - scores[1:].logsumexp(1)
    own = scores[0].logsumexp(0) - scores[0, 0]
    torch.testing.assert_close(objective(twice).total, once + first + own + others.sum(), rtol=1e-4, atol=1e-4)


def test_half_precision_around_it_leaves_the_scores_exact() -> None:
    student, inputs = module(), batch()
    exact = EmbeddingDistillation(student)(inputs).total
    with torch.autocast("cpu", torch.bfloat16):
        near = EmbeddingDistillation(student)(inputs).total
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, exact, rtol=0.05, atol=0.0)


@pytest.mark.parametrize("contrast", [0.0, 1.0])
def test_a_batch_is_learned_by_heart(contrast: float) -> None:
    student, inputs = module(), batch()
    objective = EmbeddingDistillation(student, contrast=contrast)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    for _ in range(150):
        loss = objective(inputs)
        optimizer.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(loss.metrics["cosine"]) / ROWS > 0.97
    if contrast:
        assert int(loss.metrics["found"]) == ROWS
