"""Measure a saved predictor in a fresh process: its answers, its speed, its memory.

A fresh process, so that peak memory is the model's own and the answers come from the files that a user gets.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiban.config import Progress, silent
from kiban.errors import KibanError

MAX_SINGLE = 50  # requests timed one by one
MAX_SINGLE_SECONDS = 5.0
CHUNK = 16


@dataclass(frozen=True, kw_only=True)
class Measured:
    """probabilities has a row for each input that was answered. Times are in seconds, sizes in bytes."""

    probabilities: list[list[float]]
    latencies: list[float]  # one request at a time, after warm-up
    rows_per_second: float  # in batches
    load_seconds: float
    peak_memory_bytes: int
    model_bytes: int


def measure(
    folder: Path, inputs: Sequence[Any], *, seconds: float | None = None, least: int = 0, progress: Progress = silent
) -> Measured:
    """Open folder in a new process and predict inputs there.

    After so many seconds of predicting no more of them are begun, once there are least rows. Raises KibanError with the
    process's last words.
    """
    with tempfile.TemporaryDirectory() as scratch:
        question, answer = Path(scratch) / "inputs.json", Path(scratch) / "answer.json"
        asked = {"inputs": list(inputs), "seconds": seconds, "least": least}
        question.write_text(json.dumps(asked, ensure_ascii=False), encoding="utf-8")
        # -P: the folder that the user stands in is no place to import from.
        command = [sys.executable, "-P", "-m", "kiban.adopt.measure", str(folder), str(question), str(answer)]
        errors = Path(scratch) / "errors.txt"
        with (
            errors.open("wb") as log,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8") as child,
        ):
            try:
                assert child.stdout is not None
                for line in child.stdout:
                    if line.startswith("rows "):
                        progress("measure", int(line.split()[1]), len(inputs))
            except BaseException:
                child.kill()
                raise
        if child.returncode or not answer.exists():
            words = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            if child.returncode < 0:  # what it had written before says nothing about that
                words = [f"its process was killed by signal {-child.returncode}; was memory short?"]
            raise KibanError(folder, why=f"could not be measured: {words[-1] if words else 'its process said nothing'}")
        return Measured(**json.loads(answer.read_text(encoding="utf-8")))


def _child(folder: Path, question: Path, answer: Path) -> None:
    from kiban.adopt.strategies import load_predictor

    asked = json.loads(question.read_text(encoding="utf-8"))
    inputs, limit = asked["inputs"], float("inf") if asked["seconds"] is None else asked["seconds"]
    start = time.perf_counter()
    predictor = load_predictor(folder)
    load_seconds = time.perf_counter() - start
    predictor.predict(inputs[:2])  # the first calls pay for lazy imports and memory pools
    probabilities: list[list[float]] = []
    start = time.perf_counter()
    for begin in range(0, len(inputs), CHUNK):
        if begin >= asked["least"] and time.perf_counter() - start > limit:
            break
        probabilities += predictor.predict(inputs[begin : begin + CHUNK]).tolist()
        print(f"rows {len(probabilities)}", flush=True)
    rows_per_second = len(probabilities) / max(time.perf_counter() - start, 1e-9)
    latencies: list[float] = []
    while len(latencies) < min(MAX_SINGLE, len(inputs)) and (sum(latencies) < MAX_SINGLE_SECONDS or len(latencies) < 5):
        start = time.perf_counter()
        predictor.predict([inputs[len(latencies)]])
        latencies.append(time.perf_counter() - start)
    result = Measured(
        probabilities=probabilities,
        latencies=latencies,
        rows_per_second=rows_per_second,
        load_seconds=load_seconds,
        peak_memory_bytes=_peak_memory(),
        model_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    )
    answer.write_text(json.dumps(result.__dict__), encoding="utf-8")


def _peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    status = Path("/proc/self/status")
    if status.exists():
        # Linux's getrusage also counts what the parent held at the fork.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # others than macOS count in KiB


if __name__ == "__main__":
    _child(*(Path(argument) for argument in sys.argv[1:4]))
