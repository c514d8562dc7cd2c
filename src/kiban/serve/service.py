"""What all routes of one server share: the models, the books, and whether it still takes requests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from kiban.config import did_you_mean
from kiban.serve import logs
from kiban.serve.auth import OPEN, Key
from kiban.serve.ledger import BILLION, Ledger, Shares, Used
from kiban.serve.logs import Note
from kiban.serve.metrics import Metrics
from kiban.serve.problems import RefusedError
from kiban.serve.served import Served
from kiban.serve.settings import Settings

# What a model needs to be able to for the requests of a path.
ABILITIES = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "generate",
    "/v1/embeddings": "embed",
    "/v1/classify": "classify",
}


class Service:
    """The state of a server."""

    def __init__(
        self, models: Mapping[str, Served], settings: Settings, ledger: Ledger, routes: frozenset[str]
    ) -> None:
        self.models, self.settings, self.ledger = dict(models), settings, ledger
        self.metrics, self.shares = Metrics(self.models, routes), Shares()
        self.draining = False
        self._seconds: dict[str, float] = {}  # that an answer of each model takes, lately
        self._places: Counter[str] = Counter()
        for model in self.models.values():
            load, paths = model.load(), [path for path, ability in ABILITIES.items() if ability in model.abilities]
            self._places.update(dict.fromkeys(["", *paths], load.max_running + load.max_waiting))

    def find(self, name: str, ability: str) -> Served:
        """The model of this name. Raises RefusedError 404 if there is none, 400 if it has not this ability."""
        found = self.models.get(name)
        if found is None:
            hint = did_you_mean(name[:100], self.models)
            message = f"there is no model of this name ({hint})"
            raise RefusedError(404, message, code="model_not_found", param="model")
        if ability not in found.abilities:
            able = ", ".join(found.abilities)
            why = " for want of a chat template" if ability == "chat" and "generate" in found.abilities else ""
            message = f"{found.name} cannot {ability}{why}; it can: {able}"
            raise RefusedError(400, message, code="wrong_model", param="model")
        return found

    def places(self, path: str) -> int:
        """Requests that the models behind a path work on or let wait; of all models for any other path."""
        return self._places.get(path, self._places[""])

    def wait(self, model: Served) -> float:
        """Seconds until a place in a full queue may be free: 1 to 60."""
        return model.load().wait(self._seconds.get(model.name, 1.0))

    def took(self, model: str, seconds: float) -> None:
        """An answer of a model took so long."""
        self._seconds[model] = 0.8 * self._seconds.get(model, seconds) + 0.2 * seconds

    def begin(self, request: Request, model: Served) -> Bill:
        """Start to count what a request costs."""
        note: Note = request.scope["state"]["note"]
        note.model = model.name
        return Bill(self, note, request.scope["state"].get("key", OPEN), model.name)


@dataclass
class Bill:
    """What one request costs: its share of the machine's time, from now until `settle`."""

    service: Service
    note: Note
    key: Key
    model: str

    def __post_init__(self) -> None:
        self._at = time.monotonic()
        self._begun: float | None = self.service.shares.begin(self._at)
        self._cost: int | None = None

    def settle(self, prompt_tokens: int, completion_tokens: int = 0) -> Future[None] | None:
        """End the counting and write it down; the second time nothing happens."""
        if self._begun is None:
            return None
        now = time.monotonic()
        self.service.took(self.model, now - self._at)
        seconds = self.service.shares.end(self._begun, now)
        self._begun, price = None, self.service.settings.price_per_hour
        self._cost = None if price is None else round(seconds * price / 3600 * BILLION)
        self.note.prompt_tokens, self.note.completion_tokens = prompt_tokens, completion_tokens
        metrics, cost = self.service.metrics, self._cost or 0
        metrics.tokens.labels(self.model, "prompt").inc(prompt_tokens)
        metrics.tokens.labels(self.model, "completion").inc(completion_tokens)
        metrics.cost.labels(self.model).inc(cost / BILLION)
        return self.service.ledger.add(
            Used(
                key=self.key.name,
                model=self.model,
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                cost=cost,
            )
        )

    def drop(self) -> None:
        """End the counting of a request that was refused before it began."""
        if self._begun is not None:
            self.service.shares.end(self._begun, time.monotonic())
            self._begun = None

    async def usage(self, prompt_tokens: int, completion_tokens: int = 0, *, cached: int = 0) -> dict[str, Any]:
        """OpenAI's usage with the cost, once it is in the ledger: what a client has seen is never lost."""
        written = self.settle(prompt_tokens, completion_tokens)
        if written is not None:
            try:
                await asyncio.wrap_future(written)
            except Exception as error:  # it is kept and tried again; the answer is not held back for it
                logs.event("ledger", level=logging.ERROR, error=error)
        usage: dict[str, Any] = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        if self._cost is not None:
            usage |= {"cost": self._cost / BILLION, "currency": self.service.settings.currency}
        return usage
