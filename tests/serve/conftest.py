"""A real server on loopback: a catalogue model, a tiny chat model, a tiny encoder and a baseline, under uvicorn."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from byte_tokenizer import chat_tokenizer
from kiban import zoo
from kiban.adopt.strategies import strategy
from kiban.adopt.strategies.base import Candidate, Job, Rows, Task
from kiban.families.llama import Llama, LlamaConfig
from kiban.generate.stoppable import Trial
from kiban.serve.app import create_app
from kiban.serve.auth import new_key
from kiban.serve.served import Served, open_served, writer
from kiban.serve.server import Server, listen, url_of
from kiban.serve.service import Service
from kiban.serve.settings import Settings

JSON = "application/json"
WEIGHTS = Path(__file__).parents[2] / "weights"


@dataclass
class Live:
    """A server that runs in a thread."""

    url: str
    server: Server
    thread: threading.Thread
    loop: asyncio.AbstractEventLoop

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False, verify=False)

    @property
    def service(self) -> Service:
        return self.server.service

    def post(
        self, path: str, body: Any = None, *, key: str = "", content: Any = None, kind: str = JSON
    ) -> httpx.Response:
        headers = {"content-type": kind} | ({"authorization": f"Bearer {key}"} if key else {})
        return self.http.post(path, content=json.dumps(body) if content is None else content, headers=headers)

    def get(self, path: str, *, key: str = "") -> httpx.Response:
        return self.http.get(path, headers={"authorization": f"Bearer {key}"} if key else {})

    def stop(self) -> None:
        """End it, and see that it ends."""
        self.http.close()
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.server.begin_to_close)
            self.thread.join(timeout=30)
        assert not self.thread.is_alive(), "the server did not end"
        self.loop.close()

    def connect(self) -> socket.socket:
        """A raw connection."""
        host, port = self.url.removeprefix("http://").rsplit(":", 1)
        return socket.create_connection((host, int(port)), timeout=30)

    def idle(self, seconds: float = 10.0) -> float:
        """Seconds until no model works any more; at most so many."""
        begun = time.monotonic()
        while any(m.load().running + m.load().waiting for m in self.service.models.values()):
            assert time.monotonic() - begun < seconds, "a slot is still in use"
            time.sleep(0.01)
        return time.monotonic() - begun


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> zoo.Loaded:
    """A random Llama over bytes, with a chat template and control tokens."""
    tokenizer = chat_tokenizer(tmp_path_factory.mktemp("chat-bytes"))
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size, num_layers=2, dim=32, num_heads=4, num_kv_heads=2, ffn_dim=64, max_seq_len=4096
    )
    module = zoo.initialise(Llama(config), torch.Generator().manual_seed(0)).eval()
    return zoo.Loaded(zoo.families()["llama"], config, module, tokenizer, None, (), "tiny-chat", None)


@pytest.fixture(scope="session")
def chat_folder(chat_model: zoo.Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chat model as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("served") / "tiny-chat"
    zoo.save(chat_model, folder)
    return folder


@pytest.fixture(scope="session")
def baseline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fitted baseline of two classes, as a run's final folder."""
    folder = tmp_path_factory.mktemp("run") / "adopt-words" / "final"
    texts = [f"{word} {i}" for i in range(8) for word in ("猫が好き", "請求書の再発行")]
    rows = Rows(inputs=texts, targets=[0, 1] * 8)
    task = Task(kind="single_label", labels=("動物", "請求"), language="ja", length_p95=20)
    job = Job(
        task=task, candidate=Candidate(strategy="baseline", model=None), train=rows, validation=rows, max_steps=0, seed=0,
        work=folder.parent / "work",
    )  # fmt: skip
    strategy("baseline").fit(job).predictor.save(folder)
    (folder.parent / "report.html").write_text("<p>report</p>", "utf-8")
    return folder


@pytest.fixture(scope="session")
def trial() -> Iterator[Trial]:
    found = Trial()
    yield found
    found.close()


@pytest.fixture
def tiny_chat(chat_model: zoo.Loaded, trial: Trial) -> Callable[..., dict[str, Served]]:
    """The chat model under an engine of its own; the options are the scheduler's."""
    return lambda **engine: {"tiny-chat": writer("tiny-chat", chat_model, trial, **engine)}


def _start(models: Mapping[str, Served], **settings: Any) -> Live:
    chosen = Settings(port=0, **{"drain": 0.0, **settings})
    server, found, loop = Server(create_app(models, chosen), chosen), listen(chosen), asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve([found])), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    return Live(url_of(found), server, thread, loop)


@pytest.fixture(scope="session")
def start() -> Callable[..., Live]:
    """start(models, **settings) starts a server, which the caller stops."""
    return _start


@pytest.fixture
def serve() -> Iterator[Callable[..., Live]]:
    """serve(models, **settings) starts a server, which ends with the test."""
    running: list[Live] = []

    def start(models: Mapping[str, Served], **settings: Any) -> Live:
        running.append(_start(models, **settings))
        return running[-1]

    yield start
    for live in running:
        live.stop()


@pytest.fixture(scope="session")
def all_models(
    chat_model: zoo.Loaded, baseline_folder: Path, tiny_bert_folder: Path, trial: Trial
) -> Callable[[], dict[str, Served]]:
    """One of each kind; new engines each time."""

    def make() -> dict[str, Served]:
        sources = {"lm": WEIGHTS / "kiban-lm-ja-en", "tiny-encoder": tiny_bert_folder, "adopt-words": baseline_folder}
        opened = {name: open_served(str(path), name, trial) for name, path in sources.items()}
        return {**opened, "tiny-chat": writer("tiny-chat", chat_model, trial)}

    return make


@pytest.fixture(scope="session")
def live(all_models: Callable[[], dict[str, Served]]) -> Iterator[Live]:
    """All models, open, with a price; shared by tests that leave it as it was."""
    found = _start(all_models(), price_per_hour=60.0)
    yield found
    found.stop()


@pytest.fixture
def case(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """case(number, **facts) keeps what a case of reliability.md found, for benchmarks/serve_reliability.py."""
    return lambda number, **facts: record_property(str(number), json.dumps(facts))


@pytest.fixture
def keys_file(tmp_path: Path) -> Callable[..., tuple[Path, dict[str, str]]]:
    """keys_file(alice={...limits}) writes a file of keys; returns it and the keys by name."""

    def make(**clients: Mapping[str, Any]) -> tuple[Path, dict[str, str]]:
        path = tmp_path / "keys.json"
        tokens = {name: new_key(path, name) for name in clients}
        rows = json.loads(path.read_text("utf-8"))["keys"]
        path.write_text(json.dumps({"keys": [row | dict(clients[row["name"]]) for row in rows]}), "utf-8")
        return path, tokens

    return make
