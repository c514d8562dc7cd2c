"""The recipe in small: coloured shapes, drawn from their names in two languages."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kiban import zoo
from kiban.generate.draw import Drawing, draw
from kiban.generate.images import ImageSampling
from kiban.recipes import image_text
from kiban.recipes.latent_diffusion import Settings, train
from shape_pairs import pairs

SMALL = Settings(preset="sd-tiny", vae_steps=4, vae_batch_size=8, steps=4, batch_size=8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> zoo.Loaded:
    c = image_text.Settings(vocab_size=700, teacher="", steps=1, batch_size=36)
    return image_text.train(pairs(0, 1), tmp_path_factory.mktemp("clip"), c)[0]


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_both_stages_learn_and_the_text_tower_stays(clip: zoo.Loaded, tmp_path: Path) -> None:
    c = replace(SMALL, vae_steps=30, steps=30)
    model, result = train(pairs(0, 1), clip, tmp_path, c)
    assert result.steps == 30
    for folder in (tmp_path / "autoencoder", tmp_path):
        values = losses(folder)
        assert len(values) == 30 and np.mean(values[-8:]) < 0.8 * np.mean(values[:8])
    mine = model.module.texts[0].state_dict()
    assert all(torch.equal(value, clip.module.text.state_dict()[name]) for name, value in mine.items())
    assert model.config.vae.latent_scale != 1


def test_the_saved_model_draws_the_same(clip: zoo.Loaded, tmp_path: Path) -> None:
    model, _ = train(pairs(0, 1), clip, tmp_path / "run", SMALL)
    zoo.save(model, tmp_path / "model")
    assert zoo.load(tmp_path / "model").tokenizer.max_len == model.config.texts[0].max_seq_len  # diffusers pads to it
    how = Drawing(sampling=ImageSampling(num_steps=2))
    images = [
        draw(some, ["赤い丸", "a red circle"], how, seeds=[0, 1]) for some in (model, zoo.load(tmp_path / "model"))
    ]
    for a, b in zip(*images, strict=True):
        assert a.image.size == (64, 64) and np.array_equal(a.image, b.image)


def test_an_interrupted_run_ends_alike(clip: zoo.Loaded, tmp_path: Path) -> None:
    c = replace(SMALL, steps=104, batch_size=2)
    whole, _ = train(pairs(0, 1), clip, tmp_path / "whole", c)
    (tmp_path / "resumed").mkdir()
    for name in ("autoencoder", "step-100"):
        shutil.copytree(tmp_path / "whole" / name, tmp_path / "resumed" / name)
    resumed, _ = train(pairs(0, 1), clip, tmp_path / "resumed", c)
    for (name, a), (_, b) in zip(whole.module.named_parameters(), resumed.module.named_parameters(), strict=True):
        assert torch.equal(a, b), name
