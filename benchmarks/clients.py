"""Clients of a server in a process of their own, so that they take nothing from it but the processor: `clients.py`.

Reads lines of JSON, {"url": ..., "bodies": [[...], ...]}: one client for each list, which asks for its bodies one after
the other; all begin together. Answers with the seconds until the last one had its answer, and for streams the tokens, the
seconds to the first token of each and those between tokens.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from typing import Any

import httpx


async def ask(client: httpx.AsyncClient, url: str, body: dict[str, Any], found: dict[str, Any]) -> None:
    """One request; what it took goes to found. Raises httpx.HTTPStatusError if it is refused."""
    begun, times = time.perf_counter(), []
    async with client.stream("POST", url, json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("usage"):
                found["tokens"] += event["usage"]["completion_tokens"]
            if event["choices"] and event["choices"][0]["delta"].get("content"):
                times.append(time.perf_counter())
    if times:
        found["first"].append(times[0] - begun)
        found["gaps"] += [b - a for a, b in itertools.pairwise(times)]


async def together(url: str, bodies: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """All clients at once."""
    found: dict[str, Any] = {"tokens": 0, "first": [], "gaps": []}

    async def one(own: list[dict[str, Any]]) -> None:
        for body in own:
            await ask(client, url, body, found)

    async with httpx.AsyncClient(timeout=600, trust_env=False) as client:
        begun = time.perf_counter()
        await asyncio.gather(*map(one, bodies))
        return {"seconds": time.perf_counter() - begun, **found}


def main() -> None:
    """Answer until the input ends."""
    for line in sys.stdin:
        print(json.dumps(asyncio.run(together(**json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
