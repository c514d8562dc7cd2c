"""Training the autoencoder of latent diffusion. Rombach et al. 2022, section 3.1 and appendix G; Esser et al. 2021, 3.1.

Reconstruction, a slight pull towards N(0, 1), on demand what a person would see as different, and a discriminator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from kiban.errors import ConfigError
from kiban.nn.discriminator import PatchDiscriminator
from kiban.nn.vae import VAE, Gaussian
from kiban.objectives.base import Batch, Loss
from kiban.objectives.diffusion import MOST_SEED

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""perceptual(decoded, images), (B, 3, H, W) in [-1, 1] each, to how different they look, (B,); its weights are frozen."""

DELTA, MOST_WEIGHT = 1e-4, 1e4  # as in the released code; the paper has a delta of 1e-6


class Autoencoder:
    """error + perceptual_weight * perceptual + kl_weight * KL / (values of a picture), summed over rows.

    error: of an image's values, on average: "l1" or "l2". The released code sums over values instead of averaging, which
    is the same but for a factor on all terms. A batch holds images (B, 3, H, W) in [-1, 1], and may hold seeds (B,) int64 of
    the noise in the latents, which `SeededRows` gives; without them it is drawn from torch's generator row by row.

    discriminator: adds adversarial_weight * w * (-its logit, on average over patches) for the autoencoder, and for itself
    the hinge loss, both in one step of one optimiser: it learns from the decoded images cut off from what made them, and
    the autoencoder from a copy with frozen weights, so that neither has the other's gradient. w makes the gradients of
    reconstruction and discriminator equally long at the decoder's last layer (Esser et al. 2021, eq. 7). It is of the
    whole batch, which therefore is not cut into parts. Where gradients are off the adversarial terms are left out.
    The paper lets the discriminator in later: train without it first, then go on with it in a second run.

    module is what a trainer trains: the autoencoder, and the discriminator if there is one.
    """

    def __init__(
        self,
        vae: VAE,
        *,
        error: Literal["l1", "l2"] = "l1",
        kl_weight: float = 1e-6,
        perceptual: Perceptual | None = None,
        perceptual_weight: float = 1.0,
        discriminator: PatchDiscriminator | None = None,
        adversarial_weight: float = 0.5,
    ) -> None:
        """Raises ConfigError for an unknown error and for negative weights."""
        if error not in ("l1", "l2"):
            raise ConfigError("autoencoder", field="error", why=f"{error!r} is unknown", hint="known: l1, l2")
        weights = {"kl": kl_weight, "perceptual": perceptual_weight, "adversarial": adversarial_weight}
        for name, weight in weights.items():
            if weight < 0:
                raise ConfigError("autoencoder", field=f"{name}_weight", why=f"{weight} is below 0")
        self.vae, self.error, self.kl_weight = vae, error, kl_weight
        self.perceptual, self.perceptual_weight = perceptual, perceptual_weight
        self.discriminator, self.adversarial_weight = discriminator, adversarial_weight
        self.module: nn.Module = vae if discriminator is None else nn.ModuleList([vae, discriminator])

    @property
    def coupled(self) -> bool:
        """With a discriminator the weight of its term is of all rows together."""
        return self.discriminator is not None

    def count(self, batch: Batch) -> Tensor:
        """Images of the batch."""
        return torch.tensor(len(batch["images"]))

    def __call__(self, batch: Batch) -> Loss:
        images = batch["images"]
        latents = self.vae.encode(images)
        latents = Gaussian(latents.mean.float(), latents.logvar.float())
        decoded = self.vae.decode(_sample(latents, batch)).float()
        difference = decoded - images.float()
        errors = (difference.abs() if self.error == "l1" else difference**2).mean(dim=(1, 2, 3))  # (B,)
        kl = latents.kl()
        metrics = {self.error: errors.detach().sum(), "kl": kl.detach().sum()}
        reconstruction = errors.sum()
        if self.perceptual is not None:
            distances = self.perceptual(decoded, images)
            metrics["perceptual"] = distances.detach().sum()
            reconstruction = reconstruction + self.perceptual_weight * distances.sum()
        total = reconstruction + self.kl_weight * kl.sum() / images[0].numel()
        if self.discriminator is not None and torch.is_grad_enabled():
            fooling, judging, weight = self._adversarial(self.discriminator, images, decoded, reconstruction)
            metrics |= {"fooling": fooling.detach(), "judging": judging.detach(), "weight": weight * len(images)}
            total = total + self.adversarial_weight * weight * fooling + judging
        return Loss(total, metrics)

    def _adversarial(
        self, judge: PatchDiscriminator, images: Tensor, decoded: Tensor, reconstruction: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The autoencoder's term, the discriminator's hinge loss (both summed over rows), and the weight of the former."""
        frozen = {name: p.detach() for name, p in judge.named_parameters()}
        fooling = -functional_call(judge, frozen, (decoded,)).float().mean(dim=(1, 2, 3)).sum()
        real, false = judge(images).float(), judge(decoded.detach()).float()
        judging = 0.5 * (F.relu(1 - real) + F.relu(1 + false)).mean(dim=(1, 2, 3)).sum()
        last = self.vae.decoder.conv_out.weight
        lengths = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, fooling)]
        return fooling, judging, (lengths[0] / (lengths[1] + DELTA)).clamp(max=MOST_WEIGHT)


def _sample(latents: Gaussian, batch: Batch) -> Tensor:
    """A draw, each row from its own seed, so that it does not depend on how a batch is cut."""
    rows = len(latents.mean)
    seeds = batch["seeds"] if "seeds" in batch else torch.randint(MOST_SEED, (rows,))
    parts = zip(latents.mean, latents.logvar, seeds.tolist(), strict=True)
    return torch.stack([Gaussian(m, v).sample(torch.Generator().manual_seed(seed)) for m, v, seed in parts])


@torch.no_grad()
def measure_latent_scale(vae: VAE, loader: Iterable[Tensor]) -> float:
    """1 / the standard deviation of all latents of the loader's images, (B, 3, H, W) each: what latent_scale should be.

    Of means and variances, without a draw (Rombach et al. 2022, appendix G, rescale one batch of draws). Raises ConfigError
    if there are no images or the latents are all alike.
    """
    count, total, squares = 0, 0.0, 0.0
    for images in loader:
        latents = vae.encode(images)
        mean = latents.mean.double()
        count += mean.numel()
        total += float(mean.sum())
        squares += float((mean**2 + latents.logvar.double().exp()).sum())
    variance = squares / count - (total / count) ** 2 if count else 0.0
    if not variance > 0:
        raise ConfigError("latent_scale", why="cannot be measured: there are no images, or their latents are all alike")
    return float(variance**-0.5)
