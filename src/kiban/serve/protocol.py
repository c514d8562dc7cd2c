"""uvicorn's HTTP/1.1 protocol with the deadlines that it lacks: for a header, and for a client that takes no bytes.

One sweep a second looks at all connections, so that a thousand slow clients cost next to nothing.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.server import ServerState

from kiban.serve.problems import RefusedError, encode
from kiban.serve.settings import Limits

SWEEP = 0.5  # seconds between two looks


class DeadlineProtocol(H11Protocol):
    """One connection. limits comes with the class that `protocol_for` makes, since uvicorn makes the instances."""

    limits: Limits

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
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
        if self._header_since is None and self._idle():
            self._header_since = self.loop.time()
        super().data_received(data)
        if not self._idle():
            self._header_since = None

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
        elif (
            self.cycle is not None
            and self.cycle.response_complete
            and self.conn.their_state is h11.SEND_BODY
            and now - self._answered_at >= self.limits.linger
        ):
            # It was refused and goes on sending. Closing at once would take the refusal from it before it is read.
            self.transport.abort()

    def _refuse(self, problem: RefusedError) -> None:
        """Answer outside of any request, if the connection still can, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = encode(problem.body())
            headers = [
                ("content-type", "application/json"),
                ("connection", "close"),
                ("content-length", str(len(body))),
            ]
            response = h11.Response(
                status_code=problem.status, headers=headers, reason=STATUS_PHRASES.get(problem.status, b"")
            )
            for part in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(part) or b"")
        self.transport.close()


def protocol_for(limits: Limits) -> type[DeadlineProtocol]:
    """The protocol with these limits."""
    return type("Limited", (DeadlineProtocol,), {"limits": limits})


async def sweep(state: ServerState) -> None:
    """Look at all connections again and again, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP)
        for connection in list(state.connections):
            if isinstance(connection, DeadlineProtocol):
                connection.look(loop.time())
