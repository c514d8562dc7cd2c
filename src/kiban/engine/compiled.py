"""Steps of few answers, compiled as a whole: between the products of a token lie twenty small operations a layer, which take
as long as the products do.

torch's compiler makes a library for each number of answers (1, 2, 4, 8), which runs without Python. That takes a minute
or more each, so a child does it at the lowest priority, once for each shape and machine: libraries stay in KIBAN_HOME.
Until one is there, and for what none takes, steps go the plain way.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.config import home
from kiban.engine import decoder, packed
from kiban.engine.decoder import DecoderPlan, Layer
from kiban.engine.packed import Dense, Int4, Int8
from kiban.engine.pages import PagedKeys, Part, span_of
from kiban.engine.probe import processor
from kiban.errors import KibanError
from kiban.files import exclusive, staged_file

LOGGER = logging.getLogger("kiban.engine")
SIZES = (1, 2, 4, 8)  # answers; of more, products take most of the time
PATIENCE = 512  # steps before libraries are made: who asks little needs none
CONFIG = ("dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "norm_eps")
KINDS: dict[str, type[Dense | Int8 | Int4]] = {"Dense": Dense, "Int8": Int8, "Int4": Int4}


class Compiled:
    """Logits (B, V) float32 of steps that take one token of each answer and store its keys; None where there is no library.

    Only one thread may call it. Rows that a size has too many write into the spare page.
    """

    def __init__(self, plan: DecoderPlan, keys: PagedKeys, *, patience: int | None = None) -> None:
        """patience: steps before libraries are made; PATIENCE if None."""
        self.plan, self.keys = plan, keys
        self.window = plan.config.sliding_window
        self.shape = _shape(plan, keys)
        self.folder = home() / "compiled" / _key(self.shape)
        self.done = not self.shape  # there will be no more libraries
        self._patience = PATIENCE if patience is None else patience
        self._steps = 0
        self._tensors = _tensors(plan) if self.shape else []
        self._libraries: dict[int, Callable[[list[Tensor]], list[Tensor]]] = {}  # by size, the smallest first
        self._closed = threading.Event()
        self._maker = threading.Thread(target=self._make, name="kiban-compiler", daemon=True)
        self._open()

    def __call__(self, parts: Sequence[Part]) -> Tensor | None:
        """As the class says."""
        if not self.shape or any(len(part.ids) != 1 or part.num_logits != 1 for part in parts):
            return None
        self._steps += 1
        if self._steps == self._patience and not self.done:
            self._maker.start()
        size = next((size for size in self._libraries if size >= len(parts)), None)
        longest = max(part.end for part in parts)
        if size is None or (self.window is not None and longest > self.window):
            return None
        filled = [*parts, *[Part([0], 1, [self.keys.spare])] * (size - len(parts))]
        spans = [span for part in filled if isinstance(span := span_of(part.pages, part.end), slice)]
        if len(spans) < size:
            return None
        tokens = torch.tensor([[part.ids[0] for part in filled]])
        past = torch.tensor([part.past for part in filled])
        turn = torch.view_as_real(self.plan.turn(past[None], longest))
        held = [view for span in spans for view in self.keys.spans(span)]
        (states,) = self._libraries[size]([tokens, turn, past, *self._tensors, *held])
        return self.plan.head(states[: len(parts)]).float()

    @property
    def num_ready(self) -> int:
        """Libraries that are open."""
        return len(self._libraries)

    def close(self) -> None:
        """Make no more."""
        self._closed.set()
        if self._maker.is_alive():
            self._maker.join()

    def _open(self) -> None:
        """Open what has come since the last time."""
        found = dict(self._libraries)
        for size in SIZES:
            path = self.folder / f"{size}.pt2"
            if size not in found and path.is_file():
                # What torch._inductor.aoti_load_package wraps; the compiler itself would take seconds and 100 MB to import.
                try:
                    found[size] = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1).boxed_run
                except RuntimeError:
                    path.unlink(missing_ok=True)  # it is broken, and will be made again
        self._libraries = {size: found[size] for size in SIZES if size in found}
        self.done = self.done or self.num_ready == len(SIZES)

    def _make(self) -> None:
        """Let a child make what is missing, and open it as it comes."""
        missing = [size for size in SIZES if size not in self._libraries]
        spec = json.dumps({"shape": self.shape, "folder": str(self.folder), "sizes": missing})
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("wb") as log:
            command = [sys.executable, "-m", "kiban.engine.compiled", spec]
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while child.poll() is None and not self._closed.wait(1.0):
                self._open()
        finally:
            child.kill()
            child.wait()
        self._open()
        if not self.done and not self._closed.is_set():
            LOGGER.warning("steps are not compiled, see %s", self.folder / "log")
            self.done = True


class _Step(nn.Module):
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

        plan = _plan(self.shape, tensors)
        return plan.normed(plan.hidden(tokens, rotate, mix)[0], plan.norm)


def _shape(plan: DecoderPlan, keys: PagedKeys) -> dict[str, Any]:
    """All that a library depends on, as JSON has it; empty if there can be none."""
    kinds = {tuple(type(part).__name__ for part in _products(layer)) for layer in plan.layers}
    if plan.table.device.type != "cpu" or len(kinds) != 1 or not KINDS.keys() >= set(*kinds):
        return {}
    config = {name: getattr(plan.config, name) for name in CONFIG}
    tensors = [[list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for tensor in _tensors(plan)]
    layer = [[type(part).__name__, len(part.tensors)] for part in _products(plan.layers[0])]
    about = {"torch": torch.__version__, "processor": processor(), "threads": torch.get_num_threads()}
    return {"config": config, "places": keys.both.shape[3], "layer": layer, "tensors": tensors, **about}


def _key(shape: dict[str, Any]) -> str:
    """Of the shape, and of the code that a library is made from."""
    code = b"".join(Path(str(file)).read_bytes() for file in (__file__, decoder.__file__, packed.__file__))
    return hashlib.sha256(json.dumps(shape).encode() + code).hexdigest()[:16]


def _products(layer: Layer) -> list[Any]:
    return [layer.qkv, layer.out, layer.gate_up, layer.down]


def _tensors(plan: DecoderPlan) -> list[Tensor]:
    """All but the head's."""
    found = [plan.table, plan.norm]
    for layer in plan.layers:
        found += [layer.norm1, layer.norm2, *(tensor for part in _products(layer) for tensor in part.tensors)]
    return found


def _plan(shape: dict[str, Any], tensors: Sequence[Tensor]) -> DecoderPlan:
    """A plan without head, from what `_tensors` found."""
    rest = iter(tensors)
    table, norm = next(rest), next(rest)

    def layer() -> Layer:
        norm1, norm2 = next(rest), next(rest)
        parts = [_part(KINDS[kind], [next(rest) for _ in range(count)]) for kind, count in shape["layer"]]
        return Layer(norm1=norm1, norm2=norm2, qkv=parts[0], out=parts[1], gate_up=parts[2], down=parts[3])

    config = SimpleNamespace(**shape["config"])
    return DecoderPlan.of(config, table.dtype, table, norm, [layer() for _ in range(config.num_layers)])


def _part(kind: type[Dense | Int8 | Int4], tensors: list[Tensor]) -> Any:
    return Dense(*tensors) if kind is Dense else kind.of(*tensors)  # type: ignore[union-attr]


def build(shape: dict[str, Any], size: int, path: Path) -> None:
    """Make the library for so many answers; it takes a minute or more."""
    config = SimpleNamespace(**shape["config"])
    torch.set_num_threads(shape["threads"])
    heads = config.num_heads + 2 * config.num_kv_heads
    tensors = [torch.empty(size, dtype=getattr(torch, dtype)) for size, dtype in shape["tensors"]]
    stride = (shape["places"] * config.head_dim, config.head_dim, 1)
    # Lengths that differ, or they would be taken for one. Nothing is read here, so nothing of this is really in memory.
    held = [
        torch.empty_strided((2 * config.num_kv_heads, 40 + row, config.head_dim), stride)
        for row in range(size)
        for _ in range(config.num_layers)
    ]
    inputs = (
        torch.zeros(1, size, dtype=torch.int64),
        torch.zeros(1, size, heads, config.head_dim // 2, 2),
        torch.ones(size, dtype=torch.int64),
        tensors,
        held,
    )
    lengths = [torch.export.Dim(f"length{row}", min=2, max=shape["places"] - 1) for row in range(size)]
    spans = [{1: lengths[row]} for row in range(size) for _ in range(config.num_layers)]
    with torch.no_grad():
        exported = torch.export.export(
            _Step(shape), inputs, dynamic_shapes=(None, None, None, [None] * len(tensors), spans), strict=False
        )
        with staged_file(path) as staged:
            # The compiler wants a name that ends so.
            made = torch._inductor.aoti_compile_and_package(exported, package_path=f"{staged}.pt2")
            Path(made).replace(staged)


def main() -> None:
    """The child: make what the argument names."""
    if hasattr(os, "nice"):
        os.nice(19)
    spec = json.loads(sys.argv[1])
    folder = Path(spec["folder"])
    busy = KibanError(folder, why="another process has been making it for an hour")
    with exclusive(folder / "lock", seconds=3600, error=busy):  # such as the child of another replica
        for size in spec["sizes"]:
            if not (folder / f"{size}.pt2").exists():
                build(spec["shape"], size, folder / f"{size}.pt2")


if __name__ == "__main__":
    main()
