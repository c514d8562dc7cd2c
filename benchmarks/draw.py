"""Denoising with guidance: a step, a loop of 20 and the decoder beside diffusers, same weights, same noise, one run.

python benchmarks/draw.py [--threads 2] [--save]

The weights are random. On a CPU all is float32: kiban's plan and its bare modules, and diffusers as it comes (inference
mode, torch's attention), with channels_last, and, for the second model, compiled. A step is one prediction with guidance,
of two conditions; what their texts alone decide, the plan settles before the first step, which a loop counts. On a GPU both
run in bfloat16 and float16 with channels_last, eagerly and compiled; the record is draw-gpu.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from common import arguments, finish, medians, table
from kiban import zoo
from kiban.engine.drawing import DrawingPlan
from kiban.families.clip import TextConfig
from kiban.families.stable_diffusion import PRESETS, StableDiffusionConfig
from kiban.generate.denoiser import DiffusionModel
from kiban.generate.draw import diffusion_model
from kiban.generate.guidance import Guidance, classifier_free
from kiban.generate.images import ImageSampling, generate
from kiban.nn.unet import UNetConfig
from kiban.nn.vae import VAEConfig
from kiban.weights.diffusers_config import unet_to_hf, vae_to_hf
from kiban.weights.names import to_published
from kiban.weights.unet_names import unet_diffusers_names
from kiban.weights.vae_names import vae_diffusers_names

NUM_STEPS, SCALE, LOOP_REPEATS, TOKENS = 20, 7.5, 3, 77
BAR = 1.2
HALF = replace(PRESETS["sd1"].unet, channels=(160, 320, 640, 640))
MIDDLE = UNetConfig(channels=(96, 192, 240), depths=(0, 1, 1), num_heads=(4, 4, 4), context_dim=256, num_groups=24)
HALF_VAE = VAEConfig(channels=(64, 128, 256, 256))
# Name: U-Net, side of its latents, autoencoder.
MODELS = {
    "sd1 of half the width, 220M": (HALF, 64, HALF_VAE),
    "29M": (MIDDLE, 32, HALF_VAE),
    "sd-tiny, 4M": (PRESETS["sd-tiny"].unet, 16, PRESETS["sd-tiny"].vae),
}
COMPILED = "29M"
GPU_MODELS = {"sd1, 860M": (PRESETS["sd1"].unet, 64, PRESETS["sd1"].vae)}
Predict = Callable[[Tensor, Tensor], Tensor]


def system(unet: UNetConfig, vae: VAEConfig) -> zoo.Loaded:
    """A model whose weights keep states near 1; its text tower is not used."""
    text = TextConfig(
        num_layers=1, dim=unet.context_dim, num_heads=1, ffn_dim=8, embed_dim=None, vocab_size=8, eos_id=7
    )
    config = StableDiffusionConfig(unet=unet, vae=vae, texts=(text,))
    made = zoo.new(zoo.families()["stable_diffusion"], config, "benchmark")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    made.module.eval().requires_grad_(False)
    return made


def theirs(loaded: zoo.Loaded) -> tuple[Any, Any]:
    """U-Net and autoencoder of diffusers with the same weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    c, module = loaded.config, loaded.module
    unet = UNet2DConditionModel.from_config(unet_to_hf(asdict(c.unet), sample_size=64))
    names = unet_diffusers_names(conv_projections=c.unet.conv_projections, added=False)
    unet.load_state_dict(to_published(names, dict(module.unet.named_parameters())))  # type: ignore[union-attr, operator]
    vae = AutoencoderKL.from_config(vae_to_hf(asdict(c.vae), sample_size=512))
    vae.load_state_dict(to_published(vae_diffusers_names(), dict(module.vae.named_parameters())))  # type: ignore[union-attr, operator]
    return unet.eval(), vae.eval()


def guided(unet: Any, context: Tensor) -> Predict:
    """A step as diffusers' pipeline makes it: both conditions in one batch, then their weighted sum."""

    def predict(x: Tensor, timesteps: Tensor) -> Tensor:
        null, told = unet(torch.cat([x] * 2), timesteps[0], encoder_hidden_states=context).sample.chunk(2)
        return torch.as_tensor(null + SCALE * (told - null))

    return predict


def their_loop(predict: Predict, start: Tensor) -> Tensor:
    """20 steps of DDIM as diffusers' pipeline makes them."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(NUM_STEPS)
    x = start * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        x = scheduler.step(predict(x, timestep[None].to(x.device)), timestep, x).prev_sample
    return x


def our_loop(model: DiffusionModel, guidance: Guidance, start: Tensor) -> Tensor:
    """The same with kiban's sampler."""
    how = ImageSampling(sampler="ddim", num_steps=NUM_STEPS)
    shape = (start.shape[1], start.shape[2], start.shape[3])
    return generate(model, guidance, how, seeds=[0], shape=shape, start=start, device=start.device)


def compare(title: str, part: str, ways: dict[str, Callable[[], Tensor]], repeats: int) -> list[dict[str, Any]]:
    """A row for each way; "diffusers" is what all others are measured by."""
    made: dict[str, Tensor] = {}

    def keep(name: str) -> None:
        made[name] = ways[name]()

    seconds = medians({name: partial(keep, name) for name in ways}, repeats)
    expected = made["diffusers"].float()
    return [
        {
            "model": title,
            "part": part,
            "way": name,
            "seconds": round(taken, 4),
            "times": round(seconds["diffusers"] / taken, 3),
            "max_abs_diff": float((made[name].float() - expected).abs().max()),
            "std": float(expected.std()),
        }
        for name, taken in seconds.items()
    ]


def inputs(c: UNetConfig, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, a timestep, and the states of the empty text and of a text."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(1, c.in_channels, side, side, generator=generator)
    return noise, torch.tensor([501.0]), torch.randn(2, TOKENS, c.context_dim, generator=generator)


@torch.inference_mode()
def on_cpu(title: str, unet: UNetConfig, side: int, vae: VAEConfig, repeats: int) -> list[dict[str, Any]]:
    loaded, (x, timesteps, context) = system(unet, vae), inputs(unet, side)
    peer, peer_vae = theirs(loaded)
    plan, module = DrawingPlan(loaded), loaded.module
    guidance = classifier_free({"context": context[1:]}, {"context": context[:1]}, guidance_scale=SCALE)
    planned, bare = diffusion_model(module, plan), diffusion_model(module)  # type: ignore[arg-type]
    steps = {
        "kiban": guidance.told(planned, 1),
        "kiban, bare": guidance.told(bare, 1),
        "diffusers": guided(peer, context),
    }
    # A copy: the order in memory belongs to the weights.
    other, other_vae = (type(part).from_config(part.config).eval() for part in (peer, peer_vae))
    for part, source in ((other, peer), (other_vae, peer_vae)):
        part.load_state_dict(source.state_dict())
        part.to(memory_format=torch.channels_last)
    steps["diffusers, channels_last"] = guided(other, context)
    if title == COMPILED:
        steps["diffusers, compiled"] = guided(torch.compile(peer), context)
    rows = compare(title, "step", {name: lambda p=p: p(x, timesteps) for name, p in steps.items()}, repeats)  # type: ignore[misc]
    loops = {
        "kiban": lambda: our_loop(planned, guidance, x),
        "diffusers": lambda: their_loop(steps["diffusers"], x),
    }
    rows += compare(title, f"{NUM_STEPS} steps", loops, LOOP_REPEATS)
    scale = loaded.config.vae.latent_scale
    if vae != HALF_VAE or title == COMPILED:
        decoders = {
            "kiban": lambda: plan.decode(x),
            "kiban, bare": lambda: module.decode_image(x),  # type: ignore[operator]
            "diffusers": lambda: peer_vae.decode(x / scale).sample,
            "diffusers, channels_last": lambda: other_vae.decode(x / scale).sample,
        }
        rows += compare(title, f"decoder, {side * vae.factor} pixels", decoders, repeats)
    return rows


def on_gpu(title: str, unet: UNetConfig, side: int, vae: VAEConfig, repeats: int) -> list[dict[str, Any]]:
    halves = (torch.bfloat16, torch.float16)
    return [row for dtype in halves for row in in_half(title, unet, side, vae, repeats, dtype)]


@torch.inference_mode()
def in_half(
    title: str, unet: UNetConfig, side: int, vae: VAEConfig, repeats: int, dtype: torch.dtype
) -> list[dict[str, Any]]:
    loaded = system(unet, vae)
    c, module, peer = loaded.config, loaded.module.unet, theirs(loaded)[0]
    for part in (module, peer):
        part.to(device="cuda", dtype=dtype, memory_format=torch.channels_last)  # type: ignore[operator, union-attr]
    x, timesteps, context = (value.cuda() for value in inputs(unet, side))
    context, half = context.to(dtype), x.to(dtype)
    guidance = classifier_free({"context": context[1:]}, {"context": context[:1]}, guidance_scale=SCALE)
    steps: dict[str, Callable[[], Tensor]] = {}
    loops: dict[str, Callable[[], Tensor]] = {}
    for name, network in {"kiban": module, "kiban, compiled": torch.compile(module)}.items():  # type: ignore[call-overload]
        model = DiffusionModel(network, c.schedule, c.prediction, dtype)
        steps[name] = partial(finished, guidance, model, x, timesteps)
        loops[name] = partial(finished, our_loop, model, guidance, x)
    for name, network in {"diffusers": peer, "diffusers, compiled": torch.compile(peer)}.items():
        predict = guided(network, context)
        steps[name] = partial(finished, predict, half, timesteps)
        loops[name] = partial(finished, their_loop, predict, half)
    title = f"{title}, {str(dtype)[6:]}"
    return compare(title, "step", steps, repeats) + compare(title, f"{NUM_STEPS} steps", loops, repeats)


def finished(way: Callable[..., Tensor], *given: Any) -> Tensor:
    """The result, once it is there."""
    result = way(*given)
    torch.cuda.synchronize()
    return result


def main(options: argparse.Namespace) -> None:
    gpu = torch.cuda.is_available()
    rows = []
    for title, (unet, side, vae) in (GPU_MODELS if gpu else MODELS).items():
        found = (on_gpu if gpu else on_cpu)(title, unet, side, vae, options.repeats)
        print(table(found), flush=True)
        rows += found
    facts = {"gpu": torch.cuda.get_device_name()} if gpu else {"bar": BAR}
    finish("draw-gpu" if gpu else "draw", {**facts, "results": rows}, options, ("diffusers",))


if __name__ == "__main__":
    main(arguments(__doc__ or ""))
