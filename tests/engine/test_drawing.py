"""Plans of a Stable Diffusion against the model they were made from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from kiban import zoo
from kiban.adapt.lora import add_lora
from kiban.api import Model
from kiban.engine.drawing import DrawingPlan
from kiban.errors import ConfigError
from kiban.families.clip import TextConfig
from kiban.families.stable_diffusion import StableDiffusion, StableDiffusionConfig
from kiban.generate.draw import Drawing, draw
from kiban.generate.images import ImageSampling
from kiban.inputs.learn.clip_bpe import train_clip_bpe
from kiban.nn.unet import UNetConfig
from kiban.nn.vae import VAEConfig
from random_weights import fill

TOLERANCE = 1e-4
TEXT = TextConfig(
    num_layers=1, dim=16, num_heads=2, ffn_dim=32, embed_dim=None, vocab_size=540, max_seq_len=8, eos_id=539
)
SHAPES = {
    "one level of tiles": UNetConfig(
        channels=(96, 64), depths=(1, 1), num_heads=(2, 4), context_dim=16, num_groups=16, num_res_blocks=1,
        conv_projections=True,
    ),
    "late text": UNetConfig(
        channels=(32, 64, 64), depths=(0, 1, 2), num_heads=(2, 4, 4), context_dim=16, num_groups=16,
    ),
    "sizes": UNetConfig(
        channels=(32, 64), depths=(0, 2), num_heads=(2, 4), context_dim=40, num_groups=16, num_res_blocks=1,
        added_dim=24 + 6 * 16, size_dim=16,
    ),
    "inpainting": UNetConfig(
        channels=(32, 64), depths=(1, 1), num_heads=(2, 4), context_dim=16, num_groups=16, num_res_blocks=1,
        in_channels=9,
    ),
}  # fmt: skip


def system(unet: UNetConfig) -> zoo.Loaded:
    texts = (TEXT, replace(TEXT, dim=24, embed_dim=24)) if unet.added_dim else (TEXT,)
    config = StableDiffusionConfig(
        unet=unet, vae=VAEConfig(channels=(32, 64), num_groups=8, num_res_blocks=1), texts=texts, image_size=32
    )
    made = zoo.new(zoo.families()["stable_diffusion"], config, "small")
    fill(made.module)
    made.module.eval()
    return made


def told(c: UNetConfig, rows: int) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(4)
    found = {"context": torch.randn(rows, 8, c.context_dim, generator=source)}
    if c.added_dim:
        found |= {
            "pooled": torch.randn(rows, 24, generator=source),
            "sizes": 64 * torch.rand(rows, 6, generator=source),
        }
    return found


@pytest.fixture(scope="module", params=SHAPES)
def both(request: pytest.FixtureRequest) -> tuple[zoo.Loaded, DrawingPlan]:
    loaded = system(SHAPES[request.param])
    return loaded, DrawingPlan(loaded)


@torch.inference_mode()
@pytest.mark.parametrize("branches", [1, 2, 3])
@pytest.mark.parametrize("size", [(24, 24), (13, 18)])
def test_predictions_equal_the_models(
    both: tuple[zoo.Loaded, DrawingPlan], branches: int, size: tuple[int, int]
) -> None:
    loaded, plan = both
    c = loaded.config.unet
    condition = told(c, 2 * branches)
    predict = plan.prepare(**condition)
    for seed, times in ((0, (999.0, 999.0)), (1, (20.0, 500.5))):
        x = torch.randn(2, c.in_channels, *size, generator=torch.Generator().manual_seed(seed))
        timesteps = torch.tensor(times)
        expected = loaded.module.unet(x.repeat(branches, 1, 1, 1), timesteps.repeat(branches), **condition)
        found = predict(x, timesteps)
        assert found.shape == expected.shape and expected.std() > 0.1
        assert (found - expected).abs().max() < TOLERANCE
        repeated = predict(x.repeat(branches, 1, 1, 1), timesteps.repeat(branches))
        assert (repeated - expected).abs().max() < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("size", [(24, 24), (5, 7)])
def test_decoded_images_equal_the_models(both: tuple[zoo.Loaded, DrawingPlan], size: tuple[int, int]) -> None:
    loaded, plan = both
    latents = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(2))
    expected = loaded.module.decode_image(latents)
    assert expected.std() > 0.1
    assert (plan.decode(latents) - expected).abs().max() < TOLERANCE


@pytest.fixture(scope="module")
def painter() -> zoo.Loaded:
    words = train_clip_bpe(["a red apple", "赤いりんご"] * 3, vocab_size=540, max_len=8)
    return replace(system(SHAPES["one level of tiles"]), tokenizer=words)


def pixels(drawn: Any) -> Any:
    return np.stack([np.asarray(one.image, dtype=int) for one in drawn])


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_a_model_draws_by_its_plan_what_it_draws_without(painter: zoo.Loaded, scale: float) -> None:
    how = Drawing(guidance_scale=scale, width=48, height=40, sampling=ImageSampling(num_steps=3))
    model = Model(painter)
    drawn = model.draw("a red apple", how, seeds=[1, 2, 3], batch_size=2)
    expected = draw(painter, "a red apple", how, seeds=[1, 2, 3])
    assert model._drawing is not None and expected[0].facts == drawn[0].facts
    assert np.abs(pixels(drawn) - pixels(expected)).max() <= 1
    assert pixels(expected).std() > 5
    assert np.array_equal(pixels(model.draw("a red apple", how, seeds=[1, 2, 3], batch_size=2)), pixels(drawn))


def test_a_changed_model_gets_another_plan(painter: zoo.Loaded) -> None:
    model, how = Model(painter), Drawing(sampling=ImageSampling(num_steps=2))
    before = model.draw("a red apple", how)
    plan = model._drawing
    model.draw("a red apple", how)
    assert model._drawing is plan
    bias = painter.module.get_parameter("vae.decoder.conv_out.bias")
    with torch.no_grad():
        bias += 0.5
    after = model.draw("a red apple", how)
    with torch.no_grad():
        bias -= 0.5
    assert pixels(after).mean() > pixels(before).mean() + 10
    assert pixels(after).tolist() != pixels(before).tolist()


def test_what_cannot_be_planned_is_drawn_without(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = system(SHAPES["one level of tiles"])
    assert DrawingPlan.fits(loaded)
    module = loaded.module
    assert isinstance(module, StableDiffusion)
    assert not DrawingPlan.fits(zoo.create("clip-tiny"))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10**6}))
    assert not DrawingPlan.fits(loaded)
    monkeypatch.undo()
    module.vae.bfloat16()
    assert not DrawingPlan.fits(loaded)
    module.vae.float()
    add_lora(module.unet, rank=2, alpha=2.0, targets=["q"])
    assert not DrawingPlan.fits(loaded)
    with pytest.raises(ConfigError, match="float32"):
        DrawingPlan(loaded)
