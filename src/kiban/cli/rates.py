"""Progress of work on documents: how far it is, and how fast it goes."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from kiban.cli.console import QUIET_SECONDS, Console

PLAIN_SECONDS = 10.0  # between the lines that stand in for a bar
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
    "ja": "{stage}: {documents:,} 件、{done:.1f}/{total:.1f} MB、{per_second:,.0f} 件/秒、{speed:.1f} MB/秒",
    "en": "{stage}: {documents:,} documents, {done:.1f}/{total:.1f} MB, {per_second:,.0f} documents/s, {speed:.1f} MB/s",
}


class Rates:
    """A `kiban.data.prepare.Watch`: a bar on a terminal, a line every ten seconds elsewhere, and one at each stage's end."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.stage, self.begun, self.told = "", 0.0, 0.0
        self.first = self.last = (0, 0, 0)  # documents, bytes, all bytes
        self.bars: Any = None
        self.task: Any = None

    def __call__(self, stage: str, documents: int, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.end_stage()
            # The first block's work is done when this is called first; what came before it was there already.
            self.stage, self.begun, self.told = stage, now, now
            self.first = (documents, done, total)
        self.last = (documents, done, total)
        if sys.stderr.isatty():
            if now - self.begun >= QUIET_SECONDS:
                self._draw()
        elif now - self.told >= PLAIN_SECONDS:
            self.told = now
            self.console.note(self.line())

    def line(self) -> str:
        """The stage in one sentence."""
        seconds = max(time.monotonic() - self.begun, 1e-9)
        documents, done, total = self.last
        return RATE[self.console.lang].format(
            stage=STAGES[self.console.lang].get(self.stage, self.stage),
            documents=documents,
            done=done / 1e6,
            total=total / 1e6,
            per_second=(documents - self.first[0]) / seconds,
            speed=(done - self.first[1]) / seconds / 1e6,
        )

    def _draw(self) -> None:
        if self.bars is None:
            from rich.console import Console as Rich
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self.bars = Progress(*columns, console=Rich(stderr=True), transient=True)
            self.bars.start()
        if self.task is None:
            self.task = self.bars.add_task("", total=self.last[2])
        self.bars.update(self.task, completed=self.last[1], description=self.line())

    def end_stage(self) -> None:
        """Say how fast the stage was, if it took long enough to tell."""
        if self.bars is not None:
            self.bars.stop()
            self.bars = self.task = None
        if self.stage and time.monotonic() - self.begun >= QUIET_SECONDS:
            self.console.note(self.line())
        self.stage = ""


@contextlib.contextmanager
def rates(console: Console) -> Iterator[Rates]:
    """A Watch for the time of the block."""
    watch = Rates(console)
    try:
        yield watch
    finally:
        watch.end_stage()
