"""DreamBooth: one thing is learned while its kind is kept, batches are what they should be, and names are rare."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kiban import zoo
from kiban.adapt.dreambooth import collate, draw_class, dreambooth, instance_and_class, learn_all, pairs, rare_token
from kiban.adapt.image_lora import add_image_lora
from kiban.adapt.lora import adapters
from kiban.adapt.pictures import Row, TokenUNet, encode, objective_of, rows_of, stack, train
from kiban.errors import ConfigError
from kiban.families.stable_diffusion import PRESETS, StableDiffusion
from kiban.generate.images import ImageSampling
from kiban.inputs.tokenizer import Tokenizer
from kiban.train.settings import TrainConfig

# "a dog" and "a sks dog", as it were.
KIND = torch.tensor([[1, 5, 9, 9, 9, 9]])
THING = torch.tensor([[1, 7, 5, 9, 9, 9]])
CONFIG = TrainConfig(steps=30, batch_size=4, micro_batch_size=2, lr=1e-3, weight_decay=0.0, precision="fp32")


def model_of() -> StableDiffusion:
    model = zoo.initialise(StableDiffusion(PRESETS["sd-tiny"]), torch.Generator().manual_seed(0))
    assert isinstance(model, StableDiffusion)
    return model


def latents_of(pattern: int, count: int) -> Tensor:
    """Waves along x or along y, each somewhat different."""
    wave = torch.sin(torch.arange(8) * 1.6)
    plane = wave.expand(8, 8) if pattern == 0 else 1.5 * wave[:, None].expand(8, 8)
    noise = torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(pattern))
    return plane.expand(count, 4, 8, 8) + 0.2 * noise


@torch.no_grad()
def loss(model: StableDiffusion, rows: list[Row]) -> float:
    """On fixed noise."""
    columns = {**stack([(row, 0) for row in (rows * 24)[:24]]), "seeds": torch.arange(24)}
    return float(objective_of(TokenUNet(model).eval(), model.config)(columns).total) / 24


def test_the_thing_is_learned_while_its_kind_is_kept() -> None:
    model = model_of()
    kind, thing = rows_of(model, latents_of(0, 12), KIND[None]), rows_of(model, latents_of(1, 3), THING[None])
    learn_all(model)
    train(objective_of(TokenUNet(model), model.config), kind, replace(CONFIG, steps=50), collate=stack)
    known, unknown = loss(model, kind), loss(model, thing)
    assert known < 0.6 * unknown

    without = copy.deepcopy(model)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not name.startswith("unet.")}
    dreambooth(model, thing, kind, CONFIG)
    train(objective_of(TokenUNet(without), without.config), thing, CONFIG, collate=stack)
    assert loss(model, thing) < 0.7 * unknown
    assert loss(model, kind) < 1.1 * known  # held
    assert loss(without, kind) > 1.3 * loss(model, kind)  # and without the prior it would not have been
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


def test_a_batch_holds_both_pictures_and_the_papers_weights() -> None:
    model = model_of()
    kind, thing = rows_of(model, latents_of(0, 5), KIND[None]), rows_of(model, latents_of(1, 2), THING[None])
    both = pairs(thing, kind)
    assert len(both) == 5 and both[3][0] is thing[1] and both[4][1] is kind[4]
    assert len(pairs(thing * 4, kind)) == 8
    batch = collate([(pair, 10 + i) for i, pair in enumerate(both[:3])], prior_weight=0.5)
    assert batch["latents"].shape == (6, 4, 8, 8) and len(set(batch["seeds"].tolist())) == 6
    for some, tokens in ((slice(0, 3), THING), (slice(3, 6), KIND)):
        assert torch.equal(batch["context"][some], tokens.expand(3, 1, 6))
    objective = objective_of(TokenUNet(model), model.config)
    with torch.no_grad():
        whole = float(objective(batch).total) / int(objective.count(batch))
        parts = []
        for some in (slice(0, 3), slice(3, 6)):
            part = {name: value[some] for name, value in batch.items() if name != "weights"}
            parts.append(float(objective(part).total) / 3)
    assert whole == pytest.approx(parts[0] + 0.5 * parts[1], rel=1e-5)


def test_it_goes_with_lora() -> None:
    model = model_of()
    kind, thing = rows_of(model, latents_of(0, 4), KIND[None]), rows_of(model, latents_of(1, 2), THING[None])
    add_image_lora(model, rank=2, alpha=2.0, texts=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        model.unet.conv_out.weight.normal_(0, 0.05)
        before["unet.conv_out.weight"] = model.unet.conv_out.weight.clone()
    dreambooth(model, thing, kind, replace(CONFIG, steps=2))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    own = {f"{place}.{part}.weight" for place in adapters(model) for part in ("up", "down")}
    assert moved <= own


def test_the_model_draws_its_kind_itself() -> None:
    model = model_of()
    sampling = ImageSampling(num_steps=3)
    found = draw_class(model, KIND, torch.zeros_like(KIND), seeds=[3, 4], side=32, sampling=sampling)
    assert found.shape == (2, 4, 8, 8) and not found.is_inference() and found.isfinite().all()
    alone = draw_class(model, KIND, torch.zeros_like(KIND), seeds=[4], side=32, sampling=sampling)
    torch.testing.assert_close(alone[0], found[1])
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    latents = encode(model, images, torch.Generator().manual_seed(1))
    assert latents.shape == (3, 4, 8, 8) and not latents.requires_grad


def test_names_are_rare_and_of_three_letters(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers

    vocab = {
        token: i for i, token in enumerate(["a", "dog", "sks", "tok", "ABC", "long", "x1z", "あいう", "q", "[UNK]"])
    }
    library = Library(models.WordLevel(vocab=vocab, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert rare_token(tokenizer) == "tok"
    assert instance_and_class("tok", "dog") == ("a tok dog", "a dog")
    vocab = {"a": 0, "[UNK]": 1}
    library = Library(models.WordLevel(vocab=vocab, unk_token="[UNK]"))
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="3 letters"):
        rare_token(Tokenizer.from_folder(tmp_path))


def test_errors() -> None:
    model = model_of()
    rows = rows_of(model, latents_of(0, 1), KIND[None])
    for instance, prior, weight in (([], rows, 1.0), (rows, [], 1.0), (rows, rows, 0.0)):
        with pytest.raises(ConfigError, match="prior"):
            dreambooth(model, instance, prior, CONFIG, prior_weight=weight)
