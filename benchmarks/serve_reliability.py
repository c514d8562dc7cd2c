"""What `kiban serve` refuses and survives, beside uvicorn alone, and what the tests of the server found at full size.

    pip install -e ".[test]" && python benchmarks/serve_reliability.py --save

Server and client are two processes. Kiban serves kiban-lm-ja-en; its peers are an ASGI app under uvicorn that answers 429 at
once, which is the least that uvicorn can cost, and an app of FastAPI. Connections stand before a burst, and a time runs from
when a request was sent whole until its answer has come.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import numpy as np
import psutil
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from common import finish

ROOT = Path(__file__).parents[1]
PATH = "/v1/completions"
ASK = {"model": "lm", "prompt": "このパッケージは", "max_tokens": 4, "temperature": 0}
LONG = {**ASK, "max_tokens": 240, "stream": True}
TESTS = ("keys", "refusals", "slow_clients", "busy", "schema", "ending", "secrets")
MB = 2**20


class Body(BaseModel):
    """What the peer of FastAPI reads."""

    model: str
    prompt: str
    max_tokens: int


def peer(kind: str) -> None:
    """Run uvicorn with an app that is always busy, or one that reads a body; prints its URL."""
    busy, raw = {"error": {"message": "busy"}}, b'{"error":{"message":"busy"}}'

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(raw)),
            (b"retry-after", b"1"),
        ]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body", "body": raw})

    api = FastAPI()

    @api.post(PATH)
    async def complete(body: Body) -> JSONResponse:
        return JSONResponse(busy, status_code=429, headers={"retry-after": "1"})

    @api.post("/size")
    async def size(request: Request) -> JSONResponse:
        return JSONResponse({"bytes": len(await request.body())})

    found = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"http://127.0.0.1:{found.getsockname()[1]}", flush=True)
    app: Any = bare if kind == "bare" else api
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, http="h11")).run([found])


@contextlib.contextmanager
def serving(*arguments: str, log: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A server in a process of its own: its URL, and the process."""
    with log.open("w") as err:
        child = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=err, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line.startswith("http://"), log.read_text("utf-8")
        url = line.split("/v1")[0].strip()
        _until(lambda: httpx.post(url + PATH, json=ASK, trust_env=False).status_code in (200, 429))
        yield url, psutil.Process(child.pid)
    finally:
        child.kill()
        child.wait()


def kiban(log: Path) -> contextlib.AbstractContextManager[tuple[str, psutil.Process]]:
    """`kiban serve` as it is, with a model of this repository."""
    return serving(
        "-m", "kiban", "serve", f"lm={ROOT / 'weights' / 'kiban-lm-ja-en'}", "--port", "0", "--lang", "en", log=log
    )


def plain(kind: str, log: Path) -> contextlib.AbstractContextManager[tuple[str, psutil.Process]]:
    """uvicorn alone."""
    return serving(__file__, "--peer", kind, log=log)


def _until(holds: Any) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def connect(url: str) -> socket.socket:
    """A connection that sends at once."""
    host, port = url.removeprefix("http://").split(":")
    wire = socket.create_connection((host, int(port)), timeout=60)
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return wire


def request(body: dict[str, Any]) -> bytes:
    """As the usual clients write it."""
    content = json.dumps(body).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\nuser-agent: x\r\ncontent-type: application/json\r\n"
    )
    return (head + f"content-length: {len(content)}\r\n\r\n").encode() + content


def quantiles(seconds: list[float]) -> dict[str, float]:
    """In ms."""
    return {f"p{q}": round(1000 * float(np.quantile(seconds, q / 100)), 2) for q in (50, 99, 100)}


def burst(url: str, number: int = 500) -> dict[str, Any]:
    """Reliability 22: what a client sees of a burst."""
    wires = [connect(url) for _ in range(number)]
    time.sleep(1)  # all are accepted
    chosen = selectors.DefaultSelector()
    for wire in wires:
        chosen.register(wire, selectors.EVENT_READ)
    data, sent, statuses = request(LONG), {}, Counter()
    seconds: list[float] = []
    for wire in wires:
        wire.sendall(data)
        sent[wire] = time.perf_counter()
    while sum(statuses.values()) < number:
        for key, _ in chosen.select(60):
            wire: Any = key.fileobj
            status, now = int(wire.recv(65536).split()[1]), time.perf_counter()
            chosen.unregister(wire)
            statuses[status] += 1
            if status == 429:
                seconds.append(now - sent[wire])
    for wire in wires:
        wire.close()
    return {"statuses": dict(statuses), "refused_ms": quantiles(seconds)}


def bursts(url: str, runs: int = 5) -> dict[str, Any]:
    """The burst whose 99th percentile is the median, and that of all: what else the machine does hits some."""
    found = []
    for _ in range(runs):
        found.append(burst(url))
        time.sleep(3)  # what was let in has ended
    p99 = sorted(one["refused_ms"]["p99"] for one in found)
    return next(one for one in found if one["refused_ms"]["p99"] == p99[runs // 2]) | {"p99_of_all": p99}


def decided(log: Path) -> dict[str, float]:
    """How long the server took for each refusal, from the parsed header to the reply that is written, by its own log."""
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines() if line.startswith("{")]
    return quantiles([line["ms"] / 1000 for line in lines if line["event"] == "request" and line["status"] == 429])


def half_sent(url: str, number: int = 500, seconds: float = 30.0) -> dict[str, Any]:
    """Reliability 20: connections with half a header that are still open after so long."""
    wires = [connect(url) for _ in range(number)]
    for wire in wires:
        wire.sendall(b"GET /healthz HTTP/1.1\r\nhost: local")
    time.sleep(seconds)
    still = 0
    for wire in wires:
        wire.setblocking(False)
        try:
            while wire.recv(65536):
                pass
        except BlockingIOError:
            still += 1
        except ConnectionError:
            pass
        wire.close()
    return {"sent": number, "open_after_30_s": still}


def large(url: str, process: psutil.Process, path: str, *, length: bool) -> dict[str, Any]:
    """Reliability 19: a body of 64 MB; its status, how much the server took of it, and how much larger it got."""
    before, sent = process.memory_info().rss, 0
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with connect(url) as wire:
        wire.sendall(
            (head + ("content-length: 67108864" if length else "transfer-encoding: chunked") + "\r\n\r\n").encode()
        )
        try:
            for _ in range(64):
                wire.sendall(b"x" * MB if length else b"100000\r\n" + b"x" * MB + b"\r\n")
                sent += 1
            if not length:
                wire.sendall(b"0\r\n\r\n")
        except OSError:
            pass  # it was refused and closed
        status = int(wire.recv(4096).split()[1])
    return {"status": status, "mb_sent": sent, "mb_more": round((process.memory_info().rss - before) / MB, 1)}


async def _normal(url: str, until: float, found: list[float]) -> None:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http:
        while time.monotonic() < until:
            begun = time.perf_counter()
            answer = await http.post(PATH, json=ASK)
            assert answer.status_code == 200, answer.text
            found.append(time.perf_counter() - begun)


async def _slow(url: str, until: float, kind: int, closed: Counter[str]) -> None:
    """Nothing, a header by drops or a body by drops; again when it is closed."""
    start = (b"", b"GET /healthz HTTP/1.1\r\nx-a: ", request(ASK).split(b"\r\n\r\n")[0] + b"\r\n\r\n{")[kind]
    host, port = url.removeprefix("http://").split(":")
    while time.monotonic() < until:
        with contextlib.suppress(ConnectionError):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(start)
            reading = asyncio.create_task(reader.read())
            while not reading.done() and time.monotonic() < until:
                await asyncio.wait({reading}, timeout=2.0)
                if kind and not reading.done():
                    writer.write(b"x")
            if reading.done():
                closed[str(reading.result()[9:12].decode() or "cut") if reading.exception() is None else "cut"] += 1
            reading.cancel()
            writer.close()


async def slow_clients(url: str, number: int = 1000, seconds: float = 60.0, clients: int = 20) -> dict[str, Any]:
    """Reliability 20: p99 of normal clients alone and beside slow ones, and how those were closed."""
    alone: list[float] = []
    beside: list[float] = []
    closed: Counter[str] = Counter()
    until = time.monotonic() + seconds / 2
    await asyncio.gather(*(_normal(url, until, alone) for _ in range(clients)))
    until = time.monotonic() + seconds
    slow = [asyncio.create_task(_slow(url, until, i % 3, closed)) for i in range(number)]
    await asyncio.sleep(2)  # all are connected
    await asyncio.gather(*slow, *(_normal(url, until, beside) for _ in range(clients)))
    found = {"slow": number, "seconds": seconds, "alone_ms": quantiles(alone), "beside_ms": quantiles(beside)}
    return {**found, "closed": dict(closed), "answers": len(alone) + len(beside)}


def tested() -> list[dict[str, Any]]:
    """What the tests of the cases of reliability.md found, the long ones too."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "tests.xml"
        files = [f"tests/serve/test_{name}.py" for name in TESTS]
        command = [sys.executable, "-m", "pytest", *files, "-m", "slow or not slow", f"--junitxml={path}"]
        subprocess.run(command, cwd=ROOT, check=False)
        rows = []
        for test in ElementTree.parse(path).iter("testcase"):
            failed = any(test.find(kind) is not None for kind in ("failure", "error", "skipped"))
            for found in test.iter("property"):
                case, facts = str(found.get("name")), json.loads(str(found.get("value")))
                rows.append({"case": case, "test": test.get("name"), "passed": not failed, **facts})
    return sorted(rows, key=lambda row: row["case"])


def measure(folder: Path) -> dict[str, Any]:
    """All that is compared, each beside uvicorn."""
    rows: dict[str, Any] = {"burst": {}, "half_sent": {}, "large": {}}
    with kiban(folder / "kiban") as (url, process):
        rows["burst"]["kiban"] = {**bursts(url), "decided_ms": decided(folder / "kiban")}
        rows["half_sent"]["kiban"] = half_sent(url)
        for length in (True, False):
            rows["large"][f"kiban, {'with' if length else 'without'} a length"] = large(
                url, process, PATH, length=length
            )
        rows["slow_clients"] = asyncio.run(slow_clients(url))
    for kind in ("bare", "fastapi"):
        with plain(kind, folder / kind) as (url, process):
            rows["burst"][f"uvicorn, {kind}"] = bursts(url)
            if kind == "fastapi":
                rows["half_sent"]["uvicorn"] = half_sent(url)
                for length in (True, False):
                    name = f"uvicorn, {'with' if length else 'without'} a length"
                    rows["large"][name] = large(url, process, "/size", length=length)
    return rows


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=["bare", "fastapi"], help="only run this peer")
    parser.add_argument("--save", action="store_true", help="write results/serve-reliability.json")
    options = parser.parse_args()
    if options.peer:
        peer(options.peer)
        return
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name))
    for what in ("burst", "half_sent", "large"):
        for server, row in found[what].items():
            print(what, server, json.dumps(row))
    print("slow clients", json.dumps(found["slow_clients"]))
    found["cases"] = tested()
    for row in found["cases"]:
        print(json.dumps(row, ensure_ascii=False))
    options.threads, options.repeats = 1, 1
    finish("serve-reliability", found, options, ("uvicorn", "fastapi", "h11", "schemathesis"))


if __name__ == "__main__":
    main()
