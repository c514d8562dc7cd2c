"""CLIP's ResNet and its attention pool against open_clip's, and what a block is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kiban.errors import ConfigError
from kiban.nn.resnet import AttentionPool, Bottleneck, ModifiedResNet
from kiban.weights import clip_names
from kiban.weights.names import to_ours, to_published

sys.path.insert(0, str(Path(__file__).parent))
from open_clip_parts import part


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(module: torch.nn.Module) -> None:
    """Weights and running statistics that leave nothing at 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim > 1:
                tensor.copy_(1.4 * noise * tensor[0].numel() ** -0.5)  # keeps the size of what passes a ReLU
            elif tensor.ndim == 1:
                tensor.copy_((1 + 0.2 * noise).abs())


@pytest.mark.parametrize("training", [False, True])
def test_the_whole_is_open_clips(training: bool) -> None:
    """The same in training, where batch statistics count, and the running ones move alike."""
    theirs = part("modified_resnet").ModifiedResNet([1, 2, 2, 1], output_dim=12, heads=4, image_size=96, width=16)
    ours = ModifiedResNet((1, 2, 2, 1), width=16, num_heads=4, image_size=96, embed_dim=12)
    drawn(theirs)
    names = clip_names.openai_resnet()
    published = {f"visual.{name}": tensor for name, tensor in theirs.state_dict().items()}
    ours.load_state_dict(to_ours(names, published, wanted=ours.state_dict(), source="open_clip"))
    assert set(to_published(names, ours.state_dict())) == set(published)
    pixels = normal(3, 3, 96, 96)
    found, expected = ours.train(training)(pixels), theirs.train(training)(pixels)
    assert found.shape == (3, 12) and float(expected.detach().abs().max()) > 0.1
    assert float((found - expected).detach().abs().max()) < 1e-4
    for name, tensor in to_published(names, ours.state_dict()).items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name.removeprefix("visual.")])
    found.square().sum().backward()
    expected.square().sum().backward()
    gradient = theirs.conv1.weight.grad
    torch.testing.assert_close(
        ours.stem[0].conv.weight.grad, gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max())
    )


def test_the_pool_is_attention_of_the_mean() -> None:
    pool, x = AttentionPool(3, 8, 2, 5), normal(2, 8, 3, 3)
    with torch.no_grad():
        pool.position.weight.copy_(normal(10, 8, seed=3))
    for b in range(2):
        places = torch.stack([x[b].mean((1, 2)), *x[b].reshape(8, 9).T]) + pool.position.weight
        heads = []
        for h in range(2):
            q, k, v = (layer(places)[:, 4 * h : 4 * h + 4] for layer in (pool.q, pool.k, pool.v))
            heads.append(((q[0] @ k.T) / 2).softmax(-1) @ v)
        torch.testing.assert_close(pool(x)[b], pool.o(torch.cat(heads)))


def test_a_new_block_is_its_shortcut_and_halves_by_averages() -> None:
    network = ModifiedResNet((1, 1, 1, 1), width=8, num_heads=4, image_size=32, embed_dim=6)
    network.initialise(torch.Generator().manual_seed(0))
    block = network.stages[1][0].eval()
    assert isinstance(block, Bottleneck) and block.shortcut is not None
    x = normal(2, 32, 8, 8)
    found = block(x)
    assert found.shape == (2, 64, 4, 4)
    small = x.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    torch.testing.assert_close(found, F.relu(block.shortcut(small)))


def test_initial_weights_are_those_of_a_seed() -> None:
    def network(seed: int) -> ModifiedResNet:
        made = ModifiedResNet((1, 1, 1, 1), width=16, num_heads=4, image_size=32, embed_dim=6)
        made.initialise(torch.Generator().manual_seed(seed))
        return made

    first, second, other = network(1), network(1), network(2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.stem[0].conv.weight, other.stem[0].conv.weight)
    assert float(first.pool.q.weight.detach().std()) == pytest.approx(512**-0.5, rel=0.05)
    bound = (3 * 9) ** -0.5  # of torch's own uniform draw
    assert 0.95 * bound < float(first.stem[0].conv.weight.detach().abs().max()) <= bound


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="image_size=100"):
        ModifiedResNet((1, 1, 1, 1), width=8, num_heads=4, image_size=100, embed_dim=6)
    with pytest.raises(ConfigError, match="num_heads=3"):
        AttentionPool(3, 8, 3, 5)
