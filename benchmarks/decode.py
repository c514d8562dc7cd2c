"""Decoding and prefill of SmolLM2-135M: kiban's plans beside Hugging Face and llama.cpp, same weights, one run,
each way in a process of its own.

    pip install -e ".[test]" llama-cpp-python && python benchmarks/decode.py --save

llama.cpp is left out where llama-cpp-python is not installed. Beside every speed stands how faithful the format is to
fp32: KL divergence and share of equal top-1 tokens over 512 tokens of text.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import kiban.zoo as zoo
from common import Apart, arguments, finish, medians, table
from kiban.catalogue.pull import pull
from kiban.engine import kernels
from kiban.engine.compiled import Compiled
from kiban.engine.decoder import DecoderPlan, Weights
from kiban.engine.pages import PAGE, PagedKeys, Part
from kiban.evaluate.fidelity import fidelity

PROMPT, NEW, PREFILL = 64, 64, 512
NAME = "smollm2-135m-instruct"
EXAMPLES = Path(__file__).parent.parent / "examples" / "data"


def text_ids(loaded: zoo.Loaded, count: int) -> list[int]:
    """So many ids of English text."""
    assert loaded.tokenizer is not None
    with (EXAMPLES / "debian-en.csv").open(encoding="utf-8", newline="") as file:
        text = "\n".join(row["text"] for row in csv.DictReader(file))
    return loaded.tokenizer.encode(text[: 10 * count], add_special=False)[:count]


@torch.inference_mode()
def greedy(model: Any, prompt: Tensor) -> list[int]:
    """NEW ids after the prompt with a cache of kiban's."""
    cache = model.make_cache(1, PROMPT + NEW)
    logits, found = model(prompt, cache=cache, last_only=True), list[int]()
    while True:
        found.append(int(logits[0, -1].argmax()))
        if len(found) == NEW:
            return found
        logits = model(torch.tensor([[found[-1]]]), cache=cache, last_only=True)


class Stepped:
    """A plan whose steps are compiled, with the face of `greedy`."""

    def __init__(self, plan: DecoderPlan) -> None:
        self.pages = list(range(-(-PREFILL // PAGE)))
        self.keys = PagedKeys(plan.config, len(self.pages), dtype=torch.float32)
        self.plan, self.fast = plan, Compiled(plan, self.keys, patience=1)

    def compile(self) -> None:
        """Wait for the libraries, which takes minutes the first time: nothing may run beside what is timed."""
        while not self.fast.done:
            self.fast([Part([1], 1, [0])])
            time.sleep(0.5)
        if not self.fast.num_ready:
            raise OSError(f"steps could not be compiled, see {self.fast.folder}")

    @torch.inference_mode()
    def __call__(self, prompt: Tensor) -> list[int]:
        """NEW ids after the prompt."""
        found = [int(self.plan.step([Part(prompt[0].tolist(), 0, self.pages)], self.keys)[0].argmax())]
        while len(found) < NEW:
            found.append(int(self._next(found[-1], PROMPT + len(found) - 1).argmax()))
        return found

    @torch.inference_mode()
    def logits(self, ids: Tensor) -> Tensor:
        """(1, T, V), token by token."""
        first, *rest = ids[0].tolist()
        rows = [self.plan.step([Part([first], 0, self.pages)], self.keys)]
        rows += [self._next(id, place) for place, id in enumerate(rest, 1)]
        return torch.stack(rows, dim=1)

    def _next(self, id: int, past: int) -> Tensor:
        logits = self.fast([Part([id], past, self.pages)])
        assert logits is not None
        return logits


def huggingface(loaded: zoo.Loaded, dtype: torch.dtype) -> Any:
    """The same weights in transformers, attention as it is by default."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    with tempfile.TemporaryDirectory() as scratch:
        zoo.save(loaded, Path(scratch) / "model")
        model = AutoModelForCausalLM.from_pretrained(Path(scratch) / "model", dtype=dtype).eval()
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0, eos_token_id=None)
    return model


class LlamaCpp:
    """llama.cpp with the file's own 4-bit weights, in a process of its own."""

    def __init__(self, path: Path, threads: int, *, plain: bool = False) -> None:
        worker = str(Path(__file__).with_name("llama_worker.py"))
        command = [sys.executable, worker, str(path), str(threads), str(int(plain))]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, ids: list[int], new: int) -> list[int]:
        """New ids after the prompt; with new = 0 it only reads the prompt. Raises OSError if the process is gone."""
        assert self.child.stdin is not None and self.child.stdout is not None
        print(json.dumps({"ids": ids, "new": new}), file=self.child.stdin, flush=True)
        answer = self.child.stdout.readline()
        if not answer:
            raise OSError(f"llama.cpp ended with {self.child.wait()}")
        return list(json.loads(answer))

    @classmethod
    def open(cls, path: Path, threads: int) -> LlamaCpp | None:
        """As it is by default; in the plain layout where that crashes; None where it is not installed."""
        if not importlib.util.find_spec("llama_cpp"):
            print("llama-cpp-python is not installed: llama.cpp is left out")
            return None
        try:
            found = cls(path, threads)
            found([1, 2, 3], 2)
        except OSError as error:
            print(f"{error}: its rearranged weights crash here, so the plain layout is used")
            found = cls(path, threads, plain=True)
        return found

    def close(self) -> None:
        """End the process."""
        self.child.communicate()


def requantised(path: Path, folder: Path) -> Path | None:
    """The file in Q4_0, made by llama.cpp; None where llama-cpp-python is not installed."""
    if not importlib.util.find_spec("llama_cpp"):
        return None
    target = folder / f"{path.stem}.Q4_0.gguf"
    worker = str(Path(__file__).with_name("llama_worker.py"))
    subprocess.run([sys.executable, worker, "requantise", str(path), str(target)], check=True, capture_output=True)
    return target


def faithfulness(model: Any, exact: Any, ids: Tensor) -> dict[str, float]:
    """KL(exact || model) in nats per token, and the share of equal top-1 tokens. ids: (1, T)."""
    found = fidelity(model, exact, ids.tolist())
    return {"kl": found.kl[0], "top1": found.top1[0]}


def peers_of_cpp(path: Path, threads: int, scratch: Path) -> dict[str, LlamaCpp]:
    """llama.cpp by format, as far as it is installed."""
    files = {"Q4_1": path, "Q4_0": requantised(path, scratch)}
    found = {name: LlamaCpp.open(file, threads) for name, file in files.items() if file is not None}
    return {f"llama.cpp {name}": peer for name, peer in found.items() if peer is not None}


def ways_of_huggingface(dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """decode, prefill and faith, as `Apart` makes them."""
    loaded = zoo.load(NAME)
    ids, model = torch.tensor([text_ids(loaded, PREFILL)]), huggingface(loaded, dtype)
    faith = faithfulness(lambda ids: model(ids).logits, loaded.module, ids)

    def decode() -> None:
        model.generate(ids[:, :PROMPT], max_new_tokens=NEW, min_new_tokens=NEW)

    @torch.inference_mode()
    def prefill() -> None:
        model(ids, logits_to_keep=1)

    return {"decode": decode, "prefill": prefill, "faith": lambda: faith}


def ways_of_kiban(weights: Weights, *, compiled: bool = False) -> dict[str, Callable[[], Any]]:
    """The same of a plan."""
    loaded = zoo.load(NAME)
    ids, plan = torch.tensor([text_ids(loaded, PREFILL)]), DecoderPlan(loaded, weights=weights)
    prompt = ids[:, :PROMPT]
    ways: dict[str, Callable[[], Any]] = {"decode": lambda: greedy(plan, prompt)}
    if compiled:
        stepped = Stepped(plan)
        stepped.compile()
        ways = {"decode": lambda: stepped(prompt)}
    faith = faithfulness(stepped.logits if compiled else plan, loaded.module, ids)

    def prefill() -> None:
        plan(ids, last_only=True)

    return {**ways, "prefill": prefill, "faith": lambda: faith}


def main() -> None:
    """Print tokens per second, ratios to Hugging Face eager in fp32, and faithfulness."""
    options, path = arguments(__doc__ or ""), pull(NAME)
    ids = text_ids(zoo.load(NAME), PREFILL)
    kinds = {"Hugging Face fp32": torch.float32, "Hugging Face bf16": torch.bfloat16}
    apart = {name: Apart(ways_of_huggingface, dtype) for name, dtype in kinds.items()}
    apart |= {f"kiban {weights}": Apart(ways_of_kiban, weights) for weights in ("fp32", "bf16", "int8", "int4")}
    bits = "int4" if kernels.library() is None else "fp32"  # kernels of ours need no compiled steps
    apart[f"kiban {bits}, compiled"] = Apart(partial(ways_of_kiban, compiled=True), bits)
    faith = {name: peer("faith") for name, peer in apart.items()}  # when all have this, all are ready
    decode = {name: partial(peer, "decode") for name, peer in apart.items()}
    prefill = {name: partial(peer, "prefill") for name, peer in apart.items()}
    with tempfile.TemporaryDirectory() as scratch:
        others = peers_of_cpp(path, options.threads, Path(scratch))
        decode |= {name: partial(peer, ids[:PROMPT], NEW) for name, peer in others.items()}
        prefill |= {name: partial(peer, ids, 0) for name, peer in others.items()}
        seconds, reading = medians(decode, options.repeats), medians(prefill, options.repeats)
    for peer in (*apart.values(), *others.values()):
        peer.close()
    rows = [
        {
            "way": name,
            "decode_tokens_per_s": NEW / seconds[name],
            "decode_ratio": seconds["Hugging Face fp32"] / seconds[name],
            "prefill_tokens_per_s": PREFILL / reading[name],
            "prefill_ratio": reading["Hugging Face fp32"] / reading[name],
            **faith.get(name, {"kl": float("nan"), "top1": float("nan")}),
        }
        for name in decode
    ]
    print(table(rows))
    sizes = {"prompt": PROMPT, "new_tokens": NEW, "prefill": PREFILL}
    finish("decode", {"model": NAME, **sizes, "rows": rows}, options, ("transformers", "llama-cpp-python"))


if __name__ == "__main__":
    main()
