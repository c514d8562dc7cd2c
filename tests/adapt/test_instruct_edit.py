"""A model that draws becomes one that edits or fills in: at first nothing changes, then it learns to read what is new."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from kiban import zoo
from kiban.adapt.instruct_edit import CHANNELS_DROPOUT, DROPOUT, edit_objective, edit_rows, inpaint_rows, widen
from kiban.adapt.pictures import TokenUNet, stack, train
from kiban.errors import ConfigError
from kiban.families import stable_diffusion as sd
from kiban.families.stable_diffusion import PRESETS, StableDiffusion
from kiban.generate.denoiser import DiffusionModel
from kiban.generate.guidance import edit
from kiban.generate.images import ImageSampling, generate
from kiban.generate.prompts import told
from kiban.train.settings import TrainConfig

NULL = torch.zeros(1, 6, dtype=torch.int64)


def model_of(prediction: Literal["eps", "x0"] = "eps") -> StableDiffusion:
    c = replace(PRESETS["sd-tiny"], prediction=prediction)
    model = zoo.initialise(StableDiffusion(c), torch.Generator().manual_seed(0))
    assert isinstance(model, StableDiffusion)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.unet.parameters():
            if not parameter.any() and parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=source)
    return model


@pytest.mark.parametrize(("task", "extra"), [("edit", 4), ("inpaint", 5)])
@torch.no_grad()
def test_at_first_nothing_changes(task: Literal["edit", "inpaint"], extra: int) -> None:
    model = model_of().eval()
    source = torch.Generator().manual_seed(2)
    x, context = torch.randn(2, 4, 16, 16, generator=source), torch.randn(2, 7, 128, generator=source)
    timesteps = torch.tensor([5, 900])
    before = model.unet(x, timesteps, context)
    widen(model, task)
    assert model.config.task == task and model.config.unet.in_channels == 4 + extra == model.unet.config.in_channels
    for channels in (torch.zeros(2, extra, 16, 16), 1e3 * torch.randn(2, extra, 16, 16, generator=source)):
        after = model.unet(torch.cat((x, channels), dim=1), timesteps, context)
        assert torch.equal(after, before) or float((after - before).abs().max()) < 1e-5
    kind = {"edit": "StableDiffusionInstructPix2PixPipeline", "inpaint": "StableDiffusionInpaintPipeline"}[task]
    assert sd.pipeline_class(model.config) == kind
    with pytest.raises(ConfigError, match=f"can {task} already"):
        widen(model, "edit")


def pictures() -> Tensor:
    """Eight, one bright quarter each, in one of two brightnesses."""
    images = torch.full((8, 3, 32, 32), -1.0)
    for i, image in enumerate(images):
        top, left = 16 * (i // 2 % 2), 16 * (i % 2)
        image[:, top : top + 16, left : left + 16] = 1.0 if i < 4 else 0.3
    return images


def test_it_learns_to_read_the_picture_to_edit() -> None:
    """The instruction is to turn a picture upside down; the autoencoder has learned nothing, but its latents differ."""
    model, sources = model_of("x0"), pictures()
    widen(model, "edit")
    with torch.no_grad():
        found = model.vae.quant(model.vae.encoder(sources))[:, :4]
        model.vae.quant.weight[:4] /= found.std()  # latents as large as those of one that has learned
    targets = nn.functional.avg_pool2d(sources.flip(2), 4)[:, [0, 1, 2, 0]]
    turn = torch.tensor([[[0, 5, 6, 7, 8, 9]]])
    rows = edit_rows(model, sources, turn, targets)
    with torch.no_grad():  # not scaled, and the most likely ones
        expected = model.vae.encode(sources[:1]).mean[0]
    torch.testing.assert_close(rows[0]["channels"], expected)
    objective = edit_objective(model, null=NULL)
    assert (objective.dropout, objective.channels_dropout) == (DROPOUT, CHANNELS_DROPOUT)
    config = TrainConfig(steps=60, batch_size=8, micro_batch_size=8, lr=2e-3, weight_decay=0.0, precision="fp32")
    train(objective, rows, config, collate=stack)
    assert model.unet.conv_in.weight[:, 4:].any()

    @torch.no_grad()
    def loss(shift: int) -> float:
        columns = {**stack([(row, 0) for row in rows * 4]), "seeds": torch.arange(32)}
        return float(objective({**columns, "channels": columns["channels"].roll(shift, 0)}).total) / 32

    assert loss(0) < 0.5 * loss(1)
    # And it draws with both guidances.
    with torch.no_grad():
        own, empty = told(model, turn.unbind(1)), told(model, NULL[None].unbind(1))
    channels = rows[0]["channels"][None]
    both, image = {**own, "channels": channels}, {**empty, "channels": channels}
    guidance = edit(both, image, {**empty, "channels": 0 * channels}, guidance_scale=3.0, image_guidance_scale=1.5)
    network = DiffusionModel(model.unet, model.config.schedule, "x0")
    drawn = generate(network, guidance, ImageSampling(num_steps=3), seeds=[0], shape=(4, 8, 8))
    assert drawn.isfinite().all()


def test_rows_for_filling_in() -> None:
    model, images = model_of(), pictures()
    masks = torch.zeros(8, 1, 32, 32, dtype=torch.bool)
    masks[:, :, 8:24, 4:12] = True
    widen(model, "inpaint")
    rows = inpaint_rows(model, images, masks, NULL[None], torch.Generator().manual_seed(0))
    channels = rows[3]["channels"]
    assert channels.shape == (5, 8, 8) and int(channels[0].sum()) == 4 * 2 and channels[0, 2:6, 1:3].all()
    hidden = images.masked_fill(masks, 0.5)  # what is under the mask cannot be seen
    again = inpaint_rows(model, torch.where(masks, hidden, images), masks, NULL[None], torch.Generator().manual_seed(0))
    assert torch.equal(again[3]["channels"][0], channels[0])
    objective = edit_objective(model, null=NULL)
    assert (objective.dropout, objective.channels_dropout) == (DROPOUT, 0.0)
    loss = objective(stack([(row, i) for i, row in enumerate(rows)])).total
    assert loss.isfinite() and TokenUNet(model).model is model
