"""The child of `engine/compiled.py`: makes libraries of decode steps with torch's ahead-of-time compiler.

stdin: one line of JSON with shape, folder and sizes. It ends early when stdin is closed, since then nobody wants them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.engine.decoder import DecoderPlan, Layer
from kiban.engine.packed import Dense, Int4, Int8
from kiban.errors import KibanError
from kiban.files import exclusive, staged_file

NAME = "{}.so"  # of the library for so many answers
KINDS: dict[str, type[Dense | Int8 | Int4]] = {"Dense": Dense, "Int8": Int8, "Int4": Int4}


class Step(nn.Module):
    """States before the head of one new token for each answer."""

    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        self.shape, self.config = shape, SimpleNamespace(**shape["config"])

    def forward(self, tokens: Tensor, turn: Tensor, past: Tensor, tensors: list[Tensor], held: list[Tensor]) -> Tensor:
        """tokens: (1, B); turn: (1, B, H + 2 Hkv, Dh / 2, 2); past: (B,). held: of each answer, of each layer, keys and
        behind them values, (2 Hkv, past + 1, Dh); the last ones are written here. Out: (B, D)."""
        c = self.config

        def rotate(h: Tensor) -> Tensor:
            (a, b), (real, imaginary) = h.view(*h.shape[:-1], -1, 2).unbind(-1), turn.unbind(-1)
            return torch.stack((a * real - b * imaginary, a * imaginary + b * real), dim=-1).flatten(-2)

        def mix(q: Tensor, kv: Tensor, layer: int) -> Tensor:
            mixed = []
            for row, view in enumerate(held[layer :: c.num_layers]):
                view.index_copy_(1, past[row : row + 1], kv[0, row][:, None])
                # The heads of a group are more queries of one head, as in `attend`.
                folded = q[:, row].reshape(1, c.num_kv_heads, -1, c.head_dim)
                keys, values = view[None].chunk(2, dim=1)
                mixed.append(F.scaled_dot_product_attention(folded, keys, values))
            return torch.cat(mixed).view(q.shape)

        plan = plan_of(self.shape, tensors)
        return plan.normed(plan.hidden(tokens, rotate, mix)[0], plan.norm)


def plan_of(shape: dict[str, Any], tensors: Sequence[Tensor]) -> DecoderPlan:
    """A plan without head."""
    rest = iter(tensors)
    table, norm = next(rest), next(rest)

    def layer() -> Layer:
        norm1, norm2 = next(rest), next(rest)
        parts = [_product(KINDS[kind], [next(rest) for _ in range(count)]) for kind, count in shape["layer"]]
        return Layer(norm1=norm1, norm2=norm2, qkv=parts[0], out=parts[1], gate_up=parts[2], down=parts[3])

    config = SimpleNamespace(**shape["config"])
    return DecoderPlan.of(config, table.dtype, table, norm, [layer() for _ in range(config.num_layers)])


def _product(kind: type[Dense | Int8 | Int4], tensors: list[Tensor]) -> Any:
    return Dense(*tensors) if kind is Dense else kind.of(*tensors)  # type: ignore[union-attr]


def build(shape: dict[str, Any], answers: int, path: Path) -> None:
    """Make the library for so many answers; it takes a minute or more."""
    config = SimpleNamespace(**shape["config"])
    torch.set_num_threads(shape["threads"])
    heads = config.num_heads + 2 * config.num_kv_heads
    tensors = [torch.empty(size, dtype=getattr(torch, dtype)) for size, dtype in shape["tensors"]]
    stride = (shape["places"] * config.head_dim, config.head_dim, 1)
    # Lengths that differ, or they would be taken for one. Nothing is read here, so nothing of this is really in memory.
    held = [
        torch.empty_strided((2 * config.num_kv_heads, 40 + row, config.head_dim), stride)
        for row in range(answers)
        for _ in range(config.num_layers)
    ]
    inputs = (
        torch.zeros(1, answers, dtype=torch.int64),
        torch.zeros(1, answers, heads, config.head_dim // 2, 2),
        torch.ones(answers, dtype=torch.int64),
        tensors,
        held,
    )
    lengths = [torch.export.Dim(f"length{row}", min=2, max=shape["places"] - 1) for row in range(answers)]
    spans = [{1: lengths[row]} for row in range(answers) for _ in range(config.num_layers)]
    with torch.no_grad():
        exported = torch.export.export(
            Step(shape), inputs, dynamic_shapes=(None, None, None, [None] * len(tensors), spans), strict=False
        )
        with tempfile.TemporaryDirectory() as scratch:
            package = torch._inductor.aoti_compile_and_package(exported, package_path=f"{scratch}/made.pt2")
            with zipfile.ZipFile(package) as members, staged_file(path) as staged:
                (name,) = (name for name in members.namelist() if name.endswith((".so", ".pyd")))
                staged.write_bytes(members.read(name))


def _end_with(parent: Any) -> None:
    """Wait until stdin is closed, then end with all that was started from here."""
    parent.read()
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main() -> None:
    """Make what stdin names."""
    if hasattr(os, "nice"):
        os.nice(19)
    spec = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with, args=(sys.stdin.buffer,), daemon=True).start()
    folder = Path(spec["folder"])
    busy = KibanError(folder, why="another process has been making it for an hour")
    with exclusive(folder / "lock", seconds=3600, error=busy):  # such as the child of another replica
        for size in spec["sizes"]:
            path = folder / NAME.format(size)
            if not path.exists():
                build(spec["shape"], size, path)


if __name__ == "__main__":
    main()
