"""One replica: a copy of a model in a process of its own, and what goes to it and comes from it.

It is an actor of Ray's. What it is sent was checked by the server in front; texts of clients and answers are never logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kiban.engine.pages import PAGE
from kiban.engine.requests import Load, Piece, Request
from kiban.errors import KibanError
from kiban.generate.sampling import Sampling
from kiban.generate.stoppable import Trial
from kiban.serve.served import Reader, Served, Writer, bound_caches, open_served

HELD = ("engine", "grammars", "batcher", "tokenizer")  # what of a Served does not travel


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A Request as it travels: with the grammar of its constraint, and with nobody to call."""

    prompt: Sequence[int]
    sampling: Sampling
    client: str
    num_top: int | None
    grammar: str | None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a server has to know of a model that it does not hold itself.

    fields: those of kind that travel; files: of its tokenizer, empty if it has none; max_seq_len and vocab_size: of a model
    that writes.
    """

    kind: type[Served]
    fields: Mapping[str, Any]
    files: Mapping[str, str | bytes]
    load: Load
    max_seq_len: int = 0
    vocab_size: int = 0


class Replica:
    """Opens a model when it is made. The methods run in the event loop of its process."""

    def __init__(self, source: str, name: str, options: Mapping[str, Any]) -> None:
        """options: as in `open_served`."""
        bound_caches()
        self._trial = Trial()
        self._served: Served | KibanError
        try:
            self._served = open_served(source, name, self._trial, **options)
        except KibanError as error:  # of an actor that fails here Ray tells a traceback and nothing else
            self._served = error

    @property
    def served(self) -> Served:
        """The model. Raises the KibanError with which it could not be opened."""
        if isinstance(self._served, KibanError):
            raise self._served
        return self._served

    async def facts(self) -> Facts:
        """Raises KibanError if the model could not be opened."""
        served = self.served
        assert isinstance(served, Writer | Reader)
        more = {}
        if isinstance(served, Writer):
            room = served.load().pages * PAGE  # the memory for keys may hold less than the model could read
            more = {"max_seq_len": min(served.engine.max_seq_len, room), "vocab_size": served.grammars.vocab_size}
        return Facts(
            kind=type(served),
            fields={name: value for name, value in vars(served).items() if name not in HELD},
            files=served.tokenizer.files() if served.tokenizer is not None else {},
            load=served.load(),
            **more,
        )

    async def load(self) -> Load:
        """How busy it is."""
        return self.served.load()

    async def read(self, items: Sequence[Any]) -> list[Any]:
        """What the model's batcher makes of items."""
        assert isinstance(self.served, Reader)
        return await self.served.batcher(items)

    async def write(self, asked: Asked) -> AsyncIterator[tuple[list[Piece], int]]:
        """The pieces of an answer as they come, with the prompt's tokens that did not have to be read."""
        assert isinstance(self.served, Writer)
        loop, come = asyncio.get_running_loop(), asyncio.Queue[Piece]()

        def on_piece(piece: Piece) -> None:
            loop.call_soon_threadsafe(come.put_nowait, piece)

        constraint = None
        if asked.grammar is not None:
            grammars = self.served.grammars
            constraint = await asyncio.to_thread(grammars.constraint, asked.grammar, field="response_format")
        request = Request(
            prompt=asked.prompt,
            sampling=asked.sampling,
            on_piece=on_piece,
            client=asked.client,
            num_top=asked.num_top,
            constraint=constraint,
        )
        ticket = self.served.engine.submit(request)
        try:
            pieces: list[Piece] = []
            while not pieces or pieces[-1].finish is None:
                pieces = [await come.get()]
                while not come.empty():  # the others of the same step travel with it
                    pieces.append(come.get_nowait())
                yield pieces, ticket.num_cached
        finally:
            ticket.cancel()
