"""Decoding and prefill of SmolLM2-135M: kiban's plans beside Hugging Face and llama.cpp, same weights, one run.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import kiban.zoo as zoo
from common import arguments, finish, medians, table
from kiban.catalogue.pull import pull
from kiban.engine.decoder import DecoderPlan

PROMPT, NEW, PREFILL = 64, 64, 512
NAME = "smollm2-135m-instruct"
EXAMPLES = Path(__file__).parent.parent / "examples" / "data"


def token_ids(loaded: zoo.Loaded) -> Tensor:
    """(1, PREFILL) ids of English text."""
    assert loaded.tokenizer is not None
    with (EXAMPLES / "debian-en.csv").open(encoding="utf-8", newline="") as file:
        text = "\n".join(row["text"] for row in list(csv.DictReader(file))[:60])
    return torch.tensor([loaded.tokenizer.encode(text, add_special=False)[:PREFILL]])


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


@torch.inference_mode()
def faithfulness(logits: Tensor, truth: Tensor) -> dict[str, float]:
    """KL(truth || logits) in nats per token, and the share of equal top-1 tokens. (T, V) each."""
    p, q = truth.log_softmax(-1), logits.float().log_softmax(-1)
    return {
        "kl": float((p.exp() * (p - q)).sum(-1).mean()),
        "top1": float((p.argmax(-1) == q.argmax(-1)).float().mean()),
    }


def main() -> None:
    """Print tokens per second, ratios to Hugging Face eager in fp32, and faithfulness."""
    options, path = arguments(__doc__ or ""), pull(NAME)
    loaded = zoo.load(NAME)
    ids = token_ids(loaded)
    prompt = ids[:, :PROMPT]
    with torch.inference_mode():
        truth = loaded.module(ids)[0]
    decode: dict[str, Callable[[], Any]] = {}
    prefill: dict[str, Callable[[], Any]] = {}
    faith: dict[str, dict[str, float]] = {}
    for name, dtype in (("Hugging Face fp32", torch.float32), ("Hugging Face bf16", torch.bfloat16)):
        peer = huggingface(loaded, dtype)
        with torch.inference_mode():
            faith[name] = faithfulness(peer(ids).logits[0], truth)
        decode[name] = lambda peer=peer: peer.generate(prompt, max_new_tokens=NEW, min_new_tokens=NEW)  # type: ignore[misc]
        prefill[name] = torch.inference_mode()(lambda peer=peer: peer(ids, logits_to_keep=1))
    peer_cpp = LlamaCpp.open(path, options.threads)
    if peer_cpp is not None:
        decode["llama.cpp Q4_1"] = lambda: peer_cpp(prompt[0].tolist(), NEW)
        prefill["llama.cpp Q4_1"] = lambda: peer_cpp(ids[0].tolist(), 0)
    for weights in ("fp32", "bf16", "int8", "int4"):
        plan = DecoderPlan(loaded, weights=weights)  # type: ignore[arg-type]
        faith[f"kiban {weights}"] = faithfulness(plan(ids)[0], truth)
        decode[f"kiban {weights}"] = lambda plan=plan: greedy(plan, prompt)  # type: ignore[misc]
        prefill[f"kiban {weights}"] = lambda plan=plan: plan(ids, last_only=True)  # type: ignore[misc]
    seconds, reading = medians(decode, options.repeats), medians(prefill, options.repeats)
    if peer_cpp is not None:
        peer_cpp.close()
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
