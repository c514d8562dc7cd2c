"""uvicorn's HTTP/1.1 protocol with the deadlines that it lacks: for a header, and for a client that takes no bytes.

One sweep a second looks at all connections, so that a thousand slow clients cost next to nothing. While all places are
taken, a request is refused from its first bytes, since parsing it and running the app takes many times as long.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import sys
import time
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.server import ServerState

from kiban.serve.gate import Gate, Headers
from kiban.serve.logs import Note
from kiban.serve.problems import RefusedError
from kiban.serve.service import ABILITIES

SWEEP = 0.5  # seconds between two looks
START = re.compile(rb"POST (/[a-z0-9/_]+) HTTP/1\.1\r\n")
LINE = re.compile(rb"([!#-'*+.0-9A-Z^-z|~-]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*\r\n")


@dataclass(frozen=True)
class _First:
    """What the first bytes of a plain request say. missing: bytes of its body that are still to come."""

    path: str
    headers: Headers
    missing: int


class DeadlineProtocol(H11Protocol):
    """One connection. gate comes with the class that `protocol_for` makes, since uvicorn makes the instances."""

    gate: Gate

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.limits = self.gate.limits
        self._missing = 0  # bytes of a body that was refused, which nobody reads
        self._header_since: float | None = None  # when the header that is being read began
        self._answered_at = 0.0
        self._unsent, self._unsent_since = 0, 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._header_since = self.loop.time()
        if len(self.connections) > self.limits.max_connections:
            self._refuse(RefusedError(503, "too many connections", code="too_many_connections"))

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._missing:
            data, self._missing = data[self._missing :], max(0, self._missing - len(data))
            if not data:
                return
        first = self._first(data) if self._idle() and not self.conn.trailing_data[0] else None
        if first is not None and self.gate.full(first.path):
            self._turn_away(first)
            return
        if self._header_since is None and self._idle():
            self._header_since = self.loop.time()
        super().data_received(data)
        if not self._idle():
            self._header_since = None
        if first is not None and not first.missing:
            self.gate.expect(first.path)

    def _first(self, data: bytes) -> _First | None:
        """The header of a request to a model, if it is all there and as plain as usual clients write it."""
        start, end = START.match(data), data.find(b"\r\n\r\n", 0, self.limits.max_header)
        path = start[1].decode() if start is not None else ""
        if start is None or end < 0 or path not in ABILITIES:
            return None
        at, headers = start.end(), []
        while at < end + 2:
            line = LINE.match(data, at, end + 2)
            if line is None:
                return None
            headers.append((line[1].lower(), line[2]))
            at = line.end()
        names = [name for name, _ in headers]
        values = dict(headers)
        length = values.get(b"content-length", b"")
        if not length.isdigit() or len(length) > 12 or names.count(b"content-length") > 1:
            return None
        if b"transfer-encoding" in values or b"expect" in values:
            return None
        missing = int(length) - (len(data) - end - 4)
        return _First(path, headers, missing) if missing >= 0 else None

    def _turn_away(self, first: _First) -> None:
        """Answer a request for which there is no room. What is left of its body is thrown away as it comes."""
        begun = time.perf_counter()
        note = Note(id=f"req-{secrets.token_hex(8)}", method="POST", path=first.path)
        problem = self.gate.refusal(first.path, first.headers, note)
        note.status, note.code = problem.status, problem.code
        self.transport.write(
            response(problem, [*self.server_state.default_headers, (b"x-request-id", note.id.encode())])
        )
        self._missing, self._header_since, self._answered_at = first.missing, None, self.loop.time()
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        self.gate.answered_later(note, time.perf_counter() - begun)

    def on_response_complete(self) -> None:
        self._answered_at = self.loop.time()
        super().on_response_complete()

    def _idle(self) -> bool:
        """Whether no request is under way: its header, if any, is not whole."""
        return self.cycle is None or (self.cycle.response_complete and self.conn.their_state is h11.IDLE)

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this while it handles an error of h11, which knows a header that is too long (431)."""
        status = getattr(sys.exception(), "error_status_hint", 400)
        self._refuse(RefusedError(status, "the header is too long" if status == 431 else "this is not HTTP/1.1"))

    def look(self, now: float) -> None:
        """Close the connection if one of its deadlines is over."""
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent or not unsent:
            self._unsent, self._unsent_since = unsent, now
        elif now - self._unsent_since >= self.limits.stall:
            self.transport.abort()
        if self.transport.is_closing():
            return
        if self._header_since is not None and now - self._header_since >= self.limits.header:
            self._refuse(RefusedError(408, f"the header was not whole within {self.limits.header:g} s", code="timeout"))
        elif self._sends_on() and now - self._answered_at >= self.limits.linger:
            # It was refused and goes on sending. Closing at once would take the refusal from it before it is read.
            self.transport.abort()

    def _sends_on(self) -> bool:
        """Whether a body comes that nobody reads."""
        answered = self.cycle is not None and self.cycle.response_complete
        return self._missing > 0 or (answered and self.conn.their_state is h11.SEND_BODY)

    def _refuse(self, problem: RefusedError) -> None:
        """Answer outside of any request, if the connection still can, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(response(problem, [(b"connection", b"close")]))
        self.transport.close()


def response(problem: RefusedError, headers: Headers) -> bytes:
    """A whole answer, with more headers."""
    own, body = problem.raw
    status = b"HTTP/1.1 %d %s" % (problem.status, STATUS_PHRASES.get(problem.status, b""))
    return b"\r\n".join([status, *(b"%s: %s" % header for header in [*headers, *own]), b"", body])


def protocol_for(gate: Gate) -> type[DeadlineProtocol]:
    """The protocol in front of this gate."""
    return type("Gated", (DeadlineProtocol,), {"gate": gate})


async def sweep(state: ServerState) -> None:
    """Look at all connections again and again, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP)
        for connection in list(state.connections):
            if isinstance(connection, DeadlineProtocol):
                connection.look(loop.time())
