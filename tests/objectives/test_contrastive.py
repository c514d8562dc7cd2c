"""The contrastive loss is its formula, in parts and over processes it is the same, and CLIP learns a batch by it."""

from __future__ import annotations

import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from kiban import zoo
from kiban.data.loader import Loader
from kiban.errors import ConfigError
from kiban.families.clip import CLIP, CLIPConfig, ResNetConfig, TextConfig, VisionConfig
from kiban.objectives.contrastive import Contrastive, symmetric
from kiban.train.blocks import recompute
from kiban.train.settings import TrainConfig
from kiban.train.trainer import Trainer

ROWS, SHARES = 8, (3, 5)


def small() -> CLIP:
    shape = {"dim": 16, "num_heads": 2, "ffn_dim": 32, "embed_dim": 12}
    text = TextConfig(num_layers=2, vocab_size=50, max_seq_len=8, eos_id=49, **shape)
    vision = VisionConfig(num_layers=2, image_size=16, patch_size=8, **shape)
    model = zoo.initialise(CLIP(CLIPConfig(text=text, vision=vision)), torch.Generator().manual_seed(0))
    assert isinstance(model, CLIP)
    return model.train()


def batch(size: int = 16, vocab: int = 50, length: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, vocab - 1, (ROWS, length), generator=generator)
    tokens[:, -1] = vocab - 1
    return {"images": torch.randn(ROWS, 3, size, size, generator=generator), "tokens": tokens}


class TwoTowers(nn.Module):
    """Narrow layers with dropout, which also tell how many of their inner states are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.one, self.other = (nn.Sequential(nn.Linear(n, 64), nn.Dropout(0.3), nn.Linear(64, 6)) for n in (768, 8))
        self.alive: list[weakref.ref[Tensor]] = []
        self.most = 0

    def _state(self, tower: Any, x: Tensor) -> Tensor:
        inner = torch.tanh(tower[1](tower[0](x)))  # which the backward pass needs
        self.alive = [ref for ref in self.alive if ref() is not None] + [weakref.ref(inner)]
        self.most = max(self.most, sum(len(state) for ref in self.alive if (state := ref()) is not None))
        return F.normalize(tower[2](inner), dim=-1)

    def encode_image(self, images: Tensor) -> Tensor:
        return self._state(self.one, images.flatten(1))

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self._state(self.other, tokens.float())

    def scale(self) -> Tensor:
        return torch.tensor(5.0)


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert set(one) == set(other) and one
    for name, gradient in one.items():
        torch.testing.assert_close(
            other[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()) + 2e-6
        )  # biases of keys: 0


def test_the_loss_is_its_formula() -> None:
    u = F.normalize(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), dim=-1)
    v = F.normalize(u + 0.6 * torch.randn(5, 7, generator=torch.Generator().manual_seed(1)), dim=-1)
    logits = 3.0 * u @ v.T
    expected = -sum(float(logits[i].log_softmax(0)[i] + logits[:, i].log_softmax(0)[i]) / 2 for i in range(5))
    loss = symmetric(u, v, torch.tensor(3.0))
    assert float(loss.total) == pytest.approx(expected, rel=1e-6)
    assert int(loss.metrics["text_found"]) == sum(int(logits[i].argmax()) == i for i in range(5))
    assert int(loss.metrics["image_found"]) == sum(int(logits[:, i].argmax()) == i for i in range(5))


def test_it_is_the_loss_of_transformers_times_the_rows() -> None:
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    model, inputs = small(), batch()
    expected = image_text_contrastive_loss(model(inputs["images"], inputs["tokens"]).mT)
    objective = Contrastive(model)
    loss = objective(inputs)
    assert objective.coupled == "gathered" and int(objective.count(inputs)) == ROWS
    torch.testing.assert_close(loss.total, expected * ROWS)
    same(gradients(model, expected * ROWS), gradients(model, objective(inputs).total))


def test_rows_are_each_others_wrong_answers() -> None:
    model, inputs = small(), batch()
    halves = [{name: value[rows] for name, value in inputs.items()} for rows in (slice(0, 4), slice(4, 8))]
    apart = sum(float(Contrastive(model)(half).total.detach()) for half in halves)
    assert float(Contrastive(model)(inputs).total.detach()) > apart + 1


@pytest.mark.parametrize("part_size", [1, 3, 4, 8, 100])
def test_a_batch_in_parts_has_the_gradient_of_one_piece(part_size: int) -> None:
    """1 x 8 = 2 x 4 = 8 x 1, and unequal parts."""
    model, inputs = small(), batch()
    whole, parts = Contrastive(model)(inputs), Contrastive(model, part_size=part_size)(inputs)
    torch.testing.assert_close(parts.total, whole.total)
    assert parts.metrics == whole.metrics
    expected, found = gradients(model, whole.total), gradients(model, parts.total)
    assert float(expected["logit_scale"].abs()) > 1e-3
    same(expected, found)


def test_parts_and_recomputed_blocks_go_together() -> None:
    model, inputs = small(), batch()
    expected = gradients(model, Contrastive(model)(inputs).total)
    recompute(model)
    same(expected, gradients(model, Contrastive(model, part_size=3)(inputs).total))


def test_dropout_falls_alike_in_both_passes() -> None:
    module, inputs = TwoTowers(), batch()
    torch.manual_seed(7)
    images = torch.cat([module.encode_image(part) for part in inputs["images"].split(3)])
    texts = torch.cat([module.encode_text(part) for part in inputs["tokens"].split(3)])
    expected = gradients(module, symmetric(images, texts, module.scale()).total)
    torch.manual_seed(7)
    loss = Contrastive(module, part_size=3)(inputs).total
    state = torch.get_rng_state()
    same(expected, gradients(module, loss))
    assert torch.equal(torch.get_rng_state(), state)  # what comes next is as random as without parts
    torch.manual_seed(8)
    other = gradients(module, Contrastive(module, part_size=3)(inputs).total)
    assert not torch.allclose(other["one.0.weight"], expected["one.0.weight"], rtol=1e-2)


def test_inner_states_of_one_part_alone_are_in_memory() -> None:
    module, inputs = TwoTowers(), batch()
    Contrastive(module)(inputs).total.backward()
    assert module.most == 2 * ROWS  # images and texts
    module.most = 0
    Contrastive(module, part_size=2)(inputs).total.backward()
    assert module.most == 2
    module.most = 0
    with torch.no_grad():
        Contrastive(module, part_size=2)(inputs)
    assert module.most == 2


def test_parts_and_batch_normalisation_do_not_go_together() -> None:
    text = TextConfig(num_layers=1, dim=16, num_heads=2, ffn_dim=32, embed_dim=12, vocab_size=50, eos_id=49)
    vision = ResNetConfig(num_blocks=(1, 1, 1, 1), width=8, num_heads=4, image_size=32, embed_dim=12)
    model, inputs = CLIP(CLIPConfig(text=text, vision=vision)), batch(32)
    zoo.initialise(model, torch.Generator().manual_seed(0))
    with pytest.raises(ConfigError, match="batch normalisation"):
        Contrastive(model, part_size=2)(inputs)
    assert Contrastive(model, part_size=8)(inputs).total.requires_grad
    model.eval()
    same(
        gradients(model, Contrastive(model)(inputs).total),
        gradients(model, Contrastive(model, part_size=2)(inputs).total),
    )


def test_a_part_of_no_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match="part_size"):
        Contrastive(small(), part_size=0)


def test_bf16_leaves_the_logits_in_float32() -> None:
    model, inputs = small(), batch()
    with torch.no_grad():
        model.logit_scale.fill_(4.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = Contrastive(model, part_size=4)(inputs)
    assert loss.total.dtype == torch.float32
    expected = float(Contrastive(model)(inputs).total.detach())
    assert float(loss.total.detach()) == pytest.approx(expected, rel=0.1)
    loss.total.backward()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave that hold 3 and 5 of the 8 rows."""
    folder = tmp_path_factory.mktemp("two")
    processes = [
        subprocess.Popen([sys.executable, __file__, str(folder), str(rank)], stderr=subprocess.PIPE, text=True)
        for rank in range(len(SHARES))
    ]
    try:
        for process in processes:
            _, told = process.communicate(timeout=120)
            assert process.returncode == 0, told
    finally:
        for process in processes:
            process.kill()
    return folder


@pytest.mark.parametrize("part_size", [0, 2])
def test_two_processes_together_have_the_loss_and_gradient_of_one(two: Path, part_size: int) -> None:
    model, inputs = small(), batch()
    loss = Contrastive(model)(inputs)
    found = [load_file(two / f"{rank}-{part_size}.safetensors") for rank in range(len(SHARES))]
    torch.testing.assert_close(sum(part.pop("loss") for part in found), loss.total.detach())
    for name, value in loss.metrics.items():
        assert sum(int(part.pop(name)) for part in found) == int(value)
    expected = gradients(model, loss.total)
    same(expected, {name: found[0][name] + found[1][name] for name in expected})


def test_without_gradients_each_process_looks_at_its_own_rows(two: Path) -> None:
    """One process evaluates while the others wait, and must not wait for them."""
    model, inputs = small(), batch()
    rows = {name: value[: SHARES[0]] for name, value in inputs.items()}
    expected = Contrastive(model)(rows).total.detach()
    torch.testing.assert_close(load_file(two / "0-0.safetensors")["alone"], expected)


def worker(folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=len(SHARES))
    model, first = small(), sum(SHARES[:rank])
    rows = {name: value[first : first + SHARES[rank]] for name, value in batch().items()}
    for part_size in (0, 2):
        loss = Contrastive(model, part_size=part_size or None)(rows)
        found = {**gradients(model, loss.total), "loss": loss.total.detach(), **loss.metrics}
        if rank == 0:
            with torch.no_grad():
                found["alone"] = Contrastive(model)(rows).total
        save_file(found, folder / f"{rank}-{part_size}.safetensors")
    dist.destroy_process_group()


@pytest.mark.parametrize("part_size", [None, 3])
def test_the_tiny_clip_learns_a_batch_of_noise(part_size: int | None) -> None:
    """Through the trainer: every picture finds its text, every text its picture."""
    loaded = zoo.create("clip-tiny", generator=torch.Generator().manual_seed(0))
    inputs = batch(64, 2048, 12)
    rows = list(zip(inputs["images"], inputs["tokens"], strict=True))

    def collate(some: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        return {"images": torch.stack([a for a, _ in some]), "tokens": torch.stack([b for _, b in some])}

    objective = Contrastive(loaded.module, part_size=part_size)
    before = float(objective(inputs).total.detach()) / ROWS
    config = TrainConfig(steps=14, batch_size=ROWS, micro_batch_size=2, lr=1e-3, precision="fp32")
    Trainer(objective, loaded.module, Loader(rows, collate, batch_size=ROWS, seed=0), config).run()
    with torch.no_grad():
        loss = objective(inputs)
    assert before > 1.5 and float(loss.total) / ROWS < 0.05
    assert int(loss.metrics["text_found"]) == int(loss.metrics["image_found"]) == ROWS


if __name__ == "__main__":
    torch.set_num_threads(1)
    worker(Path(sys.argv[1]), int(sys.argv[2]))
