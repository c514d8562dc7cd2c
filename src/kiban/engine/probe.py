"""Short measurements that choose between ways of computing the same thing. Processor flags don't tell what is fast:
bf16 matrix products are half as fast as float32's on one machine with AVX-512 and five times as fast on another."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kiban.config import home
from kiban.errors import KibanError
from kiban.files import read_json, write_text

REPEATS = 5
CACHE = 64 * 2**20  # bytes that displace everything from the caches of most processors


def measure(
    ways: Mapping[str, Callable[[], object]], *, repeats: int = REPEATS, before: Callable[[], object] | None = None
) -> dict[str, float]:
    """Seconds of the fastest run of each way, since what else a machine does only adds to them. The ways take turns.

    before: done before every single run, off the clock.
    """
    for work in ways.values():
        work()  # the first call allocates and packs
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            if before is not None:
                before()
            start = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - start)
    return {name: min(times) for name, times in taken.items()}


def crossover(few: Callable[[int], object], many: Callable[[int], object], sizes: tuple[int, ...]) -> int:
    """The one of the rising sizes up to which few(size) should be taken, and many(size) beyond; 0 for many(size) always.

    What they read comes from memory, as the weights of a model do that has many layers.
    """
    other = torch.zeros(CACHE // 4)
    best, loss, least = 0, 0.0, 0.0
    for size in sizes:
        ways = {"few": partial(few, size), "many": partial(many, size)}
        seconds = measure(ways, before=lambda: other.add_(1))
        # A single size that was measured badly does not decide: what is lost over all sizes up to here does.
        loss += math.log(seconds["few"] / seconds["many"])
        if loss <= least:
            best, least = size, loss
    return best


def remembered(question: str, find: Callable[[], Any]) -> Any:
    """What find() answered on this machine before, else what it answers now; JSON must be able to hold it.

    It is kept in KIBAN_HOME: where two ways are about as fast, every start would choose anew, and with the way the last
    digits of what a model says would change.
    """
    path = home() / "probes.json"
    here = f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    known = _known(path).get(here, {})
    if question not in known:
        answer = find()
        everything = _known(path)  # another process may have measured meanwhile
        known = everything.setdefault(here, {})
        known.setdefault(question, answer)
        with contextlib.suppress(OSError):  # it is measured again, then
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(everything, indent=1))
    return known[question]


def _known(path: Path) -> dict[str, Any]:
    with contextlib.suppress(KibanError):  # there is none yet, or it is broken
        return read_json(path)
    return {}


def compiler_of_cpp() -> str | None:
    """The C++ compiler that is there: CXX, or the usual one."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++"))


def processor() -> str:
    """Its name."""
    return _told("model name") or platform.processor()


def features() -> str:
    """What instructions it has, as far as that can be known."""
    return _told("flags") or _told("Features") or torch.backends.cpu.get_cpu_capability()


def _told(name: str) -> str:
    """What the system tells of the processor; nothing where it does not."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(name):
                return line.split(":", 1)[1].strip()
    return ""
