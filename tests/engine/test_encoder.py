"""The unpadded encoder against the padded model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kiban import zoo
from kiban.engine.encoder import EncoderPlan
from kiban.errors import ConfigError, LimitError
from kiban.families.bert import mean_pool
from kiban.inputs.batch import pad_batch

TEXTS = [
    "a",
    "画像を表示する",
    "an editor for text " * 30,
    "",
    "library",
    "音楽 player です",
    "an editor for text " * 30,
]


def loaded_with_weights(folder: Path, head: str | None = None) -> zoo.Loaded:
    labels = ("a", "b", "c") if head else ()
    loaded = zoo.load(folder, head=head, labels=labels, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in loaded.module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return loaded


@torch.inference_mode()
@pytest.mark.parametrize("normalise", [True, False])
def test_embeddings_equal_the_models_in_the_order_of_the_texts(tiny_bert_folder: Path, normalise: bool) -> None:
    loaded = loaded_with_weights(tiny_bert_folder)
    assert loaded.tokenizer is not None
    found = EncoderPlan(loaded).embed(TEXTS, normalise=normalise)
    tokens, mask = pad_batch(loaded.tokenizer.encode_batch(TEXTS, max_len=128), 0)
    expected = mean_pool(loaded.module(tokens, mask=mask), mask, normalise=normalise)
    assert (found - expected).abs().max() < 1e-5
    assert torch.equal(found[2], found[6])


def test_passes_of_all_lengths_have_few_sizes(tiny_bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN keeps what it makes for each number of rows, so memory would grow with every new one."""
    plan, sizes = EncoderPlan(loaded_with_weights(tiny_bert_folder)), set()
    norm = plan.norm

    def noted(x: torch.Tensor) -> torch.Tensor:
        sizes.add(len(x))
        return norm(x)

    monkeypatch.setattr(plan, "norm", noted)
    rows = [[5] * length for length in range(1, 129)]
    for start in range(0, 128):
        assert plan.embed_ids(rows[start : start + 3]).isfinite().all()
    assert len(sizes) < 20 and max(sizes) >= 128 * 2


@torch.inference_mode()
def test_class_logits_equal_the_models(tiny_bert_folder: Path) -> None:
    loaded = loaded_with_weights(tiny_bert_folder, "sequence_classification")
    assert loaded.tokenizer is not None
    tokens, mask = pad_batch(loaded.tokenizer.encode_batch(TEXTS, max_len=128), 0)
    found = EncoderPlan(loaded).classify(TEXTS)
    assert (found - loaded.module(tokens, mask=mask)).abs().max() < 1e-5


def test_many_passes_equal_one_by_one(tiny_bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = EncoderPlan(loaded_with_weights(tiny_bert_folder))
    alone = torch.cat([plan.embed([text]) for text in TEXTS])
    monkeypatch.setattr("kiban.engine.encoder.MAX_TOKENS", 20)
    assert (plan.embed(TEXTS) - alone).abs().max() < 1e-5


def test_bf16_is_good_to_two_digits(tiny_bert_folder: Path) -> None:
    loaded = loaded_with_weights(tiny_bert_folder)
    close = EncoderPlan(loaded, dtype=torch.bfloat16).embed(TEXTS)
    assert (close * EncoderPlan(loaded).embed(TEXTS)).sum(-1).min() > 0.995


def test_texts_are_cut_and_ids_are_not(tiny_bert_folder: Path) -> None:
    plan = EncoderPlan(loaded_with_weights(tiny_bert_folder), max_len=8)
    assert plan.embed(["word " * 500]).shape == (1, 32)
    with pytest.raises(LimitError, match="129 tokens"):
        plan.embed_ids([[5] * 129])
    with pytest.raises(LimitError, match="0 tokens"):
        plan.embed_ids([[]])
    assert plan.embed([]).shape == (0, 32)


@torch.inference_mode()
def test_rows_of_one_token_and_of_all_that_the_model_takes_equal_the_models(tiny_bert_folder: Path) -> None:
    loaded, generator = loaded_with_weights(tiny_bert_folder), torch.Generator().manual_seed(2)
    rows = [torch.randint(5, 1000, (n,), generator=generator).tolist() for n in (128, 1, 7, 128, 1, 127, 2)]
    found = EncoderPlan(loaded).embed_ids(rows, normalise=False)
    for row, vector in zip(rows, found, strict=True):
        assert (loaded.module(torch.tensor([row]))[0].mean(0) - vector).abs().max() < 1e-5


def test_what_is_no_encoder_or_has_no_head_is_told(tiny_bert_folder: Path) -> None:
    with pytest.raises(ConfigError, match="no tokenizer"):
        EncoderPlan(zoo.create("bert-tiny", generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ConfigError, match="head"):
        EncoderPlan(zoo.load(tiny_bert_folder)).classify(["a"])
    decoder = zoo.create("llama-tiny", generator=torch.Generator().manual_seed(0))
    decoder.tokenizer = zoo.load(tiny_bert_folder).tokenizer
    with pytest.raises(ConfigError, match="encoder"):
        EncoderPlan(decoder)
