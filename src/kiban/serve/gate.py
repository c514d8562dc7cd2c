"""Who may come in: keys, budgets, rates and the number of requests at once, decided from the header of a request alone."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kiban.serve import logs
from kiban.serve.auth import Key, Keys
from kiban.serve.ledger import BILLION
from kiban.serve.logs import Note
from kiban.serve.problems import RefusedError, busy, closing
from kiban.serve.service import ABILITIES, Service
from kiban.serve.settings import is_loopback

LATER = 0.1  # seconds
Headers = Sequence[tuple[bytes, bytes]]  # names in small letters


@dataclass
class _Client:
    """What a key has used of its limits. tokens: requests that it may make now."""

    tokens: float
    at: float
    running: int = 0


class Gate:
    """What is let in, and how much of it is inside."""

    def __init__(self, service: Service, keys: Keys) -> None:
        self.service, self.keys, self.limits = service, keys, service.settings.limits
        self._clients: dict[str, _Client] = {}
        self._running: Counter[str] = Counter()  # requests past the gate, by path
        self._arriving: Counter[str] = Counter()  # whole ones that reach it in this turn of the loop
        self._refusals: dict[str, tuple[float, RefusedError]] = {}  # by path, each with the time when it was made
        self._later: deque[tuple[Note, float]] = deque()  # refusals that are not written down yet

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return self._running.total()

    def full(self, path: str) -> bool:
        """Whether all places of the models behind a path of ours are taken."""
        return self._running[path] + self._arriving[path] >= self.service.places(path)

    def expect(self, path: str) -> None:
        """A whole request was read, whose task runs later in this turn of the loop; others that were read shall know."""
        self._arriving[path] += 1
        asyncio.get_running_loop().call_soon(self._arriving.subtract, (path,))

    def check_size(self, headers: Headers) -> None:
        """Raises RefusedError 431."""
        most, size = self.limits.max_headers, self.limits.max_header
        if len(headers) > most or sum(len(name) + len(value) for name, value in headers) > size:
            raise RefusedError(431, f"at most {most} headers and {size} bytes of them")

    def key(self, headers: Headers) -> Key:
        """Whose request it is. Raises RefusedError 401, or 421 for a name that is not this machine's."""
        if self.keys.open:
            _check_host(headers)
        return self.keys.client([value for name, value in headers if name == b"authorization"])

    def check_post(self, path: str, headers: Headers, key: Key) -> None:
        """All that can be said before the body is read. Raises RefusedError; what is let through has used up its rate."""
        self._check_head(headers, key)
        self._check_room(path, key)
        self._take_token(key)

    def refusal(self, path: str, headers: Headers, note: Note) -> RefusedError:
        """Why a request to a path that is full is refused; note is told whose it is."""
        try:
            self.check_size(headers)
            key = self.key(headers)
            note.key = key.name
            self._check_head(headers, key)
        except RefusedError as problem:
            return problem
        # Of a burst all get the same one, so that it is put into words and bytes once.
        made, known = self._refusals.get(path, (-math.inf, None))
        now = time.monotonic()
        if known is None or now - made >= LATER:
            known = self._no_room(path)
            self._refusals[path] = now, known
        return known

    def _check_head(self, headers: Headers, key: Key) -> None:
        if self.service.draining:
            raise closing()
        self._check_length(headers)
        self._check_budget(key)

    @contextlib.contextmanager
    def entered(self, path: str, key: Key) -> Iterator[None]:
        """While a request is answered. Raises RefusedError if others took the last place meanwhile."""
        self._check_room(path, key)
        client, name = self._client(key), _name(path)
        self._running[name], client.running = self._running[name] + 1, client.running + 1
        try:
            yield
        finally:
            self._running[name], client.running = self._running[name] - 1, client.running - 1

    def answered(self, note: Note, seconds: float) -> None:
        """Count and log a request that has ended."""
        note.ms = 1000 * seconds
        self.service.metrics.answered(note.path, note.status, seconds)
        logs.request(note)

    def answered_later(self, note: Note, seconds: float) -> None:
        """The same soon, since others wait for their refusal now."""
        self._later.append((note, seconds))
        if len(self._later) == 1:
            asyncio.get_running_loop().call_later(LATER, self._write_later)

    def _write_later(self) -> None:
        """A part of what is to be written down, the larger the more there is."""
        for _ in range(len(self._later) // 8 + 1):
            self.answered(*self._later.popleft())
        if self._later:
            asyncio.get_running_loop().call_soon(self._write_later)

    def too_large(self) -> RefusedError:
        """413."""
        return RefusedError(413, f"the body is larger than {self.limits.max_body:,} bytes", code="body_too_large")

    def _check_length(self, headers: Headers) -> None:
        values = dict(headers)
        if int(values.get(b"content-length", b"0")) > self.limits.max_body:  # the parser has seen that it is a number
            raise self.too_large()
        kind = values.get(b"content-type", b"").split(b";")[0].strip().lower()
        if kind != b"application/json":
            # A web page can make a browser send any other kind to this address without asking first.
            raise RefusedError(415, "send JSON, with content-type: application/json", code="unsupported_media_type")

    def _check_budget(self, key: Key) -> None:
        if key.monthly_budget is not None and self.service.ledger.spent(key.name) >= key.monthly_budget * BILLION:
            message = f"the budget of {key.name} for this month, {key.monthly_budget:g}, is used up"
            raise RefusedError(429, message, code="insufficient_quota", kind="insufficient_quota")

    def _check_room(self, path: str, key: Key) -> None:
        if self._running[_name(path)] >= self.service.places(path):
            raise self._no_room(path)
        running = self._client(key).running
        if key.concurrent is not None and running >= key.concurrent:
            raise busy(f"{key.name} has {running} requests running, and may have no more at once", retry_after=1)

    def _no_room(self, path: str) -> RefusedError:
        after = max((self.service.wait(model) for model in self.service.models.values()), default=1.0)
        places = self.service.places(path)
        return busy(f"{places} requests are being answered or waiting (ask again later)", retry_after=after)

    def _client(self, key: Key) -> _Client:
        if key.name not in self._clients:  # as many as there are keys
            self._clients[key.name] = _Client(key.requests_per_minute or 0, time.monotonic())
        return self._clients[key.name]

    def _take_token(self, key: Key) -> None:
        """A minute's worth of requests may come at once; they grow back evenly."""
        rate = key.requests_per_minute
        if rate is None:
            return
        client, now = self._client(key), time.monotonic()
        client.tokens = min(rate, client.tokens + (now - client.at) * rate / 60)
        client.at = now
        if client.tokens < 1:
            raise busy(f"{key.name} may ask {rate} times a minute", retry_after=(1 - client.tokens) * 60 / rate)
        client.tokens -= 1


def _name(path: str) -> str:
    """A path as it is counted; those that are not ours are made up by whoever asks."""
    return path if path in ABILITIES else ""


def _check_host(headers: Headers) -> None:
    """A server without keys answers to its own names only: a web page could else reach it under a name of its own."""
    host = dict(headers).get(b"host", b"").decode("latin-1")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if name and not is_loopback(name.strip("[]")):
        raise RefusedError(421, "this server has no keys and answers to localhost only", code="wrong_host")
