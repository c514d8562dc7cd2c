"""The guard in front of all routes, an ASGI middleware: what the gate lets in is read, within its limits, and answered.

All of it is decided before the body is parsed, most of it before the body is read.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from contextlib import ExitStack
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kiban.serve import logs
from kiban.serve.gate import Gate
from kiban.serve.logs import Note
from kiban.serve.pages import PATHS
from kiban.serve.problems import RefusedError, busy

FREE = frozenset({"/healthz", *PATHS})  # paths without a key


class Guard:
    """Refuses what is too large, too slow, too much or not allowed; the rest reaches the app with its whole body."""

    def __init__(self, app: ASGIApp, *, gate: Gate) -> None:
        self.app, self.gate, self.limits = app, gate, gate.limits
        self._reading = 0  # bytes of bodies that are being read

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
            self.gate.answered(note, time.monotonic() - begun)

    async def _guarded(self, scope: Scope, receive: Receive, reply: _Reply, note: Note) -> None:
        headers, path = scope["headers"], scope["path"]
        self.gate.check_size(headers)
        if path in FREE:
            await self.app(scope, receive, reply)
            return
        key = self.gate.key(headers)
        note.key, scope["state"]["key"] = key.name, key
        if scope["method"] != "POST":
            await self.app(scope, receive, reply)
            return
        self.gate.check_post(path, headers, key)
        body = await self._body(receive)
        with self.gate.entered(path, key), ExitStack() as stack:
            scope["state"]["stack"] = stack
            await self._answer(scope, body, receive, reply)

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
                        raise self.gate.too_large()
                    if self._reading > self.limits.max_bodies:
                        raise busy("too many large requests at once (ask again later)", retry_after=1)
                    more = message.get("more_body", False)
        except TimeoutError:
            raise RefusedError(408, f"the body was not whole within {self.limits.body:g} s", code="timeout") from None
        finally:
            self._reading -= size
        return b"".join(parts)

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
        headers, body = problem.raw
        await self({"type": "http.response.start", "status": problem.status, "headers": headers})
        await self({"type": "http.response.body", "body": body})


def said(request_body: Any) -> Any:
    """What a client asked, for logs that were asked to hold it."""
    return json.loads(request_body.model_dump_json(exclude_none=True, exclude={"model"}))
