"""SIGTERM: nothing new is taken, what runs has its time, the rest is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from kiban.serve.auth import new_key

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """command(*arguments) runs `kiban serve` and returns its process and URL."""
    children: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
        with (tmp_path / "err").open("w") as err:
            child = subprocess.Popen(
                [sys.executable, "-m", "kiban", "serve", *arguments, "--port", "0", "--lang", "en"],
                stdout=subprocess.PIPE, stderr=err, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        children.append(child)
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), (tmp_path / "err").read_text("utf-8")
        return child, line.split("/v1")[0]

    yield start
    for child in children:
        child.kill()
        child.wait()


def _stream(url: str, tokens: int, found: list[tuple[str, str]]) -> None:
    """How a stream ends, and its text."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=120)
    text = ""
    try:
        stream = client.chat.completions.create(
            model="tiny-chat", messages=HELLO, max_tokens=tokens, stream=True, temperature=0  # type: ignore[arg-type]
        )  # fmt: skip
        finish = None
        for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
        found.append((str(finish), text))
    except openai.APIError as error:
        found.append((str(error.code), text))


def _check_end(
    url: str, end: Callable[[], None], ended: Callable[[], bool], streams: int, tokens: int
) -> tuple[list[str], list[int], float]:
    """Ends of the streams, statuses of requests after the signal, seconds until the server had ended."""
    found: list[tuple[str, str]] = []
    threads = [threading.Thread(target=_stream, args=(url, tokens, found)) for _ in range(streams)]
    for thread in threads:
        thread.start()
    gauges = [f'kiban_{name}{{model="tiny-chat"}} {n:.1f}' for name, n in (("running", 8), ("waiting", streams - 8))]
    while not all(gauge in httpx.get(f"{url}/metrics", trust_env=False).text for gauge in gauges):
        assert not found, "the answers are too short for this test"
    end()
    begun, statuses = time.monotonic(), []
    while not ended():
        try:
            body = {"model": "tiny-chat", "messages": HELLO, "max_tokens": 1}
            statuses.append(httpx.post(url + CHAT, json=body, trust_env=False, timeout=10).status_code)
            time.sleep(0.02)
        except httpx.TransportError:
            time.sleep(0.05)  # it has ended, or is about to
    seconds = time.monotonic() - begun
    for thread in threads:
        thread.join(timeout=30)
    assert len(found) == streams
    return [end for end, _ in found], statuses, seconds


def _close(live: Any) -> Callable[[], None]:
    return lambda: live.loop.call_soon_threadsafe(live.server.begin_to_close)


def test_what_runs_ends_and_new_requests_are_503(serve: Any, tiny_chat: Any) -> None:
    live = serve(tiny_chat(), drain=60.0)
    ends, statuses, _ = _check_end(live.url, _close(live), lambda: not live.thread.is_alive(), 9, 400)
    assert ends == ["length"] * 9
    assert statuses and set(statuses) <= {503, 200} and statuses.count(200) <= 1  # one may come before the end begins


def test_what_takes_too_long_is_told(serve: Any, tiny_chat: Any) -> None:
    live = serve(tiny_chat(), drain=0.3)
    ends, statuses, seconds = _check_end(live.url, _close(live), lambda: not live.thread.is_alive(), 12, 4000)
    assert "server_shutdown" in ends and set(ends) <= {"server_shutdown", "length"}
    assert set(statuses) <= {503, 200} and seconds < 15


@pytest.mark.slow
def test_sigterm_under_50_streams(command: Any, chat_folder: Path, case: Any) -> None:
    """Reliability 25 in full: those that run end within the limit, those that cannot are told."""
    child, url = command(str(chat_folder), "--drain", "20", "--max-waiting", "64")
    signalled = lambda: child.send_signal(signal.SIGTERM)  # noqa: E731
    ends, statuses, seconds = _check_end(url, signalled, lambda: child.poll() is not None, 50, 400)
    assert child.returncode == 0
    assert set(ends) <= {"length", "server_shutdown"} and ends.count("length") >= 8
    assert 503 in statuses and seconds < 30
    case(
        25,
        ended=ends.count("length"),
        told=ends.count("server_shutdown"),
        new_503=statuses.count(503),
        seconds=round(seconds, 1),
    )


def test_a_second_signal_ends_at_once(command: Any, chat_folder: Path) -> None:
    child, url = command(str(chat_folder), "--drain", "600")
    found: list[tuple[str, str]] = []
    thread = threading.Thread(target=_stream, args=(url, 4000, found))
    thread.start()
    while 'kiban_running{model="tiny-chat"} 1.0' not in httpx.get(f"{url}/metrics", trust_env=False).text:
        assert not found
    child.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert httpx.get(f"{url}/healthz", trust_env=False).json() == {"status": "closing"}
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=20) == 0
    thread.join(timeout=20)


def test_kill_loses_nothing_that_clients_were_told(command: Any, chat_folder: Path, tmp_path: Path) -> None:
    import sqlite3

    ledger = tmp_path / "ledger.sqlite"
    child, url = command(str(chat_folder), "--ledger", str(ledger), "--price-per-hour", "100")
    told = 0
    body = {"model": "tiny-chat", "messages": HELLO, "max_tokens": 5, "temperature": 0}
    for _ in range(5):
        answer = httpx.post(
            url + CHAT, content=json.dumps(body), headers={"content-type": "application/json"}, trust_env=False
        )
        told += round(answer.json()["usage"]["cost"] * 10**9)
    child.kill()
    child.wait()
    assert sqlite3.connect(ledger).execute("SELECT SUM(requests), SUM(cost) FROM usage").fetchone() == (5, told)


@pytest.mark.slow
def test_a_canary_is_in_nothing_that_the_command_writes(
    command: Any, chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Any
) -> None:
    """Reliability 27 of the whole program: by environment, header, path, prompt and key; in its output, files and cache."""
    canary, cache = "canary-51c0ffee", tmp_path / "cache"
    monkeypatch.setenv("OPENAI_API_KEY", canary)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    token = new_key(tmp_path / "keys.json", "alice")
    child, url = command(str(chat_folder), "--keys", str(tmp_path / "keys.json"), "--price-per-hour", "9")
    say = [{"role": "user", "content": canary}]
    tool = {"type": "function", "function": {"name": "f", "description": canary, "parameters": {"title": canary}}}
    forms: list[dict[str, Any]] = [
        {}, {"stream": True}, {"temperature": canary}, {"stop": [canary]}, {canary: 1}, {"user": canary}, {"tools": [tool]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [canary]}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"pattern": f"({canary}"}}}},
    ]  # fmt: skip
    statuses = []
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        for key in (token, canary):
            for form in forms:
                headers = {"authorization": f"Bearer {key}", "x-canary": canary}
                body = {"model": "tiny-chat", "messages": say, "max_tokens": 2, **form}
                statuses.append(http.post(f"{CHAT}?key={canary}", json=body, headers=headers).status_code)
            statuses.append(http.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code)
        metrics = http.get("/metrics", headers={"authorization": f"Bearer {token}"}).text
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=30) == 0 and child.stdout is not None
    assert statuses.count(200) >= 5 and statuses.count(401) == len(forms) + 1 and statuses.count(500) == 0, statuses
    written = {"metrics": metrics.encode(), "stdout": child.stdout.read().encode()}
    written |= {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert b'"event": "request"' in written[str(tmp_path / "err")]
    for place, content in written.items():
        assert canary.encode() not in content and token.encode() not in content, place
    case(27, requests=len(statuses), places=len(written), found=0)
