"""Stable Diffusion: published sizes, whole pipelines to and from diffusers, the one file of the first code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from kiban import zoo
from kiban.errors import ConfigError, FormatError
from kiban.families import stable_diffusion as sd
from kiban.families.clip import TextConfig
from kiban.families.stable_diffusion import PRESETS, StableDiffusion, StableDiffusionConfig
from kiban.nn.unet import UNetConfig
from kiban.nn.vae import VAEConfig
from kiban.weights.diffusers_config import unet_from_hf, vae_from_hf
from kiban.weights.names import to_ours, to_published
from random_weights import fill

TOLERANCE = 1e-4
VAE = 34_163_664 + 49_490_199
CLIP_L, OPEN_CLIP_H, BIG_G = 123_060_480, 340_387_840, 694_659_840
# Published: U-Net, then the text towers.
COUNTS: dict[str, tuple[int, ...]] = {
    "sd1": (859_520_964, CLIP_L),
    "sd1-inpaint": (859_535_364, CLIP_L),
    "instruct-pix2pix": (859_532_484, CLIP_L),
    "sd2": (865_910_724, OPEN_CLIP_H),
    "sd2-768": (865_910_724, OPEN_CLIP_H),
    "sdxl-base": (2_567_463_684, CLIP_L, BIG_G),
    "sdxl-refiner": (2_259_526_660, BIG_G),
}
PIPELINES = {
    "sd1": "StableDiffusionPipeline",
    "sd1-inpaint": "StableDiffusionInpaintPipeline",
    "instruct-pix2pix": "StableDiffusionInstructPix2PixPipeline",
    "sd2": "StableDiffusionPipeline",
    "sd2-768": "StableDiffusionPipeline",
    "sdxl-base": "StableDiffusionXLPipeline",
    "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
}
DOWN = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
UP = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
# What stands in the published config.json files.
PUBLISHED_UNETS: dict[str, dict[str, Any]] = {
    "sd1": {
        "act_fn": "silu", "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False, "cross_attention_dim": 768, "down_block_types": DOWN, "downsample_padding": 1,
        "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1,
        "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64, "up_block_types": UP,
    },
    "sd2-768": {
        "act_fn": "silu", "attention_head_dim": [5, 10, 20, 20], "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 1024, "down_block_types": DOWN, "dual_cross_attention": False, "in_channels": 4,
        "layers_per_block": 2, "num_class_embeds": None, "only_cross_attention": False, "out_channels": 4,
        "sample_size": 96, "up_block_types": UP, "upcast_attention": True, "use_linear_projection": True,
    },
    "sdxl-base": {
        "addition_embed_type": "text_time", "addition_embed_type_num_heads": 64, "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280], "class_embed_type": None,
        "conv_in_kernel": 3, "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "mid_block_type": "UNetMidBlock2DCrossAttn", "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128, "time_embedding_type": "positional", "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "use_linear_projection": True,
    },
    "sdxl-refiner": {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "attention_head_dim": [6, 12, 24, 24],
        "block_out_channels": [384, 768, 1536, 1536], "cross_attention_dim": 1280,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "projection_class_embeddings_input_dim": 2560, "transformer_layers_per_block": 4,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    },
}  # fmt: skip


def tower(dim: int = 32, embed_dim: int | None = None, quick: bool = True) -> TextConfig:
    return TextConfig(
        num_layers=3, dim=dim, num_heads=4, ffn_dim=64, embed_dim=embed_dim, vocab_size=99, max_seq_len=16, eos_id=98,
        quick_gelu=quick,
    )  # fmt: skip


def small(in_channels: int = 4, *, conv: bool = True, quick: bool = True) -> StableDiffusionConfig:
    return StableDiffusionConfig(
        unet=UNetConfig(
            channels=(16, 32), depths=(1, 0), num_heads=(2, 4), context_dim=32, num_groups=8, num_res_blocks=1,
            in_channels=in_channels, conv_projections=conv,
        ),
        vae=VAEConfig(channels=(16, 24), num_groups=8, num_res_blocks=1),
        texts=(tower(quick=quick),),
        image_size=32,
    )  # fmt: skip


def small_xl(*texts: TextConfig, num_sizes: int = 6) -> StableDiffusionConfig:
    unet = UNetConfig(
        channels=(16, 32), depths=(0, 2), num_heads=(2, 4), context_dim=sum(t.dim for t in texts), num_groups=8,
        num_res_blocks=1, added_dim=20 + num_sizes * 8, size_dim=8,
    )  # fmt: skip
    vae = VAEConfig(channels=(16, 24), num_groups=8, num_res_blocks=1, latent_scale=0.13025)
    return StableDiffusionConfig(unet=unet, vae=vae, texts=texts, text_skip=1, text_norm=False, image_size=64)


WIDE = tower(24, 20, quick=False)
SMALL = {
    "sd1": small(),
    "sd1-inpaint": small(9),
    "instruct-pix2pix": small(8),
    "sd2-768": replace(small(conv=False, quick=False), prediction="v"),
    "sdxl-base": small_xl(tower(), WIDE),
    "sdxl-refiner": small_xl(WIDE, num_sizes=5),
}


def random_model(c: StableDiffusionConfig) -> StableDiffusion:
    model = StableDiffusion(c).eval()
    fill(model)
    return model


def write(model: StableDiffusion, folder: Path) -> None:
    """The pipeline as diffusers keeps it, without tokenizers."""
    for path, values in sd.to_hf(model.config).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(values))
    for part in sd.components(model.config):
        own = dict(model.get_submodule(part.part).named_parameters())
        tensors = to_published(part.names, {name: p.detach() for name, p in own.items()})
        safetensors.torch.save_file(tensors, folder / part.folder / part.weights, metadata={"format": "pt"})


def read(folder: Path) -> StableDiffusion:
    values = {str(path.relative_to(folder)): json.loads(path.read_text()) for path in folder.glob("**/*.json")}
    c = sd.from_hf(values)
    with torch.device("meta"):
        model = StableDiffusion(c).eval()
    tensors: dict[str, Tensor] = {}
    for part in sd.components(c):
        file = safetensors.torch.load_file(folder / part.folder / part.weights)
        tensors |= {f"{part.folder}.{name}": tensor for name, tensor in file.items()}
    ours = to_ours(sd.hf_names(c), tensors, wanted=model.state_dict(), source=str(folder))
    model.load_state_dict(ours, assign=True)
    return model


def opened_by_diffusers(folder: Path, c: StableDiffusionConfig) -> Any:
    from diffusers import DiffusionPipeline

    absent = {name: None for name in json.loads((folder / "model_index.json").read_text()) if "tokenizer" in name}
    return DiffusionPipeline.from_pretrained(folder, local_files_only=True, **absent)


def tokens(c: StableDiffusionConfig) -> list[Tensor]:
    source = torch.Generator().manual_seed(2)
    found = []
    for text in c.texts:
        rows = torch.randint(1, 97, (2, text.max_seq_len), generator=source)
        rows[0, 5], rows[1, 11] = 98, 98
        rows[0, 6:] = 0
        found.append(rows)
    return found


def their_text_states(pipeline: Any, c: StableDiffusionConfig) -> tuple[Tensor, Tensor | None]:
    """As the pipelines of diffusers take them from the towers."""
    given = tokens(c)
    if not c.unet.added_dim:
        return pipeline.text_encoder(given[0]).last_hidden_state, None
    towers = [tower for tower in (pipeline.text_encoder, pipeline.text_encoder_2) if tower is not None]
    outputs = [tower(rows, output_hidden_states=True) for tower, rows in zip(towers, given, strict=True)]
    return torch.cat([out.hidden_states[-2] for out in outputs], dim=-1), outputs[-1].text_embeds


@pytest.mark.parametrize("preset", COUNTS)
def test_published_sizes_have_the_published_counts(preset: str) -> None:
    with torch.device("meta"):
        model = StableDiffusion(PRESETS[preset])
    found = [sum(p.numel() for p in part.parameters()) for part in (model.unet, model.vae, *model.texts)]
    assert found == [COUNTS[preset][0], VAE, *COUNTS[preset][1:]]
    assert sd.pipeline_class(PRESETS[preset]) == PIPELINES[preset]


def test_every_preset_is_checked_and_found_by_the_registry() -> None:
    assert {*COUNTS, "sd-tiny", "sd-small"} == set(PRESETS)
    assert all(zoo.presets()[name] == (zoo.families()["stable_diffusion"], c) for name, c in PRESETS.items())


def test_published_tensor_numbers() -> None:
    with torch.device("meta"):
        model = StableDiffusion(PRESETS["sd1"])
    for part, count in (("unet", 686), ("vae", 248)):
        names = next(c.names for c in sd.components(PRESETS["sd1"]) if c.folder == part)
        assert len(to_published(names, model.get_submodule(part).state_dict())) == count


@pytest.mark.parametrize("preset", PUBLISHED_UNETS)
def test_published_configurations_are_the_presets(preset: str) -> None:
    assert UNetConfig(**unet_from_hf(PUBLISHED_UNETS[preset])) == PRESETS[preset].unet


@pytest.mark.parametrize("preset", PRESETS)
def test_configurations_survive_a_round_trip(preset: str) -> None:
    values = json.loads(json.dumps(sd.to_hf(PRESETS[preset])))
    assert sd.from_hf(values) == PRESETS[preset]


@pytest.mark.parametrize("shape", SMALL)
@torch.no_grad()
def test_a_folder_of_ours_gives_the_same_in_diffusers_and_comes_back_equal(shape: str, tmp_path: Path) -> None:
    c = SMALL[shape]
    model = random_model(c)
    write(model, tmp_path)
    again = read(tmp_path)
    assert again.config == c
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    pipeline = opened_by_diffusers(tmp_path, c)
    assert type(pipeline).__name__ == PIPELINES[shape]
    assert pipeline.scheduler.config.prediction_type == {"eps": "epsilon", "v": "v_prediction"}[c.prediction]
    assert pipeline.unet.config.sample_size * pipeline.vae_scale_factor == c.image_size
    same(model, pipeline)


@pytest.mark.parametrize("shape", SMALL)
@torch.no_grad()
def test_a_folder_of_diffusers_gives_the_same_here(shape: str, tmp_path: Path) -> None:
    c = SMALL[shape]
    write(random_model(c), tmp_path / "first")
    pipeline = opened_by_diffusers(tmp_path / "first", c)
    for part in (pipeline.unet, pipeline.vae):
        for parameter in part.parameters():
            parameter.mul_(1.01)
    pipeline.save_pretrained(tmp_path / "second")
    model = read(tmp_path / "second")
    assert model.config == c
    same(model, pipeline)


def same(model: StableDiffusion, pipeline: Any) -> None:
    """Both answer alike, part by part."""
    c, source = model.config, torch.Generator().manual_seed(3)
    states = model.encode_text(tokens(c))
    context, pooled = their_text_states(pipeline, c)
    assert context.std() > 0.1
    assert (states.context - context).abs().max() < TOLERANCE
    x, timesteps = torch.randn(2, c.unet.in_channels, 8, 12, generator=source), torch.tensor([981, 1])
    more: dict[str, Any] = {}
    if pooled is not None:
        assert states.pooled is not None and (states.pooled - pooled).abs().max() < TOLERANCE
        more = {"pooled": pooled, "sizes": torch.tensor([[64, 48, 0, 8, 64, 6], [32, 32, 16, 0, 64, 2]])}
        more["sizes"] = more["sizes"][:, : c.num_sizes]
    added = {"text_embeds": pooled, "time_ids": more["sizes"]} if more else None
    expected = pipeline.unet(x, timesteps, context, added_cond_kwargs=added).sample
    assert expected.std() > 0.1
    assert (model.unet(x, timesteps, context, **more) - expected).abs().max() < TOLERANCE
    image = torch.rand(2, 3, 16, 24, generator=source) * 2 - 1
    latents = pipeline.vae.encode(image).latent_dist.sample(torch.Generator().manual_seed(4))
    scale = pipeline.vae.config.scaling_factor
    assert (model.encode_image(image, torch.Generator().manual_seed(4)) - latents * scale).abs().max() < TOLERANCE
    assert (model.decode_image(latents * scale) - pipeline.vae.decode(latents).sample).abs().max() < TOLERANCE


@pytest.mark.parametrize("shape", SMALL)
def test_one_file_of_the_first_code_comes_back_equal(shape: str) -> None:
    c = SMALL[shape]
    state = random_model(c).state_dict()
    file = to_published(sd.ldm_names(c), state)
    prefixes = {name.split(".")[0] for name in file}
    assert prefixes == {"model", "first_stage_model", "conditioner" if c.unet.added_dim else "cond_stage_model"}
    again = to_ours(sd.ldm_names(c), file, wanted=state, source="ldm")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


def test_text_towers_stand_where_published_files_have_them() -> None:
    places = {
        "sd1": ["cond_stage_model.transformer.text_model.encoder.layers.{}.mlp.fc1.weight"],
        "sd2": ["cond_stage_model.model.transformer.resblocks.{}.attn.in_proj_weight"],
        "sdxl-base": [
            "conditioner.embedders.0.transformer.text_model.encoder.layers.{}.mlp.fc1.weight",
            "conditioner.embedders.1.model.text_projection",
        ],
        "sdxl-refiner": ["conditioner.embedders.0.model.transformer.resblocks.{}.ln_1.bias"],
    }
    for preset, names in places.items():
        assert set(names) <= set(sd.ldm_names(PRESETS[preset]))


def test_the_layer_that_version_2_leaves_out_is_passed_over() -> None:
    c = SMALL["sd2-768"]
    state = random_model(c).state_dict()
    file = to_published(sd.ldm_names(c), state)
    last, further = "cond_stage_model.model.transformer.resblocks.2.", "cond_stage_model.model.transformer.resblocks.3."
    more = {name.replace(last, further): tensor + 1 for name, tensor in file.items() if name.startswith(last)}
    assert len(more) == 12
    more |= {
        "cond_stage_model.model.logit_scale": torch.ones(()),
        "cond_stage_model.model.text_projection": torch.ones(2, 2),
    }
    found = to_ours(sd.ldm_names(c), {**file, **more}, wanted=state, source="ldm")
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    beyond = {name.replace(".3.", ".4."): tensor for name, tensor in more.items() if ".3." in name}
    with pytest.raises(FormatError, match="unknown"):
        to_ours(sd.ldm_names(c), {**file, **beyond}, wanted=state, source="ldm")


def test_latents_are_scaled_by_the_autoencoders_scale() -> None:
    model, image = random_model(SMALL["sd1"]), torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = model.encode_image(image, torch.Generator().manual_seed(1))
        plain = model.vae.encode(image).sample(torch.Generator().manual_seed(1))
        assert torch.allclose(latents, 0.18215 * plain)
        assert torch.allclose(model.decode_image(latents), model.vae.decode(plain), atol=1e-5)


def test_the_tiny_one_learns_one_batch() -> None:
    loaded = zoo.create("sd-tiny", generator=torch.Generator().manual_seed(0))
    model, source = loaded.module, torch.Generator().manual_seed(1)
    assert isinstance(model, StableDiffusion)
    clean, noise = (torch.randn(2, 4, 8, 8, generator=source) for _ in range(2))
    words = torch.randint(0, 2047, (2, 8), generator=source)
    keep = torch.tensor([0.9, 0.3])[:, None, None, None]
    noisy = keep.sqrt() * clean + (1 - keep).sqrt() * noise
    parameters = [*model.unet.parameters(), *model.texts.parameters()]
    optimiser, losses = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0), []
    for _ in range(40):
        context = model.encode_text([words]).context
        loss = (model.unet(noisy, torch.tensor([100, 700]), context) - noise).pow(2).mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[0] == pytest.approx(float(noise.pow(2).mean()))  # the first prediction is zero
    assert losses[-1] < 0.1 * losses[0]


def test_a_seed_repeats_all_parts() -> None:
    first, second, other = (zoo.create("sd-tiny", generator=torch.Generator().manual_seed(s)).module for s in (1, 1, 2))
    states = [dict(model.named_parameters()) for model in (first, second, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for name in ("unet.conv_in.weight", "vae.quant.weight", "texts.0.embed.weight"):
        assert not torch.equal(states[0][name], states[2][name])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"prediction": "epsilon"}, "known: eps, v, x0"),
        ({"texts": (tower(64),)}, "the U-Net reads 32"),
        ({"texts": (tower(embed_dim=8),)}, "pooled text of 8"),
        ({"texts": (tower(16), tower(16))}, "two of which the second alone"),
        ({"unet": replace(small().unet, in_channels=5)}, "8 to edit or 9 to fill in"),
        ({"image_size": 33}, "image_size=33"),
    ],
)
def test_parts_that_do_not_fit_are_told(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        replace(small(), **change)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"act_fn": "mish"}, "act_fn"),
        ({"class_embed_type": "projection"}, "class_embed_type"),
        ({"down_block_types": ["AttnDownBlock2D", *DOWN[1:]]}, "down_block_types"),
        ({"up_block_types": UP[::-1]}, "down_block_types"),
        ({"attention_head_dim": [8, 8]}, "attention_head_dim"),
        ({"transformer_layers_per_block": [1, 1, 1, 3]}, "transformer_layers_per_block"),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim"),
    ],
)
def test_other_unets_are_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(FormatError, match=field):
        unet_from_hf({**PUBLISHED_UNETS["sd1"], **change})


def test_other_autoencoders_and_schedules_are_refused() -> None:
    values = sd.to_hf(PRESETS["sd1"])
    with pytest.raises(FormatError, match="use_quant_conv"):
        vae_from_hf({**values["vae/config.json"], "use_quant_conv": False})
    with pytest.raises(FormatError, match="out_channels"):
        vae_from_hf({**values["vae/config.json"], "out_channels": 1})
    schedule = values["scheduler/scheduler_config.json"]
    for change in ({"beta_schedule": "linear"}, {"prediction_type": "flow"}, {"rescale_betas_zero_snr": True}):
        with pytest.raises(FormatError, match=next(iter(change))):
            sd.from_hf({**values, "scheduler/scheduler_config.json": {**schedule, **change}})
    silent = {name: value for name, value in schedule.items() if name != "beta_schedule"}
    with pytest.raises(FormatError, match="beta_schedule"):
        sd.from_hf({**values, "scheduler/scheduler_config.json": silent})
    for path in ("unet/config.json", "text_encoder/config.json"):
        with pytest.raises(FormatError, match=path):
            sd.from_hf({name: value for name, value in values.items() if name != path})
    with pytest.raises(FormatError, match="text_skip=1"):
        sd.to_hf(replace(PRESETS["sd1"], text_skip=1))
