"""Mixed load for a moment: nothing is lost, and the books agree with what clients saw. benchmarks/soak.py takes an hour."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import httpx
import psutil
import pytest

MIX: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"model": "tiny-chat", "messages": [{"role": "user", "content": "やあ"}], "max_tokens": 8}),
    ("/v1/completions", {"model": "lm", "prompt": "このパッケージは", "max_tokens": 6, "n": 2}),
    ("/v1/completions", {"model": "tiny-chat", "prompt": "x" * 300, "max_tokens": 3, "logprobs": 2}),
    ("/v1/embeddings", {"model": "tiny-encoder", "input": ["a b c", "猫"]}),
    ("/v1/classify", {"model": "adopt-words", "input": "請求書の再発行"}),
    ("/v1/chat/completions", {"model": "adopt-words", "messages": [{"role": "user", "content": "猫"}]}),
    ("/v1/completions", {"model": "lm", "prompt": "x" * 3000}),  # refused
    ("/v1/chat/completions", {
        "model": "tiny-chat", "messages": [{"role": "user", "content": "x"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["a", "b"]}}},
    }),
]  # fmt: skip


async def _client(live: Any, until: float, chance: random.Random, seen: dict[str, int]) -> None:
    """Asks one after the other; one in ten is left before its answer has come."""
    async with httpx.AsyncClient(base_url=live.url, timeout=60, trust_env=False) as http:
        while time.monotonic() < until:
            path, body = chance.choice(MIX)
            if chance.random() < 0.1:
                with pytest.raises(httpx.TimeoutException):
                    long = {"model": "tiny-chat", "prompt": "x", "max_tokens": 4000, "temperature": 0}
                    await http.post("/v1/completions", json=long, timeout=0.03 + chance.random() / 10)
                seen["left"] += 1
                continue
            answer = await http.post(path, json=body)
            assert answer.status_code in (200, 400, 429), answer.text
            seen["answered"] += 1
            if answer.status_code == 200:
                usage = answer.json()["usage"]
                seen["cost"] += round(usage["cost"] * 10**9)
                seen["tokens"] += usage["completion_tokens"]


def test_a_short_mixed_load_leaves_nothing_behind(serve: Any, all_models: Any) -> None:
    live = serve(all_models(), price_per_hour=100.0)
    seen = dict.fromkeys(("answered", "left", "cost", "tokens"), 0)

    async def load(seconds: float) -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(_client(live, until, random.Random(i), seen) for i in range(4)))

    for _ in range(20):
        asyncio.run(load(0.7))  # what opens at its first use is open
        if seen["answered"] > 5 * len(MIX):
            break
    live.idle(30)
    before = psutil.Process().num_fds()
    asyncio.run(load(4.0))
    live.idle(30)
    until = time.monotonic() + 10
    while psutil.Process().num_fds() > before + 2:  # connections that are being closed
        assert time.monotonic() < until
        time.sleep(0.1)
    for model in live.service.models.values():
        now = model.load()
        assert (now.running, now.waiting, now.pages_used) == (0, 0, 0), model.name
    books = live.service.ledger.month()
    # What clients left was paid for too, so the books hold all that was seen and that.
    assert sum(used.cost for used in books) >= seen["cost"] > 0 and seen["left"] > 0
    assert sum(used.completion_tokens for used in books) >= seen["tokens"]
    assert sum(used.cost for used in books) == live.service.ledger.spent("local")
    assert seen["answered"] > 20
