"""The gate in front of all routes, an ASGI middleware: sizes, deadlines, keys, rates and the number of requests at once.

All of it is decided before the body is parsed, most of it before the body is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kiban.serve import logs
from kiban.serve.auth import Key, Keys
from kiban.serve.ledger import BILLION
from kiban.serve.logs import Note
from kiban.serve.problems import RefusedError, busy, closing, encode
from kiban.serve.service import Service
from kiban.serve.settings import is_loopback

FREE = frozenset({"/healthz"})  # paths without a key


@dataclass
class _Client:
    """What a key has used of its limits. tokens: requests that it may make now."""

    tokens: float
    at: float
    running: int = 0


class Guard:
    """Refuses what is too large, too slow, too much or not allowed; the rest reaches the app with its whole body."""

    def __init__(self, app: ASGIApp, *, service: Service, keys: Keys) -> None:
        self.app, self.service, self.keys, self.limits = app, service, keys, service.settings.limits
        self._clients: dict[str, _Client] = {}
        self._running = 0  # requests past the gate
        self._reading = 0  # bytes of bodies that are being read

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return self._running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        note = Note(id=f"req-{secrets.token_hex(8)}", method=scope["method"], path=scope["path"])
        scope.setdefault("state", {})["note"] = note
        reply, begun = _Reply(send, note), time.monotonic()
        try:
            await self._guarded(scope, receive, reply, note)
        except RefusedError as problem:
            await reply.problem(problem)
        except Exception as error:
            logs.event("fault", level=logging.ERROR, error=error, request=note.id)
            await reply.problem(RefusedError(500, "the server failed on this request", code="internal_error"))
        finally:
            seconds = time.monotonic() - begun
            note.ms = 1000 * seconds
            self.service.metrics.answered(scope["path"], note.status, seconds)
            logs.request(note)

    async def _guarded(self, scope: Scope, receive: Receive, reply: _Reply, note: Note) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if len(headers) > self.limits.max_headers or sum(len(k) + len(v) for k, v in headers) > self.limits.max_header:
            raise RefusedError(
                431, f"at most {self.limits.max_headers} headers and {self.limits.max_header} bytes of them"
            )
        if scope["path"] in FREE:
            await self.app(scope, receive, reply)
            return
        if self.keys.open:
            _check_host(headers)
        key = self.keys.client([value for name, value in headers if name == b"authorization"])
        note.key, scope["state"]["key"] = key.name, key
        if scope["method"] != "POST":
            await self.app(scope, receive, reply)
            return
        if self.service.draining:
            raise closing()
        self._check_length(headers)
        self._check_budget(key)
        self._check_room(key)
        self._take_token(key)
        body = await self._body(receive)
        with self._entered(key), ExitStack() as stack:
            scope["state"]["stack"] = stack
            await self._answer(scope, body, receive, reply)

    # Before the body ------------------------------------------------------------------------------------------------

    def _check_length(self, headers: list[tuple[bytes, bytes]]) -> None:
        values = dict(headers)
        if int(values.get(b"content-length", b"0")) > self.limits.max_body:  # h11 has seen that it is a number
            raise self._too_large()
        kind = values.get(b"content-type", b"").split(b";")[0].strip().lower()
        if kind != b"application/json":
            # A web page can make a browser send any other kind to this address without asking first.
            raise RefusedError(415, "send JSON, with content-type: application/json", code="unsupported_media_type")

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"the body is larger than {self.limits.max_body:,} bytes", code="body_too_large")

    def _check_budget(self, key: Key) -> None:
        if key.monthly_budget is not None and self.service.ledger.spent(key.name) >= key.monthly_budget * BILLION:
            message = f"the budget of {key.name} for this month, {key.monthly_budget:g}, is used up"
            raise RefusedError(429, message, code="insufficient_quota", kind="insufficient_quota")

    def _check_room(self, key: Key) -> None:
        if self._running >= self.service.places:
            after = max((self.service.wait(model) for model in self.service.models.values()), default=1.0)
            raise busy(f"{self._running} requests are being answered or waiting (ask again later)", retry_after=after)
        running = self._client(key).running
        if key.concurrent is not None and running >= key.concurrent:
            raise busy(f"{key.name} has {running} requests running, and may have no more at once", retry_after=1)

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

    # The body and the answer ----------------------------------------------------------------------------------------

    async def _body(self, receive: Receive) -> bytes:
        """All of it. Raises RefusedError 413 or 408, and 503 if too many bodies are being read at once."""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.limits.body):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RefusedError(499, "the client has gone", code="disconnected")
                    part = message.get("body", b"")
                    parts.append(part)
                    size += len(part)
                    self._reading += len(part)
                    if size > self.limits.max_body:
                        raise self._too_large()
                    if self._reading > self.limits.max_bodies:
                        raise busy("too many large requests at once (ask again later)", retry_after=1)
                    more = message.get("more_body", False)
        except TimeoutError:
            raise RefusedError(408, f"the body was not whole within {self.limits.body:g} s", code="timeout") from None
        finally:
            self._reading -= size
        return b"".join(parts)

    @contextlib.contextmanager
    def _entered(self, key: Key) -> Iterator[None]:
        self._check_room(key)  # again: others came while the body was read
        client = self._client(key)
        self._running, client.running = self._running + 1, client.running + 1
        try:
            yield
        finally:
            self._running, client.running = self._running - 1, client.running - 1

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, reply: _Reply) -> None:
        """Run the app until it has answered or its client has gone."""
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        gone = asyncio.Event()

        async def replay() -> Message:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        app, watcher = asyncio.ensure_future(self.app(scope, replay, reply)), asyncio.create_task(watch())
        try:
            await asyncio.wait({app, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if not app.done() and not reply.complete:
                app.cancel()
            await app
        except asyncio.CancelledError:
            app.cancel()
            if not gone.is_set():  # it is we who are cancelled
                raise
            raise RefusedError(499, "the client has gone", code="disconnected") from None
        finally:
            watcher.cancel()


class _Reply:
    """send, which notes the status and how far the answer is."""

    def __init__(self, send: Send, note: Note) -> None:
        self._send, self._note = send, note
        self.started = self.complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self._note.status = True, message["status"]
            message = {**message, "headers": [*message.get("headers", []), (b"x-request-id", self._note.id.encode())]}
        elif message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)
        await self._send(message)

    async def problem(self, problem: RefusedError) -> None:
        """Answer with it, if nothing was sent yet."""
        self._note.code = problem.code
        if self.started:
            return
        body = encode(problem.body())
        headers = {"content-type": "application/json", "content-length": str(len(body)), **problem.headers}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": problem.status, "headers": raw})
        await self({"type": "http.response.body", "body": body})


def _check_host(headers: list[tuple[bytes, bytes]]) -> None:
    """A server without keys answers to its own names only: a web page could else reach it under a name of its own."""
    host = dict(headers).get(b"host", b"").decode("latin-1")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if name and not is_loopback(name.strip("[]")):
        raise RefusedError(421, "this server has no keys and answers to localhost only", code="wrong_host")


def said(request_body: Any) -> Any:
    """What a client asked, for logs that were asked to hold it."""
    return json.loads(request_body.model_dump_json(exclude_none=True, exclude={"model"}))
