"""Mixed load for long: nothing grows, nothing is lost, and the books agree with what clients saw."""

from __future__ import annotations

import asyncio
import gc
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


def _facts(live: Any) -> tuple[float, int]:
    """Memory in MB and open descriptors."""
    live.idle(30)
    gc.collect()
    process = psutil.Process()
    return process.memory_info().rss / 2**20, process.num_fds()


def _soak(live: Any, seconds: float, clients: int) -> tuple[int, float]:
    """Requests, and growth of the memory in MB."""
    seen = dict.fromkeys(("answered", "left", "cost", "tokens"), 0)

    async def load(duration: float) -> None:
        until = time.monotonic() + duration
        await asyncio.gather(*(_client(live, until, random.Random(i), seen) for i in range(clients)))

    asyncio.run(load(seconds / 6))  # caches fill
    before, descriptors = _facts(live)
    asyncio.run(load(seconds))
    after, now_open = _facts(live)
    assert now_open <= descriptors + 2  # a connection that is being closed
    for model in live.service.models.values():
        load_now = model.load()
        assert (load_now.running, load_now.waiting, load_now.pages_used) == (0, 0, 0), model.name
    books = live.service.ledger.month()
    # What clients left was paid for too, so the books hold all that was seen and that.
    assert sum(used.requests for used in books) > 0 and seen["left"] > 0
    assert sum(used.cost for used in books) >= seen["cost"] > 0
    assert sum(used.completion_tokens for used in books) >= seen["tokens"]
    assert sum(used.cost for used in books) == live.service.ledger.spent("local")
    return seen["answered"] + seen["left"], after - before


def test_a_short_mixed_load_leaves_nothing_behind(serve: Any, all_models: Any) -> None:
    requests, _ = _soak(serve(all_models(), price_per_hour=100.0), 4.0, 4)
    assert requests > 20


@pytest.mark.slow
@pytest.mark.timeout(4500)
def test_an_hour_of_mixed_load(serve: Any, all_models: Any) -> None:
    requests, growth = _soak(serve(all_models(), price_per_hour=100.0), 3600.0, 8)
    print(f"{requests:,} requests, {growth:.1f} MB more")
    assert growth * 10_000 / requests < 1.0
