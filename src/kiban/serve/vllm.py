"""`kiban serve MODEL --backend vllm`: the model as a Hugging Face folder, under vLLM's own server.

vLLM takes the place of this process, so its exit code is ours and signals reach it. What clients talk to is then its server,
not kiban's: no keys of ours, no ledger, no limits, no classification. It knows one key, from VLLM_API_KEY, and asks for it
under /v1 alone, so other routes of it should not be reachable by others.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch

from kiban import zoo
from kiban.config import Progress, home, silent
from kiban.errors import ConfigError
from kiban.files import read_json
from kiban.serve.settings import is_loopback
from kiban.zoo.places import locate

KEY = "VLLM_API_KEY"
WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
LENGTHS = ("max_position_embeddings", "n_positions")
OURS = "leave --backend out: kiban's own server classifies and embeds"


def folder_of(source: str, *, progress: Progress = silent) -> Path:
    """A Hugging Face folder of a model that writes text: the source itself if it is one, else one in the cache.

    Raises what `kiban.load` raises, and ConfigError for a model that vLLM cannot serve as one that writes.
    """
    path = locate(source, progress)
    if path.is_file():
        path = _written(path)
    elif (path / "final" / "kiban.json").is_file():
        path = path / "final"
    if not (path / "config.json").is_file():
        raise ConfigError(source, why="is no folder of a model that writes text", hint=OURS)
    architecture = str((read_json(path / "config.json").get("architectures") or ["model without a head"])[0])
    if not architecture.endswith(WRITERS):
        raise ConfigError(source, why=f"is a {architecture}, which writes no text", hint=OURS)
    return path


def _written(path: Path) -> Path:
    """The folder of a model that is one file, in float16, which holds what packed weights say. Kept for the next start."""
    facts = path.stat()
    digest = hashlib.sha256(f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()
    folder = home() / "vllm" / f"{path.stem}-{digest[:16]}"
    if not folder.is_dir():
        zoo.save(zoo.load(path, dtype=torch.float16), folder)
    return folder


def command(sources: Mapping[str, str], *, host: str, port: int, progress: Progress = silent) -> list[str]:
    """What starts vLLM's server of one model by its name. Only safetensors are opened.

    Raises ConfigError if vLLM is not found, or others could reach it without a key; and as `folder_of`.
    """
    if len(sources) != 1:
        raise ConfigError("--backend vllm", why=f"serves one model, not {len(sources)}", hint="start one for each")
    if not is_loopback(host) and not os.environ.get(KEY):
        hint = f"set {KEY}, and let a proxy pass /v1 alone: vLLM asks for its key nowhere else"
        raise ConfigError("host", field=host, why="other machines could reach it without a key", hint=hint)
    # Of any environment; one beside this Python first, which may run without its own being active.
    program = shutil.which("vllm", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if program is None:
        hint = "pip install vllm in an environment of its own (it pins another torch), and add that to PATH"
        raise ConfigError("--backend vllm", why="there is no program vllm", hint=hint)
    ((name, source),) = sources.items()
    folder = folder_of(source, progress=progress)
    config = read_json(folder / "config.json")
    longest = next((config[key] for key in LENGTHS if isinstance(config.get(key), int)), None)
    return [
        *(program, "serve", str(folder), "--served-model-name", name, "--host", host, "--port", str(port)),
        *("--load-format", "safetensors"),
        *(() if longest is None else ("--max-model-len", str(longest))),
    ]


def become(line: Sequence[str]) -> NoReturn:
    """Go on as the program of a command line."""
    sys.stdout.flush()
    # It would tell its makers about this machine, which nobody here has asked for.
    os.execve(line[0], list(line), {"VLLM_NO_USAGE_STATS": "1", **os.environ})
