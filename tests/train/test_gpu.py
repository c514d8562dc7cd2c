"""Training on a CUDA device, run by hand: `pytest -m gpu tests/train`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from kiban import zoo
from kiban.data.loader import Loader
from kiban.objectives.causal_lm import CausalLM
from kiban.objectives.linear_cross_entropy import linear_cross_entropy
from kiban.train.parallel import Parallel
from kiban.train.settings import TrainConfig
from kiban.train.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def lm(
    preset: str, device: str, *, folder: Path | None = None, parallel: Parallel | None = None, **changes: Any
) -> Trainer:
    """A trainer of a tiny decoder on made-up rows."""
    module: Any = zoo.create(preset, generator=torch.Generator().manual_seed(0)).module.to(device)
    rows = [[(i + j * (1 + i % 5)) % 50 for j in range(33)] for i in range(40)]

    def collate(some: list[list[int]]) -> dict[str, torch.Tensor]:
        tokens = torch.tensor(some)
        return {"tokens": tokens, "documents": torch.zeros_like(tokens)}

    values = {"steps": 12, "batch_size": 8, "micro_batch_size": 4, "lr": 3e-3, "precision": "fp32", **changes}
    loader = Loader(rows, collate, batch_size=8, seed=0)
    return Trainer(CausalLM(module), module, loader, TrainConfig(**values), folder=folder, parallel=parallel)


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Of the first batch, on the CPU, and the "loss"."""
    trainer.module.train()
    loss = trainer._gradients(list(range(8)))[0]
    found = {name: p.grad.cpu() for name, p in trainer.parameters.items() if p.grad is not None}
    return {**found, "loss": torch.tensor(loss)}


@pytest.mark.parametrize("preset", ["gpt-tiny", "llama-tiny"])
def test_loss_and_gradients_are_those_of_the_cpu(preset: str) -> None:
    expected, found = gradients(lm(preset, "cpu")), gradients(lm(preset, "cuda"))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("preset", ["gpt-tiny", "llama-tiny"])
def test_bfloat16_and_compiled_blocks_learn_alike(preset: str) -> None:
    def losses(**changes: Any) -> list[float]:
        trainer = lm(preset, "cuda", **changes)
        return [_loss(trainer) for _ in range(20)]

    exact, narrow, compiled = losses(), losses(precision="auto"), losses(precision="auto", compile=True)
    assert exact[-1] < exact[0] - 0.1
    for other in (narrow, compiled):
        assert max(abs(a - b) for a, b in zip(exact, other, strict=True)) < 0.05


def _loss(trainer: Trainer) -> float:
    """Take a step; returns its loss."""
    found: list[float] = []
    compute = trainer._gradients

    def watched(ids: list[int]) -> tuple[float, dict[str, float], int]:
        values = compute(ids)
        found.append(values[0])
        return values

    trainer._gradients = watched  # type: ignore[method-assign]
    trainer._step()
    trainer._gradients = compute  # type: ignore[method-assign]
    return found[0]


def test_a_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    with sdpa_kernel(SDPBackend.MATH):  # the others add up gradients in no fixed order
        whole = lm("llama-tiny", "cuda", folder=tmp_path / "whole", checkpoint_every=4)
        whole.run()
        shutil.copytree(tmp_path / "whole" / "step-8", tmp_path / "resumed" / "step-8")
        resumed = lm("llama-tiny", "cuda", folder=tmp_path / "resumed", checkpoint_every=4)
        resumed.run()
    for name, p in whole.parameters.items():
        assert torch.equal(p, resumed.parameters[name]), name


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_nccl_with_one_process_changes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from kiban.train.parallel import launch
    from kiban.train.parallel.processes import Replicated
    from kiban.train.parallel.sharded import Sharded

    values = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    alone = [_loss(trainer) for trainer in [lm("llama-tiny", "cuda")] for _ in range(5)]
    place = launch._join("cuda", 30.0)
    trainer = lm("llama-tiny", "cuda", parallel=Replicated(place) if kind == "ddp" else Sharded(place, 1))
    together = [_loss(trainer) for _ in range(5)]
    assert alone == pytest.approx(together, abs=1e-4)


@pytest.mark.parametrize("z_loss", [0.0, 1e-3])
def test_the_chunked_loss_is_that_of_the_cpu(z_loss: float) -> None:
    g = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, generator=g) for shape in ((300, 32), (1000, 32), (1000,)))
    targets = torch.randint(1000, (300,), generator=g).masked_fill(torch.arange(300) % 3 == 0, -100)
    found = []
    for device in ("cpu", "cuda"):
        inputs = [t.to(device).requires_grad_() for t in (hidden, weight, bias)]
        total, z, hits = linear_cross_entropy(
            inputs[0], inputs[1], targets.to(device), bias=inputs[2], z_loss=z_loss, chunk=64
        )
        parts = [total.detach(), z, hits.float(), *torch.autograd.grad(total, inputs)]
        found.append([part.cpu() for part in parts])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)
