"""Training steps of a GPT-2: tokens a second and peak memory beside transformers' model of the same shape.

python benchmarks/train.py [--threads 2] [--save]

All train with AdamW (betas 0.9, 0.95), the same rows, no dropout; each in a process of its own for the memory, in turns for
the time. On a CPU transformers computes in float32, as it does unless told otherwise; kiban in float32 too, and as it comes:
with bfloat16 products where its probe finds them faster. On a GPU both run under bf16 autocast.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch

from common import arguments, finish, table

SHAPES = {
    "14M, V 4096": {"vocab_size": 4096, "num_layers": 6, "dim": 384, "num_heads": 6, "max_seq_len": 512},
    "30M, V 50257": {"vocab_size": 50257, "num_layers": 6, "dim": 384, "num_heads": 6, "max_seq_len": 512},
}
GPU_SHAPES = {"gpt2-small": {"vocab_size": 50257, "num_layers": 12, "dim": 768, "num_heads": 12, "max_seq_len": 1024}}
ROWS = 8  # of max_seq_len tokens, at once
STEPS = 3
WAYS: dict[str, Any] = {"kiban, float32": "fp32", "kiban": "auto"}


def ours(shape: dict[str, int], device: str, precision: Any) -> Any:
    """A function that makes one training step of kiban's trainer."""
    from kiban import zoo
    from kiban.data.loader import Loader
    from kiban.families.gpt import GPT, GPTConfig
    from kiban.objectives.causal_lm import CausalLM
    from kiban.train.settings import TrainConfig
    from kiban.train.trainer import Trainer

    module: Any = zoo.initialise(GPT(GPTConfig(**shape)), torch.Generator().manual_seed(0)).to(device)
    rows = list(data(shape))
    settings: dict[str, Any] = {"steps": 1000, "batch_size": ROWS, "micro_batch_size": ROWS, "lr": 1e-3}
    config = TrainConfig(**settings, schedule="constant", warmup=0.0, betas=(0.9, 0.95), precision=precision)

    def collate(some: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        tokens = torch.stack(some)
        return {"tokens": tokens, "documents": torch.zeros_like(tokens)}

    return Trainer(CausalLM(module), module, Loader(rows, collate, batch_size=ROWS, seed=0), config)._step


def theirs(shape: dict[str, int], device: str) -> Any:
    """The same with transformers' model, as its own examples train it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    names = {"n_layer": "num_layers", "n_embd": "dim", "n_head": "num_heads", "n_positions": "max_seq_len"}
    config = GPT2Config(vocab_size=shape["vocab_size"], **{name: shape[own] for name, own in names.items()}, **none)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    tokens = torch.stack(list(data(shape)))[:, :-1].to(device)

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = model(tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(loss.detach())

    return step


def data(shape: dict[str, int]) -> torch.Tensor:
    """ROWS rows of random tokens."""
    size = (ROWS, shape["max_seq_len"] + 1)
    return torch.randint(0, shape["vocab_size"], size, generator=torch.Generator().manual_seed(1))


def worker(name: str, shape: dict[str, int], threads: int, device: str) -> None:
    """Warm up, then a line of JSON with seconds and peak memory for every line that is read."""
    torch.set_num_threads(threads)
    step = theirs(shape, device) if name == "transformers" else ours(shape, device, WAYS[name])
    step()
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - start) / STEPS
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident()
        print(json.dumps({"seconds": seconds, "bytes": peak}), flush=True)


def resident() -> int:
    """Most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def idle_bytes(name: str, threads: int) -> int:
    """What a process holds that has imported the library and trained a model of nothing to speak of."""
    tiny = {"vocab_size": 64, "num_layers": 1, "dim": 16, "num_heads": 1, "max_seq_len": 8}
    with start(name, tiny, threads, "cpu") as process:
        return int(ask(process)["bytes"])


def start(name: str, shape: dict[str, int], threads: int, device: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "worker", name, json.dumps(shape), str(threads), device]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    answer: dict[str, float] = json.loads(process.stdout.readline())
    return answer


def main() -> None:
    options = arguments(__doc__ or "")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, ways = [], (*(WAYS if device == "cpu" else ["kiban"]), "transformers")
    idle = {name: idle_bytes(name, options.threads) if device == "cpu" else 0 for name in ways}
    for title, shape in (GPU_SHAPES if device == "cuda" else SHAPES).items():
        processes = {name: start(name, shape, options.threads, device) for name in ways}
        answers: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for _ in range(options.repeats):
            for name, process in processes.items():
                answers[name].append(ask(process))
        for process in processes.values():
            process.communicate()
        seconds = {name: sorted(a["seconds"] for a in found)[len(found) // 2] for name, found in answers.items()}
        memory = {name: max(a["bytes"] for a in found) for name, found in answers.items()}
        for name in ways:
            rows.append(
                {
                    "shape": title,
                    "way": name,
                    "tokens_per_s": round(ROWS * shape["max_seq_len"] / seconds[name]),
                    "times": round(seconds["transformers"] / seconds[name], 2),
                    "peak_MB": round(memory[name] / 1e6),
                    "training_MB": round((memory[name] - idle[name]) / 1e6),
                    "share_of_peak": round(memory[name] / memory["transformers"], 2),
                }
            )
    print(table(rows))
    finish("train", {"device": device, "rows": ROWS, "results": rows}, options, ("transformers",))


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        main()
