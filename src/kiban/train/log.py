"""What a run tells while it trains: lines of metrics.jsonl, and how fast it goes."""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RECENT = 20  # steps over which the speed is averaged


class Log:
    """metrics.jsonl, one object a line, each with its step. Without a path nothing is written."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a line."""
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}, ensure_ascii=False) + "\n")

    def cut(self, step: int) -> None:
        """Drop the lines after a step, and one that a kill cut; a run that begins again at 0 has none."""
        if self.path is None or not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if 0 < json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):
                continue
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def digest(ids: Sequence[int]) -> str:
    """A short name for the rows of a batch, so that two runs can be seen to have had the same."""
    return hashlib.blake2b(repr(list(ids)).encode(), digest_size=8).hexdigest()


class Meter:
    """Tokens a second over the last steps."""

    def __init__(self) -> None:
        self.ends: deque[tuple[float, int]] = deque(maxlen=RECENT + 1)
        self.restart()

    def restart(self) -> None:
        """Leave out the time since the last step (an evaluation, a checkpoint)."""
        self.ends.clear()
        self.ends.append((time.perf_counter(), 0))

    def rate(self, tokens: int) -> float:
        """The rate, after a step of so many tokens."""
        self.ends.append((time.perf_counter(), tokens))
        times = [end for end, _ in self.ends]
        passed = times[-1] - times[0]
        return sum(count for _, count in list(self.ends)[1:]) / max(passed, 1e-9)
