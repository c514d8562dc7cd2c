"""What holds for every decoder: its logits are transformers', with padding, with a cache, and packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kiban import zoo
from kiban.weights.names import to_ours, to_published

TOLERANCE = 1e-4
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt", {}),
    "gpt1": ("gpt", {"post_norm": True}),
    "llama": ("llama", {}),
    "one key head for each": ("llama", {"num_kv_heads": 6}),
    "tied": ("llama", {"tied": True}),
    "qwen2": ("llama", {"qkv_bias": True, "rope_base": 1_000_000.0}),
    "mistral": ("llama", {"sliding_window": 5}),
}
BANDED: dict[str, tuple[str, dict[str, Any]]] = {**VARIANTS, "gpt3": ("gpt", {"band": 3})}  # transformers has no such
PACKED = [name for name in VARIANTS if name != "mistral"]  # a window and a mask of queries do not mix
Make = Callable[..., zoo.Loaded]


@pytest.fixture(scope="module", params=VARIANTS)
def both(request: pytest.FixtureRequest, decoder_of: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model of ours, and transformers' opened from the folder that we saved."""
    from transformers import AutoModelForCausalLM

    family, changes = VARIANTS[request.param]
    loaded = decoder_of(family, **changes)
    folder = tmp_path_factory.mktemp("decoder") / "model"
    zoo.save(loaded, folder)
    return loaded.module, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def test_logits_equal_transformers(both: tuple[Any, Any], tokens: Tensor) -> None:
    ours, theirs = both
    assert (ours(tokens) - theirs(tokens).logits).abs().max() < TOLERANCE


@torch.inference_mode()
def test_logits_with_padding_on_the_left_equal_transformers(both: tuple[Any, Any], tokens: Tensor) -> None:
    ours, theirs = both
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :7] = mask[1, :3] = False
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    expected = theirs(tokens, attention_mask=mask.long(), position_ids=positions).logits
    assert ((ours(tokens, mask=mask) - expected).abs() * mask[..., None]).max() < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("chunks", [[20], [1] * 20, [9, 1, 10]], ids=["whole", "one by one", "uneven"])
@pytest.mark.parametrize("variant", BANDED)
def test_logits_with_a_cache_equal_those_without(
    decoder_of: Make, tokens: Tensor, variant: str, chunks: list[int]
) -> None:
    family, changes = BANDED[variant]
    ours: Any = decoder_of(family, **changes).module
    cache, parts, start = ours.make_cache(3, 20), [], 0
    for size in chunks:
        parts.append(ours(tokens[:, start : start + size], cache=cache))
        start += size
    assert (torch.cat(parts, dim=1) - ours(tokens)).abs().max() < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("variant", BANDED)
def test_a_padded_row_with_a_cache_answers_as_it_does_alone(decoder_of: Make, tokens: Tensor, variant: str) -> None:
    family, changes = BANDED[variant]
    ours: Any = decoder_of(family, **changes).module
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :7] = False
    cache = ours.make_cache(3, 20)
    ours(tokens[:, :15], mask=mask[:, :15], cache=cache)
    last = [ours(tokens[:, t : t + 1], mask=mask[:, : t + 1], cache=cache) for t in range(15, 20)][-1]
    assert (last[0, 0] - ours(tokens[:1, 7:])[0, -1]).abs().max() < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("variant", PACKED)
def test_packed_documents_answer_as_they_do_alone(decoder_of: Make, tokens: Tensor, variant: str) -> None:
    family, changes = VARIANTS[variant]
    ours = decoder_of(family, **changes).module
    owner = torch.tensor([0] * 7 + [1] * 4 + [2] * 9)
    packed = ours(tokens[:1], mask=(owner[:, None] == owner).tril()[None])
    alone = [ours(tokens[:1, owner == i]) for i in range(3)]
    assert (packed - torch.cat(alone, dim=1)).abs().max() < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("place", [0, 9, 18])
@pytest.mark.parametrize("variant", ["gpt2", "gpt1", "llama"])
def test_no_token_is_seen_before_its_turn(decoder_of: Make, tokens: Tensor, variant: str, place: int) -> None:
    family, changes = VARIANTS[variant]
    ours = decoder_of(family, **changes).module
    changed = tokens.clone()
    changed[:, place + 1 :] = (changed[:, place + 1 :] + 1) % 97
    difference = (ours(tokens) - ours(changed)).abs().amax((0, 2))
    assert difference[: place + 1].max() == 0 < difference[place + 1 :].min()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["hf", "gguf"])
def test_names_map_to_published_ones_and_back(decoder_of: Make, variant: str, kind: str) -> None:
    if (variant, kind) == ("gpt1", "gguf"):
        pytest.skip("the format knows GPT-2 alone")
    family, changes = VARIANTS[variant]
    loaded = decoder_of(family, **changes)
    table = getattr(loaded.family, f"{kind}_names")(loaded.config)
    ours = {name: parameter.detach() for name, parameter in loaded.module.named_parameters()}
    back = to_ours(table, to_published(table, ours), wanted=ours, source="test")
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)
