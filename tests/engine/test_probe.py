"""Measurements that choose, and that a machine remembers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kiban import zoo
from kiban.engine import probe
from kiban.engine.decoder import DecoderPlan
from kiban.engine.packed import Int8, bf16_pays, rows_for_kernel
from listener import small_llama


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KIBAN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def answer(*values: Any) -> Any:
    """A measurement that gives these values in turn, and fails after them."""
    left = iter(values)
    return lambda: next(left)


def test_the_way_that_is_faster_wins() -> None:
    assert probe.crossover(lambda n: None, lambda n: sum(range(20_000)), (1, 2, 4)) == 4
    assert probe.crossover(lambda n: sum(range(20_000)), lambda n: None, (1, 2, 4)) == 0


def test_an_answer_is_measured_once(own_home: Path) -> None:
    assert probe.remembered("a", answer(None)) is None and probe.remembered("b", answer(3)) == 3
    assert probe.remembered("a", answer()) is None and probe.remembered("b", answer()) == 3
    (kept,) = json.loads((own_home / "probes.json").read_text("utf-8")).values()
    assert kept == {"a": None, "b": 3}


def test_another_machine_measures_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe.remembered("a", answer(1)) == 1
    with monkeypatch.context() as other:
        other.setattr(torch, "__version__", "0")
        assert probe.remembered("a", answer(2)) == 2
    assert probe.remembered("a", answer()) == 1


def test_what_cannot_be_kept_is_measured_again(own_home: Path) -> None:
    own_home.mkdir()
    (own_home / "probes.json").write_text("{", encoding="utf-8")
    assert probe.remembered("a", answer(1)) == 1  # a broken file is replaced
    assert probe.remembered("a", answer()) == 1
    (own_home / "probes.json").unlink()
    own_home.rmdir()
    own_home.write_text("a file where the folder should be", encoding="utf-8")
    assert probe.remembered("a", answer(1, 2)) == 1 and probe.remembered("a", answer(2)) == 2


def test_layers_are_measured_once(own_home: Path) -> None:
    rows = rows_for_kernel(Int8(random(64, 64), few_rows=1))
    assert rows in (None, 1, 2, 4, 8, 16, 32) and rows_for_kernel(Int8(random(64, 64), few_rows=1)) == rows
    assert bf16_pays(random(64, 64)) in (True, False)
    (kept,) = json.loads((own_home / "probes.json").read_text("utf-8")).values()
    assert len(kept) == 2


def test_measuring_leaves_the_global_randomness_alone() -> None:
    before = torch.get_rng_state()
    rows_for_kernel(Int8(random(64, 64), few_rows=1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("pays", "weights"), [(True, "bf16"), (False, "fp32")])
def test_a_plan_takes_the_weights_that_pay(monkeypatch: pytest.MonkeyPatch, pays: bool, weights: str) -> None:
    monkeypatch.setattr("kiban.engine.decoder.bf16_pays", lambda weight: pays)
    module = small_llama()
    loaded = zoo.Loaded(zoo.families()["llama"], module.config, module, None, None, (), "small", None)
    assert DecoderPlan(loaded, weights="auto").weights == weights
