"""What each key used: tokens and money by day, in SQLite, kept through a kill at any moment.

Money is counted in billionths of the currency, so that sums are exact.
"""

from __future__ import annotations

import contextlib
import datetime
import queue
import sqlite3
import threading
from collections import Counter, defaultdict
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from kiban.errors import ConfigError

BILLION = 10**9
MAX_BATCH = 256
COLUMNS = ("requests", "prompt_tokens", "completion_tokens", "cost")
TABLE = """
CREATE TABLE IF NOT EXISTS usage (
  day TEXT NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL, requests INTEGER NOT NULL,
  prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, cost INTEGER NOT NULL,
  PRIMARY KEY (day, key, model)
) WITHOUT ROWID
"""
ADD = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (day, key, model) DO UPDATE SET
  requests = requests + excluded.requests, prompt_tokens = prompt_tokens + excluded.prompt_tokens,
  completion_tokens = completion_tokens + excluded.completion_tokens, cost = cost + excluded.cost
"""


@dataclass(frozen=True, kw_only=True)
class Used:
    """What one request used, or many together. cost: in billionths of the currency."""

    key: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    cost: int
    requests: int = 1


class Ledger:
    """One thread writes; what came meanwhile is written together."""

    def __init__(self, path: Path | None) -> None:
        """path: None keeps it in memory. Raises ConfigError if the file cannot be used."""
        self.path = path
        self._rows: queue.SimpleQueue[tuple[str, Used, Future[None]] | None] = queue.SimpleQueue()
        self._spent: dict[tuple[str, str], int] = defaultdict(int)  # by month and key
        self._lock = threading.Lock()
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
            # In WAL mode NORMAL loses nothing when the process is killed; only when the power fails, the last seconds.
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "busy_timeout = 10000"):
                self._database.execute(f"PRAGMA {pragma}")
            self._database.execute(TABLE)
            for month, key, cost in self._database.execute(
                "SELECT substr(day, 1, 7), key, SUM(cost) FROM usage GROUP BY 1, 2"
            ):
                self._spent[month, key] = cost
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(path or "ledger", why=f"cannot be used as a ledger: {error}") from error
        self._thread = threading.Thread(target=self._write, name="kiban ledger", daemon=True)
        self._thread.start()

    def add(self, used: Used) -> Future[None]:
        """Count it. It is in the file when the future is done, and in `spent` at once."""
        day, done = _today(), Future[None]()
        done.set_running_or_notify_cancel()  # who waits for it may go away; it is written all the same
        with self._lock:
            self._spent[day[:7], used.key] += used.cost
        self._rows.put((day, used, done))
        return done

    def spent(self, key: str) -> int:
        """What a key has cost this month, in billionths."""
        with self._lock:
            return self._spent.get((_today()[:7], key), 0)

    def month(self, month: str | None = None) -> list[Used]:
        """Sums by key and model of a month such as "2026-11", default this one. Blocks for the database."""
        rows = self._database.execute(
            "SELECT key, model, SUM(prompt_tokens), SUM(completion_tokens), SUM(cost), SUM(requests) FROM usage"
            " WHERE substr(day, 1, 7) = ? GROUP BY key, model ORDER BY key, model",
            (month or _today()[:7],),
        ).fetchall()
        names = ("key", "model", "prompt_tokens", "completion_tokens", "cost", "requests")
        return [Used(**dict(zip(names, row, strict=True))) for row in rows]

    def close(self) -> None:
        """Write what is left and close the file."""
        self._rows.put(None)
        self._thread.join()
        self._database.close()

    def _write(self) -> None:
        unwritten: Counter[tuple[str, str, str, str]] = Counter()  # by day, key, model and column
        ended = False
        while not ended:
            rows = [self._rows.get()]
            with contextlib.suppress(queue.Empty):
                while len(rows) < MAX_BATCH:
                    rows.append(self._rows.get_nowait())
            ended = None in rows
            dones = []
            for day, used, done in (row for row in rows if row is not None):
                dones.append(done)
                for column in COLUMNS:
                    unwritten[day, used.key, used.model, column] += getattr(used, column)
            error = self._commit(unwritten)
            if error is None:
                unwritten.clear()
            for done in dones:
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)

    def _commit(self, sums: Counter[tuple[str, str, str, str]]) -> sqlite3.Error | None:
        """Add sums to the table; an error, most likely of a full disk, leaves them for the next time."""
        places = dict.fromkeys(place[:3] for place in sums)
        try:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany(ADD, [(*p, *(sums[*p, column] for column in COLUMNS)) for p in places])
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            return error
        return None


class Shares:
    """The machine's time, shared equally by all that runs at a moment; what the shares cost sums to the busy time."""

    def __init__(self) -> None:
        self._running, self._shared, self._since = 0, 0.0, 0.0

    def begin(self, now: float) -> float:
        """A ticket for `end`."""
        self._advance(now)
        self._running += 1
        return self._shared

    def end(self, begun: float, now: float) -> float:
        """Seconds of the machine that one used since begin."""
        self._advance(now)
        self._running -= 1
        return self._shared - begun

    def _advance(self, now: float) -> None:
        if self._running:
            self._shared += (now - self._since) / self._running
        self._since = now


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()
