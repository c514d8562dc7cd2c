"""What the benchmarks share: timing in turns, and a record of the machine."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def parser(description: str) -> argparse.ArgumentParser:
    """With --threads, --repeats and --save."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of every engine")
    found.add_argument("--repeats", type=int, default=5, help="runs of each way; the median counts")
    found.add_argument("--save", action="store_true", help=f"write a record under {RESULTS.parent.name}/results/")
    return found


def parse(own: argparse.ArgumentParser) -> argparse.Namespace:
    """What was given; torch takes the number of threads."""
    parsed = own.parse_args()
    torch.set_num_threads(parsed.threads)
    return parsed


def arguments(description: str) -> argparse.Namespace:
    """--threads, --repeats and --save."""
    return parse(parser(description))


def medians(ways: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each way after one warm-up; the ways take turns, so what else the machine does hits all alike."""
    for work in ways.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


class Apart:
    """Ways in a process of their own, where what other ways keep in memory and in threads does not slow them down."""

    def __init__(self, make: Callable[..., Mapping[str, Callable[[], Any]]], *arguments: Any) -> None:
        """make(*arguments): the ways by name, called over there; both must be picklable, and so must what ways return."""
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._child = context.Process(
            target=_answer, args=(other, torch.get_num_threads(), make, arguments), daemon=True
        )
        self._child.start()
        other.close()

    def __call__(self, name: str) -> Any:
        """What a way returns. Raises EOFError if the process has ended, and has said why on stderr."""
        self._pipe.send(name)
        return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._child.join()


def _answer(pipe: Any, threads: int, make: Callable[..., Mapping[str, Callable[[], Any]]], arguments: Any) -> None:
    torch.set_num_threads(threads)
    ways = make(*arguments)
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(ways[pipe.recv()]())


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as aligned text."""
    heads = list(rows[0])
    cells = [heads] + [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def finish(name: str, found: dict[str, Any], options: argparse.Namespace, packages: tuple[str, ...]) -> None:
    """Print the record and, with --save, write benchmarks/results/NAME.json."""
    record = {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "threads": options.threads,
        "repeats": options.repeats,
        "processor": _processor(),
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in ("kiban", "torch", *packages)},
        **found,
    }
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{name}.json"
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"saved {path}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    lines = info.read_text(encoding="utf-8").splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    return f"{name} ({', '.join(f for f in ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16') if f in flags)})"
