"""Denoising as a loss: what was mixed into the latents, or what they were, from the mixture.

Ho et al. 2020, section 3.4; Rombach et al. 2022, eq. 3; weights by Hang et al. 2023 (min-SNR).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from kiban.data.loader import Loader
from kiban.errors import ConfigError
from kiban.nn.noise import NoiseSchedule, Prediction, check_prediction, target
from kiban.objectives.base import Batch, Loss

T = TypeVar("T")
MOST_SEED = 2**63 - 1


class SeededRows(Sequence[tuple[T, int]], Generic[T]):
    """The rows num_epochs times over, each time with a seed of its own: (row, seed). Behind them the seeds come again.

    A collate function puts the seeds into the batch, int64. Everything random about a row then follows from its seed, so
    that a batch has the same gradient however it is cut into parts and spread over processes.
    """

    def __init__(self, rows: Sequence[T], *, num_epochs: int, seed: int) -> None:
        self.rows, self.num_epochs, self.seed = rows, num_epochs, seed

    def __len__(self) -> int:
        return len(self.rows) * self.num_epochs

    def __getitem__(self, index: int) -> tuple[T, int]:  # type: ignore[override]
        (state,) = np.random.SeedSequence([self.seed, index]).generate_state(1, np.uint64)
        return self.rows[index % len(self.rows)], int(state) % MOST_SEED


def seeded_loader(
    rows: Sequence[T],
    collate: Callable[[list[tuple[T, int]]], dict[str, Tensor]],
    *,
    steps: int,
    batch_size: int,
    seed: int,
) -> Loader[tuple[T, int]]:
    """Batches of rows with seeds, no seed twice within so many steps."""
    seeded = SeededRows(rows, num_epochs=-(-steps * batch_size // len(rows)), seed=seed)
    return Loader(seeded, collate, batch_size=batch_size, seed=seed)


class Diffusion:
    """Squared error of module(x, timesteps, **condition), averaged over a row's latents and summed over rows.

    min_snr: cap of the signal-to-noise ratio in the loss of x0, to which all losses are brought (5 in the paper); None
    leaves every timestep's loss as it is. null_context (...): what a row's context becomes with probability dropout while
    the module trains, so that it learns to do without (Ho & Salimans 2022, algorithm 1). channels_dropout: as often the
    channels become zeros, half of the time together with the context (Brooks et al. 2023, section 3.2.1). inputs: names of
    other tensors of the batch that the module takes by name, such as pooled and sizes.

    A batch holds latents (B, C, H, W), scaled to about unit variance, and may hold context (B, ...), channels (B, C', H, W)
    that are appended to the noisy latents, weights (B, 1, 1, 1) or (B, 1, H, W) of the errors, and seeds (B,) int64. Without
    seeds these are drawn from torch's generator on the CPU, row by row: then a batch still has the same gradient in one
    part or in many, but not in several processes.
    """

    coupled = False

    def __init__(
        self,
        module: nn.Module,
        schedule: NoiseSchedule,
        *,
        prediction: Prediction = "eps",
        min_snr: float | None = None,
        null_context: Tensor | None = None,
        dropout: float = 0.1,
        channels_dropout: float = 0.0,
        inputs: Sequence[str] = (),
    ) -> None:
        """Raises ConfigError for an unknown prediction, and for numbers out of range."""
        check_prediction(prediction)
        rules = {
            "min_snr": (min_snr, min_snr is None or min_snr > 0),
            "dropout": (dropout, 0 <= dropout < 1),
            "channels_dropout": (channels_dropout, 0 <= channels_dropout / 2 <= min(dropout, 1 - dropout)),
        }
        for name, (value, fine) in rules.items():
            if not fine:
                raise ConfigError("diffusion", field=name, why=f"{value} is out of range")
        self.module, self.schedule, self.prediction, self.min_snr = module, schedule, prediction, min_snr
        self.null_context, self.dropout, self.channels_dropout = null_context, dropout, channels_dropout
        self.inputs = inputs

    def count(self, batch: Batch) -> Tensor:
        """Rows of the batch."""
        return torch.tensor(len(batch["latents"]))

    def __call__(self, batch: Batch) -> Loss:
        x0 = batch["latents"].float()
        timesteps, noise, chance = self._draw(batch, x0.shape[1:])
        alpha_bar = torch.from_numpy(self.schedule.alpha_bars)[timesteps].float()[:, None, None, None].to(x0.device)
        x = alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise
        condition: dict[str, Any] = {name: batch[name] for name in self.inputs}
        if "context" in batch:
            condition["context"] = self._context(batch["context"], chance)
        if "channels" in batch:
            x = torch.cat((x, self._channels(batch["channels"].float(), chance)), dim=1)
        output = self.module(x, timesteps.to(x0.device), **condition).float()
        errors = (output - target(x0, noise, alpha_bar, self.prediction)) ** 2
        if "weights" in batch:
            errors = errors * batch["weights"]
        losses = errors.mean(dim=(1, 2, 3))  # (B,)
        weights = self._weights(timesteps).to(x0.device)
        return Loss((losses * weights).sum(), {"squared_error": losses.detach().sum()})

    def _draw(self, batch: Batch, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
        """Timesteps (B,) int64 on the CPU, noise like the latents, and for dropout a number from 0 to 1 for each row.

        All are drawn on the CPU, so that a row has the same on every device.
        """
        device, rows = batch["latents"].device, []
        for seed in batch["seeds"].tolist() if "seeds" in batch else self._seeds(len(batch["latents"])):
            generator = torch.Generator().manual_seed(seed)
            timestep = torch.randint(self.schedule.num_timesteps, (), generator=generator)
            rows.append((timestep, torch.randn(shape, generator=generator), torch.rand((), generator=generator)))
        timesteps, noise, chance = (torch.stack(values) for values in zip(*rows, strict=True))
        return timesteps, noise.to(device), chance.to(device)

    @staticmethod
    def _seeds(count: int) -> list[int]:
        return torch.randint(MOST_SEED, (count,)).tolist()

    def _context(self, context: Tensor, chance: Tensor) -> Tensor:
        """The context, without that of rows whose chance is below dropout."""
        if self.null_context is None or not self.module.training:
            return context
        dropped = (chance < self.dropout).view(-1, *[1] * (context.ndim - 1))
        return torch.where(dropped, self.null_context.to(context), context)

    def _channels(self, channels: Tensor, chance: Tensor) -> Tensor:
        """The channels, without those of rows whose chance is within channels_dropout / 2 of dropout."""
        if not self.module.training:
            return channels
        dropped = (chance - self.dropout).abs() < self.channels_dropout / 2
        return channels.masked_fill(dropped[:, None, None, None], 0.0)

    def _weights(self, timesteps: Tensor) -> Tensor:
        """What the loss of each row weighs, (B,): min(SNR, cap) of the loss of x0 (Hang et al. 2023, section 3.4).

        The loss of x0 is that of eps / SNR and that of v / (SNR + 1).
        """
        if self.min_snr is None:
            return torch.ones(len(timesteps))
        snr = torch.from_numpy(self.schedule.snr)[timesteps].float()
        share = {"eps": snr, "v": snr + 1, "x0": torch.ones_like(snr)}[self.prediction]
        return snr.clamp(max=self.min_snr) / share
