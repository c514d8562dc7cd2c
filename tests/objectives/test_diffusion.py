"""The denoising loss: its targets and weights by formula, its optimum, and its randomness under any split of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kiban.data.loader import Loader
from kiban.errors import ConfigError
from kiban.generate.denoiser import DiffusionModel, denoiser
from kiban.generate.samplers import heun
from kiban.generate.schedules import plan
from kiban.nn.noise import NoiseSchedule, Prediction, cosine, linear, scaled_linear, zero_terminal_snr
from kiban.objectives.diffusion import Diffusion, SeededRows
from kiban.train.settings import TrainConfig
from kiban.train.trainer import Trainer

PREDICTIONS: list[Prediction] = ["eps", "v", "x0"]
SCHEDULE = NoiseSchedule(np.array([0.9, 0.5, 0.1]))  # signal-to-noise ratios of 9, 1 and 1/9


class Silent(nn.Module):
    """Predicts 0 and remembers what it was asked."""

    def __init__(self, out_channels: int = 2) -> None:
        super().__init__()
        self.out_channels, self.scale = out_channels, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, timesteps: Tensor, **condition: Tensor) -> Tensor:
        self.x, self.timesteps, self.condition = x, timesteps, condition
        return self.scale * x[:, : self.out_channels]


class Small(nn.Module):
    """A convolution of x, shifted by time and context."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner, self.outer, self.shift = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 1), nn.Linear(4, 8)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        told = torch.cat((context, timesteps[:, None] / 3), dim=1)  # (B, 4)
        hidden = torch.tanh(self.inner(x) + self.shift(told)[:, :, None, None])
        return torch.as_tensor(self.outer(hidden))


def batch_of(count: int, *, seeded: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    batch = {
        "latents": torch.randn(count, 2, 4, 4, generator=generator),
        "context": torch.randn(count, 3, generator=generator),
    }
    return {**batch, "seeds": torch.arange(100, 100 + count)} if seeded else batch


WEIGHTS = {
    # min(SNR, 5) / SNR, min(SNR, 5) / (SNR + 1) and min(SNR, 5).
    "eps": [5 / 9, 1.0, 1.0],
    "v": [0.5, 0.5, 0.1],
    "x0": [5.0, 1.0, 1 / 9],
}


@pytest.mark.parametrize("min_snr", [None, 5.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_targets_and_weights_by_hand(prediction: Prediction, min_snr: float | None) -> None:
    module, batch = Silent(), batch_of(64)
    torch.manual_seed(0)
    loss = Diffusion(module, SCHEDULE, prediction=prediction, min_snr=min_snr)(batch)
    x0, expected, plain = batch["latents"], 0.0, 0.0
    assert set(module.timesteps.tolist()) == {0, 1, 2}
    for i, t in enumerate(module.timesteps.tolist()):
        signal, spread = [(0.9**0.5, 0.1**0.5), (0.5**0.5, 0.5**0.5), (0.1**0.5, 0.9**0.5)][t]
        eps = (module.x[i] - signal * x0[i]) / spread
        error = {"eps": eps, "v": signal * eps - spread * x0[i], "x0": x0[i]}[prediction].square().mean()
        expected += (WEIGHTS[prediction][t] if min_snr else 1.0) * float(error)
        plain += float(error)
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(loss.metrics["squared_error"]) == pytest.approx(plain, rel=1e-5)
    assert int(Diffusion(module, SCHEDULE).count(batch)) == 64


def test_noise_is_standard_and_timesteps_are_uniform() -> None:
    module, batch = Silent(), {"latents": torch.zeros(3000, 2, 4, 4)}
    torch.manual_seed(0)
    Diffusion(module, SCHEDULE)(batch)
    eps = module.x / torch.tensor([0.1, 0.5, 0.9])[module.timesteps][:, None, None, None] ** 0.5
    assert abs(float(eps.mean())) < 0.01 and float(eps.std()) == pytest.approx(1, abs=0.01)
    assert module.timesteps.bincount().tolist() == pytest.approx([1000] * 3, abs=100)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("min_snr", [None, 5.0])
def test_the_optimum_on_gaussian_data_is_the_ideal_denoiser(prediction: Prediction, min_snr: float | None) -> None:
    """One factor for each timestep: the loss is a parabola of it, whose lowest point two gradients give."""
    s, schedule = 0.7, linear(8, first=0.02, last=0.5)

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factors = nn.Parameter(torch.zeros(8))

        def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
            return self.factors[timesteps.long()][:, None, None, None] * x

    module, generator = Scale(), torch.Generator().manual_seed(2)
    batch = {"latents": s * torch.randn(4000, 1, 8, 8, generator=generator), "seeds": torch.arange(4000)}
    gradients = []
    for value in (0.0, 1.0):
        with torch.no_grad():
            module.factors.fill_(value)
        loss = Diffusion(module, schedule, prediction=prediction, min_snr=min_snr)(batch)
        gradients.append(torch.autograd.grad(loss.total, module.factors)[0])
    with torch.no_grad():
        module.factors.copy_(gradients[0] / (gradients[0] - gradients[1]))
    model = DiffusionModel(module, schedule, prediction)
    denoise, x = denoiser(model.network, prediction), torch.ones(1, 1, 1, 1)
    for t, sigma in enumerate(schedule.sigmas.tolist()):
        assert float(denoise(x, sigma, t).detach()) == pytest.approx(s**2 / (s**2 + sigma**2), abs=0.02)
    # So it makes data of that spread out of noise.
    steps = plan(schedule, "heun", 8)
    noise = torch.randn(64, 1, 16, 16, generator=generator)
    with torch.no_grad():
        *_, last = heun(denoise, steps.scale * noise, steps)
    assert float(last.x.std()) == pytest.approx(s, rel=0.08)


def gradient(objective: Diffusion, parts: list[dict[str, Tensor]]) -> list[Tensor]:
    objective.module.zero_grad()
    for part in parts:
        objective(part).total.backward()
    return [p.grad.clone() for p in objective.module.parameters() if p.grad is not None]


def cut(batch: dict[str, Tensor], *places: Any) -> list[dict[str, Tensor]]:
    return [{name: value[place] for name, value in batch.items()} for place in places]


def test_the_gradient_does_not_depend_on_how_a_batch_is_cut() -> None:
    objective, found = Diffusion(Small(), SCHEDULE, min_snr=5.0, null_context=torch.zeros(3), dropout=0.5), []
    for size in (8, 4, 1):
        torch.manual_seed(3)
        parts = cut(batch_of(8), *[slice(i, i + size) for i in range(0, 8, size)])
        found.append(gradient(objective, parts))
    torch.manual_seed(4)
    other = gradient(objective, [batch_of(8)])
    for parts_of_four, parts_of_one in zip(found[1], found[2], strict=True):
        torch.testing.assert_close(parts_of_four, parts_of_one)
    for whole, parts, another in zip(found[0], found[1], other, strict=True):
        torch.testing.assert_close(whole, parts)
        assert not torch.allclose(whole, another, rtol=0.1)


def test_seeds_give_the_same_gradient_in_any_order_and_process() -> None:
    """As with two processes, where each takes every second row and has other random numbers."""
    objective = Diffusion(Small(), SCHEDULE, null_context=torch.zeros(3), dropout=0.5)
    batch, found = batch_of(8, seeded=True), []
    for places in ([slice(None)], [slice(0, None, 2), slice(1, None, 2)], [[5, 2, 7], [0, 1, 3, 4, 6]]):
        torch.manual_seed(len(found))
        found.append(gradient(objective, cut(batch, *places)))
    for whole, halves, mixed in zip(*found, strict=True):
        torch.testing.assert_close(whole, halves)
        torch.testing.assert_close(whole, mixed)


def test_training_is_the_same_in_parts_of_any_size() -> None:
    data = batch_of(12)
    rows = list(zip(data["latents"], data["context"], strict=True))

    def collate(some: list[tuple[tuple[Tensor, Tensor], int]]) -> dict[str, Tensor]:
        return {
            "latents": torch.stack([latents for (latents, _), _ in some]),
            "context": torch.stack([context for (_, context), _ in some]),
            "seeds": torch.tensor([seed for _, seed in some]),
        }

    results = []
    for size in (6, 4, 1):
        module = Small()
        seeded = SeededRows(rows, num_epochs=3, seed=1)
        assert len(seeded) == 36 and len({seeded[i][1] for i in range(36)}) == 36
        assert seeded[30][0] is rows[6]
        config = TrainConfig(steps=5, batch_size=6, micro_batch_size=size, lr=0.01, precision="fp32", optimizer="adamw")
        loader = Loader(seeded, collate, batch_size=6, seed=1)
        Trainer(Diffusion(module, SCHEDULE, null_context=torch.zeros(3)), module, loader, config).run()
        results.append([p.detach().clone() for p in module.parameters()])
    before = [p.detach() for p in Small().parameters()]
    for start, whole, fours, ones in zip(before, *results, strict=True):
        torch.testing.assert_close(whole, fours, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(whole, ones, atol=1e-5, rtol=1e-4)
        assert not torch.equal(whole, start)


def test_context_and_channels_are_dropped_as_often_as_asked() -> None:
    module, count = Silent(), 4000
    batch = {
        "latents": torch.zeros(count, 2, 1, 1),
        "context": torch.ones(count, 3),
        "channels": torch.ones(count, 2, 1, 1),
        "seeds": torch.arange(count),
    }
    null = torch.full((3,), 7.0)
    objective = Diffusion(module, SCHEDULE, null_context=null, dropout=0.1, channels_dropout=0.1)
    objective(batch)
    no_text = (module.condition["context"] == 7).all(1)
    no_image = (module.x[:, 2:] == 0).flatten(1).all(1)
    shares = [no_text & ~no_image, no_text & no_image, ~no_text & no_image]
    assert [float(share.float().mean()) for share in shares] == pytest.approx([0.05] * 3, abs=0.012)
    first = no_text.clone()
    objective(batch)
    assert torch.equal(first, (module.condition["context"] == 7).all(1))
    module.eval()
    objective(batch)
    assert (module.condition["context"] == 1).all() and (module.x[:, 2:] == 1).all()


def test_tokens_may_be_the_context_and_other_inputs_go_by_name() -> None:
    module, count = Silent(), 200
    batch = {
        "latents": torch.zeros(count, 2, 1, 1),
        "context": torch.arange(5).repeat(count, 1),
        "pooled": torch.rand(count, 3),
    }
    Diffusion(module, SCHEDULE, null_context=torch.tensor([9, 9, 9, 9, 9]), dropout=0.5, inputs=["pooled"])(batch)
    tokens = module.condition["context"]
    assert tokens.dtype == torch.int64 and set(map(tuple, tokens.tolist())) == {(0, 1, 2, 3, 4), (9, 9, 9, 9, 9)}
    assert torch.equal(module.condition["pooled"], batch["pooled"])


def test_weights_of_errors() -> None:
    batch = batch_of(6, seeded=True)
    rows = [
        float(Diffusion(Silent(), SCHEDULE)(part).total.detach())
        for part in cut(batch, *[slice(i, i + 1) for i in range(6)])
    ]
    weights = torch.tensor([1.0, 1.0, 0.5, 0.0, 2.0, 1.0])
    total = Diffusion(Silent(), SCHEDULE)({**batch, "weights": weights[:, None, None, None]}).total
    assert float(total.detach()) == pytest.approx(
        sum(w * r for w, r in zip(weights.tolist(), rows, strict=True)), rel=1e-5
    )
    module = Silent()
    mask = torch.zeros(6, 1, 4, 4)
    mask[..., :2] = 1
    masked = float(Diffusion(module, SCHEDULE)({**batch, "weights": mask}).total.detach())
    alpha_bar = torch.tensor([0.9, 0.5, 0.1])[module.timesteps][:, None, None, None]
    eps = (module.x - alpha_bar**0.5 * batch["latents"]) / (1 - alpha_bar) ** 0.5
    assert masked == pytest.approx(float(eps[..., :2].square().sum() / 32), rel=1e-5)


def test_schedules_by_their_formulas() -> None:
    assert linear().alpha_bars[[0, 1]] == pytest.approx([0.9999, 0.9999 * (1 - 1e-4 - 0.0199 / 999)])
    schedule = cosine()
    f = [np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2 for t in (0, 1, 500)]
    assert schedule.alpha_bars[[0, 499]] == pytest.approx([f[1] / f[0], f[2] / f[0]])
    assert schedule.alpha_bars[-1] == pytest.approx(schedule.alpha_bars[-2] * 0.001)
    stretched = zero_terminal_snr(scaled_linear()).alpha_bars
    assert stretched[0] == pytest.approx(scaled_linear().alpha_bars[0]) and stretched[-1] == 2.0**-24


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"prediction": "epsilon"}, "did you mean 'eps'"),
        ({"min_snr": 0.0}, "min_snr"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": 0.1, "channels_dropout": 0.3}, "channels_dropout"),
    ],
)
def test_errors(how: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Diffusion(Silent(), SCHEDULE, **how)
    with pytest.raises(ConfigError, match="fall"):
        NoiseSchedule(np.array([0.5, 0.5]))
