"""Packed layers against the dense product of the values that they stand for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kiban.engine import reordered
from kiban.engine.packed import Dense, Int4, Int8, fits_int4, quantise4
from kiban.engine.reordered import Reordered
from kiban.weights.gguf_blocks import KINDS, dequantise


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", [Int8, Int4])
@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("biased", [False, True])
def test_a_kernel_multiplies_by_the_values_that_its_codes_stand_for(
    kind: type[Int8 | Int4], rows: int, biased: bool
) -> None:
    weight, bias = random(48, 64), random(48, seed=1) if biased else None
    layer, wide = kind(weight, bias), kind(weight, bias, few_rows=0)
    x = random(rows, 64, seed=2).bfloat16()
    assert layer.wide is None and wide.wide is not None
    by_kernel, by_copy = layer(x).float(), wide(x).float()
    assert by_kernel.shape == (rows, 48)
    assert (by_kernel - by_copy).abs().max() < 0.02 * by_copy.abs().max()
    exact = x.float() @ weight.T + (0 if bias is None else bias)
    assert float((by_kernel - exact).var() / exact.var()) < (0.01 if kind is Int4 else 0.001)


def test_leading_axes_are_kept() -> None:
    assert Int8(random(16, 32))(random(2, 3, 32).bfloat16()).shape == (2, 3, 16)
    assert Dense(random(16, 32))(random(2, 3, 32)).shape == (2, 3, 16)


def test_shapes_that_the_kernel_does_not_take_are_known() -> None:
    assert fits_int4(torch.empty(16, 32)) and not fits_int4(torch.empty(15, 32)) and not fits_int4(torch.empty(16, 40))


@pytest.mark.parametrize("number", [2, 3], ids=["Q4_0", "Q4_1"])
def test_the_codes_of_a_file_are_found_again_exactly(number: int) -> None:
    """Blocks with random nibbles; each holds a code 0 and 15 (Q4_1) or 0 (Q4_0), as ggml's quantiser makes them."""
    kind, rng = KINDS[number], np.random.default_rng(0)
    blocks = rng.integers(0, 256, (64, kind.bytes), dtype=np.uint8)
    scales = rng.uniform(0.01, 0.1, 64).astype(np.float16)
    blocks[:, 0:2] = (-scales if number == 2 else scales).view(np.uint8).reshape(64, 2)
    if number == 3:
        blocks[:, 2:4] = (-rng.uniform(0.1, 0.5, 64).astype(np.float16)).view(np.uint8).reshape(64, 2)
        blocks[:, 4] = 0xF0  # first value 0, seventeenth 15
    else:
        blocks[:, 2] = 0x00
    values = dequantise(blocks.reshape(-1), kind, (16, 128), torch.float32)
    codes, scale, start = quantise4(values)
    again = codes.view(16, 4, 32).float() * scale[..., None] + start[..., None]
    assert (again.flatten(1) - values).abs().max() < 1e-5
    nibbles = blocks[:, kind.bytes - 16 :]
    stored = torch.from_numpy(np.concatenate((nibbles & 15, nibbles >> 4), axis=1)).view(64, 32)
    # Read from the other end, the same grid has the mirrored codes.
    assert all(torch.equal(a, b) or torch.equal(a, 15 - b) for a, b in zip(codes.view(64, 32), stored, strict=True))


def test_a_large_matrix_is_quantised_as_its_rows_are() -> None:
    weight = random(600, 64)
    alone = [quantise4(row[None]) for row in weight]
    for whole, parts in zip(quantise4(weight), zip(*alone, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(parts))


def test_constant_groups_survive() -> None:
    weight = torch.zeros(16, 64)
    weight[3] = 0.25
    codes, scale, start = quantise4(weight)
    assert (codes.view(16, 2, 32).float() * scale[..., None] + start[..., None]).flatten(1).allclose(weight)


@pytest.mark.parametrize("ops", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reordered_weights_give_the_plain_product(
    monkeypatch: pytest.MonkeyPatch, ops: bool, dtype: torch.dtype
) -> None:
    if not ops:
        monkeypatch.setattr(reordered, "available", lambda weight: False)
    weight, bias, x, plus = random(24, 40), random(24, seed=1), random(5, 40, seed=2), random(5, 24, seed=3)
    parts = [t.to(dtype) for t in (weight, bias, x, plus)]
    tolerance = 1e-4 if dtype == torch.float32 else 0.15
    plain = x @ weight.T + bias
    layer = Reordered(parts[0], parts[1])
    assert (layer(parts[2]).float() - plain).abs().max() < tolerance
    assert (layer(parts[2], plus=parts[3]).float() - plain - plus).abs().max() < tolerance
    gelu = Reordered(parts[0], parts[1], gelu=True)(parts[2]).float()
    assert (gelu - torch.nn.functional.gelu(plain)).abs().max() < tolerance


def test_a_processor_without_bf16_instructions_is_served(tiny_bert_folder: Path) -> None:
    """oneDNN refuses to lay out bf16 weights there; here its view of the processor is narrowed."""
    code = f"""
import torch
from pathlib import Path
from kiban import zoo
from kiban.engine import reordered
from kiban.engine.encoder import EncoderPlan
print(reordered.available(torch.zeros(1, dtype=torch.bfloat16)))
plan = EncoderPlan(zoo.load(Path({str(tiny_bert_folder)!r})), dtype=torch.bfloat16)
print(plan.embed(["画像"]).norm().item())
"""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    usable, size = done.stdout.split()
    assert usable in ("False", "True") and float(size) == pytest.approx(1.0, abs=0.01), done.stderr
