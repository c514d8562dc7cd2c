"""Drawing with a small random Stable Diffusion; that it equals diffusers is tested in test_pipelines.py."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kiban import zoo
from kiban.errors import ConfigError, DatasetError, NonFiniteError
from kiban.families.clip import TextConfig
from kiban.families.stable_diffusion import StableDiffusionConfig
from kiban.generate.draw import Drawing, Drawn, draw, drawing_of
from kiban.generate.images import ImageSampling
from kiban.inputs.learn.clip_bpe import train_clip_bpe
from kiban.inputs.picture_file import read_facts, write_png
from kiban.nn.unet import UNetConfig
from kiban.nn.vae import VAEConfig
from random_weights import fill

SIDE = 32
FAST = ImageSampling(num_steps=3)


@pytest.fixture(scope="module")
def models() -> dict[str, zoo.Loaded]:
    """One for each task, by its name."""
    words = train_clip_bpe(["a red apple", "赤いりんご"] * 3, vocab_size=540, max_len=8)
    return {task: _model(words, channels) for task, channels in (("draw", 4), ("edit", 8), ("inpaint", 9))}


def _model(words: Any, in_channels: int) -> zoo.Loaded:
    text = TextConfig(
        num_layers=1, dim=16, num_heads=2, ffn_dim=32, embed_dim=None, vocab_size=words.vocab_size, max_seq_len=8,
        eos_id=words.eos_id,
    )  # fmt: skip
    config = StableDiffusionConfig(
        unet=UNetConfig(
            channels=(8, 16), depths=(1, 1), num_heads=(1, 2), context_dim=16, num_groups=4, num_res_blocks=1,
            in_channels=in_channels,
        ),
        vae=VAEConfig(channels=(8, 8), num_groups=4, num_res_blocks=1),
        texts=(text,),
        image_size=SIDE,
    )  # fmt: skip
    made = zoo.new(zoo.families()["stable_diffusion"], config, "small")
    fill(made.module)
    with torch.no_grad():
        for name, parameter in made.module.named_parameters():
            if "cross" in name and parameter.ndim > 1:  # so that a prompt shows in the picture
                parameter.mul_(3)
    made.module.eval()
    return dataclasses.replace(made, tokenizer=words)


def blocks(width: int = SIDE, height: int = SIDE) -> Image.Image:
    values = torch.randint(0, 256, (height // 8, width // 8, 3), generator=torch.Generator().manual_seed(2))
    return Image.fromarray(values.to(torch.uint8).numpy()).resize((width, height), Image.Resampling.NEAREST)


def right_half(width: int = SIDE, height: int = SIDE) -> Image.Image:
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (width // 2, 0, width, height))
    return mask


def differ(first: Image.Image, second: Image.Image) -> float:
    return float(np.abs(np.asarray(first, dtype=float) - np.asarray(second, dtype=float)).mean())


def one(model: zoo.Loaded, prompt: str = "a red apple", **more: Any) -> Drawn:
    how = Drawing(sampling=FAST, **{k: more.pop(k) for k in list(more) if k in Drawing.__dataclass_fields__})
    (drawn,) = draw(model, prompt, how, **more)
    return drawn


def test_a_picture_depends_on_its_prompt_and_seed_alone(models: dict[str, zoo.Loaded]) -> None:
    model, how = models["draw"], Drawing(sampling=FAST)
    prompts = ["a red apple", "赤いりんご", "a red apple"]
    together = draw(model, prompts, how, seeds=[3, 4, 5])
    parted = draw(model, prompts, how, seeds=[3, 4, 5], batch_size=2)
    for drawn, again, seed, prompt in zip(together, parted, (3, 4, 5), prompts, strict=True):
        alone = draw(model, prompt, how, seeds=[seed])[0]
        assert differ(drawn.image, alone.image) < 0.1 and differ(drawn.image, again.image) < 0.1
        assert (drawn.facts["prompt"], drawn.facts["seed"]) == (prompt, seed)
    assert differ(together[0].image, together[2].image) > 5
    assert differ(one(model).image, one(model, "赤いりんご").image) > 1
    assert differ(one(model).image, one(model, negative="赤いりんご").image) > 1
    assert differ(one(model).image, one(model, guidance_scale=1).image) > 1


def test_sizes_follow_from_what_is_given(models: dict[str, zoo.Loaded]) -> None:
    model = models["draw"]
    assert one(model).image.size == (SIDE, SIDE)
    assert one(model, width=48, height=24).image.size == (48, 24)
    wide = blocks(64, 32)
    assert one(model, init=wide).image.size == (48, 24)  # the usual area, the picture's proportions
    assert one(model, init=wide, width=32).image.size == (32, 16)
    assert one(model, init=wide, width=32, height=32).image.size == (32, 32)


def test_a_picture_to_start_from_changes_with_strength(models: dict[str, zoo.Loaded]) -> None:
    model, how = models["draw"], ImageSampling(num_steps=10)
    made = [
        draw(model, "a red apple", Drawing(sampling=how, strength=s, guidance_scale=1), init=blocks())[0].image
        for s in (0.1, 0.2, 0.6)
    ]
    assert 1 < differ(made[0], made[1]) < differ(made[0], made[2])


@pytest.mark.parametrize("task", ["draw", "inpaint"])
@pytest.mark.parametrize("strength", [None, 0.7])
def test_what_is_not_painted_stays_pixel_by_pixel(
    models: dict[str, zoo.Loaded], task: str, strength: float | None
) -> None:
    picture = blocks()
    drawn = one(models[task], init=picture, mask=right_half(), strength=strength).image
    left, right = (0, 0, SIDE // 2, SIDE), (SIDE // 2, 0, SIDE, SIDE)
    assert drawn.crop(left).tobytes() == picture.crop(left).tobytes()
    assert differ(drawn.crop(right), picture.crop(right)) > 5


def test_an_edit_follows_picture_and_instruction(models: dict[str, zoo.Loaded]) -> None:
    model, picture = models["edit"], blocks()
    drawn = one(model, edit=picture).image
    other = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert differ(drawn, one(model, edit=other).image) > 1
    assert differ(drawn, one(model, "赤いりんご", edit=picture).image) > 1
    assert differ(drawn, one(model, edit=picture, image_guidance_scale=3).image) > 1


def test_a_file_says_all_that_it_takes_to_draw_it_again(models: dict[str, zoo.Loaded], tmp_path: Path) -> None:
    zoo.save(models["draw"], tmp_path / "model")
    model, picture = zoo.load(tmp_path / "model"), blocks(64, 32)
    how = Drawing(sampling=ImageSampling(sampler="ddim", num_steps=3, eta=0.5), guidance_scale=3, negative="赤い")
    drawn = draw(model, "りんご", how, seeds=[11], init=picture)[0]
    write_png(drawn.image, tmp_path / "a.png", drawn.facts)
    facts = read_facts(tmp_path / "a.png")
    assert facts == json.loads(json.dumps(drawn.facts))
    assert (facts["model"], len(facts["model_sha256"]), len(facts["picture_sha256"])) == ("model", 64, 64)
    assert str(tmp_path) not in json.dumps(facts)
    again = draw(zoo.load(tmp_path / "model"), facts["prompt"], drawing_of(facts), seeds=[facts["seed"]], init=picture)
    assert again[0].image.tobytes() == drawn.image.tobytes() and again[0].facts == drawn.facts
    with pytest.raises(ConfigError, match="drawing"):
        drawing_of({"prompt": "x"})
    with pytest.raises(ConfigError, match="guidance_scal"):
        drawing_of({"drawing": {"guidance_scal": 1, "sampling": {}}})


def test_a_refused_picture_is_black_and_says_so(models: dict[str, zoo.Loaded]) -> None:
    seen: list[Image.Image] = []

    def check(images: Any) -> list[bool]:
        seen.extend(images)
        return [number == 1 for number in range(len(images))]

    drawn = draw(models["draw"], "a red apple", Drawing(sampling=FAST), seeds=[1, 2], check=check)
    assert len(seen) == 2 and differ(seen[1], drawn[1].image) > 5
    assert [d.refused for d in drawn] == [False, True]
    assert drawn[1].image.getbbox() is None and drawn[1].image.size == seen[1].size
    assert drawn[1].facts["refused"] is True and "refused" not in drawn[0].facts


def test_previews_and_progress_come_after_each_step(models: dict[str, zoo.Loaded]) -> None:
    seen: list[tuple[int, int, list[Image.Image]]] = []
    told: list[tuple[str, int, int | None]] = []
    drawn = draw(
        models["draw"],
        "a red apple",
        Drawing(sampling=FAST),
        seeds=[1, 2, 3],
        batch_size=2,
        preview=lambda *step: seen.append(step),
        progress=lambda *step: told.append(step),
    )
    assert [(first, done, len(images)) for first, done, images in seen] == [
        (first, done, size) for first, size in ((0, 2), (2, 1)) for done in (1, 2, 3)
    ]
    # The last step ends without noise, so that what it heads for is the picture.
    assert differ(seen[-1][2][0], drawn[2].image) < 0.1 < differ(seen[-2][2][0], drawn[2].image)
    assert told[-1] == ("image", 6, 6)


@pytest.mark.parametrize(
    ("task", "given", "told"),
    [
        ("draw", {"edit": blocks()}, "does not follow instructions"),
        ("draw", {"mask": right_half()}, "needs the picture"),
        ("draw", {"init": blocks(), "mask": Image.new("L", (SIDE, SIDE))}, "black"),
        ("draw", {"init": blocks(), "mask": right_half(64, 64)}, "same size"),
        ("draw", {"width": 30}, "multiple of 8"),
        ("draw", {"seeds": [-1]}, "seed"),
        ("draw", {"seeds": []}, "seeds"),
        ("edit", {}, "edits a picture"),
        ("edit", {"edit": blocks(), "init": blocks()}, "no init"),
        ("inpaint", {"init": blocks()}, "mask"),
    ],
)
def test_what_a_model_cannot_do_is_told(
    models: dict[str, zoo.Loaded], task: str, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        one(models[task], **given)


@pytest.mark.parametrize(
    ("name", "value"),
    [("guidance_scale", -1.0), ("guidance_scale", math.nan), ("image_guidance_scale", math.inf), ("strength", 0.0)],
)
def test_impossible_settings_name_themselves(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        Drawing(**{name: value})


def test_other_errors_are_told(models: dict[str, zoo.Loaded], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        one(models["draw"], init=tmp_path / "no.png")
    with pytest.raises(ConfigError, match="2, and seeds 1"):
        draw(models["draw"], ["a", "b"])
    with pytest.raises(ConfigError, match="tokenizer"):
        one(dataclasses.replace(models["draw"], tokenizer=None))
    with pytest.raises(ConfigError, match="does not draw"):
        one(zoo.create("clip-tiny"))
    broken = _model(models["draw"].tokenizer, 4)
    with torch.no_grad():
        broken.module.get_parameter("vae.decoder.conv_out.bias").fill_(math.nan)
    with pytest.raises(NonFiniteError, match="float32"):
        one(broken)
