"""An hour of mixed load on `kiban serve`: does anything grow, leak or get lost?

    pip install -e ".[test]" && python benchmarks/soak.py --minutes 60 --save

The server runs in a process of its own and serves SmolLM2-135M, kiban-lm-ja-en, MiniLM-L6 and a baseline that is trained
here. Some clients stay for their answers (chat whole, streamed and by a schema, completions, embeddings, classes), some
leave in the middle, some are slow, some come in bursts, and some are refused. Every 15 s memory, descriptors, threads,
pages and queue of the server are noted. At the end nothing may be left over, and the books hold what the clients were told.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import itertools
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families

from common import RESULTS, finish, table
from kiban.adopt.strategies import strategy
from kiban.adopt.strategies.base import Candidate, Job, Rows, Task
from kiban.serve.auth import new_key
from soak_clients import KEYS, Load

RECORD = RESULTS / "serve-soak.json"
BAR = 1.0  # MB per 10,000 requests
EVERY = 15.0  # seconds between two looks
ROOT = Path(__file__).parents[1]
DATA = ROOT / "examples" / "data" / "debian-en.csv"
BOOKS = ("requests", "prompt_tokens", "completion_tokens", "cost")


class Server:
    """`kiban serve` as users start it; all its files lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self.ledger = folder / "keys.ledger.sqlite"
        keys = folder / "keys.json"
        self.keys = {name: new_key(keys, name) for name in KEYS}
        rows = json.loads(keys.read_text("utf-8"))["keys"]
        keys.write_text(json.dumps({"keys": [row | KEYS[row["name"]] for row in rows]}), "utf-8")
        self.texts = _train(folder)
        small = f"small={ROOT / 'weights' / 'kiban-lm-ja-en'}"
        models = ["lm=smollm2-135m-instruct", small, "minilm-l6", f"kinds={folder / 'kinds'}"]
        options = ["--keys", str(keys), "--price-per-hour", "100", "--weights", "int4", "--port", "0", "--lang", "en"]
        with (folder / "log").open("w") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "kiban", "serve", *models, *options],
                stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        assert line.startswith("http://"), (folder / "log").read_text("utf-8")
        self.url, self.process = line.split("/v1")[0], psutil.Process(self.child.pid)

    def gauges(self, model: str = "") -> dict[str, float]:
        """What /metrics tells of a model, or sums over all."""
        headers = {"authorization": f"Bearer {self.keys['stays']}"}
        text = httpx.get(f"{self.url}/metrics", headers=headers, trust_env=False, timeout=60).text
        sums: Counter[str] = Counter()
        for family in text_string_to_metric_families(text):
            for sample in (found for found in family.samples if not model or found.labels.get("model") == model):
                sums[sample.name.removeprefix("kiban_").removeprefix("engine_")] += sample.value  # type: ignore[assignment]
        return dict(sums)

    def pages(self) -> tuple[float, float]:
        """Pages of the largest model of which the content is known, and all of them."""
        gauges = self.gauges("lm")
        return gauges["pages_used"] + gauges["pages_idle"], gauges["pages"]

    def look(self) -> dict[str, float]:
        """One row of the record."""
        gauges = self.gauges()
        with self.process.oneshot():
            row = {
                "rss_mb": self.process.memory_info().rss / 2**20,
                "descriptors": self.process.num_fds(),
                "threads": self.process.num_threads(),
            }
        row["child_mb"] = sum(child.memory_info().rss for child in self.process.children()) / 2**20
        return row | {name: gauges[name] for name in ("running", "waiting", "pages_used", "pages_idle")}

    def idle(self) -> dict[str, float]:
        """The same when nothing runs and no client is connected."""
        for _ in range(600):
            row = self.look()
            others = [c for c in self.process.net_connections() if c.status == psutil.CONN_ESTABLISHED]
            if not row["running"] + row["waiting"] and not others:
                break
            time.sleep(0.1)
        return row

    def end(self) -> dict[str, Counter[str]]:
        """SIGTERM, and the books by key."""
        self.child.terminate()
        assert self.child.wait(timeout=60) == 0
        with contextlib.closing(sqlite3.connect(self.ledger)) as database:
            sums = ", ".join(f"SUM({name})" for name in BOOKS)
            rows = database.execute(f"SELECT key, {sums} FROM usage GROUP BY key").fetchall()
        return {key: Counter(dict(zip(BOOKS, row, strict=True))) for key, *row in rows}


def _train(folder: Path) -> list[str]:
    """A baseline over the example data, kept as a run keeps it; returns the texts."""
    with DATA.open(encoding="utf-8", newline="") as file:
        rows = list(itertools.islice(csv.DictReader(file), 400))
    labels = tuple(sorted({row["label"] for row in rows}))
    texts = [row["text"] for row in rows]
    data = Rows(inputs=texts, targets=[labels.index(row["label"]) for row in rows])
    task = Task(kind="single_label", labels=labels, language="en", length_p95=600)
    job = Job(
        task=task, candidate=Candidate(strategy="baseline", model=None), train=data, validation=data, max_steps=0, seed=0,
        work=folder / "work",
    )  # fmt: skip
    strategy("baseline").fit(job).predictor.save(folder / "kinds")
    return texts


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server, which is killed if it has not ended."""
    with tempfile.TemporaryDirectory() as name:
        server = Server(Path(name))
        try:
            yield server
        finally:
            server.child.kill()
            server.child.wait()


async def soak(server: Server, minutes: float) -> dict[str, Any]:
    """Warm up, load, and look again and again."""
    load, rows, begun = Load(server.url, server.keys, server.texts), [], time.monotonic()
    await load.fill(server.pages, 15 * minutes)
    await load.run(min(60.0, 6 * minutes))  # caches of grammars fill, threads start
    before, warm = server.idle(), load.seen.total
    task = asyncio.create_task(load.run(60 * minutes))
    while not task.done():
        row = await asyncio.to_thread(server.look)
        rows.append({"seconds": time.monotonic() - begun, "requests": load.seen.total - warm, **row})
        print(" ".join(f"{name} {value:,.0f}" for name, value in rows[-1].items()), flush=True)
        await asyncio.wait({task}, timeout=EVERY)
    await task
    after, gauges = server.idle(), server.gauges()
    seen = load.seen
    return {
        "minutes": minutes,
        "requests": seen.total - warm,
        "warm_up": warm,
        "before": before,
        "after": after,
        "counted": gauges,
        "samples": rows,
        "statuses": {kind: dict(counts) for kind, counts in sorted(seen.statuses.items())},
        "told": seen.books,
        "faults": seen.faults[:50],
    }


def judge(record: dict[str, Any]) -> dict[str, bool]:
    """What has to hold. The record is told the slope of the whole time and that after a quarter of it, since the cache of
    grammars fills slowly, and the largest memory of each quarter, which shows whether it still grows.
    """
    before, after, rows, ledger, told = (record[name] for name in ("before", "after", "samples", "ledger", "told"))
    quarter = len(rows) // 4
    record["slope_whole"], record["slope"] = (_line(part)[0] * 10_000 for part in (rows, rows[quarter:]))
    record["peaks_mb"] = [max(row["rss_mb"] for row in rows[i * quarter : (i + 1) * quarter]) for i in range(4)]
    counted = record["counted"]["cost_total"] * 10**9  # a sum of floats
    return {
        f"memory grows by less than {BAR:g} MB per 10,000 requests": record["slope"] < BAR,
        "no page is in use": before["pages_used"] == after["pages_used"] == 0,
        "no slot is in use": after["running"] == after["waiting"] == 0,
        "no more descriptors": after["descriptors"] <= before["descriptors"],
        "no more threads": after["threads"] <= before["threads"],
        "no answer was unexpected": not record["faults"],
        "the ledger is what clients were told": all(ledger[key] == told[key] for key in KEYS if key != "leaves"),
        "who left was charged": ledger["leaves"]["cost"] > 0,
        "the ledger is what the server counted": abs(sum(row["cost"] for row in ledger.values()) - counted) < 1000,
    }


def _line(rows: list[dict[str, float]]) -> tuple[float, float]:
    """Memory by requests as a line: MB per request, MB at none."""
    slope, start = np.polyfit([row["requests"] for row in rows], [row["rss_mb"] for row in rows], 1)
    return float(slope), float(start)


def plot(rows: list[dict[str, float]], path: Path) -> None:
    """Memory by requests, with the line of the last three quarters."""
    import matplotlib.pyplot as plt

    late = rows[len(rows) // 4 :]
    slope, start = _line(late)
    ends = np.array([late[0]["requests"], late[-1]["requests"]])
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    axes.plot([row["requests"] for row in rows], [row["rss_mb"] for row in rows], ".", markersize=3, label="every 15 s")
    axes.plot(ends, start + slope * ends, label=f"{10_000 * slope:+.2f} MB per 10,000 requests")
    axes.set(xlabel="requests", ylabel="memory of kiban serve (MB)", ylim=(0, 1.2 * max(row["rss_mb"] for row in rows)))
    axes.legend(loc="lower right")
    figure.savefig(path)


def tell(record: dict[str, Any]) -> None:
    """Print what was found."""
    sums = [{"key": key, "books": side, **record[side][key]} for key in KEYS for side in ("ledger", "told")]
    print(table([{name: row.get(name, 0) for name in ("key", "books", *BOOKS)} for row in sums]))
    for name, holds in record["checks"].items():
        print("yes" if holds else "NO ", name)
    print(f"{record['requests']:,} requests, {record['slope']:+.2f} MB per 10,000; peaks {record['peaks_mb']}")
    print(*record["faults"], sep="\n")


def main() -> None:
    """Soak, or judge what was saved; exit 1 if something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="after the warm-up")
    parser.add_argument("--save", action="store_true", help=f"write {RECORD.name} and a plot of the memory")
    parser.add_argument("--judge", action="store_true", help="judge and plot the saved record again")
    options = parser.parse_args()
    options.threads, options.repeats = 1, 1
    if options.judge:
        record = json.loads(RECORD.read_text("utf-8"))
    else:
        with serving() as server:
            record = asyncio.run(soak(server, options.minutes))
            record["ledger"] = server.end()
    record["checks"] = judge(record)
    tell(record)
    if options.judge:
        RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        finish(RECORD.stem, record, options, ("fastapi", "uvicorn", "httpx", "llguidance"))
    if options.save or options.judge:
        plot(record["samples"], RECORD.with_suffix(".svg"))
    sys.exit(not all(record["checks"].values()))


if __name__ == "__main__":
    main()
