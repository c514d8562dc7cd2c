"""Kernels of our own against what they stand for: the same weights and activations, rounded by torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kiban import zoo
from kiban.engine import kernels
from kiban.engine.decoder import DecoderPlan
from kiban.engine.kernels import OneEach, Rounding
from kiban.engine.packed import quantise4
from kiban.engine.pages import PAGE, PagedKeys, Part
from kiban.engine.probe import compiler_of_cpp, features
from kiban.engine.ragged import Ragged
from kiban.weights.gguf_blocks import KINDS, dequantise
from layouts import LAYOUTS, Layout
from listener import small_llama

pytestmark = pytest.mark.skipif(
    compiler_of_cpp() is None or not set(kernels.NEEDED) <= set(features().split()),
    reason="no C++ compiler, or no Linux on x86 with AVX2",
)


@pytest.fixture(autouse=True)
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The library of a processor without AVX-512."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KIBAN_HOME", str(tmp_path_factory.mktemp("narrow")))
        patch.setattr(kernels, "FLAGS", tuple(flag.replace("native", "haswell") for flag in kernels.FLAGS))
        return kernels.library.__wrapped__()


@pytest.fixture(params=["native", "AVX2"])
def either(request: pytest.FixtureRequest, narrow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine has, and what most have."""
    if request.param == "AVX2":
        monkeypatch.setattr(kernels, "library", lambda: narrow)


BITS: tuple[Literal[4, 8], ...] = (4, 8)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights_of(bits: int, weight: Tensor) -> Tensor:
    """The values that the codes stand for."""
    if bits == 4:
        codes, scale, minimum = quantise4(weight)
        spread = [part.half().float().repeat_interleave(32, dim=1) for part in (scale, minimum)]
        return codes * spread[0] + spread[1]
    scale = (weight.unflatten(1, (-1, 32)).abs().amax(-1) / 127).half().float().repeat_interleave(32, dim=1)
    return (weight / scale).round() * scale


def rounded(x: Tensor) -> Tensor:
    """In 8 bits with a scale for 32."""
    groups = x.unflatten(-1, (-1, 32))
    scale = groups.abs().amax(-1, keepdim=True) / 127
    return ((groups * (1 / scale.clamp(min=1e-12))).round() * scale).flatten(-2)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 29])
def test_a_product_is_that_of_the_rounded_numbers(bits: Literal[4, 8], rows: int) -> None:
    weight, x, bias, plus = random(48, 96), random(rows, 96, seed=1), random(48, seed=2), random(rows, 48, seed=3)
    layer = Rounding(bits, weight, bias)
    expected = rounded(x).double() @ weights_of(bits, weight).double().T + bias
    assert (layer(x) - expected).abs().max() < 1e-4
    assert (layer(x, plus=plus) - expected - plus).abs().max() < 1e-4
    assert layer(x[None]).shape == (1, rows, 48) and Rounding(bits, weight)(torch.zeros(rows, 96)).abs().max() == 0


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", [2.0**-40, 2.0**-20, 2.0**20, 2.0**40])
def test_weights_may_be_of_any_size(bits: Literal[4, 8], size: float) -> None:
    weight, x = random(32, 64), random(5, 64, seed=1)
    usual, found = Rounding(bits, weight)(x), Rounding(bits, weight * size)(x) / size
    assert (found - usual).abs().max() < 1e-5


@pytest.mark.parametrize("bits", BITS)
def test_many_rows_are_as_few(bits: Literal[4, 8]) -> None:
    """They go in slices of 256."""
    layer, x, plus = (
        Rounding(bits, random(32, 64), random(32, seed=3)),
        random(600, 128, seed=1),
        random(600, 32, seed=2),
    )
    parts = [layer(x[at : at + 8], gated=True, plus=plus[at : at + 8]) for at in range(0, 600, 8)]
    assert (layer(x, gated=True, plus=plus) - torch.cat(parts)).abs().max() < 1e-5


@pytest.mark.parametrize(
    "wrong",
    [{"x": random(5, 96)}, {"x": random(5, 64).double()}, {"plus": random(4, 32)}, {"norm": random(32)}],
    ids=str,
)
def test_what_does_not_fit_is_not_computed(wrong: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        Rounding(4, random(32, 64))(**{"x": random(5, 64)} | wrong)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("bits", BITS)
def test_norms_and_gates_come_before(bits: Literal[4, 8]) -> None:
    """Rounding may fall to the other side where a number is between two: by a part in 254 of the largest."""
    layer, norm = Rounding(bits, random(32, 64)), random(64, seed=1)
    x, both = random(9, 64, seed=2) * 50, random(9, 128, seed=3) * 50
    normed = F.rms_norm(x, (64,), norm, 0.3)
    assert (layer(x, norm=norm * 8, floor=64 * 0.3) - layer(normed)).abs().max() < 0.02
    silent = F.silu(both[:, :64]) * both[:, 64:]
    assert (layer(both, gated=True) - layer(silent)).norm() < 2e-3 * layer(silent).norm()
    assert layer(torch.full((1, 128), -1e4), gated=True).abs().max() == 0  # exp(1e4) is no number


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_no_number_stays_none_in_its_row_alone(wrong: float) -> None:
    layer, x = Rounding(4, random(32, 64)), random(5, 64, seed=1)
    x[3, 40] = wrong
    for found in (layer(x), layer(x, norm=torch.ones(64), floor=1.0), layer(torch.cat((x, x), 1), gated=True)):
        assert found[3].isnan().all() and found[[0, 1, 2, 4]].isfinite().all()


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(("name", "bits"), [("Q4_0", 4), ("Q4_1", 4), ("Q8_0", 8)])
def test_the_values_of_a_file_are_kept_exactly(name: str, bits: Literal[4, 8]) -> None:
    """Blocks as ggml's quantiser makes them: some code is the largest or the smallest one."""
    kind, rng = next(kind for kind in KINDS.values() if kind.name == name), np.random.default_rng(0)
    blocks = rng.integers(0, 256, (64, kind.bytes), dtype=np.uint8)
    scales = rng.uniform(0.01, 0.1, 64).astype(np.float16)
    blocks[:, 0:2] = (-scales if name == "Q4_0" else scales).view(np.uint8).reshape(64, 2)
    if name == "Q4_1":
        blocks[:, 2:4] = (-rng.uniform(0.1, 0.5, 64).astype(np.float16)).view(np.uint8).reshape(64, 2)
        blocks[:, 4] = 0xF0
    if name == "Q4_0":
        blocks[:, 2] &= 0xF0
    if name == "Q8_0":
        blocks[:, 2:][blocks[:, 2:] == 128] = 0  # -128, which it never writes
        blocks[:, 2] = 127
    weight = dequantise(blocks.reshape(-1), kind, (32, 64), torch.float32)
    x = torch.randint(-127, 128, (5, 64), generator=torch.Generator().manual_seed(0)).float()
    x[:, ::32] = 127  # so that rounding changes nothing
    assert (Rounding(bits, weight)(x) - x.double() @ weight.double().T).abs().max() < 2e-3


@pytest.mark.usefixtures("either")
@torch.inference_mode()
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("heads", [(4, 2, 16), (3, 3, 64), (8, 1, 32)], ids=str)
def test_attention_over_pages_is_torchs(layout: Layout, heads: tuple[int, int, int]) -> None:
    num_heads, num_kv_heads, size = heads
    config = small_llama(dim=64, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=size).config
    keys = PagedKeys(config, 48, dtype=torch.float32)
    keys.both.normal_(generator=torch.Generator().manual_seed(0))
    parts = [Part([1], end - 1, pages) for end, pages in layout]
    q = random(1, len(parts), num_heads + 2 * num_kv_heads, size, seed=1)[:, :, :num_heads]  # a view, as in a plan
    found = OneEach(parts)(q, keys.layers[1])
    for row, part in enumerate(parts):
        places = torch.cat([torch.arange(page * PAGE, (page + 1) * PAGE) for page in part.pages])[: part.end]
        k, v = keys.layers[1][:, places].chunk(2)
        expected = F.scaled_dot_product_attention(q[0, row][:, None], *(
            side.repeat_interleave(num_heads // num_kv_heads, 0) for side in (k, v)
        ))  # fmt: skip
        assert (found[0, row] - expected[:, 0]).abs().max() < 1e-5


@pytest.mark.usefixtures("either")
@torch.inference_mode()
def test_attention_survives_scores_that_are_far_apart() -> None:
    keys = PagedKeys(small_llama(dim=32, num_heads=1, num_kv_heads=1, head_dim=32).config, 2, dtype=torch.float32)
    keys.both.fill_(100.0)
    keys.layers[0][0, 7] = 300.0
    keys.layers[0][1] = torch.arange(96.0)[:, None]
    q = torch.full((1, 1, 1, 32), 100.0)
    assert (OneEach([Part([1], 39, [0, 1])])(q, keys.layers[0]) - 7).abs().max() < 1e-4
    keys.layers[0][0, 3] = torch.nan
    assert OneEach([Part([1], 39, [0, 1])])(q, keys.layers[0]).isnan().all()


def plan_of(weights: Any, **changes: Any) -> tuple[zoo.Loaded, DecoderPlan]:
    changes = {"dim": 64, "num_heads": 4, "head_dim": 16, "ffn_dim": 96, "vocab_size": 299} | changes
    model = small_llama(**changes)
    loaded = zoo.Loaded(zoo.families()["llama"], model.config, model, None, None, (), "small", None)
    return loaded, DecoderPlan(loaded, weights=weights)


@pytest.mark.usefixtures("either")
@torch.inference_mode()
@pytest.mark.parametrize(("weights", "bits", "bar"), [("int4", 4, 0.3), ("int8", 8, 0.02)])
def test_a_plan_has_them_and_stays_close(weights: str, bits: Literal[4, 8], bar: float) -> None:
    loaded, plan = plan_of(weights, qkv_bias=True)
    assert all(isinstance(part, Rounding) and part.bits == bits for layer in plan.layers for part in layer.products)
    assert isinstance(plan.head, Rounding) and plan.head.bits == 8
    tokens = torch.randint(0, plan.config.vocab_size, (2, 20), generator=torch.Generator().manual_seed(0))
    whole, truth = plan(tokens), loaded.module(tokens)
    assert float((whole - truth).var() / truth.var()) < bar
    exact = DecoderPlan(loaded, weights=weights, copy=True)(tokens)  # type: ignore[arg-type]
    assert float((whole - exact).var() / exact.var()) < 2e-3  # what rounding activations costs
    cache = plan.make_cache(2, 20)
    one_by_one = torch.cat([plan(tokens[:, t : t + 1], cache=cache) for t in range(20)], dim=1)
    assert float((whole - one_by_one).var() / whole.var()) < 1e-4  # a number may be rounded to the other side


@torch.inference_mode()
@pytest.mark.parametrize("window", [None, 40])
def test_steps_of_a_plan_agree_with_and_without_them(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window is shorter than some answers: then torch's attention serves."""
    _, plan = plan_of("fp32", sliding_window=window)
    keys = PagedKeys(plan.config, 8, dtype=torch.float32)
    keys.both.normal_(generator=torch.Generator().manual_seed(0))
    parts = [Part([7], 20, [3]), Part([9], 70, [6, 2, 5])]
    ours = plan.step(parts, keys)
    assert (Ragged(parts, keys, window=window)._kernel is None) == (window is not None)
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert Ragged(parts, keys, window=window)._kernel is None
    assert (ours - plan.step(parts, keys)).abs().max() < 1e-4


@pytest.mark.parametrize("changes", [{"ffn_dim": 72}, {"dim": 48}], ids=str)
def test_shapes_that_do_not_fit_are_left_to_torch(changes: dict[str, int]) -> None:
    _, plan = plan_of("int8", **changes)
    assert not any(isinstance(part, Rounding) for layer in plan.layers for part in layer.products)
    assert not isinstance(plan.head, Rounding)


@pytest.mark.parametrize("compiler", ["/no/such/compiler", "/bin/false", "slow"])
def test_without_a_compiler_that_works_torch_serves(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setenv("KIBAN_HOME", str(tmp_path))
    if compiler == "slow":
        script = tmp_path / "slow"
        script.write_text("#!/bin/sh\nexec sleep 60\n")
        script.chmod(0o755)
        monkeypatch.setattr(kernels, "SECONDS", 0.2)
        compiler = str(script)
    monkeypatch.setenv("CXX", compiler)
    assert kernels.library.__wrapped__() is None and "compile" in caplog.text
    assert not list(tmp_path.glob("compiled/*"))
    monkeypatch.setattr(kernels, "library", lambda: None)
    _, plan = plan_of("int4")
    assert not isinstance(plan.layers[0].qkv, Rounding)


def test_a_library_is_made_once_and_a_broken_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KIBAN_HOME", str(tmp_path))
    assert kernels.library.__wrapped__() is not None
    (made,) = tmp_path.glob("compiled/*")
    when = made.stat().st_mtime_ns
    assert kernels.library.__wrapped__() is not None and made.stat().st_mtime_ns == when
    monkeypatch.setenv("KIBAN_HOME", str(tmp_path / "other"))  # an open one is not opened again
    broken = tmp_path / "other" / "compiled" / made.name
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no library")
    assert kernels.library.__wrapped__() is None and str(broken) in caplog.text


def test_the_memory_of_the_weights_is_told() -> None:
    _, plan = plan_of("int4")
    inner = sum(part.num_in * part.num_out for layer in plan.layers for part in layer.products)  # type: ignore[union-attr]
    assert plan.num_bytes == inner * 320 // 512 + 304 * 64 * 544 // 512 + 299 * 64 * 2
