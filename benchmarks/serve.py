"""`kiban serve` over HTTP beside llama.cpp's server, Hugging Face's `generate` and a plain FastAPI app, in one run.

    pip install -e ".[test]" llama-cpp-python && python benchmarks/serve.py --threads 2 --llama-server PATH --save

Chat: eight clients at once, in a process of their own, ask SmolLM2-135M for streams of 64 tokens; prompts have 16 to 240
tokens of English, other ones in every round, so that no cache knows them. Hugging Face has the same prompts as one batch.
Embeddings: eight clients send 250 texts of mixed lengths to MiniLM, four at a time. Every server is a process of its own,
and they take turns; where our steps are compiled, they first write until that is done. cpu_ms is the processor time of a
token or text.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

import kiban.zoo as zoo
from common import finish, parse, parser, table
from decode import NAME, huggingface, requantised, text_ids
from embed import texts
from kiban.api import sentence_length
from kiban.catalogue.pull import pull
from kiban.engine import kernels
from kiban.engine.compiled import SIZES
from kiban.inputs.batch import pad_batch

LENGTHS, NEW, SLOTS = (16, 48, 80, 112, 144, 176, 208, 240), 64, 8
EMBED_CLIENTS, EMBED_TEXTS = 8, 4
PAUSE = 0.5  # seconds between ways, for threads that wait by spinning

Round = Callable[[int], dict[str, Any]]
"""What the number of a round took: seconds, units (tokens or texts), maybe first and gaps."""


@dataclass
class Server:
    """A process that serves HTTP on loopback."""

    command: Sequence[str]
    url: str
    threads: int
    child: subprocess.Popen[bytes] = field(init=False)

    def __enter__(self) -> Server:
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        self.child = subprocess.Popen(
            self.command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        path = "/health" if "llama-server" in self.command[0] else "/healthz"
        while True:
            if self.child.poll() is not None:
                raise OSError(f"{self.command[0]} ended with {self.child.returncode}")
            with contextlib.suppress(OSError), urllib.request.urlopen(self.url + path, timeout=5):
                return self
            time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        self.child.terminate()
        self.child.wait(60)

    @property
    def cpu(self) -> float:
        """Seconds of processor time that it has used."""
        times = psutil.Process(self.child.pid).cpu_times()
        return float(times.user + times.system)


class Clients:
    """The process of the clients."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("clients.py"))]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, server: Server, path: str, bodies: list[list[dict[str, Any]]]) -> dict[str, Any]:
        """What they found; cpu: what the server used for it. Raises OSError if they are gone."""
        assert self.child.stdin is not None and self.child.stdout is not None
        before = server.cpu
        print(json.dumps({"url": server.url + path, "bodies": bodies}), file=self.child.stdin, flush=True)
        answer = self.child.stdout.readline()
        if not answer:
            raise OSError(f"the clients ended with {self.child.wait()}")
        return {**json.loads(answer), "cpu": server.cpu - before}

    def close(self) -> None:
        """End the process."""
        self.child.communicate()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def kiban(threads: int, *arguments: str) -> Server:
    """`kiban serve` with these arguments."""
    port = str(free_port())
    command = [sys.executable, "-m", "kiban.cli.main", "serve", *arguments, "--port", port]
    return Server(command, f"http://127.0.0.1:{port}", threads)


def llama(program: str, path: Path, threads: int, *more: str) -> Server:
    """llama.cpp's server with one slot for each client, and for each a context of 512 tokens."""
    port, count = str(free_port()), str(threads)
    command = [program, "-m", str(path), "--host", "127.0.0.1", "--port", port, "-np", str(SLOTS), "-cb"]
    command += ["-c", str(512 * SLOTS), "-t", count, "-tb", count, "--threads-http", str(SLOTS), *more]
    return Server(command, f"http://127.0.0.1:{port}", threads)


def plain(folder: Path, threads: int) -> Server:
    """sentence-transformers in a FastAPI app."""
    port = free_port()
    script = str(Path(__file__).with_name("plain_embed.py"))
    return Server([sys.executable, script, str(folder), str(port)], f"http://127.0.0.1:{port}", threads)


def prompts_of(loaded: zoo.Loaded, rounds: int) -> list[list[str]]:
    """For each round a text for each client."""
    assert loaded.tokenizer is not None
    ids, found, start = text_ids(loaded, rounds * sum(LENGTHS)), list[list[str]](), 0
    for _ in range(rounds):
        found.append([])
        for length in LENGTHS:
            found[-1].append(loaded.tokenizer.decode(ids[start : start + length]))
            start += length
    return found


def chat_body(text: str) -> dict[str, Any]:
    """A greedy stream of NEW tokens."""
    message, usage = {"role": "user", "content": text}, {"include_usage": True}
    body = {"model": "chat", "messages": [message], "stream": True, "stream_options": usage}
    return {**body, "max_tokens": NEW, "temperature": 0, "seed": 1}


def chatting(clients: Clients, server: Server, prompts: list[list[str]]) -> Round:
    """A round of chats."""

    def work(number: int) -> dict[str, Any]:
        found = clients(server, "/v1/chat/completions", [[chat_body(text)] for text in prompts[number]])
        return {**found, "units": found["tokens"]}

    return work


def compiled(server: Server, work: Round) -> None:
    """Let a server of ours write until its steps are compiled, which takes minutes the first time."""
    work(0)
    until = time.monotonic() + 1200
    while time.monotonic() < until:
        with urllib.request.urlopen(server.url + "/metrics", timeout=60) as answer:
            text = answer.read().decode()
        if f'kiban_engine_compiled{{model="chat"}} {float(len(SIZES))}' in text:
            return
        work(0)
    raise OSError("its steps were not compiled in 20 minutes")


def generating(loaded: zoo.Loaded, dtype: torch.dtype, prompts: list[list[str]]) -> Round:
    """The same with Hugging Face: one batch, padded on the left, which never ends early."""
    model, tokenizer = huggingface(loaded, dtype), loaded.tokenizer
    assert tokenizer is not None

    def work(number: int) -> dict[str, Any]:
        rows = [tokenizer.chat([{"role": "user", "content": text}]) for text in prompts[number]]
        tokens, mask = pad_batch(rows, 0, side="left")
        process = psutil.Process()
        begun, before = time.perf_counter(), sum(process.cpu_times()[:2])
        found = model.generate(tokens, attention_mask=mask.long(), max_new_tokens=NEW, min_new_tokens=NEW)
        seconds, cpu = time.perf_counter() - begun, sum(process.cpu_times()[:2]) - before
        return {"seconds": seconds, "cpu": cpu, "units": (found.shape[1] - tokens.shape[1]) * len(rows)}

    return work


def fitting() -> list[str]:
    """The texts that MiniLM takes whole: kiban refuses longer ones, and the peer would cut them."""
    loaded = zoo.load("minilm-l6")
    assert loaded.tokenizer is not None
    limit, own = sentence_length(loaded), texts()
    rows = loaded.tokenizer.encode_batch(own)
    return [text for text, row in zip(own, rows, strict=True) if limit is None or len(row) <= limit]


def embedding(clients: Clients, server: Server, own: list[str]) -> Round:
    """A round of embeddings."""
    rows: list[list[dict[str, Any]]] = []
    for client in range(EMBED_CLIENTS):
        mine = own[client::EMBED_CLIENTS]
        parts = [mine[i : i + EMBED_TEXTS] for i in range(0, len(mine), EMBED_TEXTS)]
        rows.append([{"model": "embed", "input": part} for part in parts])

    def work(number: int) -> dict[str, Any]:
        return {**clients(server, "/v1/embeddings", rows), "units": len(own)}

    return work


def in_turn(ways: Mapping[str, Round], repeats: int) -> dict[str, list[dict[str, Any]]]:
    """What each way found in each round, after one round to warm up."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, work in ways.items():
            time.sleep(PAUSE)
            answer = work(number)
            if number:
                found[name].append(answer)
                print(f"round {number}: {name} {answer['units'] / answer['seconds']:.1f} per second", flush=True)
    return found


def rows_of(found: Mapping[str, list[dict[str, Any]]], ours: str) -> list[dict[str, Any]]:
    """Medians over the rounds. times: how many times as fast ours is as this way, in the same round."""
    rows = []
    rates = {name: [one["units"] / one["seconds"] for one in rounds] for name, rounds in found.items()}
    for name, rounds in found.items():
        times = [a / b for a, b in zip(rates[ours], rates[name], strict=True)]
        row = {"way": name, "per_s": statistics.median(rates[name]), "times": statistics.median(times)}
        row["cpu_ms"] = statistics.median(1000 * one["cpu"] / one["units"] for one in rounds)
        for key in ("first", "gaps"):
            seconds = [second for one in rounds for second in one.get(key, ())]
            row[f"{key}_ms"] = 1000 * statistics.median(seconds) if seconds else float("nan")
        rows.append(row)
    return rows


def opened_llama(stack: contextlib.ExitStack, program: str, path: Path, threads: int) -> Server:
    """As it is by default; with the file's own layout where rearranged weights crash."""
    body = json.dumps({"prompt": "Once", "n_predict": 2}).encode()
    for more in ((), ("--no-repack",)):
        server = stack.enter_context(llama(program, path, threads, *more))
        request = urllib.request.Request(server.url + "/completion", body, {"content-type": "application/json"})
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=120):
            return server
        print(f"{path.name}: crashed, so its weights are not rearranged")
    raise OSError(f"{program} does not answer")


@contextlib.contextmanager
def servers_of_llama(program: str | None, path: Path, threads: int) -> Iterator[dict[str, Server]]:
    """By format; none without the program."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        files = {"Q4_1": path}
        if program is None:
            print("no --llama-server: llama.cpp is left out")
            files = {}
        elif (other := requantised(path, Path(scratch))) is not None:
            files["Q4_0"] = other
        assert program is not None or not files
        yield {f"llama.cpp {name}": opened_llama(stack, program or "", file, threads) for name, file in files.items()}


def main() -> None:
    """Print tokens and texts per second, and ratios."""
    own = parser(__doc__ or "")
    own.add_argument("--llama-server", metavar="PATH", help="llama.cpp's server; left out without it")
    options = parse(own)
    threads, path, folder = options.threads, pull(NAME), pull("minilm-l6")
    loaded, clients = zoo.load(NAME), Clients()
    prompts = prompts_of(loaded, options.repeats + 1)
    with contextlib.ExitStack() as stack:
        ways = {}
        for name, weights in (("kiban int4", "int4"), ("kiban bf16", "bf16")):
            server = stack.enter_context(kiban(threads, f"chat={NAME}", "--weights", weights))
            ways[name] = chatting(clients, server, prompts)
            # bf16 products have a layout of their own, which steps are not compiled with, as kernels of ours are already.
            if weights == "int4" and kernels.library() is None:
                compiled(server, ways[name])
        for name, server in stack.enter_context(servers_of_llama(options.llama_server, path, threads)).items():
            ways[name] = chatting(clients, server, prompts)
        for name, dtype in (("Hugging Face fp32", torch.float32), ("Hugging Face bf16", torch.bfloat16)):
            ways[name] = generating(loaded, dtype, prompts)
        chats = rows_of(in_turn(ways, options.repeats), "kiban int4")
        print(table(chats))
    with plain(folder, threads) as theirs, kiban(threads, "embed=minilm-l6") as ours:
        peers = {"sentence-transformers, FastAPI": theirs, "kiban serve": ours}
        own_texts = fitting()
        found = in_turn(
            {name: embedding(clients, server, own_texts) for name, server in peers.items()}, options.repeats
        )
        embeddings = rows_of(found, "kiban serve")
        print(table(embeddings))
    clients.close()
    about = {"model": NAME, "clients": SLOTS, "prompt_tokens": list(LENGTHS), "new_tokens": NEW, "chat": chats}
    about |= {"embed_clients": EMBED_CLIENTS, "texts": len(own_texts), "texts_per_request": EMBED_TEXTS}
    packages = ("transformers", "sentence-transformers", "llama-cpp-python")
    finish("serve", {**about, "embeddings": embeddings}, options, packages)


if __name__ == "__main__":
    main()
