"""What is Llama's own; `test_decoders` holds what every decoder does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kiban import zoo
from kiban.errors import LimitError
from kiban.families.llama import Llama
from kiban.weights.gguf import read_gguf
from kiban.weights.names import to_ours, to_published

TOLERANCE = 1e-4
Small = Callable[..., zoo.Loaded]


@pytest.fixture
def small(decoder_of: Small) -> Small:
    return partial(decoder_of, "llama")


@torch.inference_mode()
def test_a_window_and_a_mask_of_queries_do_not_mix(small: Small, tokens: Tensor) -> None:
    with pytest.raises(LimitError, match="window"):
        small(sliding_window=5).module(tokens, mask=torch.ones(3, 20, 20, dtype=torch.bool))


@torch.inference_mode()
def test_classifier_equals_transformers(small: Small, tokens: Tensor, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    small_model = small()
    zoo.save(small_model, tmp_path / "body")
    generator = torch.Generator().manual_seed(5)
    loaded = zoo.load(tmp_path / "body", head="sequence_classification", labels=("は", "い", "え"), generator=generator)
    zoo.save(loaded, tmp_path / "model")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    assert theirs.config.id2label == {0: "は", 1: "い", 2: "え"}
    theirs.config.pad_token_id = 0
    tokens[tokens == 0] = 1
    tokens[0, 12:] = 0
    expected = theirs(tokens, attention_mask=(tokens != 0).long()).logits
    assert (loaded.module(tokens, mask=tokens != 0) - expected).abs().max() < TOLERANCE


@pytest.mark.weights
@torch.inference_mode()
@pytest.mark.parametrize("pad", [0, 9])
@pytest.mark.parametrize("cached", [False, True])
def test_real_weights_equal_transformers_on_512_tokens(smollm2_gguf: Path, pad: int, cached: bool) -> None:
    from transformers import LlamaConfig as HFConfig
    from transformers import LlamaForCausalLM

    loaded = zoo.load(smollm2_gguf)
    assert isinstance(loaded.module, Llama) and loaded.tokenizer is not None
    values = loaded.family.to_hf(loaded.config)
    theirs = LlamaForCausalLM(HFConfig(**{k: v for k, v in values.items() if k != "architectures"})).eval()
    with read_gguf(smollm2_gguf) as file:
        table = loaded.family.gguf_names(loaded.config)  # type: ignore[misc]
        dequantised = {name: tensor.dequantise() for name, tensor in file.tensors.items()}
        ours = to_ours(table, dequantised, wanted=dict(loaded.module.named_parameters()), source="gguf")
    published = to_published(loaded.family.hf_names(loaded.config), ours)
    missing, unexpected = theirs.load_state_dict(published, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    theirs.tie_weights()

    text = (Path(__file__).parents[2] / "examples" / "data" / "debian-en.csv").read_text(encoding="utf-8")
    ids = loaded.tokenizer.encode(text[:6000], add_special=False)[:512]
    tokens = torch.tensor([[0] * pad + ids[pad:]])
    mask = torch.arange(512)[None] >= pad
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    expected = theirs(tokens, attention_mask=mask.long(), position_ids=positions).logits
    given = mask if pad else None
    if cached:
        cache = loaded.module.make_cache(1, 512)
        parts, start = [], 0
        for size in (300, 1, 211):
            seen = None if given is None else given[:, : start + size]
            parts.append(loaded.module(tokens[:, start : start + size], mask=seen, cache=cache))
            start += size
        found = torch.cat(parts, dim=1)
    else:
        found = loaded.module(tokens, mask=given)
    assert ((found - expected).abs() * mask[..., None]).max() < TOLERANCE


@pytest.mark.weights
def test_smollm2_knows_the_capital_of_france(smollm2_gguf: Path) -> None:
    import kiban

    model = kiban.load(smollm2_gguf)
    assert "Paris" in model.chat([{"role": "user", "content": "What is the capital of France?"}], max_new_tokens=24)
