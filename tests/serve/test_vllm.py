"""`kiban serve --backend vllm`. vLLM needs a GPU, so a small real HTTP program of its name stands in for it here: what is
tested is what kiban hands over (the folder, the command line, the environment) and that it then stays out of the way.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from kiban import zoo
from kiban.errors import KibanError
from kiban.serve.vllm import command, folder_of
from word_gpt import word_gpt

STAND_IN = """#!{python}
import http.server, json, os, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({{"line": sys.argv[1:], "env": dict(os.environ), "pid": os.getpid()}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: os._exit(40 + number))
options = dict(zip(sys.argv[3::2], sys.argv[4::2]))
server = http.server.HTTPServer((options["--host"], int(options["--port"])), Handler)
print("listens on", server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in, first on PATH; kiban's cache is empty."""
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(STAND_IN.format(python=sys.executable), "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("KIBAN_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    return program


@pytest.fixture
def start(vllm: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """start(*arguments) runs `kiban serve ... --backend vllm`."""
    children: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "kiban", "serve", *arguments, "--backend", "vllm", "--lang", "en"]
        children.append(subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return children[-1]

    yield run
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture(scope="module")
def gguf_model(tmp_path_factory: pytest.TempPathFactory) -> zoo.Loaded:
    """A small GPT with a tokenizer that GGUF can hold."""
    return word_gpt(["I am a cat; as yet I have no name."] * 9, tmp_path_factory.mktemp("words"))


def test_it_becomes_vllm_and_ends_as_vllm_ends(start: Any, chat_folder: Path, vllm: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        child = start(f"helper={chat_folder}", "--port", "0")
        port = int(child.stdout.readline().rsplit(" ", 1)[1])
        told = httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).json()
        assert told["pid"] == child.pid
        assert told["line"] == [
            "serve", str(chat_folder), "--served-model-name", "helper", "--host", "127.0.0.1", "--port", "0",
            "--load-format", "safetensors", "--max-model-len", "4096",
        ]  # fmt: skip
        assert told["env"]["VLLM_NO_USAGE_STATS"] == "1"
        child.send_signal(number)
        assert child.wait(timeout=30) == 40 + number
        assert child.stderr.read() == f"{vllm} {' '.join(told['line'])}\n"


def test_its_own_end_is_ours(start: Any, chat_folder: Path, vllm: Path) -> None:
    vllm.write_text(f"#!{sys.executable}\nraise SystemExit(3)\n", "utf-8")
    assert start(str(chat_folder)).wait(timeout=120) == 3


def test_a_gguf_file_becomes_a_folder_that_transformers_opens(
    vllm: Path, tmp_path: Path, gguf_model: zoo.Loaded
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = tmp_path / "small.gguf"
    zoo.save_gguf(gguf_model, file, dtype=torch.float16)
    folder = folder_of(str(file))
    assert folder.parent == tmp_path / "home" / "vllm" and folder.name.startswith("small-")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.dtype == torch.float16
    ids = AutoTokenizer.from_pretrained(folder)("I am a cat.", return_tensors="pt").input_ids
    again = zoo.load(file)
    assert again.tokenizer is not None and ids[0].tolist() == again.tokenizer.encode("I am a cat.")
    with torch.inference_mode():
        # Both compute in float32 with weights that were float16 before.
        assert torch.allclose(model.float()(ids).logits, again.module(ids), atol=1e-4)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert folder_of(str(file)) == folder and (folder / "model.safetensors").stat().st_mtime_ns == before
    zoo.save_gguf(gguf_model, tmp_path / "new.gguf")
    (tmp_path / "new.gguf").replace(file)  # another file under this name is another model
    assert folder_of(str(file)) != folder


def test_what_vllm_cannot_do_is_refused(
    vllm: Path, chat_folder: Path, baseline_folder: Path, tiny_bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*sources: str, host: str = "127.0.0.1") -> str:
        named = {str(number): source for number, source in enumerate(sources)}
        with pytest.raises(KibanError) as caught:
            command(named, host=host, port=8000)
        return str(caught.value)

    for folder in (baseline_folder, baseline_folder.parent, tiny_bert_folder):
        assert "writes" in refused(str(folder)) and "leave --backend out" in refused(str(folder))
    assert "serves one model, not 2" in refused(str(chat_folder), str(chat_folder))
    assert "VLLM_API_KEY" in refused(str(chat_folder), host="0.0.0.0")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    line = command({"a": str(chat_folder)}, host="0.0.0.0", port=8000)
    assert "0.0.0.0" in line and "secret" not in " ".join(line)  # others can read command lines
    vllm.unlink()
    assert "pip install vllm" in refused(str(chat_folder))


@pytest.mark.parametrize("option", ["--keys", "--ledger", "--price-per-hour", "--max-waiting", "--drain", "--replicas"])
def test_options_of_our_own_server_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    from kiban.cli.main import main

    with pytest.raises(SystemExit) as caught:
        main(["serve", "x", "--backend", "vllm", option, "1"])
    said = capsys.readouterr().err
    assert caught.value.code == 1 and option in said and said.count("\n") == 1


@pytest.mark.weights
@pytest.mark.slow
def test_the_catalogues_chat_model_says_the_same_in_transformers(vllm: Path, smollm2_gguf: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from kiban.api import load

    folder = folder_of(str(smollm2_gguf))
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
    )
    messages: list[dict[str, str]] = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=16, do_sample=False)[0, ids["input_ids"].shape[1] :]
    text = tokenizer.decode(answer, skip_special_tokens=True)
    assert text == load(smollm2_gguf).chat(messages, max_new_tokens=16) and "Paris" in text
    assert json.loads((folder / "config.json").read_text("utf-8"))["dtype"] == "float16"
