"""The clients of the soak: those who stay, leave, dawdle, rush or are refused. They note what they were told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

CHAT, COMPLETE, EMBED, CLASSIFY = "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/classify"
KEYS: dict[str, dict[str, int]] = {
    **{key: {} for key in ("stays", "streams", "completes", "reads", "leaves", "burst")},
    "hasty": {"requests_per_minute": 20},
}


@dataclass
class Seen:
    """What clients were told: statuses by kind of client, and by key the sums of all usages."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    books: dict[str, Counter[str]] = field(default_factory=lambda: {key: Counter() for key in KEYS})
    faults: list[str] = field(default_factory=list)

    def status(self, kind: str, status: int, *allowed: int, text: str = "") -> None:
        """Count it; one that is not allowed is a fault. 0 stands for a client that left."""
        self.statuses.setdefault(kind, Counter())[status] += 1
        if status not in allowed:
            self.faults.append(f"{kind}: {status} {text[:200]}")

    def usage(self, key: str, usage: dict[str, Any]) -> None:
        told = {"requests": 1, "prompt_tokens": usage["prompt_tokens"], "cost": round(usage["cost"] * 10**9)}
        self.books[key].update({**told, "completion_tokens": usage["completion_tokens"]})

    @property
    def total(self) -> int:
        """Requests so far."""
        return sum(sum(counts.values()) for counts in self.statuses.values())


class Load:
    """Clients of one server. texts: what they ask about."""

    def __init__(self, url: str, keys: dict[str, str], texts: list[str]) -> None:
        self.url, self.keys, self.texts, self.seen = url, keys, texts, Seen()
        self.until = 0.0

    async def run(self, seconds: float) -> None:
        """All clients for so long."""
        self.until = time.monotonic() + seconds
        # As many as leave room in the queue for the others.
        clients = [self.stays, self.streams, self.completes, self.reads, self.leaves] * 2
        clients += [self.refused, self.hasty, self.slow, self.burst]
        await asyncio.gather(
            *(self._again(client, random.Random(self.seen.total + i)) for i, client in enumerate(clients))
        )

    async def fill(self, pages: Callable[[], tuple[float, float]], seconds: float) -> None:
        """Read long prompts until every page of the cache was in use once, since they get their memory only then."""
        self.until = time.monotonic() + seconds
        async with self._http("stays") as http:
            while (found := pages())[0] < 0.98 * found[1] and time.monotonic() < self.until:
                prompts = ["".join(random.choices("abcdefghij ", k=3000)) for _ in range(4)]
                bodies = [{"model": "lm", "prompt": prompt, "max_tokens": 1} for prompt in prompts]
                await asyncio.gather(*(self._ask(http, "stays", COMPLETE, body) for body in bodies))

    def _http(self, key: str, *, seconds: float = 300.0) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {self.keys.get(key, key)}", "content-type": "application/json"}
        return httpx.AsyncClient(base_url=self.url, timeout=seconds, trust_env=False, headers=headers)

    async def _again(
        self, client: Callable[[httpx.AsyncClient, random.Random], Awaitable[None]], chance: random.Random
    ) -> None:
        name = client.__name__  # type: ignore[attr-defined]
        while time.monotonic() < self.until:
            async with self._http(name) as http:  # a new connection now and then
                for _ in range(50):
                    if time.monotonic() < self.until:
                        try:
                            await client(http, chance)
                        except httpx.HTTPError as error:
                            self.seen.faults.append(f"{name}: {type(error).__name__} {error}")

    async def _ask(self, http: httpx.AsyncClient, key: str, path: str, body: dict[str, Any]) -> None:
        answer = await http.post(path, json=body)
        self.seen.status(f"{key} {path}", answer.status_code, 200, 429, text=answer.text)
        if answer.status_code == 200:
            self.seen.usage(key, answer.json()["usage"])
        else:
            await asyncio.sleep(0.5)

    # Kinds of clients -----------------------------------------------------------------------------------------------

    def _chat(self, chance: random.Random, **more: Any) -> dict[str, Any]:
        text = f"{chance.randrange(10**6)}: what is this? {chance.choice(self.texts)[:100]}"
        return {"model": "lm", "messages": [{"role": "user", "content": text}], "max_tokens": 12, **more}

    async def stays(self, http: httpx.AsyncClient, chance: random.Random) -> None:
        names = [f"name{chance.randrange(200)}" for _ in range(3)]
        properties = {"name": {"enum": names}, "size": {"type": "integer", "minimum": 0, "maximum": 99}}
        schema = {"type": "object", "properties": properties, "required": ["name", "size"]}
        form = {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {**schema, "additionalProperties": False}},
        }
        body = chance.choice([self._chat(chance), self._chat(chance, n=2, logprobs=True, top_logprobs=3)])
        if chance.random() < 0.3:
            body = self._chat(chance, response_format=form, max_tokens=40)
        await self._ask(http, "stays", CHAT, body)

    async def streams(self, http: httpx.AsyncClient, chance: random.Random) -> None:
        body = self._chat(chance, stream=True, stream_options={"include_usage": True})
        async with http.stream("POST", CHAT, json=body) as answer:
            lines = [line.removeprefix("data: ") async for line in answer.aiter_lines() if line]
        self.seen.status("streams", answer.status_code, 200, 429, text=lines[0])
        if answer.status_code == 200:
            if lines[-1] == "[DONE]":
                self.seen.usage("streams", json.loads(lines[-2])["usage"])
            else:
                self.seen.faults.append(f"streams: ended with {lines[-1][:200]}")
        else:
            await asyncio.sleep(0.5)

    async def completes(self, http: httpx.AsyncClient, chance: random.Random) -> None:
        prompt = f"{chance.randrange(10**6)} {chance.choice(self.texts)[:60]}"
        more = chance.choice([{}, {"n": 2}, {"logprobs": 2}, {"stop": ["e", "、"]}, {"temperature": 0.0}])
        await self._ask(http, "completes", COMPLETE, {"model": "small", "prompt": prompt, "max_tokens": 8, **more})

    async def reads(self, http: httpx.AsyncClient, chance: random.Random) -> None:
        texts = [text[:400] for text in chance.sample(self.texts, chance.randint(1, 8))]
        if chance.random() < 0.4:
            await self._ask(http, "reads", EMBED, {"model": "minilm-l6", "input": texts})
        elif chance.random() < 0.7:
            await self._ask(http, "reads", CLASSIFY, {"model": "kinds", "input": texts})
        else:
            body = {"model": "kinds", "messages": [{"role": "user", "content": texts[0]}]}
            await self._ask(http, "reads", CHAT, body)
        await asyncio.sleep(0.01)

    async def leaves(self, http: httpx.AsyncClient, chance: random.Random) -> None:
        body = self._chat(chance, max_tokens=500, temperature=0.0)
        if chance.random() < 0.5:
            left = chance.randint(1, 20)
            async with http.stream("POST", CHAT, json={**body, "stream": True}) as answer:
                self.seen.status("leaves a stream", answer.status_code, 200, 429)
                async for _ in answer.aiter_lines():
                    left -= 1
                    if left < 0:
                        break
            return
        path, body = chance.choice([(CHAT, body), (EMBED, {"model": "minilm-l6", "input": self.texts[:64]})])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(chance.random() ** 2):
                self.seen.status("leaves unanswered", (await http.post(path, json=body)).status_code, 200, 429)
                return
        self.seen.status("leaves unanswered", 0, 0)

    async def refused(self, http: httpx.AsyncClient, chance: random.Random) -> None:
        bad: list[tuple[int, str, dict[str, Any]]] = [
            (401, CHAT, {"json": self._chat(chance), "headers": {"authorization": "Bearer wrong"}}),
            (400, CHAT, {"json": self._chat(chance, temperature=9)}),
            (400, CHAT, {"json": self._chat(chance, response_format={"type": "xml"})}),
            (400, EMBED, {"json": {"model": "minilm-l6", "input": ["word " * 1000]}}),
            (404, COMPLETE, {"json": {"model": f"../{chance.random()}", "prompt": "x"}}),
            (413, COMPLETE, {"content": b"x" * (5 * 2**20)}),
            (415, COMPLETE, {"content": b"x", "headers": {"content-type": "text/plain"}}),
            (431, COMPLETE, {"content": b"{}", "headers": {"x-long": "x" * 40_000}}),
        ]
        status, path, more = chance.choice(bad)
        # The model's queue may be full, which is told first.
        headers = {"authorization": f"Bearer {self.keys['stays']}", **more.pop("headers", {})}
        answer = await http.post(path, headers=headers, **more)
        self.seen.status(f"refused {status}", answer.status_code, status, 429, text=answer.text)
        await asyncio.sleep(0.1)

    async def hasty(self, http: httpx.AsyncClient, chance: random.Random) -> None:
        await self._ask(http, "hasty", CLASSIFY, {"model": "kinds", "input": chance.choice(self.texts)})

    async def slow(self, _: httpx.AsyncClient, chance: random.Random) -> None:
        host, port = self.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nx: {chance.random()}".encode())
        head = (await reader.read()).split(b"\r\n")[0]
        writer.close()
        self.seen.status("slow", int(head.split()[1]), 408)

    async def burst(self, http: httpx.AsyncClient, chance: random.Random) -> None:
        body = {"model": "lm", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        await asyncio.gather(*(self._ask(http, "burst", CHAT, body) for _ in range(60)))
        await asyncio.sleep(20 + 20 * chance.random())
