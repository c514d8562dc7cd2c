"""Llama against transformers, random weights, float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kiban import zoo
from kiban.errors import LimitError
from kiban.families.llama import Llama, LlamaConfig
from kiban.weights.gguf import read_gguf
from kiban.weights.names import to_ours, to_published

TOLERANCE = 1e-4
BASE: dict[str, Any] = {"vocab_size": 97, "num_layers": 3, "dim": 48, "num_heads": 6, "num_kv_heads": 2}
BASE |= {"ffn_dim": 80, "max_seq_len": 64}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "one key head for each": {"num_kv_heads": 6},
    "tied": {"tied": True},
    "qwen2": {"qkv_bias": True, "rope_base": 1_000_000.0},
    "mistral": {"sliding_window": 5},
}


def small(**changes: Any) -> zoo.Loaded:
    """A small random Llama; weights large enough that a mistake shows."""
    config = LlamaConfig(**{**BASE, **changes})
    module = zoo.initialise(Llama(config), torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return zoo.Loaded(zoo.families()["llama"], config, module.eval(), None, None, (), "small", None)


@pytest.fixture(scope="module", params=VARIANTS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Llama, Any]:
    """A model of ours, and transformers' opened from the folder that we saved."""
    from transformers import AutoModelForCausalLM

    loaded = small(**VARIANTS[request.param])
    folder = tmp_path_factory.mktemp("llama") / "model"
    zoo.save(loaded, folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert isinstance(loaded.module, Llama)
    return loaded.module, theirs


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 97, (3, 20), generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def test_logits_equal_transformers(both: tuple[Llama, Any], tokens: Tensor) -> None:
    ours, theirs = both
    assert (ours(tokens) - theirs(tokens).logits).abs().max() < TOLERANCE


@torch.inference_mode()
def test_logits_with_padding_on_the_left_equal_transformers(both: tuple[Llama, Any], tokens: Tensor) -> None:
    ours, theirs = both
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :7] = mask[1, :3] = False
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    expected = theirs(tokens, attention_mask=mask.long(), position_ids=positions).logits
    assert ((ours(tokens, mask=mask) - expected).abs() * mask[..., None]).max() < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("chunks", [[20], [1] * 20, [9, 1, 10]], ids=["whole", "one by one", "uneven"])
def test_logits_with_a_cache_equal_those_without(both: tuple[Llama, Any], tokens: Tensor, chunks: list[int]) -> None:
    ours, _ = both
    cache, parts, start = ours.make_cache(3, 20), [], 0
    for size in chunks:
        parts.append(ours(tokens[:, start : start + size], cache=cache))
        start += size
    assert (torch.cat(parts, dim=1) - ours(tokens)).abs().max() < TOLERANCE


@torch.inference_mode()
def test_a_padded_row_with_a_cache_answers_as_it_does_alone(both: tuple[Llama, Any], tokens: Tensor) -> None:
    ours, _ = both
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :7] = False
    cache = ours.make_cache(3, 20)
    ours(tokens[:, :15], mask=mask[:, :15], cache=cache)
    last = [ours(tokens[:, t : t + 1], mask=mask[:, : t + 1], cache=cache) for t in range(15, 20)][-1]
    assert (last[0, 0] - ours(tokens[:1, 7:])[0, -1]).abs().max() < TOLERANCE


@torch.inference_mode()
def test_packed_sequences_under_a_mask_of_queries_answer_as_they_do_alone(tokens: Tensor) -> None:
    model = small().module
    owner = torch.tensor([0] * 7 + [1] * 4 + [2] * 9)
    packed = model(tokens[:1], mask=(owner[:, None] == owner).tril()[None])
    alone = [model(tokens[:1, owner == i]) for i in range(3)]
    assert (packed - torch.cat(alone, dim=1)).abs().max() < TOLERANCE


@torch.inference_mode()
def test_a_window_and_a_mask_of_queries_do_not_mix(tokens: Tensor) -> None:
    with pytest.raises(LimitError, match="window"):
        small(sliding_window=5).module(tokens, mask=torch.ones(3, 20, 20, dtype=torch.bool))


@torch.inference_mode()
def test_classifier_equals_transformers(tokens: Tensor, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("kind", ["hf", "gguf"])
def test_names_map_to_published_ones_and_back(change: dict[str, Any], kind: str) -> None:
    loaded = small(**change)
    table = getattr(loaded.family, f"{kind}_names")(loaded.config)
    ours = {name: parameter.detach() for name, parameter in loaded.module.named_parameters()}
    back = to_ours(table, to_published(table, ours), wanted=ours, source="test")
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)


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
