"""The autoencoder's loss is its formula, two players learn in one step with their own gradients, and it learns a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban import zoo
from kiban.data.loader import Loader
from kiban.errors import ConfigError
from kiban.families.stable_diffusion import PRESETS
from kiban.nn.discriminator import PatchDiscriminator
from kiban.nn.vae import VAE, VAEConfig
from kiban.objectives.autoencoder import DELTA, Autoencoder, measure_latent_scale
from kiban.train.settings import TrainConfig
from kiban.train.trainer import Trainer

SMALL = VAEConfig(channels=(8, 16), num_groups=4, num_res_blocks=1)


def small(config: VAEConfig = SMALL) -> VAE:
    vae = zoo.initialise(VAE(config), torch.Generator().manual_seed(0))
    assert isinstance(vae, VAE)
    return vae


def judge() -> PatchDiscriminator:
    found = PatchDiscriminator(dim=8, num_layers=2, num_groups=4)
    found.initialise(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(5)  # else it says 0 of everything at first
    return found


def batch_of(count: int = 6, side: int = 16) -> dict[str, Tensor]:
    images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return {"images": images, "seeds": torch.arange(40, 40 + count)}


def decoded_of(vae: VAE, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What it makes of a batch by its seeds, and the KL of each row."""
    latents = vae.encode(batch["images"])
    noise = [torch.randn(m.shape, generator=torch.Generator().manual_seed(int(seed)))
             for m, seed in zip(latents.mean, batch["seeds"], strict=True)]  # fmt: skip
    return vae.decode(latents.mean + (0.5 * latents.logvar).exp() * torch.stack(noise)), latents.kl()


def mean_difference(decoded: Tensor, images: Tensor) -> Tensor:
    return (decoded.mean(dim=(1, 2, 3)) - images.mean(dim=(1, 2, 3))).abs()


@pytest.mark.parametrize("error", ["l1", "l2"])
def test_the_loss_is_its_formula(error: Any) -> None:
    vae, batch = small(), batch_of()
    objective = Autoencoder(vae, error=error, kl_weight=0.3, perceptual=mean_difference, perceptual_weight=2.0)
    loss = objective(batch)
    with torch.no_grad():
        decoded, kl = decoded_of(vae, batch)
    difference = decoded - batch["images"]
    plain = (difference.abs() if error == "l1" else difference.square()).mean() * 6
    seen = mean_difference(decoded, batch["images"]).sum()
    assert float(loss.total.detach()) == pytest.approx(float(plain + 2 * seen + 0.3 * kl.sum() / 768), rel=1e-5)
    assert {name: float(value) for name, value in loss.metrics.items()} == pytest.approx(
        {error: float(plain), "kl": float(kl.sum()), "perceptual": float(seen)}, rel=1e-5
    )
    assert int(objective.count(batch)) == 6 and not objective.coupled and objective.module is vae


@pytest.mark.parametrize("seeded", [True, False])
def test_the_gradient_does_not_depend_on_how_a_batch_is_cut(seeded: bool) -> None:
    vae, batch, found = small(), batch_of(), []
    batch = batch if seeded else {"images": batch["images"]}
    for size in (6, 4, 1):
        torch.manual_seed(len(found) if seeded else 3)
        vae.zero_grad()
        for first in range(0, 6, size):
            part = {name: value[first : first + size] for name, value in batch.items()}
            Autoencoder(vae, kl_weight=0.1)(part).total.backward()  # type: ignore[no-untyped-call]
        found.append([p.grad.clone() for p in vae.parameters() if p.grad is not None])
    for whole, fours, ones in zip(*found, strict=True):
        torch.testing.assert_close(whole, fours)
        torch.testing.assert_close(whole, ones)


def test_each_player_has_its_own_gradient_alone() -> None:
    vae, critic, batch = small(), judge(), batch_of()
    objective = Autoencoder(vae, kl_weight=0.1, discriminator=critic, adversarial_weight=0.7)
    assert objective.coupled
    loss = objective(batch)
    loss.total.backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad for name, p in objective.module.named_parameters()}

    decoded, kl = decoded_of(vae, batch)
    reconstruction = (decoded - batch["images"]).abs().mean(dim=(1, 2, 3)).sum()
    fooling = -critic(decoded).mean(dim=(1, 2, 3)).sum()
    last = vae.decoder.conv_out.weight
    lengths = [torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (reconstruction, fooling)]
    weight = lengths[0] / (lengths[1] + DELTA)
    total = reconstruction + 0.1 * kl.sum() / 768 + 0.7 * weight * fooling
    for (name, _), gradient in zip(vae.named_parameters(), torch.autograd.grad(total, list(vae.parameters()))):
        torch.testing.assert_close(found[f"0.{name}"], gradient, rtol=1e-4, atol=1e-6)
    real, false = critic(batch["images"]), critic(decoded.detach())
    judging = (F.relu(1 - real) + F.relu(1 + false)).mean(dim=(1, 2, 3)).sum() / 2
    for (name, _), gradient in zip(critic.named_parameters(), torch.autograd.grad(judging, list(critic.parameters()))):
        torch.testing.assert_close(found[f"1.{name}"], gradient, rtol=1e-4, atol=1e-6)
    assert float(loss.metrics["weight"]) / 6 == pytest.approx(float(weight), rel=1e-4)
    # So that both pull with the same force at the last layer.
    pull = torch.autograd.grad(weight.detach() * -critic(decoded_of(vae, batch)[0]).mean(dim=(1, 2, 3)).sum(), last)[0]
    assert float(pull.norm()) == pytest.approx(float(lengths[0]), rel=1e-2)
    with torch.no_grad():
        assert objective(batch).metrics.keys() == {"l1", "kl"}


def test_the_trainer_trains_both() -> None:
    vae, critic = small(), judge()
    objective = Autoencoder(vae, discriminator=critic)
    images = list(batch_of(8)["images"])
    before = {name: p.detach().clone() for name, p in objective.module.named_parameters()}
    loader = Loader(images, lambda rows: {"images": torch.stack(rows)}, batch_size=8, seed=0)
    first = float(objective({"images": torch.stack(images)}).metrics["judging"])
    # micro_batch_size changes nothing: an objective that is coupled sees the batch as a whole.
    config = TrainConfig(steps=20, batch_size=8, micro_batch_size=2, lr=2e-3, betas=(0.5, 0.9), precision="fp32")
    Trainer(objective, objective.module, loader, config).run()
    assert all(not torch.equal(p, before[name]) for name, p in objective.module.named_parameters())
    assert float(objective({"images": torch.stack(images)}).metrics["judging"]) < 0.8 * first


def pictures() -> Tensor:
    """Eight, each with a bright square on a dark ground, in colours and at a place of its own."""
    images = torch.full((8, 3, 16, 16), -0.8)
    for i, image in enumerate(images):
        image[i % 3] += 0.1 * i
        image[:, i : i + 8, (3 * i) % 8 : (3 * i) % 8 + 8] = 0.9
        image[(i + 1) % 3, i : i + 8] -= 0.5
    return images.clamp(-1, 1)


def test_sd_tiny_learns_a_batch_by_heart() -> None:
    vae, images = small(PRESETS["sd-tiny"].vae), pictures()
    grey = float((images - images.mean(dim=(2, 3), keepdim=True)).abs().mean())
    assert grey > 0.25  # the error of the best plain colours
    objective = Autoencoder(vae)
    loader = Loader(list(images), lambda rows: {"images": torch.stack(rows)}, batch_size=8, seed=0)
    config = TrainConfig(steps=220, batch_size=8, micro_batch_size=8, lr=4e-3, weight_decay=0.0, precision="fp32")
    Trainer(objective, objective.module, loader, config).run()
    with torch.no_grad():
        error = float((vae.decode(vae.encode(images).mode()) - images).abs().mean())
    assert error < 0.05


def test_the_latent_scale_makes_draws_of_deviation_1() -> None:
    vae = small()
    with torch.no_grad():
        vae.quant.weight.mul_(7)
    images = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1
    images *= torch.linspace(0, 1, 24)[:, None, None, None]
    scale = measure_latent_scale(vae, images.split(7))
    with torch.no_grad():
        drawn = vae.encode(images).sample(torch.Generator().manual_seed(6))
    assert scale * float(drawn.std()) == pytest.approx(1, abs=0.02) and abs(scale - 1) > 0.05
    with pytest.raises(ConfigError, match="no images"):
        measure_latent_scale(vae, [])


def test_a_logit_sees_a_patch() -> None:
    critic = PatchDiscriminator(dim=8, num_layers=3, num_groups=4)
    critic.initialise(None)
    for i, layer in enumerate(critic.layers):
        if isinstance(layer, nn.GroupNorm):
            critic.layers[i] = nn.Identity()  # which sees all of the image
    image = torch.zeros(1, 3, 128, 128, requires_grad=True)
    logits = critic(image)
    assert logits.shape == (1, 1, 14, 14)
    logits[0, 0, 7, 7].backward()
    assert image.grad is not None
    seen = image.grad[0].abs().sum(0) > 0
    assert int(seen.any(0).sum()) == int(seen.any(1).sum()) == 70


@pytest.mark.parametrize(
    ("how", "words"),
    [({"error": "l3"}, "known: l1, l2"), ({"kl_weight": -1.0}, "kl_weight"), ({"perceptual_weight": -1.0}, "below")],
)
def test_errors(how: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Autoencoder(small(), **how)
    with pytest.raises(ConfigError, match="num_groups"):
        PatchDiscriminator(dim=10, num_groups=4)
