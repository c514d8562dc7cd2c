"""BERT's loss equals transformers' and its formula, in one part or in many."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kiban import zoo
from kiban.families.bert import Bert, BertConfig, BertMaskedLM, BertPretraining
from kiban.objectives.masked_lm import MaskedLM

VOCAB, ROWS, LENGTH = 61, 8, 15
METRICS = {"masked_loss", "masked_accuracy", "next_sentence_loss", "next_sentence_accuracy"}


def module(head: type = BertPretraining) -> Any:
    config = BertConfig(vocab_size=VOCAB, num_layers=2, dim=16, num_heads=2, ffn_dim=32, max_seq_len=32, dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    body = zoo.initialise(Bert(config), generator)
    whole = head(body)
    whole.initialise(generator)
    return whole


def batch(rows: int = ROWS) -> dict[str, Tensor]:
    """Rows of unequal length that hide unequal numbers of words."""
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(5, VOCAB, (rows, LENGTH), generator=g)
    mask = torch.arange(LENGTH) < torch.randint(6, LENGTH + 1, (rows, 1), generator=g)
    chosen = mask & (torch.rand(rows, LENGTH, generator=g) < 0.3)
    return {
        "tokens": tokens.masked_fill(chosen, 4).masked_fill(~mask, 0),
        "mask": mask,
        "segments": (torch.arange(LENGTH) > 4).long().expand(rows, -1).contiguous(),
        "labels": tokens.masked_fill(~chosen, -100),
        "random_next": torch.randint(2, (rows,), generator=g),
    }


def test_the_loss_is_its_formula() -> None:
    whole, inputs = module(), batch()
    words, pairs = whole(inputs["tokens"], segments=inputs["segments"], mask=inputs["mask"])
    labels = inputs["labels"]
    expected_words = F.cross_entropy(words.flatten(0, 1), labels.flatten(), reduction="sum")
    expected_pairs = F.cross_entropy(pairs, inputs["random_next"], reduction="sum")
    objective = MaskedLM(whole, hidden_per_row=2.5)
    loss = objective(inputs)
    torch.testing.assert_close(loss.total, expected_words + 2.5 * expected_pairs)
    assert int(objective.count(inputs)) == int((labels != -100).sum())
    assert set(loss.metrics) == METRICS
    torch.testing.assert_close(loss.metrics["masked_loss"], expected_words.detach())
    right = ((words.argmax(-1) == labels) & (labels != -100)).sum()
    assert int(loss.metrics["masked_accuracy"]) == int(right)
    right = (pairs.argmax(-1) == inputs["random_next"]).sum()
    assert float(loss.metrics["next_sentence_accuracy"]) == 2.5 * int(right)
    parameters = [*whole.parameters()]
    found, expected = (
        torch.autograd.grad(total, parameters) for total in (loss.total, expected_words + 2.5 * expected_pairs)
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_loss_is_that_of_transformers(tmp_path: Path) -> None:
    """Where the batch hides hidden_per_row tokens a row, ours is BERT's own: the sum of two means."""
    import transformers

    torch.manual_seed(0)
    values = {"vocab_size": VOCAB, "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}
    config = transformers.BertConfig(**values, intermediate_size=32, initializer_range=0.2)
    theirs, inputs = transformers.BertForPreTraining(config).eval(), batch()
    theirs.save_pretrained(tmp_path)
    expected = theirs(
        input_ids=inputs["tokens"],
        attention_mask=inputs["mask"].long(),
        token_type_ids=inputs["segments"],
        labels=inputs["labels"],
        next_sentence_label=inputs["random_next"],
    ).loss
    whole = zoo.load(tmp_path, head="pretraining").module.eval()
    count = int((inputs["labels"] != -100).sum())
    loss = MaskedLM(whole, hidden_per_row=count / ROWS)(inputs)
    torch.testing.assert_close(loss.total / count, expected)


@pytest.mark.parametrize("size", [1, 3])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(size: int) -> None:
    whole, inputs = module(), batch()
    objective = MaskedLM(whole, hidden_per_row=3.0)
    parameters = [*whole.parameters()]
    expected = torch.autograd.grad(objective(inputs).total / objective.count(inputs), parameters)
    parts = [{name: t[i : i + size] for name, t in inputs.items()} for i in range(0, ROWS, size)]
    count = sum(objective.count(part) for part in parts)
    sums = [torch.zeros_like(p) for p in parameters]
    for part in parts:
        for total, gradient in zip(sums, torch.autograd.grad(objective(part).total / count, parameters)):
            total += gradient
    for found, wanted in zip(sums, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_batches_without_pairs_learn_hidden_words_alone() -> None:
    whole, inputs = module(BertMaskedLM), batch()
    plain = {name: inputs[name] for name in ("tokens", "mask", "labels")}
    logits = whole(plain["tokens"], mask=plain["mask"])
    loss = MaskedLM(whole)(plain)
    torch.testing.assert_close(
        loss.total, F.cross_entropy(logits.flatten(0, 1), plain["labels"].flatten(), reduction="sum")
    )
    assert set(loss.metrics) == {"masked_loss", "masked_accuracy"}
    assert set(MaskedLM(whole).evaluate([plain])) == {"masked_loss", "masked_accuracy"}


def test_evaluation_averages_each_over_its_own() -> None:
    whole, inputs = module(), batch()
    objective = MaskedLM(whole, hidden_per_row=3.0)
    loss = objective(inputs)
    count = int(objective.count(inputs))
    parts = [{name: t[i : i + 3] for name, t in inputs.items()} for i in range(0, ROWS, 3)]
    found = objective.evaluate(parts)
    assert set(found) == METRICS
    assert found["masked_loss"] == pytest.approx(float(loss.metrics["masked_loss"]) / count, rel=1e-5)
    assert found["masked_accuracy"] == int(loss.metrics["masked_accuracy"]) / count
    assert found["next_sentence_loss"] == pytest.approx(math.log(2), abs=0.1)
    assert found["next_sentence_accuracy"] == float(loss.metrics["next_sentence_accuracy"]) / 3 / ROWS


class Widest(TorchDispatchMode):
    """Notes how many rows of logits over the vocabulary any operation made."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.ndim >= 2 and result.shape[-1] == VOCAB:
            self.rows = max(self.rows, result.numel() // VOCAB)
        return result


def test_logits_are_made_at_hidden_tokens_only() -> None:
    inputs = batch()
    with Widest() as widest:
        MaskedLM(module(), hidden_per_row=3.0)(inputs)
    assert widest.rows == int((inputs["labels"] != -100).sum())


def test_a_batch_that_hides_nothing_counts_nothing() -> None:
    inputs = batch()
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    objective = MaskedLM(module(), hidden_per_row=3.0)
    loss = objective(inputs)
    assert int(objective.count(inputs)) == 0
    assert float(loss.metrics["masked_loss"]) == 0.0
    loss.total.backward()


def test_one_batch_is_learned_by_heart() -> None:
    whole, inputs = module(), batch()
    objective = MaskedLM(whole, hidden_per_row=3.0)
    optimizer = torch.optim.AdamW(whole.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        (objective(inputs).total / objective.count(inputs)).backward()
        optimizer.step()
    found = objective.evaluate([inputs])
    assert found["masked_accuracy"] == found["next_sentence_accuracy"] == 1.0
    assert found["masked_loss"] < 0.2
