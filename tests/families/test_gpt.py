"""GPT against transformers, random weights, float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kiban import zoo
from kiban.errors import ConfigError, FormatError, LimitError
from kiban.families.gpt import GPT, GPTConfig, from_hf, to_hf
from kiban.weights.names import to_ours, to_published

TOLERANCE = 1e-4
BASE: dict[str, Any] = {"vocab_size": 97, "num_layers": 4, "dim": 48, "num_heads": 6, "max_seq_len": 32}
VARIANTS: dict[str, dict[str, Any]] = {"gpt2": {}, "gpt1": {"post_norm": True}}


def small(**changes: Any) -> zoo.Loaded:
    """A small random GPT; weights large enough that a mistake shows."""
    config = GPTConfig(**{**BASE, **changes})
    module = zoo.initialise(GPT(config), torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return zoo.Loaded(zoo.families()["gpt"], config, module.eval(), None, None, (), "small", None)


@pytest.fixture(scope="module", params=VARIANTS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, Any]:
    """A model of ours, and transformers' opened from the folder that we saved."""
    from transformers import AutoModelForCausalLM

    loaded = small(**VARIANTS[request.param])
    folder = tmp_path_factory.mktemp("gpt") / "model"
    zoo.save(loaded, folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert isinstance(loaded.module, GPT)
    return loaded.module, theirs


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 97, (3, 20), generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def test_logits_equal_transformers(both: tuple[GPT, Any], tokens: Tensor) -> None:
    ours, theirs = both
    assert (ours(tokens) - theirs(tokens).logits).abs().max() < TOLERANCE


@torch.inference_mode()
def test_logits_with_padding_on_the_left_equal_transformers(both: tuple[GPT, Any], tokens: Tensor) -> None:
    ours, theirs = both
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :7] = mask[1, :3] = False
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    expected = theirs(tokens, attention_mask=mask.long(), position_ids=positions).logits
    assert ((ours(tokens, mask=mask) - expected).abs() * mask[..., None]).max() < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("chunks", [[20], [1] * 20, [9, 1, 10]], ids=["whole", "one by one", "uneven"])
@pytest.mark.parametrize("band", [None, 3], ids=["dense", "banded"])
def test_logits_with_a_cache_equal_those_without(tokens: Tensor, chunks: list[int], band: int | None) -> None:
    ours = small(band=band).module
    assert isinstance(ours, GPT)
    cache, parts, start = ours.make_cache(3, 20), [], 0
    for size in chunks:
        parts.append(ours(tokens[:, start : start + size], cache=cache))
        start += size
    assert (torch.cat(parts, dim=1) - ours(tokens)).abs().max() < TOLERANCE


@torch.inference_mode()
def test_packed_documents_answer_as_they_do_alone(both: tuple[GPT, Any], tokens: Tensor) -> None:
    ours, _ = both
    owner = torch.tensor([0] * 7 + [1] * 4 + [2] * 9)
    packed = ours(tokens[:1], mask=(owner[:, None] == owner).tril()[None])
    alone = [ours(tokens[:1, owner == i]) for i in range(3)]
    assert (packed - torch.cat(alone, dim=1)).abs().max() < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("place", [0, 9, 18])
def test_no_token_is_seen_before_its_turn(both: tuple[GPT, Any], tokens: Tensor, place: int) -> None:
    ours, _ = both
    changed = tokens.clone()
    changed[:, place + 1 :] = (changed[:, place + 1 :] + 1) % 97
    difference = (ours(tokens) - ours(changed)).abs().amax((0, 2))
    assert difference[: place + 1].max() == 0 < difference[place + 1 :].min()


@torch.inference_mode()
def test_a_band_reaches_so_many_tokens_back_and_no_further(tokens: Tensor) -> None:
    # Layer 0 is dense; with its attention and that of layer 2 silent, only the banded layers 1 and 3 carry on.
    ours = small(band=3).module
    assert isinstance(ours, GPT)
    for layer in (0, 2):
        ours.blocks[layer].attn.o.weight.zero_()
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 97
    reached = (ours(tokens) - ours(changed)).abs().amax((0, 2)) > 0
    assert reached.nonzero().flatten().tolist() == [0, 1, 2, 3, 4]  # two layers of three tokens


@torch.inference_mode()
def test_a_text_beyond_the_positions_is_refused(tokens: Tensor) -> None:
    with pytest.raises(LimitError, match="33"):
        small().module(torch.zeros(1, 33, dtype=torch.long))


@torch.inference_mode()
def test_transformers_files_load_here(tokens: Tensor, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(4)
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_layer=2, n_embd=48, n_head=6, n_positions=32)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = zoo.load(tmp_path / "theirs")
    assert (ours.module(tokens) - theirs(tokens).logits).abs().max() < TOLERANCE


def test_files_of_the_first_release_have_no_prefix_and_carry_masks() -> None:
    loaded = small()
    table = loaded.family.hf_names(loaded.config)
    parameters = dict(loaded.module.named_parameters())
    published = {n.removeprefix("transformer."): t for n, t in to_published(table, parameters).items()}
    published["h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
    again = to_ours(table, published, wanted=parameters, source="old")
    assert again.keys() == parameters.keys()
    assert all(torch.equal(again[name], parameter) for name, parameter in parameters.items())


@pytest.mark.parametrize(
    "change",
    [
        {"activation_function": "relu"},
        {"scale_attn_by_inverse_layer_idx": True},
        {"tie_word_embeddings": False},
        {"n_inner": 7},
    ],
    ids=str,
)
def test_a_gpt2_with_other_switches_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match=next(iter(change))):
        from_hf({**to_hf(small().config), **change})


def test_a_banded_gpt_cannot_leave_as_gpt2(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="band"):
        zoo.save(small(band=3), tmp_path / "model")


def test_the_first_loss_is_that_of_a_uniform_guess() -> None:
    loaded = zoo.create("gpt-tiny", generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(0, 512, (4, 64), generator=torch.Generator().manual_seed(1))
    loss = torch.nn.functional.cross_entropy(loaded.module(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() - torch.tensor(512.0).log().item()) < 0.05
