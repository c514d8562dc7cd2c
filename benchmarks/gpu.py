"""A GPU: decoding, 32 answers at once and reading a prompt, kiban beside Hugging Face on the same card, with the same
weights.

    PYTHONPATH=src python benchmarks/gpu.py --save

The weights are random numbers at published sizes (SmolLM2-135M, Llama 2 7B) in bf16; speed does not hang on their values.
Before anything is timed, both are compared with Hugging Face in fp32. Guessing is off, since a random model falls into loops
that are guessed at once. Hugging Face with a static cache, which it compiles, runs in a process of its own and is left out
if it is not done in time. `--device cpu --models tiny` tries the script out.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

import kiban.zoo as zoo
from common import finish, medians, parse, parser, table
from kiban.engine.decoder import DecoderPlan
from kiban.engine.graphs import Graphs
from kiban.engine.pages import PAGE, PagedKeys, Part
from kiban.engine.requests import Piece, Request
from kiban.engine.scheduler import Scheduler
from kiban.generate.sampling import Sampling
from kiban.inputs.batch import pad_batch
from kiban.weights.names import to_published
from kiban.zoo.tensors import stored_tensors

PRESETS = {"small": "smollm2-135m", "7b": "llama2-7b", "tiny": "llama-tiny"}
PROMPT, NEW, PREFILL = 128, 128, 2048
LENGTHS = [16 + (464 * i) // 31 for i in range(32)]  # of prompts, 16 to 480 tokens
CHECKED, FORCED = 192, 64  # tokens that are compared, and those of them that go one by one
BAR = 1e-3  # of the largest logit: what logits in fp32 may differ by
SHARP = 4.0  # the output's weights are multiplied by this, or all tokens would be about equally likely


class Mute:
    """A tokenizer for answers that nobody reads: they never end early, and their text is empty."""

    eos_ids: frozenset[int] = frozenset()

    def stream(self) -> Mute:
        return self

    def push(self, id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


def sync(device: str) -> None:
    """Wait until the card has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def made(preset: str, device: str, dtype: torch.dtype) -> zoo.Loaded:
    """A model with random weights on the device."""
    generator = torch.Generator(device).manual_seed(0)
    loaded = zoo.create(preset, generator=generator, dtype=dtype, device=device)
    with torch.no_grad():
        loaded.module.eval().head.weight.mul_(SHARP)  # type: ignore[union-attr, operator]
    return loaded


def huggingface(loaded: zoo.Loaded, device: str, dtype: torch.dtype) -> Any:
    """The same weights in transformers, not copied where the dtype is the same; attention as it is by default."""
    left_out = ("architectures", "model_type")
    values = {name: value for name, value in loaded.family.to_hf(loaded.config).items() if name not in left_out}
    with torch.device("meta"):  # or there would be room for the weights twice
        model = AutoModelForCausalLM.from_config(LlamaConfig(**values), dtype=dtype).eval()
    tensors = to_published(loaded.family.hf_names(loaded.config), stored_tensors(loaded.module))
    missing, unknown = model.load_state_dict(
        {name: tensor.to(dtype) for name, tensor in tensors.items()}, strict=False, assign=True
    )
    assert not unknown and set(missing) <= {"lm_head.weight"}, (missing, unknown)
    if missing:
        model.lm_head.weight = model.model.embed_tokens.weight
    with torch.device(device):  # its table is in no file
        model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)
    model.requires_grad_(False)
    assert {str(tensor.device.type) for tensor in (*model.parameters(), *model.buffers())} == {device}
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0, eos_token_id=None)
    return model


def ids_of(count: int, vocab_size: int, seed: int = 0) -> list[int]:
    """Random tokens."""
    return torch.randint(vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


class Writing:
    """Greedy answers to one prompt, a step of the plan or of a graph for each token."""

    def __init__(self, plan: DecoderPlan, *, graphs: bool, paged: bool | None = None) -> None:
        self.plan, pages = plan, -(-(PROMPT + NEW) // PAGE)
        self.keys = PagedKeys(plan.config, pages, dtype=plan.keys_dtype, device=plan.device)
        self.pages, self.graphs = list(range(pages)), Graphs(plan, self.keys, paged=paged) if graphs else None

    def step(self, part: Part) -> Tensor:
        """Logits (num_logits, V)."""
        found = None if self.graphs is None else self.graphs([part])
        assert self.graphs is None or found is not None or len(part.ids) > 1, "the graph was not taken"
        return self.plan.step([part], self.keys) if found is None else found

    def __call__(self, prompt: list[int]) -> list[int]:
        """NEW tokens."""
        ids = list(prompt)
        logits = self.step(Part(ids, 0, self.pages))
        while True:
            ids.append(int(logits[0].argmax()))
            if len(ids) == len(prompt) + NEW:
                return ids[len(prompt) :]
            logits = self.step(Part(ids[-1:], len(ids) - 1, self.pages))

    def forced(self, ids: list[int]) -> Tensor:
        """Logits (FORCED, V) of the last tokens, one by one behind the others."""
        self.step(Part(ids[:-FORCED], 0, self.pages))
        steps = range(len(ids) - FORCED, len(ids))
        return torch.cat([self.step(Part([ids[at]], at, self.pages)).float() for at in steps])


def compare(found: Tensor, exact: Tensor) -> dict[str, float]:
    """Logits (T, V): largest difference by the largest logit, KL(exact || found) in nats, share of equal first choices."""
    p, q = exact.double().log_softmax(-1), found.double().log_softmax(-1)
    return {
        "difference": float((found - exact).abs().max() / exact.abs().max()),
        "kl": float((p.exp() * (p - q)).sum(-1).mean()),
        "top1": float((p.argmax(-1) == q.argmax(-1)).float().mean()),
    }


@torch.inference_mode()
def parity(loaded: zoo.Loaded, plan: DecoderPlan, peer: Any, device: str) -> list[dict[str, Any]]:
    """How far each way is from Hugging Face in fp32 on the same tokens, this plan's weights taken as they are."""
    ids = ids_of(CHECKED, loaded.config.vocab_size, seed=7)
    tokens = torch.tensor([ids], device=device)
    wide = huggingface(loaded, device, torch.float32)
    exact = wide(tokens).logits[0].float()
    del wide
    ways: dict[str, Tensor] = {
        "Hugging Face": peer(tokens).logits[0].float(),
        "kiban": plan(tokens)[0],
        "kiban, one by one": Writing(plan, graphs=False).forced(ids),
        "kiban, graphs": Writing(plan, graphs=True).forced(ids),
        "kiban, graphs, gathered": Writing(plan, graphs=True, paged=False).forced(ids),
    }
    return [{"way": name, "dtype": plan.weights, **compare(y, exact[-len(y) :])} for name, y in ways.items()]


def together(engine: Scheduler, prompts: list[list[int]]) -> None:
    """All prompts at once, until the last answer has ended."""
    ended = threading.Semaphore(0)

    def told(piece: Piece) -> None:
        assert piece.finish in (None, "length"), piece
        if piece.finish:
            ended.release()

    for prompt in prompts:
        engine.submit(Request(prompt=prompt, sampling=Sampling(max_new_tokens=NEW), on_piece=told))
    for _ in prompts:
        ended.acquire()


def copy_rate(device: str) -> float:
    """Bytes a second that a large copy on the device reads and writes, both counted; the best of five."""
    size = 1 << (31 if device == "cuda" else 27)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target, taken = torch.empty_like(source), []
    for _ in range(6):
        sync(device)
        start = time.perf_counter()
        target.copy_(source)
        sync(device)
        taken.append(time.perf_counter() - start)
    return 2 * size / min(taken)


def measure(name: str, options: argparse.Namespace, rate: float) -> dict[str, Any]:
    """Everything about one model."""
    device, preset = options.device, PRESETS[name]
    found: dict[str, Any] = {"model": preset, "parity": []}
    if name != "7b":  # exactly, where fp32 is small enough
        exact = made(preset, device, torch.float32)
        plan, peer = DecoderPlan(exact, weights="fp32"), huggingface(exact, device, torch.float32)
        found["parity"] += parity(exact, plan, peer, device)
        del exact, plan, peer
    loaded = made(preset, device, torch.bfloat16)
    peer, plan = huggingface(loaded, device, torch.bfloat16), DecoderPlan(loaded, weights="bf16")
    found["parity"] += parity(loaded, plan, peer, device)
    print(table(found["parity"]), flush=True)
    found["rows"] = timed(plan, peer, options, rate)
    print(table(found["rows"]), flush=True)
    return found


def timed(plan: DecoderPlan, peer: Any, options: argparse.Namespace, rate: float) -> list[dict[str, Any]]:
    """Tokens per second of every way; for decoding also the bytes of weights that are read, as a share of the copy rate."""
    device, config = options.device, plan.config
    prompt = ids_of(PROMPT, config.vocab_size)
    tokens = torch.tensor([prompt], device=device)
    most = config.max_seq_len - NEW
    prompts = [ids_of(min(length, most), config.vocab_size, seed=length) for length in LENGTHS]
    batch, mask = (t.to(device) for t in pad_batch(prompts, 0, side="left"))
    long = torch.tensor([ids_of(min(PREFILL, config.max_seq_len), config.vocab_size)], device=device)
    page = PagedKeys.page_bytes(config, plan.keys_dtype)
    engine = Scheduler(
        plan,
        Mute(),  # type: ignore[arg-type]
        max_running=len(prompts),
        memory=page * len(prompts) * -(-(max(LENGTHS) + NEW) // PAGE),
        chunk=2048,
        share=False,  # or the repeats would find their prompts read
        speculate=False,
    )
    length = {"max_new_tokens": NEW, "min_new_tokens": NEW}
    graphs, eager = Writing(plan, graphs=True), Writing(plan, graphs=False)
    ways: dict[str, dict[str, Callable[[], Any]]] = {
        "decode": {
            "kiban, graphs": lambda: graphs(prompt),
            "kiban": lambda: eager(prompt),
            "Hugging Face": lambda: peer.generate(tokens, **length).tolist(),
        },
        "32 answers": {
            "kiban": lambda: together(engine, prompts),
            "Hugging Face": lambda: peer.generate(batch, attention_mask=mask.long(), **length).tolist(),
        },
        "prefill": {
            "kiban": lambda: plan(long, last_only=True).argmax(-1).tolist(),
            "Hugging Face": torch.inference_mode()(
                lambda: peer(long, logits_to_keep=1, use_cache=False).logits.argmax(-1).tolist()
            ),
        },
    }
    count = {"decode": NEW, "32 answers": NEW * len(prompts), "prefill": long.shape[1]}
    read = plan.num_bytes - (0 if config.tied else plan.table.nbytes)  # of the table of tokens a step reads one row
    rows: list[dict[str, Any]] = []
    for task, these in ways.items():
        seconds = medians(these, options.repeats)
        for way, taken in seconds.items():
            share = read * NEW / taken / rate if task == "decode" else None
            speed = {"tokens_per_s": count[task] / taken, "ratio": seconds["Hugging Face"] / taken}
            rows.append({"task": task, "way": way, **speed, "bandwidth_share": share})
    print(f"the scheduler had {engine.load().more.get('compiled', 0)} graphs")
    engine.close(drain=0)
    return rows


def static_worker(options: argparse.Namespace) -> None:
    """Decoding by Hugging Face with a static cache, which it compiles; prints JSON."""
    loaded = made(PRESETS[options.static_worker], options.device, torch.bfloat16)
    peer, device = huggingface(loaded, options.device, torch.bfloat16), options.device
    tokens = torch.tensor([ids_of(PROMPT, loaded.config.vocab_size)], device=device)
    more = {"max_new_tokens": NEW, "min_new_tokens": NEW, "cache_implementation": "static"}
    way = {"static": lambda: peer.generate(tokens, **more).tolist()}
    for run in way.values():  # the first calls compile
        run()
    print(json.dumps(medians(way, options.repeats)))


def static(name: str, options: argparse.Namespace, seconds: float) -> float | None:
    """Median seconds of Hugging Face with a static cache, None with a note if that does not work in time."""
    given = ["--device", options.device, "--repeats", str(options.repeats), "--static-worker", name]
    child = subprocess.Popen(
        [sys.executable, __file__, *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # its compiler has processes of its own
    )
    try:
        out, err = child.communicate(timeout=max(1.0, seconds))
        return float(json.loads(out.strip().splitlines()[-1])["static"])
    except subprocess.TimeoutExpired:
        print(f"Hugging Face with a static cache was not done with {name} in {seconds:.0f} s and is left out")
    except (IndexError, KeyError, ValueError):
        print(f"Hugging Face with a static cache failed with {name} and is left out: {err.strip()[-400:]}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    return None


def main() -> None:
    """Print faithfulness and tokens per second."""
    begin, own = time.monotonic(), parser(__doc__ or "")
    own.add_argument("--models", default="small,7b", help=f"of {', '.join(PRESETS)}")
    own.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    own.add_argument("--static-seconds", type=float, default=60.0, help="for each model; 0 leaves that out")
    own.add_argument("--seconds", type=float, default=225.0, help="after these nothing more is compiled")
    own.add_argument("--static-worker", help=argparse.SUPPRESS)
    options = parse(own)
    if options.static_worker:
        return static_worker(options)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rate = copy_rate(options.device)
    card = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    print(f"{card}: a copy reads and writes {rate / 1e12:.2f} TB/s", flush=True)
    sizes = {"prompt": PROMPT, "new_tokens": NEW, "prefill": PREFILL, "prompt_tokens": LENGTHS}
    found: dict[str, Any] = {"card": card, "copy_bytes_per_s": rate, **sizes, "models": []}
    names = options.models.split(",")
    for name in names:
        start = time.monotonic()
        found["models"].append(measure(name, options, rate))
        if options.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()  # for the process that comes later
        print(f"{name} took {time.monotonic() - start:.0f} s", flush=True)
    finish("gpu", found, options, ("transformers", "triton"))  # what follows may take long, and this is done
    for name, model in zip(names, found["models"], strict=True):
        left = min(options.static_seconds, options.seconds - (time.monotonic() - begin))
        taken = static(name, options, left) if left > 15 else None
        if taken is not None:
            plain = next(row for row in model["rows"] if (row["task"], row["way"]) == ("decode", "Hugging Face"))
            speed = NEW / taken
            ratio, share = speed / plain["tokens_per_s"], plain["bandwidth_share"] * speed / plain["tokens_per_s"]
            row = {"task": "decode", "way": "Hugging Face, static and compiled"}
            model["rows"].append({**row, "tokens_per_s": speed, "ratio": ratio, "bandwidth_share": share})
            print(table(model["rows"][-1:]), flush=True)
    finish("gpu", found, options, ("transformers", "triton"))
    exact = [row for model in found["models"] for row in model["parity"] if row["dtype"] == "fp32"]
    assert all(row["difference"] <= BAR for row in exact), exact
    return None


if __name__ == "__main__":
    main()
