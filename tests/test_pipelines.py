"""Systems of several parts as folders and files: written, read, and opened by diffusers, tokenizers included."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import kiban
from kiban import zoo
from kiban.errors import ConfigError, FormatError, IntegrityError, KibanError, ModelNotFoundError, UnsafeFormatError
from kiban.families import clip
from kiban.families import stable_diffusion as sd
from kiban.families.clip import CLIPConfig, ResNetConfig, TextConfig
from kiban.families.stable_diffusion import StableDiffusionConfig
from kiban.generate.draw import Drawing, draw
from kiban.generate.images import ImageSampling
from kiban.inputs.learn import train_bpe
from kiban.inputs.learn.clip_bpe import train_clip_bpe
from kiban.inputs.tokenizer import Tokenizer
from kiban.nn.unet import UNetConfig
from kiban.nn.vae import VAEConfig
from kiban.weights.names import to_published
from kiban.zoo.open_clip import save_open_clip
from random_weights import fill

LENGTH = 12
CAPTIONS = ["a red apple", "赤いりんご", "a blue car!", "青い車", "笑顔の猫", "a smiling cat"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_clip_bpe(CAPTIONS * 3, vocab_size=560, max_len=LENGTH)


def with_weights(loaded: zoo.Loaded) -> zoo.Loaded:
    fill(loaded.module)
    return loaded


def system(config: StableDiffusionConfig, *tokenizers: Tokenizer) -> zoo.Loaded:
    made = with_weights(zoo.new(zoo.families()["stable_diffusion"], config, "small"))
    return dataclasses.replace(made, tokenizer=tokenizers[0] if tokenizers else None, more_tokenizers=tokenizers[1:])


def text(vocab_size: int, dim: int = 32, embed_dim: int | None = None) -> TextConfig:
    return TextConfig(
        num_layers=2, dim=dim, num_heads=4, ffn_dim=64, embed_dim=embed_dim, vocab_size=vocab_size, max_seq_len=LENGTH,
        eos_id=vocab_size - 1,
    )  # fmt: skip


def small(vocab_size: int, in_channels: int = 4, **options: Any) -> StableDiffusionConfig:
    return StableDiffusionConfig(
        unet=UNetConfig(
            channels=(16, 32), depths=(1, 1), num_heads=(2, 4), context_dim=32, num_groups=8, num_res_blocks=1,
            in_channels=in_channels,
        ),
        vae=VAEConfig(channels=(16, 24), num_groups=8, num_res_blocks=1),
        texts=(text(vocab_size),),
        image_size=32,
        **options,
    )  # fmt: skip


def small_xl(vocab_size: int) -> StableDiffusionConfig:
    return StableDiffusionConfig(
        unet=UNetConfig(
            channels=(16, 32), depths=(0, 1), num_heads=(2, 4), context_dim=56, num_groups=8, num_res_blocks=1,
            added_dim=20 + 6 * 8, size_dim=8,
        ),
        vae=VAEConfig(channels=(16, 24), num_groups=8, num_res_blocks=1),
        texts=(text(vocab_size), text(vocab_size, 24, 20)),
        text_skip=1,
        text_norm=False,
        image_size=32,
    )  # fmt: skip


def state(loaded: zoo.Loaded) -> dict[str, Tensor]:
    return loaded.module.state_dict()


def same_weights(first: zoo.Loaded, second: zoo.Loaded) -> bool:
    mine, theirs = state(first), state(second)
    return mine.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def in_diffusers(folder: Path, **more: Any) -> Any:
    import diffusers

    return diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, **more)


@pytest.fixture(scope="module")
def small_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "model"
    zoo.save(system(small(tokenizer.vocab_size), tokenizer), folder)
    return folder


@pytest.fixture
def copied(small_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_folder, tmp_path / "copy"))


def test_a_saved_system_opens_with_equal_weights_and_tokenizer(small_folder: Path, tokenizer: Tokenizer) -> None:
    first, again = system(small(tokenizer.vocab_size), tokenizer), zoo.load(small_folder)
    assert again.config == first.config and same_weights(first, again)
    assert zoo.family_of(small_folder) is again.family is first.family
    assert again.tokenizers == (again.tokenizer,) and again.tokenizer is not None
    assert all(again.tokenizer.encode(t) == tokenizer.encode(t) for t in CAPTIONS)
    listed = json.loads((small_folder / "kiban.json").read_text())["files"]
    assert {"unet/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json", "model_index.json"} < listed.keys()


def test_a_system_with_two_towers_has_two_tokenizers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "second")
    settings = {**json.loads((tmp_path / "second" / "tokenizer_config.json").read_text()), "pad_token": "!"}
    (tmp_path / "second" / "tokenizer_config.json").write_text(json.dumps(settings))
    second = Tokenizer.from_folder(tmp_path / "second")
    made = system(small_xl(tokenizer.vocab_size), tokenizer, second)
    zoo.save(made, tmp_path / "xl")
    again = zoo.load(tmp_path / "xl")
    assert same_weights(made, again)
    assert [t.pad_id for t in again.tokenizers] == [tokenizer.eos_id, 0]
    pipeline = in_diffusers(tmp_path / "xl")
    assert [t.pad_token_id for t in (pipeline.tokenizer, pipeline.tokenizer_2)] == [t.pad_id for t in again.tokenizers]
    for caption in CAPTIONS:
        for mine, theirs in zip(again.tokenizers, (pipeline.tokenizer, pipeline.tokenizer_2), strict=True):
            row = mine.encode(caption)
            row += [mine.pad_id or 0] * (LENGTH - len(row))
            assert theirs(caption, padding="max_length")["input_ids"] == row
    with pytest.raises(ConfigError, match="1 tokenizers for 2"):
        zoo.save(dataclasses.replace(made, more_tokenizers=()), tmp_path / "other")


def test_another_kind_of_tokenizer_opens_in_diffusers_too(tmp_path: Path) -> None:
    words = train_bpe(CAPTIONS * 3, vocab_size=300)
    words.max_len = LENGTH
    zoo.save(system(small(words.vocab_size), words), tmp_path / "model")
    theirs = in_diffusers(tmp_path / "model").tokenizer
    assert [theirs(t)["input_ids"] for t in CAPTIONS] == words.encode_batch(CAPTIONS)


def test_a_system_without_tokenizers_is_of_use_too(tokenizer: Tokenizer, tmp_path: Path) -> None:
    made = system(small(tokenizer.vocab_size))
    zoo.save(made, tmp_path / "model")
    again = zoo.load(tmp_path / "model")
    assert again.tokenizers == () and same_weights(made, again)
    assert in_diffusers(tmp_path / "model", tokenizer=None).unet is not None


def test_a_folder_that_diffusers_wrote_opens(small_folder: Path, tmp_path: Path) -> None:
    pipeline = in_diffusers(small_folder)
    pipeline.save_pretrained(tmp_path / "whole")
    pipeline.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    assert len(list((tmp_path / "shards" / "unet").glob("*.safetensors"))) > 2
    for name in ("whole", "shards", "half"):
        again = zoo.load(tmp_path / name)
        assert same_weights(zoo.load(small_folder), again)
        assert again.tokenizer is not None and again.tokenizer.max_len == LENGTH


def test_half_precision_is_stored_and_opened(small_folder: Path, tmp_path: Path) -> None:
    zoo.save(zoo.load(small_folder), tmp_path / "half", stored=torch.float16)
    file = tmp_path / "half" / "unet" / "diffusion_pytorch_model.safetensors"
    assert {t.dtype for t in load_file(file).values()} == {torch.float16}
    again = zoo.load(tmp_path / "half", dtype=torch.bfloat16)
    assert {p.dtype for p in again.module.parameters()} == {torch.bfloat16}


def test_changed_and_foreign_files_are_noticed(copied: Path) -> None:
    (copied / "tokenizer" / "added_tokens.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"added_tokens\.json"):
        zoo.load(copied)
    (copied / "tokenizer" / "added_tokens.json").unlink()
    weights = copied / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match="vae"):
        zoo.load(copied)


@pytest.mark.parametrize(
    ("name", "change", "error", "told"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, FormatError, "FluxPipeline.*StableDiffusionPipeline"),
        ("unet/config.json", {"act_fn": "relu"}, FormatError, "act_fn"),
        ("unet/config.json", {"block_out_channels": [16, 64]}, FormatError, "shape"),
        ("unet/config.json", {"cross_attention_dim": 64}, KibanError, "texts"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "linear"}, FormatError, "beta_schedule"),
        ("scheduler/scheduler_config.json", {"beta_start": None}, FormatError, "setting"),
    ],
)
def test_settings_of_another_model_are_told(
    copied: Path, name: str, change: dict[str, Any], error: type[KibanError], told: str
) -> None:
    (copied / "kiban.json").unlink()
    values = json.loads((copied / name).read_text())
    (copied / name).write_text(json.dumps({**values, **change}))
    with pytest.raises(error, match=told):
        zoo.load(copied)


def test_missing_parts_and_pickles_are_told(copied: Path) -> None:
    (copied / "kiban.json").unlink()
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    with pytest.raises(ModelNotFoundError, match="unet"):
        zoo.load(copied)
    weights.with_suffix(".bin").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(UnsafeFormatError, match="pickle"):
        zoo.load(copied)
    index = {"weight_map": {"a": "../../outside.safetensors"}}
    (copied / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (copied.parent / "outside.safetensors").write_bytes(b"")
    with pytest.raises(FormatError, match="leads out"):
        zoo.load(copied)
    (copied / "unet" / "config.json").unlink()
    with pytest.raises(FormatError, match=r"unet/config\.json"):
        zoo.load(copied)


def ldm_file(loaded: zoo.Loaded, path: Path, **more: Tensor) -> Path:
    """What the first code would have saved."""
    own = to_published(sd.ldm_names(loaded.config), {name: t.detach() for name, t in state(loaded).items()})
    save_file({**{name: tensor.clone() for name, tensor in own.items()}, **more}, path)
    return path


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sd-tiny in one file, beside weights that are not read."""
    made = with_weights(zoo.create("sd-tiny"))
    more = {"model_ema.decay": torch.zeros(1), "betas": torch.zeros(1000)}
    return ldm_file(made, tmp_path_factory.mktemp("ldm") / "sd-tiny.safetensors", **more)


def test_one_file_of_the_first_code_tells_its_size_by_its_shapes(tiny_file: Path, tokenizer: Tokenizer) -> None:
    opened = zoo.load(tiny_file)
    assert opened.config == sd.PRESETS["sd-tiny"] and zoo.family_of(tiny_file) is opened.family
    assert same_weights(opened, with_weights(zoo.create("sd-tiny"))) and opened.tokenizer is None
    tokenizer.save(tiny_file.parent / "tokenizer")
    beside = zoo.load(tiny_file, preset="sd-tiny").tokenizer
    assert beside is not None and beside.encode("赤い") == tokenizer.encode("赤い")


def test_one_file_of_another_size_is_told(tiny_file: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="do not match"):
        zoo.load(tiny_file, preset="sd1")
    with pytest.raises(ConfigError, match="sd-tiny"):
        zoo.load(tiny_file, preset="sd-tinny")
    with pytest.raises(ConfigError, match="one file"):
        zoo.load(tiny_file, preset="clip-tiny")
    with pytest.raises(FormatError, match="no published size"):
        zoo.load(ldm_file(system(small(tokenizer.vocab_size)), tmp_path / "small.safetensors"))
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(FormatError, match="no latent diffusion model"):
        zoo.load(tmp_path / "other.safetensors")


def test_sizes_with_equal_shapes_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = zoo.families()["stable_diffusion"]
    tiny = sd.PRESETS["sd-tiny"]
    velocity = dataclasses.replace(tiny, prediction="v")
    both = {"one": (family, tiny), "two": (family, velocity)}
    monkeypatch.setattr("kiban.zoo.parts.presets", lambda: both)
    path = ldm_file(zoo.create("sd-tiny"), tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="one and two have the same shapes"):
        zoo.load(path)


def test_a_preset_is_for_one_file_only(small_folder: Path) -> None:
    with pytest.raises(ConfigError, match="preset"):
        zoo.load(small_folder, preset="sd1")


def test_an_open_clip_folder_opens_with_running_statistics_and_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    vision = ResNetConfig(num_blocks=(1, 1, 1, 1), width=8, num_heads=4, image_size=64, embed_dim=20)
    tower = dataclasses.replace(text(tokenizer.vocab_size, embed_dim=20), eos_id=None)
    config = CLIPConfig(text=tower, vision=vision)
    made = zoo.new(zoo.families()["clip"], config, "rn").module
    with torch.no_grad():
        made.train()(torch.randn(4, 3, 64, 64), torch.tensor([tokenizer.encode("赤い")] * 4))
    assert made.state_dict()["vision.stem.0.norm.num_batches_tracked"] == 1
    save_open_clip(made, tmp_path / "model")
    (tmp_path / "model" / "kiban.json").unlink()
    tokenizer.save(tmp_path / "model")
    again = zoo.load(tmp_path / "model")
    assert again.config == config and again.family.name == zoo.family_of(tmp_path / "model").name == "clip"
    assert all(torch.equal(tensor, made.state_dict()[name]) for name, tensor in state(again).items())
    assert again.tokenizer is not None and again.tokenizer.eos_id == config.text.vocab_size - 1
    half = state(zoo.load(tmp_path / "model", dtype=torch.bfloat16))
    assert half["vision.stem.0.norm.running_mean"].dtype == torch.bfloat16
    assert half["vision.stem.0.norm.num_batches_tracked"].dtype == torch.int64


def test_a_clip_folder_has_its_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    import transformers

    made = zoo.create("clip-tiny", generator=torch.Generator().manual_seed(0))
    zoo.save(dataclasses.replace(made, tokenizer=tokenizer), tmp_path / "model")
    again = zoo.load(tmp_path / "model")
    assert again.tokenizer is not None and same_weights(made, again)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert all(again.tokenizer.encode(t) == theirs(t)["input_ids"] for t in CAPTIONS)


def test_a_clip_embeds_texts_as_transformers_does(tokenizer: Tokenizer, tmp_path: Path) -> None:
    import transformers

    tower = text(tokenizer.vocab_size, embed_dim=20)
    vision = dataclasses.replace(clip.PRESETS["clip-tiny"].vision, embed_dim=20, num_layers=1)
    made = with_weights(zoo.new(zoo.families()["clip"], CLIPConfig(text=tower, vision=vision), "small"))
    zoo.save(dataclasses.replace(made, tokenizer=tokenizer), tmp_path / "model")
    vectors = kiban.load(tmp_path / "model").embed(CAPTIONS)
    theirs = transformers.CLIPModel.from_pretrained(tmp_path / "model").eval()
    rows = transformers.CLIPTokenizer.from_pretrained(tmp_path / "model")(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        pooled = theirs.text_projection(theirs.text_model(**rows).pooler_output)
    torch.testing.assert_close(torch.from_numpy(vectors), nn.functional.normalize(pooled, dim=-1), atol=1e-4, rtol=0)


STEPS = 8
SCHEDULERS = {
    "ddim": ("DDIMScheduler", {}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace"}),
}


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sd-tiny with weights of size 1 and a tokenizer that was trained here."""
    words = train_clip_bpe(CAPTIONS * 3, vocab_size=2048, max_len=32)
    # Few captions give few merges, and the end of a text is the last token of the tokenizer.
    config = dataclasses.replace(
        sd.PRESETS["sd-tiny"],
        texts=(
            dataclasses.replace(
                sd.PRESETS["sd-tiny"].texts[0], vocab_size=words.vocab_size, eos_id=words.vocab_size - 1
            ),
        ),
    )
    folder = tmp_path_factory.mktemp("tiny") / "model"
    zoo.save(system(config, words), folder)
    return folder


def noise(seeds: list[int], size: int = 16) -> Tensor:
    return torch.stack([torch.randn(4, size, size, generator=torch.Generator().manual_seed(s)) for s in seeds])


def as_diffusers_draws(pipeline: Any, sampler: str, prompts: list[str], scale: float, start: Tensor) -> Tensor:
    """Pixels (B, H, W, 3) of 0 .. 255."""
    import diffusers

    name, settings = SCHEDULERS[sampler]
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **settings)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(prompts, latents=start, guidance_scale=scale, num_inference_steps=STEPS)
    return levels(made.images)


def levels(images: list[Any]) -> Tensor:
    import numpy as np

    return torch.stack([torch.from_numpy(np.array(image)).int() for image in images])


def as_kiban_draws(loaded: zoo.Loaded, sampler: str, prompts: list[str], scale: float, start: Tensor) -> Tensor:
    how = Drawing(guidance_scale=scale, sampling=ImageSampling(sampler=sampler, num_steps=STEPS, karras=False))
    return levels([d.image for d in draw(loaded, prompts, how, seeds=range(len(prompts)), start=start)])


@pytest.mark.parametrize("scale", [1.0, 7.5])
@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_both_draw_the_same_picture_from_the_same_noise(
    tiny_folder: Path, tmp_path: Path, sampler: str, scale: float
) -> None:
    prompts, start = CAPTIONS[:2], noise([1, 2])
    pipeline = in_diffusers(tiny_folder)
    theirs = as_diffusers_draws(pipeline, sampler, prompts, scale, start)
    ours = as_kiban_draws(zoo.load(tiny_folder), sampler, prompts, scale, start)
    assert theirs.float().std() > 20 and (theirs[0] - theirs[1]).abs().max() > 20
    assert (ours - theirs).abs().max() <= 2
    other = as_kiban_draws(zoo.load(tiny_folder), sampler, CAPTIONS[2:4], scale, start)
    assert (ours - other).abs().max() > 4  # the prompts show
    with torch.no_grad():
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            for parameter in part.parameters():
                parameter.mul_(1.01)
    pipeline.save_pretrained(tmp_path / "theirs")
    changed = as_diffusers_draws(pipeline, sampler, prompts, scale, start)
    again = as_kiban_draws(zoo.load(tmp_path / "theirs"), sampler, prompts, scale, start)
    assert (changed - theirs).abs().max() > 2
    assert (again - changed).abs().max() <= 2


SIDE = 32
HOW = {"sampling": ImageSampling(sampler="ddim", num_steps=STEPS)}


def picture(seed: int = 0) -> Image.Image:
    """Blocks of colour."""
    blocks = torch.randint(0, 256, (3, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(blocks.repeat_interleave(8, 1).repeat_interleave(8, 2).permute(1, 2, 0).numpy())


def half_mask() -> Image.Image:
    """White on the right."""
    mask = Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, (SIDE // 2, 0, SIDE, SIDE))
    return mask


def task_folder(folder: Path, config: StableDiffusionConfig, *words: Tokenizer) -> Path:
    """A system whose autoencoder gives latents of no variance, so that a draw of them is the likeliest."""
    made = system(config, *words)
    with torch.no_grad():
        quant = made.module.get_submodule("vae.quant")
        quant.weight[4:] = 0  # type: ignore[index,operator]
        quant.bias[4:] = -30  # type: ignore[index,operator]
    zoo.save(made, folder)
    return folder


def theirs_of(folder: Path, name: str | None, *arguments: Any, **options: Any) -> Tensor:
    import diffusers

    pipeline = in_diffusers(folder)
    if name is not None:
        pipeline = getattr(diffusers, name).from_pipe(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return levels(pipeline(*arguments, num_inference_steps=STEPS, **options).images)


def ours_of(folder: Path, prompt: str, **options: Any) -> Tensor:
    names = ("guidance_scale", "image_guidance_scale", "strength", "negative", "rescale")
    how = Drawing(**HOW, **{name: options.pop(name) for name in names if name in options})
    return levels([d.image for d in draw(zoo.load(folder), prompt, how, **options)])


def test_a_picture_to_start_from_gives_the_same_in_diffusers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = task_folder(tmp_path / "model", small(tokenizer.vocab_size), tokenizer)
    generator = torch.Generator().manual_seed(3)
    # Their pipeline draws latents of the picture first, then the noise.
    start = [torch.randn(1, 4, SIDE // 2, SIDE // 2, generator=generator) for _ in range(2)][1]
    theirs = theirs_of(
        folder, "StableDiffusionImg2ImgPipeline", CAPTIONS[0], image=picture(), strength=0.5, guidance_scale=3.0,
        negative_prompt="青い車", generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    ours = ours_of(
        folder, CAPTIONS[0], init=picture(), strength=0.5, guidance_scale=3.0, negative="青い車", start=start
    )  # fmt: skip
    assert (ours - theirs).abs().max() <= 2 and theirs.float().std() > 20


def test_a_model_that_fills_in_gives_the_same_in_diffusers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = task_folder(tmp_path / "model", small(tokenizer.vocab_size, 9), tokenizer)
    start = noise([1], SIDE // 2)
    theirs = theirs_of(
        folder, None, CAPTIONS[0], image=picture(), mask_image=half_mask(), latents=start, guidance_scale=3.0,
        height=SIDE, width=SIDE,
    )  # fmt: skip
    ours = ours_of(folder, CAPTIONS[0], init=picture(), mask=half_mask(), guidance_scale=3.0, start=start)
    painted = slice(SIDE // 2, None)
    assert (ours - theirs)[:, :, painted].abs().max() <= 2
    assert (ours - levels([picture()]))[:, :, : SIDE // 2].abs().max() == 0
    assert (ours - levels([picture()]))[:, :, painted].abs().max() > 20


def test_a_model_that_edits_gives_the_same_in_diffusers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = task_folder(tmp_path / "model", small(tokenizer.vocab_size, 8), tokenizer)
    start, scales = noise([1], SIDE // 2), {"guidance_scale": 3.0, "image_guidance_scale": 1.5}
    theirs = theirs_of(folder, None, CAPTIONS[0], image=picture(), latents=start, **scales)
    ours = ours_of(folder, CAPTIONS[0], edit=picture(), start=start, **scales)
    assert (ours - theirs).abs().max() <= 2
    other = ours_of(folder, CAPTIONS[0], edit=picture(1), start=start, **scales)
    assert (ours - other).abs().max() > 20


@pytest.mark.parametrize("negative", ["", "青い車"])
def test_two_towers_give_the_same_in_diffusers(tokenizer: Tokenizer, tmp_path: Path, negative: str) -> None:
    folder = task_folder(tmp_path / "model", small_xl(tokenizer.vocab_size), tokenizer, tokenizer)
    start, more = noise([1], SIDE // 2), {"negative_prompt": negative} if negative else {}
    theirs = theirs_of(folder, None, CAPTIONS[0], latents=start, guidance_scale=3.0, **more)
    ours = ours_of(folder, CAPTIONS[0], guidance_scale=3.0, start=start, negative=negative)
    assert (ours - theirs).abs().max() <= 2 and theirs.float().std() > 20
