"""The ledger holds what clients were told, whatever kills the process."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from kiban.errors import ConfigError
from kiban.serve.ledger import Ledger, Shares, Used

WRITER = """
import sys
from pathlib import Path
from kiban.serve.ledger import Ledger, Used
ledger = Ledger(Path(sys.argv[1]))
i = 0
while True:
    i += 1
    ledger.add(Used(key="k", model="m", prompt_tokens=i % 7, completion_tokens=2, cost=i)).result()
    sys.stdout.write(f"{i}\\n")
    sys.stdout.flush()
"""


def _used(cost: int, key: str = "k", model: str = "m") -> Used:
    return Used(key=key, model=model, prompt_tokens=3, completion_tokens=2, cost=cost)


def _kill_while_writing(path: Path, kills: int) -> None:
    told = 0
    for _ in range(kills):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        lines = [int(child.stdout.readline()) for _ in range(20)]
        os.kill(child.pid, signal.SIGKILL)
        lines += [int(line) for line in child.stdout.read().split("\n")[:-1]]  # the last one may be half a line
        child.wait()
        told += sum(range(1, lines[-1] + 1))
        ledger = Ledger(path)
        found = ledger.spent("k")
        ledger.close()
        # One that was written and not told yet may be there too.
        assert told <= found <= told + lines[-1] + 1
        told = found
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_what_was_told_survives_a_kill(tmp_path: Path) -> None:
    _kill_while_writing(tmp_path / "ledger.sqlite", 2)


@pytest.mark.slow
def test_what_was_told_survives_a_hundred_kills(tmp_path: Path) -> None:
    _kill_while_writing(tmp_path / "ledger.sqlite", 100)


def test_sums_by_key_model_and_month(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "new" / "ledger.sqlite")
    rows = [("a", "x", 5), ("a", "y", 7), ("b", "x", 10**18), ("a", "x", 1)]
    futures = [ledger.add(_used(cost, key, model)) for key, model, cost in rows]
    for future in futures:
        future.result(timeout=10)
    assert [(u.key, u.model, u.cost, u.requests, u.prompt_tokens) for u in ledger.month()] == [
        ("a", "x", 6, 2, 6),
        ("a", "y", 7, 1, 3),
        ("b", "x", 10**18, 1, 3),
    ]
    assert ledger.spent("a") == 13 and ledger.spent("c") == 0 and ledger.month("1999-01") == []
    ledger.close()


def test_many_threads_lose_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    threads = [
        threading.Thread(target=lambda: [ledger.add(_used(i)) for i in range(200)][-1].result()) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (sums,) = ledger.month()
    assert sums.requests == 1600 and sums.cost == 8 * sum(range(200)) == ledger.spent("k")
    ledger.close()


def test_what_could_not_be_written_is_written_later(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    ledger._database.execute("PRAGMA busy_timeout = 50")
    with sqlite3.connect(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            ledger.add(_used(5)).result(timeout=10)
    other.close()
    ledger.add(_used(6)).result(timeout=10)
    (sums,) = ledger.month()
    assert (sums.cost, sums.requests) == (11, 2)
    ledger.close()


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match="cannot be used as a ledger"):
        Ledger(path)


def test_shares_sum_to_the_busy_time() -> None:
    shares = Shares()
    a = shares.begin(10.0)
    b = shares.begin(12.0)  # a alone for 2 s
    c = shares.begin(14.0)  # a and b for 2 s
    seconds = {
        "a": shares.end(a, 17.0),
        "b": shares.end(b, 17.0),
        "c": shares.end(c, 20.0),
    }  # 3 s of all, c alone for 3
    assert seconds == pytest.approx({"a": 4.0, "b": 2.0, "c": 4.0}) and sum(seconds.values()) == pytest.approx(10.0)
    idle = shares.begin(100.0)
    assert shares.end(idle, 101.0) == pytest.approx(1.0)


def test_the_ledger_equals_the_usages_that_clients_saw(live: Any) -> None:
    before = {u.model: u for u in live.service.ledger.month()}
    usages: list[dict[str, Any]] = []
    for i in range(6):
        usages.append(
            live.post("/v1/completions", {"model": "lm", "prompt": "The", "max_tokens": 3 + i}).json()["usage"]
        )
        usages.append(live.post("/v1/embeddings", {"model": "tiny-encoder", "input": ["a", "b c"]}).json()["usage"])
        usages.append(live.post("/v1/classify", {"model": "adopt-words", "input": "猫"}).json()["usage"])
    after = live.service.ledger.month()
    for field, factor in (("prompt_tokens", 1), ("completion_tokens", 1), ("cost", 10**9)):
        old = sum(getattr(u, field) for u in before.values())
        new = sum(getattr(u, field) for u in after) - old
        assert new == sum(round(usage[field] * factor) for usage in usages)


def test_who_gives_up_waiting_for_the_file_stops_nobody() -> None:
    ledger, used = Ledger(None), Used(key="a", model="m", prompt_tokens=1, completion_tokens=2, cost=3)
    assert not ledger.add(used).cancel()
    ledger.add(used).result(timeout=10)
    assert ledger.month()[0].requests == 2
    ledger.close()
