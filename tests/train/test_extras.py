"""What a run may do besides: average, recompute, compile, keep to a time, sample; and the curve of another library."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kiban import zoo
from kiban.data.loader import Loader
from kiban.errors import ConfigError
from kiban.objectives.causal_lm import CausalLM
from kiban.train.average import Average
from kiban.train.blocks import blocks_of
from kiban.train.settings import TrainConfig
from kiban.train.trainer import Trainer

Make = Callable[..., Trainer]


def texts(count: int = 40, length: int = 33) -> list[list[int]]:
    """Sequences with a rule in them: each token is the one before plus a step of the sequence's own."""
    return [[(i + j * (1 + i % 5)) % 50 for j in range(length)] for i in range(count)]


def collate(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    tokens = torch.tensor(rows)
    return {"tokens": tokens, "documents": torch.zeros_like(tokens)}


def lm(preset: str = "gpt-tiny", **changes: Any) -> Trainer:
    loaded = zoo.create(preset, generator=torch.Generator().manual_seed(0))
    values = {"steps": 12, "batch_size": 8, "micro_batch_size": 8, "lr": 3e-3, "precision": "fp32", **changes}
    module: Any = loaded.module
    loader = Loader(texts(), collate, batch_size=values["batch_size"], seed=0)
    return Trainer(CausalLM(module), module, loader, TrainConfig(**values))


def parameters(trainer: Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.module.parameters()]


@pytest.mark.parametrize("preset", ["gpt-tiny", "llama-tiny"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_decoder_learns_a_batch_by_heart(preset: str, optimizer: str, tmp_path: Path) -> None:
    trainer = lm(preset, steps=100, optimizer=optimizer, lr=5e-3, batch_size=40, micro_batch_size=40)
    trainer.folder, trainer.log.path = None, tmp_path / "metrics.jsonl"
    trainer.run()
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] > 6 and losses[-1] < 0.5


def test_the_average_follows_its_formula_and_is_what_a_run_keeps() -> None:
    p = torch.nn.Parameter(torch.zeros(2))
    average = Average({"p": p}, 0.9)
    expected = 0.0
    for step in range(1, 30):
        with torch.no_grad():
            p.fill_(float(step))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.values["p"][0].item() == pytest.approx(expected, rel=1e-6)
    with average.applied():
        assert p[0].item() == pytest.approx(expected, rel=1e-6)
    assert p[0].item() == 29.0

    trainer = lm(ema=0.9)
    trainer.run()
    assert trainer.average is not None
    kept = dict(trainer.module.named_parameters())
    assert all(torch.equal(kept[name], value) for name, value in trainer.average.values.items())


def test_computing_the_blocks_twice_changes_nothing() -> None:
    first, second = lm(recompute=False), lm(recompute=True)
    first.run()
    second.run()
    assert all(torch.equal(a, b) for a, b in zip(parameters(first), parameters(second), strict=True))


def test_computing_the_blocks_twice_keeps_only_their_inputs() -> None:
    """Bytes that autograd keeps for the backward pass."""
    kept = []
    for recompute in (False, True):
        trainer, sizes = lm(recompute=recompute), list[int]()

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer.objective(collate(texts(8)))
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.slow
def test_compiled_blocks_train_alike() -> None:
    first, second = lm(), lm(compile=True)
    first.run()
    second.run()
    assert len(blocks_of(second.module)) == 2
    for a, b in zip(parameters(first), parameters(second), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_a_time_budget_is_kept_and_the_rate_has_fallen_to_nothing_at_its_end(tmp_path: Path) -> None:
    trainer = lm(steps=10_000, seconds=4.0, schedule="wsd", warmup=0.02)
    trainer.log.path = tmp_path / "metrics.jsonl"
    start = time.perf_counter()
    result = trainer.run()
    assert 2.0 < time.perf_counter() - start < 8.0
    rates = [json.loads(line)["lr"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert result.steps == len(rates) and rates[-1] < 0.1 * max(rates)


def test_a_time_budget_ends_early_where_the_text_is_used_up(tmp_path: Path) -> None:
    trainer = lm(steps=10_000, seconds=60.0, most_steps=30, schedule="wsd", warmup=0.02)
    trainer.log.path = tmp_path / "metrics.jsonl"
    assert trainer.run().steps == 30
    rates = [json.loads(line)["lr"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rates[-1] < 0.1 * max(rates)


def test_a_time_budget_needs_a_schedule_that_may_end_late() -> None:
    with pytest.raises(ConfigError, match="wsd"):
        lm(seconds=4.0, schedule="cosine")


def test_samples_and_rows_are_logged(trainer_of: Make, tmp_path: Path) -> None:
    trainer_of(tmp_path, steps=6, sample=lambda: "これはサンプルです", sample_every=3).run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines if "sample" in line] == [3, 6]
    rows = [line["rows"] for line in lines if "rows" in line]
    assert len(rows) == 6 == len(set(rows))
    assert "これはサンプルです" in (tmp_path / "metrics.jsonl").read_text("utf-8")


def test_the_loss_curve_is_that_of_transformers() -> None:
    """The same weights, data and optimiser: 50 steps, each loss within 1e-4."""
    from transformers import GPT2Config, GPT2LMHeadModel

    trainer = lm(steps=50, lr=1e-3, schedule="constant", warmup=0.0, weight_decay=0.0)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=512, n_layer=2, n_embd=64, n_head=4, n_positions=256, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
        )
    ).train()
    family = zoo.families()["gpt"]
    from kiban.weights.names import to_published

    names = family.hf_names(zoo.presets()["gpt-tiny"][1])
    published = to_published(names, dict(trainer.module.named_parameters()))
    missing, unexpected = theirs.load_state_dict({n: t.detach().clone() for n, t in published.items()}, strict=False)
    assert not unexpected and missing == ["lm_head.weight"]
    theirs.tie_weights()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    for step in range(50):
        ids = trainer.loader.next_ids()
        tokens = trainer.loader.batch(ids)["tokens"]
        loss, _, _ = trainer._gradients(ids)
        expected = theirs(tokens, labels=tokens).loss
        expected.backward()
        for model in (trainer.module, theirs):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        trainer.optimizers[0].step()
        trainer.optimizers[0].zero_grad()
        assert abs(loss - expected.item()) < 1e-4, f"step {step}"
