"""Running the app: the socket, the deadlines of connections, and an end that lets running answers finish."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from kiban.errors import ConfigError
from kiban.serve import logs
from kiban.serve.protocol import protocol_for, sweep
from kiban.serve.service import Service
from kiban.serve.settings import Settings

LAST_WORDS = 5.0  # seconds that clients have to take the end of their answers


def listen(settings: Settings) -> socket.socket:
    """The socket that clients connect to. Raises ConfigError if the address is taken or not this machine's."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind)
        if sys.platform != "win32":  # there it would let two servers have one port
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        place = f"{settings.host}:{settings.port}"
        raise ConfigError(
            place, why=f"cannot be listened on: {error.strerror}", hint="choose another --port"
        ) from error
    return found


def url_of(found: socket.socket) -> str:
    """http://127.0.0.1:8000."""
    host, port = found.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn's server with our deadlines, which answers new requests with 503 while running ones come to their end."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        limits = settings.limits
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol_for(app.state.gate),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=limits.max_header,
                timeout_keep_alive=max(1, round(limits.keep_alive)),
                timeout_graceful_shutdown=max(1, round(LAST_WORDS)),
                backlog=2048,
            )
        )
        self.service: Service = app.state.service
        self._signals = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Until a signal, and then as long as running answers take or the settings allow."""
        self._loop = asyncio.get_running_loop()
        sweeper = asyncio.create_task(sweep(self.server_state))
        try:
            await super().serve(sockets)
        finally:
            sweeper.cancel()
            if self._draining is not None:
                await self._draining
            await asyncio.to_thread(self._close, 0.0)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the end, a second one ends at once."""
        self._signals += 1
        if self._signals > 1:
            self.should_exit = self.force_exit = True
        elif self._loop is not None:
            self._loop.call_soon_threadsafe(self.begin_to_close)

    def begin_to_close(self) -> None:
        """Take nothing new, and end when what runs has ended or its time is over."""
        if self._draining is None:
            self.service.draining = True
            logs.event("closing", running=self._busy(), seconds=self.service.settings.drain)
            self._draining = asyncio.create_task(self._drain())

    def _busy(self) -> int:
        """Requests that are being answered."""
        return len(self.server_state.tasks)

    async def _drain(self) -> None:
        deadline = time.monotonic() + self.service.settings.drain
        while self._busy() and time.monotonic() < deadline and not self.force_exit:
            await asyncio.sleep(0.05)
        # What the engines cancel now ends with an error event of its own.
        await asyncio.to_thread(self._close_engines, 0.0)
        deadline = time.monotonic() + LAST_WORDS
        while self._busy() and time.monotonic() < deadline and not self.force_exit:
            await asyncio.sleep(0.05)
        self.should_exit = True

    def _close_engines(self, drain: float) -> None:
        for model in self.service.models.values():
            model.close(drain=drain)

    def _close(self, drain: float) -> None:
        self._close_engines(drain)
        self.service.ledger.close()


def run(app: FastAPI, settings: Settings, found: socket.socket, *, on_start: Callable[[str], None]) -> None:
    """Serve on a socket of `listen` until SIGTERM or Ctrl-C. on_start is called with the URL when clients may connect."""

    async def serve() -> None:
        server = Server(app, settings)
        task = asyncio.create_task(server.serve([found]))
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        if server.started:
            on_start(url_of(found))
        await task

    # Else the collector would look through all that was imported and loaded now and then, and stop everybody for 0.2 s.
    gc.collect()
    gc.freeze()
    with contextlib.closing(found):
        asyncio.run(serve())
