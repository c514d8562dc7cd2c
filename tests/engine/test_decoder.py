"""Decoder plans against the model they were made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kiban import zoo
from kiban.engine.decoder import DecoderPlan
from kiban.errors import ConfigError, LimitError
from kiban.families.llama import Llama, LlamaConfig

BASE: dict[str, Any] = {"vocab_size": 97, "num_layers": 3, "dim": 64, "num_heads": 4, "num_kv_heads": 2}
BASE |= {"ffn_dim": 96, "max_seq_len": 64}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "one key head for each": {"num_kv_heads": 4},
    "tied": {"tied": True},
    "biases": {"qkv_bias": True},
    "window": {"sliding_window": 5},
    "wide heads": {"head_dim": 32},
}


def small(**changes: Any) -> zoo.Loaded:
    config = LlamaConfig(**{**BASE, **changes})
    module = zoo.initialise(Llama(config), torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return zoo.Loaded(zoo.families()["llama"], config, module.eval(), None, None, (), "small", None)


@pytest.fixture(scope="module", params=VARIANTS)
def both(request: pytest.FixtureRequest) -> tuple[Llama, DecoderPlan]:
    loaded = small(**VARIANTS[request.param])
    assert isinstance(loaded.module, Llama)
    return loaded.module, DecoderPlan(loaded, weights="fp32")


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 97, (3, 20), generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def test_logits_equal_the_models(both: tuple[Llama, DecoderPlan], tokens: Tensor) -> None:
    model, plan = both
    assert (plan(tokens) - model(tokens)).abs().max() < 1e-4
    assert (plan(tokens, last_only=True) - plan(tokens)[:, -1:]).abs().max() < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("chunks", [[20], [1] * 20, [9, 1, 10]], ids=["whole", "one by one", "uneven"])
def test_logits_with_a_cache_and_padding_equal_the_models(
    both: tuple[Llama, DecoderPlan], tokens: Tensor, chunks: list[int]
) -> None:
    model, plan = both
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :7] = mask[2, :2] = False
    cache, parts, start = plan.make_cache(3, 20), [], 0
    for size in chunks:
        end = start + size
        parts.append(plan(tokens[:, start:end], mask=mask[:, :end], cache=cache))
        start = end
    difference = (torch.cat(parts, dim=1) - model(tokens, mask=mask)).abs()
    assert (difference * mask[..., None]).max() < 1e-4


@torch.inference_mode()
def test_a_mask_of_queries_is_understood(tokens: Tensor) -> None:
    loaded = small()
    owner = torch.tensor([0] * 8 + [1] * 12)
    mask = (owner[:, None] == owner).tril().expand(3, -1, -1)
    found = DecoderPlan(loaded, weights="fp32")(tokens, mask=mask)
    assert (found - loaded.module(tokens, mask=mask)).abs().max() < 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize(("weights", "bar"), [("bf16", 0.02), ("int8", 0.02), ("int4", 0.3)])
def test_fewer_bits_stay_close(tokens: Tensor, weights: Any, bar: float, copy: bool) -> None:
    """The share of the logits' variance that the format loses; a wrong row, scale or zero would lose about all."""
    loaded = small(qkv_bias=True)
    truth = loaded.module(tokens)
    found = DecoderPlan(loaded, weights=weights, copy=copy)(tokens)
    assert float((found - truth).var() / truth.var()) < bar


@torch.inference_mode()
def test_few_and_many_rows_agree(tokens: Tensor) -> None:
    """A packed layer answers few rows by its kernel and many from a copy of the same values."""
    plan = DecoderPlan(small(), weights="int4", copy=True)
    whole = plan(tokens)
    cache = plan.make_cache(3, 20)
    one_by_one = torch.cat([plan(tokens[:, t : t + 1], cache=cache) for t in range(20)], dim=1)
    assert float((whole - one_by_one).var() / whole.var()) < 1e-3


def test_the_memory_of_the_weights_is_told() -> None:
    loaded = small()
    sizes = {
        weights: DecoderPlan(loaded, weights=weights, copy=False).num_bytes for weights in ("fp32", "bf16", "int8")
    }  # type: ignore[arg-type]
    matrices = sum(p.numel() for p in loaded.module.parameters() if p.ndim == 2)
    assert sizes["fp32"] == 4 * matrices and sizes["bf16"] == 2 * matrices
    assert sizes["int8"] < 0.75 * sizes["bf16"]


def test_what_cannot_be_planned_is_told(tokens: Tensor, tiny_bert_folder: Path) -> None:
    with pytest.raises(ConfigError, match="decoder"):
        DecoderPlan(zoo.load(tiny_bert_folder))
    with pytest.raises(ConfigError, match="int4"):
        DecoderPlan(small(), weights="int3")  # type: ignore[arg-type]
    plan = DecoderPlan(small())
    with pytest.raises(LimitError, match="19"):
        plan(tokens, cache=plan.make_cache(3, 19))


@pytest.fixture(scope="module")
def real(smollm2_gguf: Path) -> tuple[zoo.Loaded, Tensor, Tensor]:
    """SmolLM2, the tokens of a real text, and its log-probabilities (T, V)."""
    loaded = zoo.load(smollm2_gguf)
    assert loaded.tokenizer is not None
    text = (Path(__file__).parents[2] / "examples" / "data" / "debian-en.csv").read_text(encoding="utf-8")
    ids = torch.tensor([loaded.tokenizer.encode(text[:3000], add_special=False)[:128]])
    with torch.inference_mode():
        return loaded, ids, loaded.module(ids)[0].log_softmax(-1)


@pytest.mark.weights
@torch.inference_mode()
@pytest.mark.parametrize(
    ("weights", "kl", "top1"),
    [("fp32", 1e-6, 0.99), ("bf16", 5e-3, 0.92), ("int8", 1e-2, 0.92), ("int4", 2e-2, 0.9)],
)
def test_formats_are_as_faithful_as_we_say_on_real_text(
    real: tuple[zoo.Loaded, Tensor, Tensor], weights: Any, kl: float, top1: float
) -> None:
    loaded, ids, p = real
    q = DecoderPlan(loaded, weights=weights, copy=False)(ids)[0].log_softmax(-1)
    found = float((p.exp() * (p - q)).sum(-1).mean()), float((p.argmax(-1) == q.argmax(-1)).float().mean())
    print(f"{weights}: KL {found[0]:.2e}, same first choice {found[1]:.3f}")
    assert found[0] < kl and found[1] >= top1
