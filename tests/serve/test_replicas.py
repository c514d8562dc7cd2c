"""`kiban serve --replicas` on a local Ray of two workers: one server in front, and what is left of it when one dies."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from kiban.errors import ConfigError, ModelNotFoundError
from kiban.serve.replicas import ALONE, open_replicas
from kiban.serve.served import open_all

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is an extra")
CHAT, COMPLETE, CLASSIFY = "/v1/chat/completions", "/v1/completions", "/v1/classify"
HELLO = [{"role": "user", "content": "こんにちは"}]
YES_NO = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}
LONG = {"model": "tiny-chat", "prompt": "x", "max_tokens": 2000, "temperature": 0, "stream": True}
CANARY = "kanariya-7391"
ASKS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"model": "tiny-chat", "messages": HELLO, "max_tokens": 24, "temperature": 0}),
    (CHAT, {"model": "tiny-chat", "messages": HELLO, "max_tokens": 24, "seed": 3, "n": 2}),
    (CHAT, {"model": "tiny-chat", "messages": HELLO, "seed": 1, "response_format": YES_NO}),
    (CHAT, {"model": "tiny-chat", "messages": HELLO, "max_tokens": 4, "seed": 1, "logprobs": True, "top_logprobs": 2}),
    (COMPLETE, {"model": "tiny-chat", "prompt": ["a", "猫"], "max_tokens": 9, "seed": 5, "stop": "z"}),
    (CLASSIFY, {"model": "adopt-words", "input": ["請求書の再発行", "猫が好き"]}),
    (CHAT, {"model": "adopt-words", "messages": [{"role": "user", "content": "猫が好き"}]}),
    # Refused in front, as without replicas.
    (COMPLETE, {"model": "tiny-chat", "prompt": [10**6]}),
    (COMPLETE, {"model": "tiny-chat", "prompt": "x" * 5000}),
    (CHAT, {"model": "tiny-chat", "messages": HELLO, "response_format": {
        "type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}}),
]  # fmt: skip


def _replicas(process: psutil.Process) -> list[psutil.Process]:
    """The processes of replicas below another."""
    found = []
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # or is a zombie
            found += [child] if child.cmdline()[:1] and child.cmdline()[0].startswith("ray::Replica") else []
    return found


@dataclass
class Command:
    """`kiban serve` with replicas, as typed."""

    child: subprocess.Popen[str]
    url: str
    folder: Path

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def gauge(self, name: str, model: str = "tiny-chat") -> float:
        """A number of /metrics."""
        start = f'kiban_{name}{{model="{model}"}} '
        (line,) = (line for line in self.http.get("/metrics").text.splitlines() if line.startswith(start))
        return float(line.removeprefix(start))

    def until(self, true: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait for it."""
        begun = time.monotonic()
        while not true():
            assert time.monotonic() - begun < seconds
            time.sleep(0.02)

    @property
    def family(self) -> list[psutil.Process]:
        """All processes below the server."""
        return psutil.Process(self.child.pid).children(recursive=True)

    @property
    def replicas(self) -> list[psutil.Process]:
        """The processes of the replicas."""
        return _replicas(psutil.Process(self.child.pid))

    @property
    def ledger(self) -> tuple[int, int]:
        """Requests, and their cost in billionths."""
        with sqlite3.connect(self.folder / "ledger.sqlite") as database:
            requests, cost = database.execute("SELECT SUM(requests), SUM(cost) FROM usage").fetchone()
        return requests or 0, cost or 0


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Command]]:
    """command(*arguments) runs `kiban serve`; what is left of its processes ends with the module."""
    commands: list[tuple[Command, list[psutil.Process]]] = []
    short = Path(tempfile.mkdtemp(prefix="kr", dir="/tmp"))  # names of sockets have to be short

    def start(*arguments: str) -> Command:
        folder = tmp_path_factory.mktemp("command")
        with (folder / "log").open("w") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "kiban", "serve", *arguments, "--port", "0", "--lang", "en",
                 "--ledger", str(folder / "ledger.sqlite"), "--price-per-hour", "60"],
                stdout=subprocess.PIPE, stderr=log, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(short)},
            )  # fmt: skip
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), (folder / "log").read_text("utf-8")
        found = Command(child, line.split("/v1")[0], folder)
        commands.append((found, found.family))
        return found

    yield start
    for found, family in commands:
        if found.child.poll() is None:
            family = [*found.family, *family]
        found.child.kill()
        found.child.wait()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    shutil.rmtree(short, ignore_errors=True)


@pytest.fixture(scope="module")
def remote(command: Callable[..., Command], chat_folder: Path, baseline_folder: Path) -> Command:
    """Two replicas of each model; shared by tests that leave them as they were."""
    return command(
        str(chat_folder), str(baseline_folder), "--replicas", "2", "--max-running", "4", "--max-waiting", "8"
    )


def _same(answer: httpx.Response) -> tuple[int, Any]:
    """What of an answer does not depend on when it was given."""
    body = answer.json()
    for name in ("id", "created", "request"):
        body.pop(name, None)
    if "usage" in body:
        body["usage"] = {name: body["usage"][name] for name in ("prompt_tokens", "completion_tokens")}
    return answer.status_code, body


def _stream(remote: Command, ends: list[str]) -> None:
    """Ask for a long answer, and note how it ends."""
    end = "broken"
    with httpx.stream("POST", remote.url + COMPLETE, json=LONG, timeout=120, trust_env=False) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                end = event["error"]["code"] if "error" in event else event["choices"][0]["finish_reason"] or end
    ends.append(end)


def _streams(remote: Command, number: int) -> tuple[list[threading.Thread], list[str]]:
    ends: list[str] = []
    threads = [threading.Thread(target=_stream, args=(remote, ends)) for _ in range(number)]
    for thread in threads:
        thread.start()
    remote.until(lambda: remote.gauge("running") == number)
    return threads, ends


@needs_ray
def test_answers_are_those_of_one_process(
    remote: Command, serve: Any, chat_folder: Path, baseline_folder: Path
) -> None:
    models, trial = open_all([str(chat_folder), str(baseline_folder)])
    local = serve(models)
    for path, body in ASKS:
        assert _same(remote.http.post(path, json=body)) == _same(local.post(path, body)), body
    facts = [
        {k: v for k, v in model.items() if k != "created"} for model in remote.http.get("/v1/models").json()["data"]
    ]
    assert facts == [{k: v for k, v in m.items() if k != "created"} for m in local.get("/v1/models").json()["data"]]
    trial.close()


@needs_ray
def test_two_replicas_share_eight_answers(remote: Command) -> None:
    assert remote.gauge("max_running") == 8 and remote.gauge("max_waiting") == 8
    before = {process.pid: sum(process.cpu_times()[:2]) for process in remote.replicas}
    threads, ends = _streams(remote, 8)  # each writes four at once
    for thread in threads:
        thread.join(timeout=120)
    assert ends == ["length"] * 8 and remote.gauge("running") == remote.gauge("waiting") == 0
    grown = sorted(sum(process.cpu_times()[:2]) - before[process.pid] for process in remote.replicas)
    assert len(grown) == 4 and grown[2] > 0.4 * grown[3] > 10 * grown[1]  # those of the chat model, evenly


@needs_ray
def test_the_ledger_equals_what_clients_were_told(remote: Command) -> None:
    requests, cost = remote.ledger
    answers = [remote.http.post(path, json=body) for path, body in ASKS[:7] * 2]
    told = sum(round(answer.json()["usage"]["cost"] * 10**9) for answer in answers)
    assert remote.ledger == (requests + 14, cost + told) and told > 0


@needs_ray
def test_who_leaves_gives_the_place_back(remote: Command) -> None:
    for _ in range(12):
        with pytest.raises(httpx.ReadTimeout):
            remote.http.post(COMPLETE, json={**LONG, "stream": False, "max_tokens": 4000}, timeout=0.1)
    remote.until(lambda: remote.gauge("running") == 0, 5)
    remote.until(lambda: remote.gauge("pages_used") == 0, 10)  # in the replicas too


@needs_ray
def test_one_that_dies_takes_its_own_answers_alone_and_comes_back(remote: Command) -> None:
    threads, ends = _streams(remote, 8)
    busiest = max(remote.replicas, key=lambda process: sum(process.cpu_times()[:2]))
    busiest.send_signal(signal.SIGKILL)
    remote.until(lambda: remote.gauge("engine_replicas_up") == 1, 20)
    answer = remote.http.post(ASKS[0][0], json=ASKS[0][1])  # the other goes on
    assert answer.status_code == 200
    for thread in threads:
        thread.join(timeout=120)
    assert sorted(ends) == ["engine_error"] * 4 + ["length"] * 4
    remote.until(lambda: remote.gauge("engine_replicas_up") == 2)
    assert remote.gauge("running") == 0 and len(remote.replicas) == 4
    threads, ends = _streams(remote, 8)  # both again
    for thread in threads:
        thread.join(timeout=120)
    assert ends == ["length"] * 8
    log = [json.loads(line) for line in (remote.folder / "log").read_text("utf-8").splitlines() if line[:1] == "{"]
    told = [(line["model"], line["up"]) for line in log if line["event"] == "replica"]
    assert told == [("tiny-chat", False), ("tiny-chat", True)]


@needs_ray
def test_the_end_leaves_nothing_running_and_prompts_nowhere(remote: Command) -> None:
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": CANARY}], "max_tokens": 3}
    assert remote.http.post(CHAT, json=body).status_code == 200
    assert remote.http.post(CLASSIFY, json={"model": "adopt-words", "input": CANARY}).status_code == 200
    family = remote.family
    folder = Path(next(p.environ()["RAY_TMPDIR"] for p in family if p in remote.replicas))
    threads, ends = _streams(remote, 2)
    remote.child.send_signal(signal.SIGTERM)
    assert remote.child.wait(timeout=60) == 0
    for thread in threads:
        thread.join(timeout=10)
    assert ends == ["length"] * 2  # they were let end
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    files = [path for path in [*folder.rglob("*"), remote.folder / "log"] if path.is_file()]
    assert len(files) > 5 and not any(CANARY.encode() in path.read_bytes() for path in files)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a cluster with two CPUs that somebody else runs, and its first process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for name, value in {**ALONE, "RAY_AUTH_TOKEN": "0" * 64}.items():
        monkeypatch.setenv(name, value)
    folder = tempfile.mkdtemp(prefix="kr", dir="/tmp")
    line = ["ray", "start", "--head", "--block", "--num-cpus", "2", "--port", str(port), "--include-dashboard", "false"]
    child = subprocess.Popen([*line, "--temp-dir", folder], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert child.stdout is not None
    said = []
    while "Ray runtime started" not in "".join(said[-1:]):
        said.append(child.stdout.readline())
        assert said[-1], said
    process = psutil.Process(child.pid)
    yield f"127.0.0.1:{port}", process
    family = [process, *process.children(recursive=True)]
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    child.communicate()
    shutil.rmtree(folder, ignore_errors=True)


@needs_ray
@pytest.mark.slow
def test_a_killed_server_leaves_nothing_on_a_cluster(
    command: Callable[..., Command], cluster: tuple[str, psutil.Process], chat_folder: Path
) -> None:
    address, first = cluster
    with pytest.raises(AssertionError, match="3 processes need as many CPUs, the cluster has 2"):
        command(str(chat_folder), "--replicas", "3", "--ray", address)
    remote = command(str(chat_folder), "--replicas", "2", "--ray", address)
    assert len(_replicas(first)) == 2 and not remote.replicas
    assert remote.http.post(ASKS[0][0], json=ASKS[0][1]).status_code == 200
    remote.child.kill()
    remote.until(lambda: not _replicas(first))
    again = command(str(chat_folder), "--ray", address)  # the cluster is as it was
    assert len(_replicas(first)) == 1 and again.http.post(ASKS[0][0], json=ASKS[0][1]).status_code == 200


def test_what_is_missing_is_told_before_ray_starts(monkeypatch: pytest.MonkeyPatch, chat_folder: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no-such-model"):
        open_replicas(["no-such-model"], 2, None)
    with pytest.raises(ConfigError, match="two models have this name"):
        open_replicas(["a=x", "a=y"], 2, None)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r'pip install "kiban\[ray\]"'):
        open_replicas([str(chat_folder)], 2, None)
