"""Stable Diffusion's exhibit: its judge, measures and arithmetic are what they say, and a reduced run goes through."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from kiban.adapt import pictures
from kiban.config import silent
from kiban.nn.noise import scaled_linear
from kiban.objectives.diffusion import Diffusion
from kiban.tour import shapes, shapes_judge
from kiban.tour import stable_diffusion_models as models
from kiban.tour import stable_diffusion_training as training
from kiban.tour.running import run
from kiban.tour.shapes_judge import COUNTS, Judge, diversity, right
from kiban.tour.stable_diffusion import (
    EXHIBIT,
    GRID,
    MARGIN,
    SHOWN,
    USUAL,
    asked_of,
    inpaint,
    painted,
)

SETTING: models.Setting = EXHIBIT.quick
TINY = replace(SETTING, vae_steps=2, steps=2, judge_steps=2)


class Oracle(Judge):
    """Says of picture i what answers[i] is."""

    def __init__(self, answers: list[shapes.Combination]) -> None:
        super().__init__(8)
        self.answers = answers

    def forward(self, images: Tensor) -> Tensor:
        parts = zip(torch.tensor(self.answers).unbind(1), COUNTS, strict=True)
        return torch.cat([nn.functional.one_hot(part, count).float() for part, count in parts], dim=1)


def test_right_is_told_by_attribute() -> None:
    meant = [shapes.Combination(1, 2, 3)] * 4
    said = [meant[0], meant[0]._replace(shape=0), meant[0]._replace(colour=5, place=0), shapes.Combination(5, 5, 0)]
    wanted = [[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert right(Oracle(said), torch.zeros(4, 3, 8, 8), meant).int().tolist() == wanted


def test_diversity_is_the_mean_difference_of_pictures_of_one_caption() -> None:
    black, grey, white = (torch.full((1, 3, 4, 4), level) for level in (-1.0, 0.0, 1.0))
    assert diversity(torch.cat((black, white)), 2) == pytest.approx(100)
    assert diversity(torch.cat((black, black, white, white)), 2) == 0
    # Pairs of 50, 100 and 50; what is brighter than white counts as white.
    assert diversity(torch.cat((black, grey, 3 * white)), 3) == pytest.approx(200 / 3, abs=1e-4)


def test_the_judge_learns_to_name_real_pictures(tmp_path: Path) -> None:
    judge = shapes_judge.train(32, 70, tmp_path, silent)
    asked = [c for c in shapes.HELD_OUT for _ in range(8)]
    images = shapes.pixels(asked, np.random.default_rng(5), 32)
    shape, colour, place, _ = right(judge, images, asked).float().mean(dim=0).tolist()
    assert shape > 0.4 and colour > 0.7 and place > 0.95


def test_no_held_out_caption_is_trained_on() -> None:
    _, tokens = training.pool_of(replace(SETTING, pool=4), 0)
    trained = {tuple(row) for row in tokens.tolist()}
    rng = np.random.default_rng(0)
    texts = [shapes.caption(c, lang, rng) for c in shapes.HELD_OUT for lang in models.LANGS for _ in range(20)]
    assert trained.isdisjoint(map(tuple, models.tokens_of(texts).tolist()))
    again = [shapes.caption(c, lang, rng) for c in shapes.TRAIN for lang in models.LANGS for _ in range(20)]
    assert not trained.isdisjoint(map(tuple, models.tokens_of(again).tolist()))


def test_every_held_out_combination_is_asked_for_in_both_languages() -> None:
    meant, captions = asked_of(SETTING)
    assert len(meant) == len(captions) == 2 * 24 * SETTING.pictures and set(meant) == set(shapes.HELD_OUT)
    half = len(meant) // 2
    assert meant[:half] == meant[half:]
    for combination, japanese, english in zip(meant, captions[:half], captions[half:], strict=False):
        assert japanese == shapes.caption(combination, "ja") and english == shapes.caption(combination, "en")


def test_what_is_painted_holds_any_shape_at_its_place() -> None:
    for combination in shapes.ALL:
        mask = painted(combination.place, 8).repeat_interleave(4, 1).repeat_interleave(4, 2)[0].numpy()
        assert mask.mean() == pytest.approx(25 / 64)
        for seed in range(5):
            image = shapes.render(combination, np.random.default_rng([*combination, seed]), 32).astype(float)
            empty = np.median(image.reshape(-1, 3), axis=0)
            assert not (np.abs(image - empty).sum(-1) > 100)[~mask].any()


def test_inpainting_leaves_other_latents_exact_whatever_the_weights(tmp_path: Path) -> None:
    images, _ = training.pool_of(SETTING, 0)
    model = training.latent_diffusion(SETTING, training.autoencoder(SETTING, 0).vae, images, 0).eval()
    nn.init.normal_(model.unet.conv_out.weight)  # zeros at first, which would paint nothing
    painter, judge = models.latent_painter(SETTING, model), Judge(SETTING.image_size)
    found = inpaint(SETTING, model, painter, judge, 0)
    assert found["inpaint_change"] == 0.0
    drawn = painter.draw([["red"]] * 2, 2.0, USUAL, first=3)
    assert drawn.shape == (2, 4, 8, 8) and not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[1], painter.draw([["red"]], 2.0, USUAL, first=4)[0])


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1, bias=False)
        self.out = nn.Conv2d(5, 3, 1, bias=False)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return self.out(self.conv(x))


def test_operations_are_counted_forward_and_backward() -> None:
    # Two a product and addition. Backward: for the weights of both, and for what the second one reads.
    first, second = 2 * 27 * 5 * 64, 2 * 5 * 3 * 64
    objective = Diffusion(Conv(), scaled_linear())
    batch = {"latents": torch.randn(7, 3, 8, 8), "seeds": torch.arange(7)}
    assert training.flops(objective, batch) == 7 * (2 * first + 3 * second)
    assert all(p.grad is None for p in objective.module.parameters())


def test_pixels_are_trained_for_as_many_operations_as_the_budget_holds(tmp_path: Path) -> None:
    images, tokens = training.pool_of(TINY, 0)
    size = torch.full((6,), 16)
    rows = [{"latents": images[i], "context": tokens[i : i + 1], "sizes": size} for i in range(TINY.batch_size)]
    each = training.step_flops(training.pixel_diffusion(TINY, 0), rows, TINY.batch_size)
    assert each == TINY.batch_size * training.step_flops(training.pixel_diffusion(TINY, 0), rows, 1)
    objective, cost = training.train_pixels(TINY, images, tokens, 3 * each + each // 2, 0, tmp_path, silent)
    assert cost == 3 * each
    lines = (tmp_path / "pixels" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 3 and not objective.module.training


def test_the_autoencoder_is_left_alone_and_texts_learn() -> None:
    images, tokens = training.pool_of(TINY, 0)
    model = training.latent_diffusion(TINY, training.autoencoder(TINY, 0).vae, images, 0)
    latents = training.encode(model, images[:8], 0)
    assert 0.7 < float(training.encode(model, images, 0).std()) < 1.4
    objective = training.diffusion(pictures.TokenUNet(model), model.config)
    for weight in model.unet.parameters():
        if not weight.any():  # what is 0 at first would keep the texts from learning in the first step
            nn.init.normal_(weight, std=0.1)
    rows = pictures.rows_of(model, latents, tokens[:8, None])
    objective(pictures.stack([(row, i) for i, row in enumerate(rows)])).total.backward()
    assert all(p.grad is None for p in model.vae.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.texts.parameters())


def test_a_reduced_run_leaves_numbers_and_pictures(tmp_path: Path) -> None:
    outcome = run(replace(EXHIBIT, quick=TINY), tmp_path / "run", seeds=1, quick=True)
    found = {name: e.value for name, e in outcome.estimates.items()}
    assert found["inpaint_change"] == 0 and found["real_place"] > 10
    assert 0.5 < found["pixel_flops"] / found["latent_flops"] <= 1
    with Image.open(outcome.pictures) as image:
        side = TINY.image_size + 2 * MARGIN
        assert image.size == (2 * len(SHOWN) * side, len(GRID) * side)
    with Image.open(outcome.plot) as image:
        assert image.size == (1050, 675 + round(1050 * len(GRID) / 12))
    record = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    assert record["measures"]["real_diversity"]["value"] > 5


@pytest.mark.slow
@pytest.mark.timeout(14400)
def test_the_exhibit_passes_its_bars(tmp_path: Path) -> None:
    outcome = run(EXHIBIT, tmp_path / "run", seeds=4)
    assert outcome.passed, outcome.table("en")
