"""The loop, with networks whose answers are known: data N(m, s^2) has the ideal denoiser m + s^2/(s^2+sigma^2) (x - m)."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from kiban.errors import ConfigError
from kiban.generate.denoiser import DiffusionModel
from kiban.generate.guidance import Guidance, classifier_free, inpainting_channels, plain
from kiban.generate.images import ImageSampling, Noise, Source, generate, invert_latents, slerp
from kiban.generate.schedules import HABITS, plan
from kiban.nn.noise import from_x0, scaled_linear

SHAPE = (4, 8, 8)
S = 0.3
SCHEDULE = scaled_linear()
ALPHA_BARS = torch.from_numpy(SCHEDULE.alpha_bars).float()


class Gaussian:
    """Predicts the noise in data N(context, s^2), where the context is a number for each image."""

    def __init__(self) -> None:
        self.asked: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, timesteps: Tensor, *, context: Tensor) -> Tensor:
        self.asked.append((x, timesteps))
        # The same straight lines between timesteps as those of the schedule.
        sigma = torch.from_numpy(SCHEDULE.sigmas_at(timesteps.double().numpy())).float()[:, None, None, None]
        alpha_bar, mean = 1 / (1 + sigma**2), context[:, :, None, None]
        x0 = mean + S**2 / (S**2 + sigma**2) * (x / alpha_bar**0.5 - mean)
        return from_x0(x0, x, alpha_bar, "eps")


def mean(*values: float) -> dict[str, Tensor]:
    return {"context": torch.tensor(values)[:, None]}


def draw(seeds: list[int], how: Any = None, *, guidance: Guidance | None = None, **more: Any) -> Tensor:
    model = more.pop("model", None) or DiffusionModel(Gaussian(), SCHEDULE)
    return generate(model, guidance or plain(mean(0.0)), how or ImageSampling(), seeds=seeds, shape=SHAPE, **more)


def test_karras_sigmas_are_the_habit_of_one_sampler_and_recorded() -> None:
    settled = {name: ImageSampling(sampler=name).karras for name in HABITS}
    assert settled == {name: name == "dpm++2m" for name in HABITS}
    assert ImageSampling(karras=False).karras is False and ImageSampling(spacing="trailing").karras is False
    short, long = (draw([1], ImageSampling(num_steps=6, karras=karras)) for karras in (None, False))
    assert torch.equal(short, draw([1], ImageSampling(num_steps=6, karras=True)))
    assert not torch.allclose(short, long, atol=1e-3)


@pytest.mark.parametrize("name", HABITS)
def test_an_image_depends_on_its_seed_alone(name: str) -> None:
    how = ImageSampling(sampler=name, num_steps=5, eta=0.5 if name == "ddim" else 0.0)
    guidance = classifier_free(mean(0.1, 0.2, 0.3), mean(0.0), guidance_scale=3.0)
    together = draw([7, 8, 9], how, guidance=guidance)
    for size in (1, 2):
        torch.testing.assert_close(draw([7, 8, 9], how, guidance=guidance, batch_size=size), together)
    alone = draw([9], how, guidance=classifier_free(mean(0.3), mean(0.0), guidance_scale=3.0))
    torch.testing.assert_close(alone[0], together[2])
    assert (together[0] - together[1]).abs().max() > 0.1


def test_images_have_the_distribution_that_they_are_asked_for() -> None:
    # Without Karras sigmas the last step is so long that it takes a seventh of this small spread away.
    how = ImageSampling(sampler="dpm++2m", num_steps=30, karras=True)
    # Sampling starts from noise without the mean, of which this much then never comes.
    lost = S / (S**2 + SCHEDULE.sigmas[-1] ** 2) ** 0.5
    images = draw(list(range(100)), how, guidance=plain(mean(0.8)), batch_size=50)
    assert float(images.mean()) == pytest.approx(0.8 * (1 - lost), abs=0.006)
    assert float(images.std()) == pytest.approx(S, rel=0.02)
    # Guidance of two Gaussians of one spread is the Gaussian of the guided mean.
    guidance = classifier_free(mean(0.8), mean(-0.2), guidance_scale=2.0)
    guided = draw(list(range(100)), how, guidance=guidance, batch_size=50)
    assert float(guided.mean()) == pytest.approx(1.8 * (1 - lost), abs=0.006)


def test_starting_from_an_image_changes_it_more_with_strength() -> None:
    latents, distances, network = torch.full((1, *SHAPE), 2.0), [], Gaussian()
    for strength in (0.1, 0.5, 1.0):
        network.asked.clear()
        source = Source(latents=latents, strength=strength)
        how = ImageSampling(sampler="euler", num_steps=20)
        images = draw([1, 2], how, source=source, model=DiffusionModel(network, SCHEDULE))
        assert len(network.asked) == 20 * strength
        distances.append(float((images - latents).abs().mean()))
    assert distances[0] < distances[1] < distances[2]
    assert distances[2] > 1.5


@pytest.mark.parametrize(
    ("name", "scheduler", "settings"),
    [
        ("ddim", "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
        ("euler", "EulerDiscreteScheduler", {}),
        ("dpm++2m", "DPMSolverMultistepScheduler", {}),
    ],
)
def test_starting_from_an_image_agrees_with_diffusers(name: str, scheduler: str, settings: dict[str, Any]) -> None:
    reference = getattr(diffusers, scheduler)(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, **settings
    )
    reference.set_timesteps(20)
    timesteps, latents, network = reference.timesteps[8:], torch.full((1, *SHAPE), 0.5), Gaussian()
    if hasattr(reference, "set_begin_index"):
        reference.set_begin_index(8)
    x = reference.add_noise(latents, Noise([3], SHAPE)(), timesteps[:1])
    for t in timesteps:
        output = network(reference.scale_model_input(x, t), t.repeat(1), context=torch.zeros(1, 1))
        x = reference.step(output, t, x).prev_sample
    source = Source(latents=latents, strength=0.6)
    got = draw([3], ImageSampling(sampler=name, num_steps=20, karras=False), source=source)
    torch.testing.assert_close(got, x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("name", HABITS)
def test_inpainting_leaves_the_rest_exactly_as_it_was(name: str, strength: float) -> None:
    latents = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 4:] = True
    how, network = ImageSampling(sampler=name, num_steps=12), Gaussian()
    source = Source(latents=latents, strength=strength, mask=mask)
    model = DiffusionModel(network, SCHEDULE)
    images = draw([1, 2], how, source=source, guidance=plain(mean(3.0)), model=model)
    assert torch.equal(images[..., :4], latents.expand_as(images)[..., :4])
    if strength == 1:
        assert float(images[..., 4:].mean()) == pytest.approx(3, abs=0.1)
    # What the network sees of the rest is as noisy as its timestep says.
    seen, timesteps = network.asked[-1]
    alpha_bar = 1 / (1 + SCHEDULE.sigmas_at(timesteps.double().numpy())[0] ** 2)
    left = (seen - alpha_bar**0.5 * latents)[..., :4]
    assert float(left.std()) == pytest.approx((1 - alpha_bar) ** 0.5, rel=0.25)


def test_an_inpainting_model_reads_mask_and_image_behind_the_noisy_latents() -> None:
    network = Gaussian()

    def nine(x: Tensor, timesteps: Tensor, *, context: Tensor) -> Tensor:
        assert x.shape[1] == 9 and (x[:, 4] == mask[0, 0]).all() and (x[:, 5:] == 0.25).all()
        return network(x[:, :4], timesteps, context=context)

    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 4:] = True
    channels = {"channels": inpainting_channels(mask, torch.full((1, *SHAPE), 0.25))}
    guidance = classifier_free({**mean(0.5), **channels}, {**mean(0.0), **channels}, guidance_scale=2.0)
    got = draw([1, 2, 3], guidance=guidance, model=DiffusionModel(nine, SCHEDULE), batch_size=2)
    expected = draw([1, 2, 3], guidance=classifier_free(mean(0.5), mean(0.0), guidance_scale=2.0))
    torch.testing.assert_close(got, expected)


def test_progress_and_previews_tell_of_every_step() -> None:
    told: list[tuple[str, int, int | None]] = []
    seen: list[tuple[int, int, Tensor]] = []
    images = draw(
        [1, 2, 3],
        ImageSampling(sampler="heun", num_steps=4),
        batch_size=2,
        progress=lambda *what: told.append(what),
        preview=lambda *what: seen.append(what),
    )
    assert told == [("image", done, 8) for done in range(1, 9)]
    assert [(first, done, len(x0)) for first, done, x0 in seen] == [
        *((0, done, 2) for done in (1, 2, 3, 4)),
        *((2, done, 1) for done in (1, 2, 3, 4)),
    ]
    torch.testing.assert_close(torch.cat((seen[3][2], seen[7][2])), images)  # the last step goes all the way to x0
    assert (seen[0][2] - images[:2]).abs().max() > 0.1


def test_an_image_comes_back_from_its_noise_and_nearby_noise_gives_variations() -> None:
    guidance, model, told = plain(mean(0.4)), DiffusionModel(Gaussian(), SCHEDULE), []
    how = ImageSampling(sampler="ddim", num_steps=100)
    image = draw([5, 6], how, guidance=guidance)
    start = invert_latents(model, guidance, image, num_steps=100, progress=lambda *what: told.append(what))
    assert told[-1] == ("inversion", 100, 100)
    torch.testing.assert_close(draw([0, 0], how, guidance=guidance, start=start), image, atol=0.05, rtol=0)
    distances = []
    for share in (0.0, 0.2, 0.6, 1.0):
        nearby = slerp(start, Noise([8, 9], SHAPE)(), share)
        distances.append(float((draw([0, 0], how, guidance=guidance, start=nearby) - image).abs().mean()))
    assert distances == sorted(distances) and distances[0] < 0.03 and distances[3] > 0.2
    torch.testing.assert_close(draw([0, 0], how, guidance=guidance, start=nearby), draw([8, 9], how, guidance=guidance))


def test_between_two_noises_lies_noise() -> None:
    a, b = (Noise([seed], (4, 64, 64))() for seed in (1, 2))
    assert float(slerp(a, b, 0.5).std()) == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(slerp(a, a, 0.3), a)


def test_noise_is_that_of_torch_with_the_seed() -> None:
    """So that other programs start from the same."""
    expected = torch.randn(SHAPE, generator=torch.Generator().manual_seed(42))
    assert torch.equal(Noise([1, 42], SHAPE)()[1], expected)
    steps = plan(SCHEDULE, "dpm++2m", 1)
    assert torch.equal(steps.scale * Noise([42], SHAPE)()[0], steps.scale * expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ImageSampling(sampler="dpm++m"), "did you mean"),
        (lambda: ImageSampling(num_steps=0), "num_steps"),
        (lambda: ImageSampling(sampler="ddim", karras=True), "karras"),
        (lambda: ImageSampling(sampler="ddim", eta=1.5), "eta"),
        (lambda: ImageSampling(sampler="euler", eta=0.5), "sampler: ddim"),
        (lambda: Source(latents=torch.zeros(1, *SHAPE), strength=0.0), "strength"),
        (lambda: Source(latents=torch.zeros(1, *SHAPE), strength=1.1), "strength"),
        (lambda: DiffusionModel(Gaussian(), SCHEDULE, "epsilon"), "did you mean 'eps'"),  # type: ignore[arg-type]
        (lambda: draw([]), "seeds"),
        (lambda: draw([-1]), "seed"),
        (lambda: draw([1], batch_size=0), "batch_size"),
        (lambda: draw([1], ImageSampling(num_steps=1001)), "num_steps"),
    ],
)
def test_errors_tell_what_to_do(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()
