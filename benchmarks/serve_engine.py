"""Eight answers at once from SmolLM2-135M: kiban's scheduler beside Hugging Face's `generate` on the same batch.

    pip install -e ".[test]" && python benchmarks/serve_engine.py --save

The prompts are English text of 16 to 240 tokens, and every answer has 64 tokens. The clock runs from the first prompt to the
last token; for kiban also per token of one answer.
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

import kiban.zoo as zoo
from common import arguments, finish, medians, table
from decode import NAME, huggingface, text_ids
from kiban.catalogue.pull import pull
from kiban.engine.decoder import DecoderPlan
from kiban.engine.requests import Piece, Request
from kiban.engine.scheduler import Scheduler
from kiban.generate.sampling import Sampling
from kiban.inputs.batch import pad_batch

LENGTHS, NEW = (16, 48, 80, 112, 144, 176, 208, 240), 64


def together(engine: Scheduler, prompts: list[list[int]], gaps: list[float]) -> None:
    """All prompts at once; seconds between the tokens of each answer go to gaps."""
    ended = threading.Semaphore(0)

    def listener() -> Callable[[Piece], None]:
        times: list[float] = []

        def told(piece: Piece) -> None:
            times.append(time.perf_counter())
            if piece.finish:
                assert len(times) == NEW, piece
                gaps.extend(b - a for a, b in itertools.pairwise(times))
                ended.release()

        return told

    for prompt in prompts:
        engine.submit(Request(prompt=prompt, sampling=Sampling(max_new_tokens=NEW), on_piece=listener()))
    for _ in prompts:
        ended.acquire()


def main() -> None:
    """Print tokens per second of all answers together."""
    options = arguments(__doc__ or "")
    pull(NAME)
    loaded = zoo.load(NAME)
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    tokenizer.eos_ids = frozenset()  # every answer has the same length
    ids = text_ids(loaded, 512)
    prompts = [ids[start : start + length] for start, length in enumerate(LENGTHS)]
    tokens, mask = pad_batch(prompts, 0, side="left")
    ways: dict[str, Callable[[], Any]] = {}
    for name, dtype in (("Hugging Face fp32", torch.float32), ("Hugging Face bf16", torch.bfloat16)):
        peer = huggingface(loaded, dtype)
        ways[name] = lambda peer=peer: peer.generate(  # type: ignore[misc]
            tokens, attention_mask=mask.long(), max_new_tokens=NEW, min_new_tokens=NEW
        )
    engines: list[Scheduler] = []
    gaps: dict[str, list[float]] = {}
    for weights in ("fp32", "bf16", "int8", "int4"):
        plan = DecoderPlan(loaded, weights=weights)  # type: ignore[arg-type]
        # Without sharing, or the repeats would find their prompts already read.
        engines.append(Scheduler(plan, tokenizer, share=False))
        name = f"kiban {weights}"
        gaps[name] = []
        ways[name] = lambda engine=engines[-1], name=name: together(engine, prompts, gaps[name])  # type: ignore[misc]
    seconds = medians(ways, options.repeats)
    for engine in engines:
        engine.close(drain=0)
    rows = [
        {
            "way": name,
            "tokens_per_s": len(prompts) * NEW / seconds[name],
            "ratio": seconds["Hugging Face fp32"] / seconds[name],
            "gap_ms": 1000 * statistics.median(gaps.get(name, [float("nan")])),
        }
        for name in ways
    ]
    print(table(rows))
    found = {"model": NAME, "prompt_tokens": list(LENGTHS), "new_tokens": NEW, "rows": rows}
    finish("serve_engine", found, options, ("transformers",))


if __name__ == "__main__":
    main()
