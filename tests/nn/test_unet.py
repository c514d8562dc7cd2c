"""The U-Net against diffusers, random weights, float32, through both tables of names."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kiban.errors import ConfigError
from kiban.nn.timestep import sinusoids
from kiban.nn.unet import UNet, UNetConfig
from kiban.weights.names import to_ours, to_published
from kiban.weights.unet_names import unet_diffusers_names, unet_ldm_names
from random_weights import fill

TOLERANCE = 1e-4
SHAPES = {
    "sd1": UNetConfig(
        channels=(32, 64, 128, 128), depths=(1, 1, 1, 0), num_heads=(8,) * 4, context_dim=48, num_groups=16,
        conv_projections=True,
    ),
    "sd1-inpaint": UNetConfig(
        channels=(32, 64, 128, 128), depths=(1, 1, 1, 0), num_heads=(8,) * 4, context_dim=48, num_groups=32,
        conv_projections=True, in_channels=9,
    ),
    "sd2": UNetConfig(
        channels=(32, 64, 128, 128), depths=(1, 1, 1, 0), num_heads=(2, 4, 8, 8), context_dim=64, num_groups=16,
    ),
    "sdxl": UNetConfig(
        channels=(32, 64, 128), depths=(0, 2, 3), num_heads=(2, 4, 8), context_dim=40, num_groups=16,
        added_dim=24 + 6 * 16, size_dim=16,
    ),
    "sdxl-refiner": UNetConfig(
        channels=(48, 64, 96, 96), depths=(0, 2, 2, 0), num_heads=(3, 4, 6, 6), context_dim=40, num_groups=16,
        added_dim=24 + 5 * 16, size_dim=16,
    ),
    "uneven": UNetConfig(
        channels=(24, 16), depths=(2, 0), num_heads=(3, 2), context_dim=12, num_groups=4, num_res_blocks=1,
        in_channels=3, out_channels=6,
    ),
}  # fmt: skip
POOLED = 24


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def diffusers_config(c: UNetConfig) -> dict[str, Any]:
    kinds = [
        ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D") if depth else ("DownBlock2D", "UpBlock2D") for depth in c.depths
    ]
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": c.size_dim,
        "projection_class_embeddings_input_dim": c.added_dim,
    }
    return {
        "in_channels": c.in_channels,
        "out_channels": c.out_channels,
        "down_block_types": [down for down, _ in kinds],
        "up_block_types": [up for _, up in reversed(kinds)],
        "block_out_channels": list(c.channels),
        "layers_per_block": c.num_res_blocks,
        "norm_num_groups": c.num_groups,
        "cross_attention_dim": c.context_dim,
        # diffusers' middle has the depth that stands last.
        "transformer_layers_per_block": [d or 1 for d in c.depths[:-1]] + [c.depths[-1] or c.middle_depth],
        "attention_head_dim": list(c.num_heads),
        "use_linear_projection": not c.conv_projections,
        **(added if c.added_dim else {}),
    }


def theirs(c: UNetConfig) -> Any:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(**diffusers_config(c)).eval()
    fill(model)
    return model


def diffusers_names(c: UNetConfig) -> Any:
    return unet_diffusers_names(conv_projections=c.conv_projections, added=bool(c.added_dim))


def ldm_names(c: UNetConfig) -> Any:
    options = {"conv_projections": c.conv_projections, "added": bool(c.added_dim)}
    return unet_ldm_names(c.depths, num_res_blocks=c.num_res_blocks, **options)


def opened(c: UNetConfig, names: Any, tensors: dict[str, Tensor]) -> UNet:
    with torch.device("meta"):
        model = UNet(c).eval()
    state = to_ours(names, tensors, wanted=model.state_dict(), source="test")
    model.load_state_dict(state, assign=True)
    return model


def random_model(c: UNetConfig) -> UNet:
    model = UNet(c).eval()
    fill(model)
    return model


def inputs(c: UNetConfig, batch: int = 2, height: int = 16, width: int = 16) -> dict[str, Tensor]:
    source = generator(3)
    values = {
        "x": torch.randn(batch, c.in_channels, height, width, generator=source),
        "timesteps": torch.tensor([999, 1, 500, 20])[:batch],
        "context": torch.randn(batch, 7, c.context_dim, generator=source),
    }
    if c.added_dim:
        sizes = torch.tensor([[1024.0, 768, 0, 16, 1024, 1024], [512, 512, 64, 0, 1024, 768]])
        number = (c.added_dim - POOLED) // c.size_dim
        values |= {"pooled": torch.randn(batch, POOLED, generator=source), "sizes": sizes[:batch, :number]}
    return values


def answer(model: Any, given: dict[str, Tensor], **options: Any) -> Tensor:
    """What diffusers' model gives for inputs in our words."""
    added = {"text_embeds": given["pooled"], "time_ids": given["sizes"]} if "pooled" in given else None
    with torch.no_grad():
        out = model(given["x"], given["timesteps"], given["context"], added_cond_kwargs=added, **options)
    return torch.as_tensor(out.sample)


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_of_diffusers_give_the_same_here(shape: str) -> None:
    c = SHAPES[shape]
    model = theirs(c)
    ours = opened(c, diffusers_names(c), model.state_dict())
    for height, width in ((16, 16), (8, 12), (7, 9)):
        given = inputs(c, height=height, width=width)
        with torch.no_grad():
            found = ours(**given)
        expected = answer(model, given)
        assert expected.std() > 0.1
        assert (found - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("shape", SHAPES)
def test_saving_gives_the_very_tensors_that_were_loaded(shape: str) -> None:
    c = SHAPES[shape]
    tensors = theirs(c).state_dict()
    saved = to_published(diffusers_names(c), dict(opened(c, diffusers_names(c), tensors).named_parameters()))
    assert saved.keys() == tensors.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("shape", SHAPES)
def test_ldm_names_are_those_that_diffusers_converts(shape: str) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    c = SHAPES[shape]
    tensors = theirs(c).state_dict()
    ours = dict(opened(c, diffusers_names(c), tensors).named_parameters())
    ldm = to_published(ldm_names(c), ours)
    converted = convert_ldm_unet_checkpoint(
        {f"model.diffusion_model.{name}": tensor for name, tensor in ldm.items()}, diffusers_config(c)
    )
    assert converted.keys() == tensors.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in tensors.items())
    again = opened(c, ldm_names(c), ldm).state_dict()
    assert all(torch.equal(again[name], parameter) for name, parameter in ours.items())


@pytest.mark.parametrize("shape", ["sd1", "sdxl"])
def test_every_norm_has_the_eps_of_diffusers(shape: str) -> None:
    # States near 1 do not show it, so each weight carries the eps of its norm through the names.
    c = SHAPES[shape]
    model = theirs(c)
    for part in model.modules():
        if isinstance(part, nn.GroupNorm | nn.LayerNorm):
            nn.init.constant_(part.weight, part.eps)
    ours = opened(c, diffusers_names(c), model.state_dict())
    norms = [part for part in ours.modules() if isinstance(part, nn.GroupNorm | nn.LayerNorm)]
    assert {part.eps for part in norms} == {1e-5, 1e-6}
    assert all(torch.equal(part.weight, torch.full_like(part.weight, part.eps)) for part in norms)


def test_projections_are_read_as_convolutions_and_as_linear_layers() -> None:
    c = SHAPES["sd1"]
    tensors = theirs(c).state_dict()
    name = "mid_block.attentions.0.proj_in.weight"
    assert tensors[name].ndim == 4
    flat = {n: t.flatten(1) if ".proj_" in n and t.ndim == 4 else t for n, t in tensors.items()}
    first, second = (opened(c, diffusers_names(c), values).state_dict() for values in (tensors, flat))
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_the_order_of_names_does_not_matter() -> None:
    c = SHAPES["sdxl"]
    tensors = theirs(c).state_dict()
    expected = opened(c, diffusers_names(c), tensors).state_dict()
    shuffle = random.Random(0)
    for names in (diffusers_names(c), ldm_names(c)):
        published = to_published(names, dict(shuffle.sample(list(expected.items()), len(expected))))
        mixed = dict(shuffle.sample(list(published.items()), len(published)))
        table = dict(shuffle.sample(list(names.items()), len(names)))
        found = opened(c, table, mixed).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("shape", ["sd1", "sdxl"])
def test_residuals_of_a_controlnet_are_added_where_diffusers_adds_them(shape: str) -> None:
    c = SHAPES[shape]
    model = theirs(c)
    ours = opened(c, diffusers_names(c), model.state_dict())
    given = inputs(c, height=8, width=12)
    widths, sizes = [c.channels[0]], [(8, 12)]
    for level, channels in enumerate(c.channels):
        step = 0 if level == len(c.channels) - 1 else 1
        widths += [channels] * (c.num_res_blocks + step)
        size = sizes[-1]
        sizes += [size] * c.num_res_blocks + [(-(-size[0] // 2), -(-size[1] // 2))] * step
    shapes = [*zip(widths, sizes), (widths[-1], sizes[-1])]
    source = generator(4)
    control = [torch.randn(2, width, *size, generator=source) for width, size in shapes]
    with torch.no_grad():
        found, without = ours(**given, control=control), ours(**given)
    options = {"down_block_additional_residuals": control[:-1], "mid_block_additional_residual": control[-1]}
    assert (found - answer(model, given, **options)).abs().max() < TOLERANCE
    assert (found - without).abs().max() > 0.1
    with pytest.raises(ConfigError, match=f"this model takes {len(control)}"):
        ours(**given, control=control[:-1])


@pytest.mark.parametrize("shape", ["sd1", "sdxl"])
def test_a_batch_of_two_is_two_singles(shape: str) -> None:
    model, given = random_model(SHAPES[shape]), inputs(SHAPES[shape], height=8, width=12)
    with torch.no_grad():
        both = model(**given)
        singles = [model(**{name: value[i : i + 1] for name, value in given.items()}) for i in range(2)]
    assert (both - torch.cat(singles)).abs().max() < 1e-5
    assert (both[0] - both[1]).abs().max() > 0.1


@pytest.mark.parametrize("shape", ["sd1", "sdxl"])
def test_every_input_and_every_weight_gets_a_gradient(shape: str) -> None:
    model, given = random_model(SHAPES[shape]), inputs(SHAPES[shape], height=8, width=8)
    floats = [value.requires_grad_() for name, value in given.items() if name not in ("timesteps", "sizes")]
    model(**given).pow(2).sum().backward()
    parameters = dict(model.named_parameters())
    # The softmax over the one position of the coarsest level has no gradient in what it compares.
    silent = {name for name, p in parameters.items() if p.grad is None or not p.grad.any()}
    assert all(name.endswith(("attn.q.weight", "attn.k.weight")) and ".cross." not in name for name in silent)
    assert all(value.grad is not None and value.grad.any() for value in floats)


def test_initial_weights_repeat_and_the_first_prediction_is_zero() -> None:
    c = SHAPES["uneven"]
    first, second, other = (UNet(c) for _ in range(3))
    for model, seed in ((first, 7), (second, 7), (other, 8)):
        model.initialise(generator(seed))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.conv_in.weight, other.conv_in.weight)
    with torch.no_grad():
        assert not first(**inputs(c)).any()
    bound = c.channels[0] ** -0.5
    assert 0.95 * bound < first.time.up.weight.abs().max() <= bound


def test_whole_and_fractional_timesteps_are_embedded_alike() -> None:
    model, given = random_model(SHAPES["uneven"]), inputs(SHAPES["uneven"])
    with torch.no_grad():
        whole = model(**given)
        given["timesteps"] = given["timesteps"].double()
        assert torch.equal(model(**given), whole)
        given["timesteps"] = given["timesteps"] + 0.5
        assert not torch.allclose(model(**given), whole, atol=1e-3)


def test_sinusoids_are_their_formula() -> None:
    found = sinusoids(torch.tensor([0, 3]), 4)
    expected = torch.tensor([[1.0, 1.0, 0.0, 0.0], [3.0, 0.03, 3.0, 0.03]], dtype=torch.float64)
    expected[1] = torch.cat((expected[1, :2].cos(), expected[1, 2:].sin()))
    assert (found - expected).abs().max() < 1e-6
    assert sinusoids(torch.zeros(2, 5), 8).shape == (2, 5, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_output_has_the_type_of_the_weights(dtype: torch.dtype) -> None:
    model = random_model(SHAPES["uneven"]).to(dtype)
    given = {n: v.to(dtype) if v.is_floating_point() else v for n, v in inputs(SHAPES["uneven"]).items()}
    with torch.no_grad():
        found = model(**given)
    assert found.dtype == dtype and found.isfinite().all()


def test_conditions_that_the_model_does_not_take_or_lacks_are_told() -> None:
    plain, xl = random_model(SHAPES["uneven"]), random_model(SHAPES["sdxl"])
    given = inputs(SHAPES["sdxl"])
    with pytest.raises(ConfigError, match="takes neither"):
        plain(**inputs(SHAPES["uneven"]), pooled=given["pooled"])
    with pytest.raises(ConfigError, match="needs both"):
        xl(given["x"], given["timesteps"], given["context"], pooled=given["pooled"])
    with pytest.raises(ConfigError, match="width of 104, this model takes 120"):
        xl(given["x"], given["timesteps"], given["context"], pooled=given["pooled"], sizes=given["sizes"][:, :5])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"num_heads": (3, 2, 2)}, "one entry per level"),
        ({"depths": (0, 0)}, "at least one level"),
        ({"num_groups": 5}, "num_groups=5"),
        ({"num_heads": (5, 2)}, "num_heads=5"),
        ({"size_dim": 7}, "even"),
    ],
)
def test_sizes_that_do_not_fit_are_told(change: dict[str, Any], why: str) -> None:
    values = {"channels": (24, 16), "depths": (2, 0), "num_heads": (3, 2), "context_dim": 12, "num_groups": 4}
    with pytest.raises(ConfigError, match=why):
        UNetConfig(**{**values, **change})  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_full_size_unet_of_stable_diffusion_1_gives_the_same_as_diffusers() -> None:
    from diffusers import UNet2DConditionModel

    c = UNetConfig(
        channels=(320, 640, 1280, 1280),
        depths=(1, 1, 1, 0),
        num_heads=(8,) * 4,
        context_dim=768,
        conv_projections=True,
    )
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet(c).parameters()) == 859_520_964
        model: Any = UNet2DConditionModel(**diffusers_config(c)).eval()
    model = model.to_empty(device="cpu")
    fill(model)
    given = inputs(c, batch=1, height=64, width=64)
    expected = answer(model, given)
    ours = opened(c, diffusers_names(c), model.state_dict())
    del model
    with torch.no_grad():
        found = ours(**given)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < TOLERANCE
