"""Compiled steps against the plan that they are made from."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import torch

from kiban import zoo
from kiban.engine import compiled
from kiban.engine.compiled import Compiled
from kiban.engine.decoder import DecoderPlan, Weights
from kiban.engine.pages import PagedKeys, Part
from kiban.engine.scheduler import Scheduler
from kiban.inputs.tokenizer import Tokenizer
from listener import Listener, small_llama

PAGES = 12


@pytest.fixture(scope="module", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KIBAN_HOME", str(tmp_path_factory.mktemp("home")))
        yield


STEP = [Part([1], 4, [0])]


def plan_in(weights: Weights, **changes: Any) -> DecoderPlan:
    model = small_llama(dim=64, num_heads=4, head_dim=16, **changes)
    loaded = zoo.Loaded(zoo.families()["llama"], model.config, model, None, None, (), "small", None)
    return DecoderPlan(loaded, weights=weights, copy=False)


def made(plan: DecoderPlan) -> Compiled:
    """With all its libraries, or without any if that fails."""
    keys = PagedKeys(plan.config, PAGES, dtype=torch.float32)
    keys.both.normal_(generator=torch.Generator().manual_seed(0))
    found, until = Compiled(plan, keys, patience=1), time.monotonic() + 300
    while not found.done:
        assert time.monotonic() < until
        found(STEP)
        time.sleep(0.1)
    return found


def check(fast: Compiled, parts: list[Part]) -> None:
    """Logits and all stored keys are those of the plan."""
    before, bound = fast.keys.both.clone(), 1e-4 if fast.plan.weights == "fp32" else 0.05
    logits = fast(parts)
    assert logits is not None and logits.shape == (len(parts), fast.plan.config.vocab_size)
    stored = fast.keys.both[:, :, :, : PAGES * 32].clone()
    fast.keys.both.copy_(before)
    assert (logits - fast.plan.step(parts, fast.keys)).abs().max() < bound * logits.abs().max()
    changed = fast.keys.both[:, :, :, : PAGES * 32]
    assert (stored - changed).abs().max() < bound * changed.abs().max()
    assert not torch.equal(changed, before[:, :, :, : PAGES * 32])


@torch.inference_mode()
@pytest.mark.parametrize(
    ("weights", "changes", "sizes"),
    [
        ("int4", {"qkv_bias": True, "sliding_window": 90}, (2,)),
        pytest.param("fp32", {}, (1, 4), marks=pytest.mark.slow),
        pytest.param("int8", {"num_kv_heads": 4}, (1, 2), marks=pytest.mark.slow),
    ],
    ids=["int4", "fp32", "int8"],
)
def test_a_compiled_step_is_the_plans(
    weights: Weights, changes: dict[str, Any], sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "SIZES", sizes)
    plan = plan_in(weights, **changes)
    fast = made(plan)
    assert fast.num_ready == len(sizes)
    check(fast, [Part([5], 40, [3, 4])])
    check(fast, [Part([5], 1, [7])])
    if max(sizes) > 1:
        check(fast, [Part([9], 32, [5, 6]), Part([200], 77, [8, 9, 10])])
    # What it does not take: pages that do not follow each other, several tokens, several logits, too many answers.
    assert fast([Part([5], 40, [3, 5])]) is None
    assert fast([Part([5], 0, [3])]) is None
    assert fast([Part([5, 6], 40, [3, 4])]) is None
    assert fast([Part([5, 6], 40, [3, 4], num_logits=2)]) is None
    assert fast(STEP * (max(sizes) + 1)) is None
    if plan.config.sliding_window:
        assert fast([Part([5], 89, [0, 1, 2])]) is not None
        assert fast([Part([5], 90, [0, 1, 2])]) is None
    fast.close()
    assert fast(STEP) is None
    again = Compiled(plan, fast.keys)  # another start of the same machine
    assert again.done and again(STEP) is not None


@pytest.mark.parametrize("compiler", ["/no/such/compiler", "/bin/false"])
def test_where_nothing_can_be_compiled_answers_are_the_same(
    byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, compiler: str
) -> None:
    monkeypatch.setattr(compiled, "PATIENCE", 1)
    monkeypatch.setenv("CXX", compiler)
    caplog.set_level(logging.WARNING)
    plan, told = plan_in("fp32", ffn_dim=32), []
    for choice in (True, False):
        engine = Scheduler(plan, byte_tokenizer, compiled=choice)
        until = time.monotonic() + 120
        while True:
            listener = Listener()
            engine.submit(listener.request([1, 2, 3], max_new_tokens=20))
            told.append(listener.wait().ids)
            if not choice or caplog.records:
                break
            assert time.monotonic() < until
            time.sleep(0.2)  # the child has the lowest priority
        engine.close(drain=0)
    assert all(ids == told[-1] for ids in told)
    assert "not compiled" in caplog.text


def test_closing_ends_the_child_and_its_compilers() -> None:
    plan = plan_in("fp32", ffn_dim=64)
    fast = Compiled(plan, PagedKeys(plan.config, PAGES, dtype=torch.float32), patience=1)
    others = set(psutil.Process().children(recursive=True))
    fast(STEP)
    until = time.monotonic() + 60
    while not (children := set(psutil.Process().children(recursive=True)) - others):
        assert time.monotonic() < until
        time.sleep(0.05)
    fast.close()
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    assert not list(fast.folder.glob("tmp*")) and fast.done


def test_a_home_that_cannot_be_written_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KIBAN_HOME", "/dev/null/home")
    plan = plan_in("fp32")
    fast = Compiled(plan, PagedKeys(plan.config, PAGES, dtype=torch.float32), patience=1)
    assert fast(STEP) is None
    until = time.monotonic() + 30
    while not fast.done:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert "not compiled" in caplog.text


def test_a_broken_library_is_told_and_left(caplog: pytest.LogCaptureFixture) -> None:
    plan = plan_in("int8")
    keys = PagedKeys(plan.config, PAGES, dtype=torch.float32)
    folder = Compiled(plan, keys).folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "1.so").write_bytes(b"no library")
    fast = Compiled(plan, keys)
    assert fast.num_ready == 0 and fast.sizes == [2, 4, 8] and fast(STEP) is None
    assert str(folder / "1.so") in caplog.text
    (folder / "1.so").unlink()


def test_a_plan_with_weights_of_its_own_layout_is_left_alone() -> None:
    plan = plan_in("bf16")
    fast = Compiled(plan, PagedKeys(plan.config, PAGES, dtype=torch.float32), patience=1)
    assert fast.done and fast(STEP) is None
