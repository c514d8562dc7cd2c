"""What is GPT's own; `test_decoders` holds what every decoder does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kiban import zoo
from kiban.errors import ConfigError, FormatError, LimitError
from kiban.families.gpt import GPT, from_hf, to_hf
from kiban.weights.names import to_ours, to_published

TOLERANCE = 1e-4
Small = Callable[..., zoo.Loaded]


@pytest.fixture
def small(decoder_of: Small) -> Small:
    return partial(decoder_of, "gpt")


@torch.inference_mode()
def test_a_band_reaches_so_many_tokens_back_and_no_further(small: Small, tokens: Tensor) -> None:
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
def test_a_text_beyond_the_positions_is_refused(small: Small) -> None:
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


def test_files_of_the_first_release_have_no_prefix_and_carry_masks(small: Small) -> None:
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
def test_a_gpt2_with_other_switches_is_refused(small: Small, change: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match=next(iter(change))):
        from_hf({**to_hf(small().config), **change})


def test_a_banded_gpt_cannot_leave_as_gpt2(small: Small, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="band"):
        zoo.save(small(band=3), tmp_path / "model")


def test_the_first_loss_is_that_of_a_uniform_guess() -> None:
    loaded = zoo.create("gpt-tiny", generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(0, 512, (4, 64), generator=torch.Generator().manual_seed(1))
    loss = torch.nn.functional.cross_entropy(loaded.module(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() - torch.tensor(512.0).log().item()) < 0.05
