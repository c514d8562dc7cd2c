"""Documents are scored token by token as the formula says, whatever the windows and batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kiban.errors import ConfigError
from kiban.evaluate import language
from kiban.evaluate.language import bits_per_byte, bits_per_character, score_documents, windows
from kiban.families.llama import Llama, LlamaConfig
from kiban.zoo import initialise

VOCAB = 11


class Adding(nn.Module):
    """Logits are a table's row at (the sum of all tokens read up to here) modulo VOCAB: it needs its whole context."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0)))
        self.longest = 0

    def forward(self, tokens: Tensor, *, mask: Tensor) -> Tensor:
        assert not self.training
        self.longest = max(self.longest, tokens.shape[1])
        return self.table[(tokens * mask).cumsum(1) % VOCAB]


class AddingByParts(Adding):
    """The same as states and a head, which notes how many positions it is given at once."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def hidden(self, tokens: Tensor, *, mask: Tensor) -> Tensor:
        return nn.functional.one_hot((tokens * mask).cumsum(1) % VOCAB, VOCAB).float()

    def head(self, hidden: Tensor) -> Tensor:
        self.most = max(self.most, hidden.shape[:-1].numel())
        return hidden @ self.table

    def forward(self, tokens: Tensor, *, mask: Tensor) -> Tensor:
        raise AssertionError("the head must be applied to some positions only")


def by_formula(module: Adding, document: list[int], context: int, stride: int) -> float:
    """Each token after what its window holds before it: all in the first window, then windows that move by stride."""
    p, total = module.table.detach().log_softmax(-1), 0.0
    for t in range(1, len(document)):
        end = context + 1
        while end <= t:
            end = min(end + stride, len(document))
        begin = max(0, min(end, len(document)) - context - 1)
        total += float(p[sum(document[begin:t]) % VOCAB, document[t]])
    return total


documents_of = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=30), max_size=6)


@settings(max_examples=60, deadline=None)
@given(documents_of, st.integers(1, 12), st.data(), st.integers(1, 5))
def test_documents_score_as_the_formula_says(
    documents: list[list[int]], context: int, data: st.DataObject, batch_size: int
) -> None:
    stride = data.draw(st.integers(1, context))
    for module in (Adding(), AddingByParts()):
        found = score_documents(module, documents, context=context, stride=stride, batch_size=batch_size, device="cpu")
        expected = [by_formula(module, document, context, stride) for document in documents]
        assert found == pytest.approx(np.array(expected), rel=1e-5, abs=1e-5)
        assert module.longest <= context
        assert module.training


@given(st.integers(0, 60), st.integers(1, 12), st.data())
def test_every_token_but_the_first_is_scored_once_with_the_promised_context(
    length: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    found = windows(length, context, stride)
    assert [t for _, first, end in found for t in range(first, end)] == list(range(1, length))
    for begin, first, end in found:
        assert end - begin <= context + 1
        assert first - begin >= min(first, context - stride)


def test_the_head_sees_few_positions_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "MAX_LOGITS", 4 * VOCAB)
    module = AddingByParts()
    document = list(np.random.default_rng(0).integers(0, VOCAB, 50))
    found = score_documents(module, [document], context=20, stride=10, batch_size=8, device="cpu")
    assert module.most == 4
    assert found[0] == pytest.approx(by_formula(module, document, 20, 10), rel=1e-5)


def test_a_real_decoder_scores_a_document_within_its_context_as_its_logits_say() -> None:
    config = LlamaConfig(vocab_size=VOCAB, num_layers=2, dim=16, num_heads=2, num_kv_heads=2, ffn_dim=32)
    module = initialise(Llama(config), torch.Generator().manual_seed(0))
    documents = [[1, 2, 3, 4, 5, 6, 7], [8, 9], [3, 3, 3, 10]]
    found = score_documents(module, documents, context=16, stride=8, batch_size=3, device="cpu")
    for document, score in zip(documents, found, strict=True):
        logits = module(torch.tensor([document])).detach()[0].log_softmax(-1)
        expected = sum(float(logits[t - 1, document[t]]) for t in range(1, len(document)))
        assert score == pytest.approx(expected, rel=1e-5)


def test_bits_are_those_of_a_fair_coin() -> None:
    assert bits_per_character(8 * math.log(0.5), 8) == pytest.approx(1.0)
    text = "日本語ab"  # 5 characters, 11 bytes
    assert bits_per_byte(22 * math.log(0.5), len(text.encode())) == pytest.approx(2.0)
    assert bits_per_character(22 * math.log(0.5), len(text)) == pytest.approx(4.4)


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_that_would_skip_tokens_is_refused(stride: int) -> None:
    with pytest.raises(ConfigError, match="stride"):
        score_documents(Adding(), [[1, 2]], context=8, stride=stride, batch_size=1, device="cpu")
