"""The clients of package registries as child processes that nobody sees, with the bytes counted while they come."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

Report = Callable[[int], None]  # takes the bytes that have come


def run(
    command: Sequence[str], *, environment: Mapping[str, str], watched: Sequence[Path], report: Report
) -> tuple[int, list[str]]:
    """Its exit code and the lines that it said. report: called with the bytes that lie in the watched folders."""
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=dict(environment)
        )
        try:
            while child.poll() is None:
                report(sum(size for folder in watched for size in _sizes(folder)))
                time.sleep(0.1)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        log.seek(0)
        words = [line for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return child.returncode, words


def _sizes(folder: Path) -> Iterator[int]:
    with contextlib.suppress(OSError):  # files are moved while we look
        yield from [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
