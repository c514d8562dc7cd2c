"""Progress of work on documents: how far it is, and how fast it goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from kiban.cli.console import QUIET_SECONDS, Console
from kiban.config import Progress

STAGES = {
    "ja": {
        "cleaning": "整形・選別",
        "comparing": "重複の検出",
        "writing": "書き出し",
        "tokenizing": "トークン化",
        "inspecting": "調査",
    },
    "en": {},
}
RATE = {
    "ja": "{documents:,} 件、{per_second:,.0f} 件/秒、{speed:.1f} MB/秒",
    "en": "{documents:,} documents, {per_second:,.0f} documents/s, {speed:.1f} MB/s",
}


class Rates:
    """A `kiban.data.prepare.Watch` that tells the console's progress, in MB, and how fast each stage was at its end."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self.console, self.progress = console, progress
        self.stage, self.begun = "", 0.0
        self.first = self.last = (0, 0)  # documents, bytes

    def __call__(self, stage: str, documents: int, done: int, total: int) -> None:
        if stage != self.stage:
            self.end_stage()
            # The first block's work is done when this is called first; what came before it was there already.
            self.stage, self.begun, self.first = stage, time.monotonic(), (documents, done)
        self.last = (documents, done)
        self.progress(f"{self.name} | {self.rate}, MB", round(done / 1e6), round(total / 1e6))

    @property
    def name(self) -> str:
        return STAGES[self.console.lang].get(self.stage, self.stage)

    @property
    def rate(self) -> str:
        seconds = max(time.monotonic() - self.begun, 1e-9)
        documents, done = (last - first for last, first in zip(self.last, self.first, strict=True))
        return RATE[self.console.lang].format(
            documents=self.last[0], per_second=documents / seconds, speed=done / seconds / 1e6
        )

    def end_stage(self) -> None:
        """Say how fast the stage was, if it took long enough to tell."""
        if self.stage and time.monotonic() - self.begun >= QUIET_SECONDS:
            self.console.note(f"{self.name}: {self.rate}")
        self.stage = ""


@contextlib.contextmanager
def rates(console: Console) -> Iterator[Rates]:
    """A Watch for the time of the block."""
    with console.progress() as progress:
        watch = Rates(console, progress)
        try:
            yield watch
        finally:
            watch.end_stage()
