"""Training steps of a GPT-2 and a Llama: tokens a second and peak memory beside transformers' model of the same shape.

python benchmarks/train.py [--threads 2] [--save]

All train with fused AdamW (betas 0.9, 0.95), the same rows, no dropout; each in a process of its own for the memory, in
turns for the time, but for the large shape one after the other. On a CPU transformers computes in float32, as it does unless
told otherwise, kiban in float32 too, and as it comes: with bfloat16 products where its probe finds them faster. On a GPU all
run under bf16 autocast, eagerly and with their blocks compiled; the record is train-gpu.json.
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

Shape = dict[str, int]  # of a GPT, of a Llama where it tells ffn_dim; and rows, which are max_seq_len tokens long
SMALL = {"num_layers": 6, "dim": 384, "num_heads": 6, "max_seq_len": 512, "rows": 8}
SHAPES: dict[str, Shape] = {
    "14M, V 4096": {"vocab_size": 4096, **SMALL},
    "30M, V 50257": {"vocab_size": 50257, **SMALL},
}
LLAMA = {"num_layers": 22, "dim": 2048, "num_heads": 16, "num_kv_heads": 16, "ffn_dim": 5632}
GPU_SHAPES: dict[str, Shape] = {
    "GPT-2, 124M": {
        "vocab_size": 50257,
        "num_layers": 12,
        "dim": 768,
        "num_heads": 12,
        "max_seq_len": 1024,
        "rows": 16,
    },
    "Llama, 1.3B": {"vocab_size": 32000, **LLAMA, "max_seq_len": 4096, "rows": 2},
}
STEPS = 3
WAYS = ("kiban, float32", "kiban", "transformers")
GPU_WAYS = ("kiban", "kiban, compiled", "transformers", "transformers, compiled")


def ours(shape: Shape, device: str, name: str) -> tuple[Any, float]:
    """A function that makes one training step of kiban's trainer, and its operations for every token."""
    from kiban import zoo
    from kiban.data.loader import Loader
    from kiban.families.gpt import GPT, GPTConfig
    from kiban.families.llama import Llama, LlamaConfig
    from kiban.objectives.causal_lm import CausalLM
    from kiban.recipes.base import flops_per_token
    from kiban.train.settings import TrainConfig
    from kiban.train.trainer import Trainer

    sizes: Any = {key: value for key, value in shape.items() if key != "rows"}
    with torch.device(device):
        built = Llama(LlamaConfig(**sizes)) if "ffn_dim" in shape else GPT(GPTConfig(**sizes))
    module: Any = zoo.initialise(built, torch.Generator(device).manual_seed(0))
    rows = list(data(shape))
    config = TrainConfig(
        steps=1000,
        batch_size=len(rows),
        micro_batch_size=len(rows),
        lr=1e-3,
        schedule="constant",
        warmup=0.0,
        betas=(0.9, 0.95),
        precision="fp32" if "float32" in name else "auto",
        compile="compiled" in name,
    )

    def collate(some: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        tokens = torch.stack(some)
        return {"tokens": tokens, "documents": torch.zeros_like(tokens)}

    trainer = Trainer(CausalLM(module), module, Loader(rows, collate, batch_size=len(rows), seed=0), config)
    return trainer._step, flops_per_token(module, module.config, shape["max_seq_len"])


def theirs(shape: Shape, device: str, name: str) -> Any:
    """The same with transformers' model, as its own trainer does it."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    llama = "ffn_dim" in shape
    if llama:
        config: Any = LlamaConfig(
            vocab_size=shape["vocab_size"],
            num_hidden_layers=shape["num_layers"],
            hidden_size=shape["dim"],
            num_attention_heads=shape["num_heads"],
            num_key_value_heads=shape["num_kv_heads"],
            intermediate_size=shape["ffn_dim"],
            max_position_embeddings=shape["max_seq_len"],
        )
    else:
        none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        names = {"n_layer": "num_layers", "n_embd": "dim", "n_head": "num_heads", "n_positions": "max_seq_len"}
        config = GPT2Config(vocab_size=shape["vocab_size"], **{key: shape[own] for key, own in names.items()}, **none)
    with torch.device(device):
        model: Any = (LlamaForCausalLM if llama else GPT2LMHeadModel)(config)
    model.train()
    if "compiled" in name:
        for block in model.model.layers if llama else model.transformer.h:
            block.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    tokens = torch.stack(list(data(shape)))[:, :-1].to(device)

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(loss.detach())

    return step


def data(shape: Shape) -> torch.Tensor:
    """Rows of random tokens."""
    size = (shape["rows"], shape["max_seq_len"] + 1)
    return torch.randint(0, shape["vocab_size"], size, generator=torch.Generator().manual_seed(1))


def worker(name: str, shape: Shape, threads: int, device: str) -> None:
    """Warm up, then a line of JSON with seconds and peak memory for every line that is read."""
    torch.set_num_threads(threads)
    flops = 0.0
    if name.startswith("transformers"):
        step = theirs(shape, device, name)
    else:
        step, flops = ours(shape, device, name)
    for _ in range(3 if device == "cuda" else 1):
        step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # what compiling took is not what training takes
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - start) / STEPS
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident()
        print(json.dumps({"seconds": seconds, "bytes": peak, "flops": flops}), flush=True)


def resident() -> int:
    """Most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def idle_bytes(name: str, threads: int) -> int:
    """What a process holds that has imported the library and trained a model of nothing to speak of."""
    tiny = {"vocab_size": 64, "num_layers": 1, "dim": 16, "num_heads": 1, "max_seq_len": 8, "rows": 8}
    with start(name, tiny, threads, "cpu") as process:
        return int(ask(process)["bytes"])


def start(name: str, shape: Shape, threads: int, device: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "worker", name, json.dumps(shape), str(threads), device]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    answer: dict[str, float] = json.loads(process.stdout.readline())
    return answer


def measure(shape: Shape, groups: list[tuple[str, ...]], threads: int, device: str, repeats: int) -> dict[str, Any]:
    """What the processes of each way answered; those of a group run at the same time and take turns."""
    answers: dict[str, list[dict[str, float]]] = {}
    for group in groups:
        processes = {name: start(name, shape, threads, device) for name in group}
        for _ in range(repeats):
            for name, process in processes.items():
                answers.setdefault(name, []).append(ask(process))
        for process in processes.values():
            process.communicate()
    return answers


def main() -> None:
    options = arguments(__doc__ or "")
    gpu = torch.cuda.is_available()
    device, ways = ("cuda", GPU_WAYS) if gpu else ("cpu", WAYS)
    idle = {} if gpu else {name: idle_bytes(name, options.threads) for name in ways}
    facts: dict[str, Any] = {"device": device}
    if gpu:
        from kiban.train.precision import matrix_rate

        rate = matrix_rate("cuda", "bf16")
        facts |= {"gpu": torch.cuda.get_device_name(), "matrix_tflops_per_s": round(rate / 1e12)}
    rows = []
    for title, shape in (GPU_SHAPES if gpu else SHAPES).items():
        groups = [(name,) for name in ways] if shape["dim"] > 1024 else [ways]
        answers = measure(shape, groups, options.threads, device, options.repeats)
        seconds = {name: sorted(a["seconds"] for a in found)[len(found) // 2] for name, found in answers.items()}
        memory = {name: max(a["bytes"] for a in found) for name, found in answers.items()}
        flops = max(found[0]["flops"] for found in answers.values())
        for name in ways:
            speed = shape["rows"] * shape["max_seq_len"] / seconds[name]
            row = {
                "shape": title,
                "way": name,
                "tokens_per_s": round(speed),
                "times": round(seconds["transformers"] / seconds[name], 2),
                "peak_MB": round(memory[name] / 1e6),
                "share_of_peak": round(memory[name] / memory["transformers"], 2),
            }
            if gpu:
                row["matrix_rate_share"] = round(speed * flops / rate, 3)
            else:
                row["training_MB"] = round((memory[name] - idle[name]) / 1e6)
            rows.append(row)
        print(table(rows), flush=True)
    finish("train-gpu" if gpu else "train", {**facts, "results": rows}, options, ("transformers",))


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        main()
