"""ControlNet: nothing changes at first, diffusers computes the same, it learns, and hints are what they should be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from kiban import zoo
from kiban.adapt.controlnet import (
    control_objective,
    control_rows,
    controlnet_from_hf,
    load_controlnet,
    new_controlnet,
    save_controlnet,
)
from kiban.adapt.hints import JOINTS, edges, skeletons
from kiban.adapt.pictures import stack, train
from kiban.errors import ConfigError, FormatError
from kiban.families.stable_diffusion import PRESETS, StableDiffusion
from kiban.generate.denoiser import DiffusionModel
from kiban.generate.guidance import classifier_free
from kiban.generate.images import ImageSampling, generate
from kiban.generate.prompts import told
from kiban.nn.controlnet import ControlledUNet, ControlNet, ControlNetConfig
from kiban.nn.unet import UNet, UNetConfig
from kiban.train.settings import TrainConfig
from random_weights import fill

TOLERANCE = 1e-4
SHAPES: dict[str, dict[str, Any]] = {
    "sd1": {"channels": (16, 32, 32), "depths": (1, 1, 0), "num_heads": (4, 4, 4), "conv_projections": True},
    "sdxl": {"channels": (16, 32), "depths": (0, 2), "num_heads": (2, 4), "added_dim": 20 + 6 * 8, "size_dim": 8},
}
# What stands in the config.json of lllyasviel's control_v11p_sd15_canny.
PUBLISHED = {
    "_class_name": "ControlNetModel", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280], "class_embed_type": None,
    "conditioning_embedding_out_channels": [16, 32, 96, 256], "controlnet_conditioning_channel_order": "rgb",
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
    "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "num_class_embeds": None,
    "only_cross_attention": False, "projection_class_embeddings_input_dim": None, "resnet_time_scale_shift": "default",
    "upcast_attention": False, "use_linear_projection": False,
}  # fmt: skip


def small(shape: str) -> ControlNetConfig:
    unet = UNetConfig(context_dim=32, num_groups=8, num_res_blocks=1, **SHAPES[shape])
    return ControlNetConfig(unet=unet, hint_channels=(4, 6, 8))


def asked(c: UNetConfig) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(2)
    added = {
        "pooled": torch.randn(2, 20, generator=source),
        "sizes": torch.tensor([[64, 48, 0, 0, 64, 48], [64, 64, 8, 4, 64, 48]]),
    }
    return {
        "x": torch.randn(2, 4, 12, 8, generator=source),
        "timesteps": torch.tensor([30, 700]),
        "context": torch.randn(2, 5, 32, generator=source),
        "hint": torch.rand(2, 3, 48, 32, generator=source),
        **(added if c.added_dim else {}),
    }


@torch.no_grad()
def same(control: ControlNet, unet: UNet, theirs: Any) -> None:
    from diffusers import UNet2DConditionModel

    from kiban.weights.diffusers_config import unet_to_hf
    from kiban.weights.names import to_published
    from kiban.weights.unet_names import unet_diffusers_names

    given = asked(control.config.unet)
    extra = {"text_embeds": given.get("pooled"), "time_ids": given.get("sizes")}
    added = {"added_cond_kwargs": extra} if "pooled" in given else {}
    down, middle = theirs(
        given["x"], given["timesteps"], given["context"], given["hint"], conditioning_scale=0.7, return_dict=False, **added
    )  # fmt: skip
    own = control(**given)
    for mine, other in zip(own, [*down, middle], strict=True):
        assert mine.shape == other.shape and mine.abs().max() > 0.05
        assert float((0.7 * mine - other).abs().max()) < TOLERANCE
    c = unet.config
    peer = UNet2DConditionModel.from_config(unet_to_hf(c.__dict__, sample_size=8)).eval()
    names = unet_diffusers_names(conv_projections=c.conv_projections, added=bool(c.added_dim))
    peer.load_state_dict(to_published(names, unet.state_dict()))
    expected = peer(
        given["x"], given["timesteps"], given["context"], down_block_additional_residuals=down,
        mid_block_additional_residual=middle, **added,
    ).sample  # fmt: skip
    found = ControlledUNet(unet, control, scale=0.7)(**given)
    assert float((found - expected).abs().max()) < TOLERANCE


@pytest.mark.parametrize("shape", SHAPES)
def test_diffusers_opens_our_folder_and_we_its(shape: str, tmp_path: Path) -> None:
    from diffusers import ControlNetModel

    c = small(shape)
    control, unet = ControlNet(c).eval(), UNet(c.unet).eval()
    fill(control)
    fill(unet, 2)
    save_controlnet(control, tmp_path / "ours")
    theirs = ControlNetModel.from_pretrained(tmp_path / "ours").eval()
    same(control, unet, theirs)
    fill(theirs, 3)
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_controlnet(tmp_path / "theirs")
    assert again.config == c
    same(again, unet, theirs)


def test_the_published_size() -> None:
    c = controlnet_from_hf(PUBLISHED)
    assert c == ControlNetConfig(unet=PRESETS["sd1"].unet)
    with torch.device("meta"):
        assert sum(p.numel() for p in ControlNet(c).parameters()) == 361_279_120


def model_of() -> StableDiffusion:
    """It predicts latents, in whose error a hint shows most."""
    model = zoo.initialise(
        StableDiffusion(replace(PRESETS["sd-tiny"], prediction="x0")), torch.Generator().manual_seed(0)
    )
    assert isinstance(model, StableDiffusion)
    return model


@torch.no_grad()
def test_at_first_nothing_changes() -> None:
    model = model_of().eval()
    fill(model.unet)
    control = new_controlnet(model, torch.Generator().manual_seed(1)).eval()
    assert torch.equal(control.encoder.mid.attn.proj_in.weight, model.unet.mid.attn.proj_in.weight)
    source = torch.Generator().manual_seed(2)
    x, context, timesteps = (
        torch.randn(2, 4, 16, 16, generator=source),
        torch.randn(2, 7, 128, generator=source),
        torch.tensor([5, 900]),
    )
    hint = torch.rand(2, 3, 64, 64, generator=source)
    assert torch.equal(
        ControlledUNet(model.unet, control)(x, timesteps, context, hint=hint), model.unet(x, timesteps, context)
    )
    fill(control.zeros)
    controlled = ControlledUNet(model.unet, control, scale=0.0)(x, timesteps, context, hint=hint)
    assert torch.equal(controlled, model.unet(x, timesteps, context))
    assert not torch.equal(ControlledUNet(model.unet, control)(x, timesteps, context, hint=hint), controlled)


def squares(count: int, side: int = 32) -> tuple[list[Tensor], list[Tensor]]:
    """A white square at some place, and its edges as the hint."""
    pictures, hints = [], []
    for i in range(count):
        image = Image.new("RGB", (side, side))
        left, top = 3 + 5 * (i % 3), 3 + 5 * (i // 3)
        ImageDraw.Draw(image).rectangle((left, top, left + 12, top + 12), fill="white")
        pictures.append(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1)
        hints.append(torch.from_numpy(np.array(edges(image))).permute(2, 0, 1) / 255)
    return pictures, hints


def test_it_learns_where_things_are_while_the_model_stays() -> None:
    """Latents are the pictures, made small, so that a network without an autoencoder that has learned can tell."""
    model = model_of()
    with torch.no_grad():
        model.unet.conv_out.weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(4))
    control = new_controlnet(model, torch.Generator().manual_seed(1))
    before = {name: p.clone() for name, p in model.state_dict().items()}
    pictures, hints = squares(9)
    latents = nn.functional.avg_pool2d(torch.stack(pictures), 4)[:, [0, 1, 2, 0]]
    null = torch.zeros(1, 6, dtype=torch.int64)
    objective = control_objective(model, control, null=null)
    rows = control_rows(model, latents, null[None], torch.stack(hints))

    @torch.no_grad()
    def loss(shift: int) -> float:
        """On fixed noise, with the hints of other pictures if shifted."""
        columns = {name: torch.stack([row[name] for row in rows] * 4) for name in rows[0]}
        columns |= {"hint": columns["hint"].roll(shift, 0), "seeds": torch.arange(36)}
        return float(objective(columns).total) / 36

    first = loss(0)
    config = TrainConfig(steps=90, batch_size=9, micro_batch_size=9, lr=2e-3, weight_decay=0.0, precision="fp32")
    train(objective, rows, config, collate=stack)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    own, other = loss(0), loss(4)
    assert own < 0.2 * first and own < 0.2 * other
    assert any(layer.weight.any() for layer in control.zeros)

    # And it draws with guidance, as any network.
    network = ControlledUNet(model.unet, control)
    condition = {**told(model, null[None].unbind(1)), "hint": rows[0]["hint"][None]}
    drawn = generate(
        DiffusionModel(network, model.config.schedule, "x0"),
        classifier_free(condition, condition, guidance_scale=2.0),
        ImageSampling(num_steps=3),
        seeds=[0],
        shape=(4, 8, 8),
    )
    assert drawn.shape == (1, 4, 8, 8) and drawn.isfinite().all()


def test_edges_are_thin_lines_around_things() -> None:
    image = Image.new("RGB", (40, 30), "black")
    ImageDraw.Draw(image).rectangle((10, 8, 25, 20), fill="white")
    found = np.asarray(edges(image))
    assert found.shape == (30, 40, 3) and set(np.unique(found)) == {0, 255}
    line = found[..., 0] > 0
    assert not line[0].any() and not line[10:19, 13:23].any()
    for row in range(10, 19):  # one pixel on each side
        assert line[row].sum() == 2 and set(np.flatnonzero(line[row])) <= {9, 10, 25, 26}
    for column in range(12, 24):
        assert line[:, column].sum() == 2
    assert not np.asarray(edges(Image.new("RGB", (40, 30), "red"))).any()


def test_weak_edges_stay_where_they_touch_strong_ones() -> None:
    levels = np.zeros((40, 40), dtype=np.uint8)
    levels[:, 20:] = np.linspace(200, 40, 40)[:, None]  # one line, whose gradient falls from 800 to 160
    levels[5:35, 5:10] = 40  # weak alone
    found = np.asarray(edges(Image.fromarray(levels), low=100, high=500, blur=0.0))[..., 0] > 0
    assert found[1:-1, 18:22].any(axis=1).all() and not found[:, :15].any()
    strong = np.asarray(edges(Image.fromarray(levels), low=500, high=500, blur=0.0))[..., 0] > 0
    assert strong[1:15, 18:22].any(axis=1).all() and not strong[25:].any()


def test_skeletons_are_drawn_in_their_colours() -> None:
    person = {"neck": (20.0, 10.0), "right_shoulder": (40.0, 10.0), "left_ear": (60.0, 50.0)}
    found = np.asarray(skeletons([person], width=64, height=64))
    assert tuple(found[10, 30]) == (153, 0, 0)  # the first limb
    assert tuple(found[10, 20]) == (255, 85, 0)  # the neck is the second joint
    assert tuple(found[50, 60]) == (255, 0, 85)  # the last one
    assert not found[30].any() and len(JOINTS) == 18
    with pytest.raises(ConfigError, match="nose"):
        skeletons([{"tail": (1.0, 1.0)}], width=8, height=8)


def test_errors(tmp_path: Path) -> None:
    c = small("sd1")
    control = ControlNet(c)
    given = asked(c.unet)
    with pytest.raises(ConfigError, match="48 x 32"):
        control(**{**given, "hint": torch.rand(2, 3, 12, 8)})
    for name, value in {"controlnet_conditioning_channel_order": "bgr", "global_pool_conditions": True}.items():
        with pytest.raises(FormatError, match=name):
            controlnet_from_hf({**PUBLISHED, name: value})
    with pytest.raises(FormatError, match="conditioning_embedding"):
        controlnet_from_hf({**PUBLISHED, "conditioning_embedding_out_channels": ["a"]})
    save_controlnet(control, tmp_path / "fine")
    (tmp_path / "fine" / "kiban.json").unlink()
    values = json.loads((tmp_path / "fine" / "config.json").read_text())
    for name, value, words in (("layers_per_block", 2, "missing"), ("cross_attention_dim", 48, "shape")):
        (tmp_path / "fine" / "config.json").write_text(json.dumps({**values, name: value}))
        with pytest.raises(FormatError, match=words):
            load_controlnet(tmp_path / "fine")
    with pytest.raises(ConfigError, match="hint_channels"):
        ControlNetConfig(unet=c.unet, hint_channels=())
    tiny = PRESETS["sd-tiny"]
    coarse = StableDiffusion(replace(tiny, vae=replace(tiny.vae, channels=(16,) * 5), image_size=64))
    with pytest.raises(ConfigError, match="16 pixels"):
        new_controlnet(coarse)
