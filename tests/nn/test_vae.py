"""The autoencoder against diffusers, random weights, float32, through both tables of names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kiban.errors import ConfigError, FormatError
from kiban.nn.vae import VAE, Gaussian, VAEConfig
from kiban.weights.names import to_ours, to_published
from kiban.weights.vae_names import vae_diffusers_names, vae_ldm_names
from random_weights import fill

TOLERANCE = 1e-4
SHAPES = {
    "sd": VAEConfig(channels=(32, 64, 64, 64), num_groups=16),
    "small": VAEConfig(channels=(16, 24), num_groups=8, num_res_blocks=1, latent_channels=3, image_channels=1),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def diffusers_config(c: VAEConfig) -> dict[str, Any]:
    return {
        "in_channels": c.image_channels,
        "out_channels": c.image_channels,
        "latent_channels": c.latent_channels,
        "block_out_channels": list(c.channels),
        "down_block_types": ["DownEncoderBlock2D"] * len(c.channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(c.channels),
        "layers_per_block": c.num_res_blocks,
        "norm_num_groups": c.num_groups,
    }


def theirs(c: VAEConfig) -> Any:
    from diffusers import AutoencoderKL

    model = AutoencoderKL(**diffusers_config(c)).eval()
    fill(model)
    return model


def opened(c: VAEConfig, names: Any, tensors: dict[str, Tensor]) -> VAE:
    with torch.device("meta"):
        model = VAE(c).eval()
    model.load_state_dict(to_ours(names, tensors, wanted=model.state_dict(), source="test"), assign=True)
    return model


def image(c: VAEConfig, height: int = 32, width: int = 48, batch: int = 2) -> Tensor:
    return torch.rand(batch, c.image_channels, height, width, generator=generator(2)) * 2 - 1


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_of_diffusers_encode_and_decode_the_same_here(shape: str) -> None:
    c = SHAPES[shape]
    model = theirs(c)
    ours = opened(c, vae_diffusers_names(), model.state_dict())
    for height, width in ((32, 48), (33, 47)):
        pixels = image(c, height, width)
        with torch.no_grad():
            expected, found = model.encode(pixels).latent_dist, ours.encode(pixels)
            assert found.mean.shape == (2, c.latent_channels, height // c.factor, width // c.factor)
            assert expected.mean.std() > 0.1
            assert (found.mean - expected.mean).abs().max() < TOLERANCE
            assert (found.logvar - expected.logvar).abs().max() < TOLERANCE
            # The same generator gives the same latents, hence the same images.
            latents, same = found.sample(generator(5)), expected.sample(generator(5))
            assert (latents - same).abs().max() < TOLERANCE
            assert (found.kl() / expected.kl() - 1).abs().max() < TOLERANCE
            pictures = model.decode(same).sample
            assert pictures.std() > 0.1
            assert (ours.decode(same) - pictures).abs().max() < TOLERANCE


@pytest.mark.parametrize("shape", SHAPES)
def test_names_of_both_formats_load_and_save_the_same_tensors(shape: str) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    c = SHAPES[shape]
    tensors = theirs(c).state_dict()
    ours = opened(c, vae_diffusers_names(), tensors).state_dict()
    saved = to_published(vae_diffusers_names(), ours)
    assert saved.keys() == tensors.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in tensors.items())
    names = vae_ldm_names(len(c.channels))
    ldm = to_published(names, ours)
    assert ldm["encoder.mid.attn_1.q.weight"].shape[2:] == (1, 1)
    converted = convert_ldm_vae_checkpoint({f"first_stage_model.{n}": t for n, t in ldm.items()}, diffusers_config(c))
    assert converted.keys() == tensors.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in tensors.items())
    again = opened(c, names, ldm).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in ours.items())


def test_every_norm_has_the_eps_of_diffusers() -> None:
    # States near 1 do not show it, so each weight carries the eps of its norm through the names.
    c = SHAPES["sd"]
    model = theirs(c)
    for part in model.modules():
        if isinstance(part, nn.GroupNorm):
            nn.init.constant_(part.weight, part.eps)
    ours = opened(c, vae_diffusers_names(), model.state_dict())
    norms = [part for part in ours.modules() if isinstance(part, nn.GroupNorm)]
    assert all(torch.equal(part.weight, torch.full_like(part.weight, part.eps)) for part in norms)


@pytest.mark.parametrize("axes", [0, 2])
def test_old_names_of_the_attention_are_read(axes: int) -> None:
    c = SHAPES["small"]
    tensors = theirs(c).state_dict()
    words = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    old = {}
    for name, tensor in tensors.items():
        spelt = next((name.replace(new, word) for new, word in words.items() if new in name), name)
        changed = spelt != name and tensor.ndim == 2
        old[spelt] = tensor.reshape(*tensor.shape, *[1] * axes) if changed else tensor
    assert sum("query" in name for name in old) == 4
    first, second = (opened(c, vae_diffusers_names(), values).state_dict() for values in (tensors, old))
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(FormatError, match="two spellings"):
        opened(c, vae_diffusers_names(), {**tensors, **old})


def test_published_sizes_have_the_published_counts() -> None:
    with torch.device("meta"):
        model = VAE(VAEConfig())

    def count(*parts: nn.Module) -> int:
        return sum(p.numel() for part in parts for p in part.parameters())

    assert count(model.encoder, model.quant) == 34_163_664
    assert count(model.decoder, model.post_quant) == 49_490_199
    assert len(model.state_dict()) == 248
    assert model.config.factor == 8


def test_gaussian_has_its_moments_and_its_divergence() -> None:
    mean, logvar = torch.full((1, 1, 200, 200), 0.5), torch.full((1, 1, 200, 200), -1.0)
    gaussian = Gaussian(mean, logvar)
    drawn = gaussian.sample(generator())
    deviation = float(torch.tensor(-0.5).exp())
    assert abs(float(drawn.mean()) - 0.5) < 5 * deviation / 200
    assert abs(float(drawn.std()) / deviation - 1) < 0.02
    assert torch.equal(drawn, gaussian.sample(generator())) and torch.equal(gaussian.mode(), mean)
    normal = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum()
    assert torch.allclose(gaussian.kl(), expected[None], rtol=1e-5)
    assert not Gaussian(torch.zeros(2, 1, 3, 3), torch.zeros(2, 1, 3, 3)).kl().any()


def test_log_variances_stay_in_their_bounds() -> None:
    model = VAE(SHAPES["small"])
    fill(model)
    with torch.no_grad():
        model.quant.bias[3:] += torch.tensor([1000.0, -1000.0, 0.0])
        logvar = model.encode(image(SHAPES["small"])).logvar
    assert (logvar[:, 0] == 20).all() and (logvar[:, 1] == -30).all()
    assert (logvar[:, 2].abs() < 20).all()


def test_a_batch_of_two_is_two_singles() -> None:
    model, pixels = VAE(SHAPES["sd"]).eval(), image(SHAPES["sd"])
    fill(model)
    with torch.no_grad():
        both = model.encode(pixels).mean
        assert (both - torch.cat([model.encode(one[None]).mean for one in pixels])).abs().max() < 1e-5
        pictures = model.decode(both)
        assert (pictures - torch.cat([model.decode(one[None]) for one in both])).abs().max() < 1e-5
    assert (pictures[0] - pictures[1]).abs().max() > 0.1


def test_gradients_pass_the_sample_to_every_weight() -> None:
    model = VAE(SHAPES["sd"])
    model.initialise(generator())
    pixels = image(SHAPES["sd"], 32, 32).requires_grad_()
    pictures, latents = model(pixels, generator(1))
    assert pictures.shape == pixels.shape
    (pictures.pow(2).sum() + latents.kl().sum()).backward()
    assert pixels.grad is not None and pixels.grad.any()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_few_steps_on_one_batch_bring_the_images_back() -> None:
    c = SHAPES["small"]
    model = VAE(c)
    model.initialise(generator())
    ramp = torch.linspace(-1, 1, 16)
    pixels = torch.stack((ramp.expand(16, 16), ramp.expand(16, 16).T))[:, None]
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    source, errors = generator(1), []
    for _ in range(60):
        pictures, latents = model(pixels, source)
        error = (pictures - pixels).pow(2).mean()
        errors.append(error.item())
        optimiser.zero_grad()
        (error + 1e-6 * latents.kl().mean()).backward()
        optimiser.step()
    assert errors[-1] < 0.1 * errors[0]


def test_initial_weights_repeat() -> None:
    first, second, other = (VAE(SHAPES["small"]) for _ in range(3))
    for model, seed in ((first, 7), (second, 7), (other, 8)):
        model.initialise(generator(seed))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.quant.weight, other.quant.weight)


@pytest.mark.parametrize(
    ("change", "why"),
    [({"channels": (30,)}, "num_groups=32"), ({"channels": ()}, "level"), ({"latent_scale": 0.0}, "latent_scale")],
)
def test_sizes_that_do_not_fit_are_told(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        VAEConfig(**change)
