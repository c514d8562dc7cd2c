"""What every verb prints through: lines, tables, progress, errors, in the user's language."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from kiban.config import Progress, silent
from kiban.errors import ConfigError

Lang = Literal["ja", "en"]
QUIET_SECONDS = 2.0  # work that is done sooner needs no bar


def current(lang: str | None = None) -> Console:
    """A console in the language asked for, else that of LC_ALL, LC_MESSAGES or LANG."""
    if lang not in (None, "ja", "en"):
        raise ConfigError("--lang", field=lang, why="unknown language", hint="ja or en")
    found = lang or next((os.environ[n] for n in ("LC_ALL", "LC_MESSAGES", "LANG") if os.environ.get(n)), "en")
    return Console("ja" if found.lower().startswith("ja") else "en")


class Console:
    """Results go to stdout, everything else to stderr, so that results can be piped."""

    def __init__(self, lang: Lang, *, silent: bool = False) -> None:
        """silent: of a process that leaves speaking to another."""
        self.lang: Lang = lang
        self.silent = silent
        self._live: Any = None

    def print(self, text: str) -> None:
        """A line of the result."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A line about what happens, above the progress bar if there is one."""
        if self.silent:
            return
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of the result, as wide as the terminal, or as it needs when piped."""
        from rich.console import Console as Rich
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(headers))
        for header in headers:
            table.add_column(header, overflow="fold")
        for row in rows:
            table.add_row(*row)
        width = None if sys.stdout.isatty() else 200
        Rich(file=sys.stdout, width=width, highlight=False, markup=False).print(table)

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """A Progress that draws a bar on a terminal, and plain lines every ten seconds elsewhere."""
        if self.silent:
            yield silent
            return
        if not sys.stderr.isatty():
            yield _PlainProgress()
            return
        from rich.console import Console as Rich
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        bars = Bars(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Rich(stderr=True), transient=True)
        task, started, shown = None, time.monotonic(), ""

        def report(stage: str, done: int, total: int | None) -> None:
            nonlocal task, shown
            if self._live is None:
                if time.monotonic() - started < QUIET_SECONDS:
                    return
                self._live = bars
                bars.start()
            name = stage.partition(" | ")[0]
            if name != shown:
                if task is not None:
                    bars.remove_task(task)
                task, shown = bars.add_task(stage, total=total), name
            assert task is not None
            bars.update(task, completed=done, total=total, description=stage)

        try:
            yield report
        finally:
            bars.stop()
            self._live = None


class _PlainProgress:
    """A line whenever a stage has run for ten seconds more."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if time.monotonic() - self.last >= 10:
            self.last = time.monotonic()
            sys.stderr.write(f"{stage}: {done}" + (f"/{total}\n" if total else "\n"))
            sys.stderr.flush()
