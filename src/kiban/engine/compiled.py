"""Steps of few answers, compiled as a whole: between the products of a token lie twenty small operations a layer, which take
as long as the products do.

torch's compiler makes a library for each number of answers (1, 2, 4, 8), which runs without Python. That takes a minute
or more each, so a child does it at the lowest priority (`engine/compiler.py`), once for each shape and machine: libraries
stay in KIBAN_HOME. Until one is there, and for what none takes, steps go the plain way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kiban.config import home
from kiban.engine import compiler, decoder, packed, pages
from kiban.engine.compiler import KINDS
from kiban.engine.decoder import DecoderPlan
from kiban.engine.library import Library
from kiban.engine.pages import PagedKeys, Part, span_of
from kiban.engine.probe import compiler_of_cpp, features, processor

LOGGER = logging.getLogger("kiban.engine")
SIZES = (1, 2, 4, 8)  # answers; of more, products take most of the time
PATIENCE = 512  # steps before libraries are made: who asks little needs none
CONFIG = ("dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "norm_eps")


class Compiled:
    """Logits (B, V) float32 of steps that take one token of each answer and store its keys; None where there is no library.

    Only one thread may call it. Rows that a size has too many write into the spare page.
    """

    def __init__(self, plan: DecoderPlan, keys: PagedKeys, *, patience: int | None = None) -> None:
        """patience: steps before libraries are made; PATIENCE if None."""
        self.plan, self.keys = plan, keys
        self.window = plan.config.sliding_window
        self.shape = _shape(plan, keys)
        # For more rows a copy in another layout is faster than what a library has.
        most = min(
            (part.few_rows or SIZES[-1] for part in plan.layers[0].products if hasattr(part, "few_rows")),
            default=SIZES[-1],
        )
        self.sizes = [size for size in SIZES if size <= most] if self.shape else []
        self.folder = home() / "compiled" / _key(self.shape)
        self.done = False  # whether there will be no more libraries
        self._patience = PATIENCE if patience is None else patience
        self._steps = 0
        self._tensors = _tensors(plan) if self.sizes else []
        self._libraries: dict[int, Library] = {}  # by size, the smallest first
        self._closed = threading.Event()
        self._maker: threading.Thread | None = None
        self._open()

    def __call__(self, parts: Sequence[Part]) -> Tensor | None:
        """As the class says."""
        if not self.sizes or any(len(part.ids) != 1 or part.num_logits != 1 or not part.past for part in parts):
            return None
        self._steps += 1
        if self._steps == self._patience and not self.done:
            self._maker = threading.Thread(target=self._make, name="kiban-compiler", daemon=True)
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
        states = self._libraries[size]([tokens, turn, past, *self._tensors, *held])
        return self.plan.head(states[: len(parts)]).float()

    @property
    def num_ready(self) -> int:
        """Libraries that are open."""
        return len(self._libraries)

    def close(self) -> None:
        """Make no more, and let go of what is open."""
        self._closed.set()
        if self._maker is not None:
            self._maker.join()
        for library in self._libraries.values():
            library.close()
        self._libraries, self.sizes, self.done = {}, [], True

    def _open(self) -> None:
        """Open what has come since the last time."""
        found, refused = dict(self._libraries), set[int]()
        for size in self.sizes:
            path = self.folder / compiler.NAME.format(size)
            if size in found or not path.is_file():
                continue
            try:
                found[size] = Library(path)
            except OSError as error:
                LOGGER.warning("%s does not open (if it is broken, delete it): %s", path, error)
                refused.add(size)
        self.sizes = [size for size in self.sizes if size not in refused]
        self._libraries = {size: found[size] for size in self.sizes if size in found}
        self.done = self.done or self.num_ready == len(self.sizes)

    def _make(self) -> None:
        """Let a child make what is missing, and open it as it comes."""
        try:
            if compiler_of_cpp() is None:
                LOGGER.warning("steps are not compiled: there is no C++ compiler")
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as scratch:
                self._run_child(scratch)
            if not self.done and not self._closed.is_set():
                LOGGER.warning("steps are not compiled, see %s", self.folder / "log")
        except OSError as error:
            LOGGER.warning("steps are not compiled: %s", error)
        finally:
            self.done = True

    def _run_child(self, scratch: str) -> None:
        missing = [size for size in self.sizes if size not in self._libraries]
        spec = json.dumps({"shape": self.shape, "folder": str(self.folder), "sizes": missing}).encode()
        # Headers that are compiled before take half a gigabyte of scratch.
        own = {"TMPDIR": scratch, "TORCHINDUCTOR_CACHE_DIR": scratch, "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0"}
        # -P: nothing is imported from the folder where the server was started.
        command = [sys.executable, "-P", "-m", compiler.__name__]
        with (self.folder / "log").open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **own},
                start_new_session=True,
            )
        assert child.stdin is not None
        try:
            child.stdin.write(spec + b"\n")
            child.stdin.flush()  # and stays open: the child ends when it is closed, even if nobody ends it
            while child.poll() is None and not self._closed.wait(1.0):
                self._open()
        finally:
            if child.poll() is None:
                if hasattr(os, "killpg"):
                    os.killpg(child.pid, signal.SIGKILL)  # with the compilers that it has started
                child.kill()
            child.wait()
            with contextlib.suppress(OSError):
                child.stdin.close()
        if not self._closed.is_set():
            self._open()


def _shape(plan: DecoderPlan, keys: PagedKeys) -> dict[str, Any]:
    """All that a library depends on, as JSON has it; empty if there can be none: weights in oneDNN's own layout are no plain
    tensors."""
    kinds = {tuple(type(part).__name__ for part in layer.products) for layer in plan.layers}
    if plan.table.device.type != "cpu" or len(kinds) != 1 or not KINDS.keys() >= set(*kinds):
        return {}
    config = {name: getattr(plan.config, name) for name in CONFIG}
    tensors = [[list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for tensor in _tensors(plan)]
    layer = [[type(part).__name__, len(part.tensors)] for part in plan.layers[0].products]
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    about |= {"processor": processor(), "features": features()}
    return {"config": config, "places": keys.both.shape[3], "layer": layer, "tensors": tensors, **about}


def _key(shape: dict[str, Any]) -> str:
    """Of the shape, and of the code that a library is made from."""
    code = b"".join(Path(str(part.__file__)).read_bytes() for part in (compiler, decoder, packed, pages))
    return hashlib.sha256(json.dumps(shape).encode() + code).hexdigest()[:16]


def _tensors(plan: DecoderPlan) -> list[Tensor]:
    """All but the head's, in the order in which `compiler.plan_of` takes them."""
    found = [plan.table, plan.norm]
    for layer in plan.layers:
        found += [layer.norm1, layer.norm2, *(tensor for part in layer.products for tensor in part.tensors)]
    return found
