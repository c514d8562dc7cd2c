"""Answers of an engine as they come into an asyncio loop: n to each prompt, ended together if the client goes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType

from kiban.engine.requests import Constraint, Finish, Piece, Request, Ticket
from kiban.generate.sampling import Sampling
from kiban.serve.metrics import Metrics
from kiban.serve.problems import RefusedError, closing
from kiban.serve.served import Writer
from kiban.serve.service import Bill

MAX_SEED = 2**63


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Prompts of token ids, and how each is answered: n times, by seeds that count up. constraints: one for each answer."""

    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    n: int
    num_top: int | None
    constraints: Sequence[Constraint] | None = None


@dataclass
class _State:
    ids: int = 0
    at: float | None = None
    finish: Finish | None = None


@dataclass
class Answers:
    """All answers to one HTTP request; leaving the block ends what still runs."""

    writer: Writer
    ask: Ask
    bill: Bill
    metrics: Metrics
    tickets: list[Ticket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self._states = [_State() for _ in range(self.ask.n * len(self.ask.prompts))]
        self._begun = time.monotonic()

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts, each counted once."""
        return sum(map(len, self.ask.prompts))

    @property
    def completion_tokens(self) -> int:
        """Of all answers so far."""
        return sum(state.ids for state in self._states)

    @property
    def cached(self) -> int:
        """Tokens of the prompts that did not have to be read for their first answer."""
        return sum(ticket.num_cached for ticket in self.tickets[:: self.ask.n])

    def __enter__(self) -> Answers:
        """Submit all. Raises LimitError or BusyError, and then none runs."""
        a = self.ask
        try:
            for i, prompt in enumerate(prompt for prompt in a.prompts for _ in range(a.n)):
                request = Request(
                    prompt=prompt,
                    sampling=replace(a.sampling, seed=(a.sampling.seed + i) % MAX_SEED),
                    on_piece=partial(self._take, i),
                    client=self.bill.key.name,
                    num_top=a.num_top,
                    constraint=a.constraints[i] if a.constraints else None,
                )
                self.tickets.append(self.writer.engine.submit(request))
        except BaseException:
            self._cancel()
            self.bill.drop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancel()
        self.bill.settle(self.prompt_tokens, self.completion_tokens)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        """(number of the answer, what came), until all have ended. Raises RefusedError if the engine fails or closes."""
        left = len(self._states)
        while left:
            i, piece = await self._pieces.get()
            self._measure(self._states[i], piece)
            if piece.finish == "error":
                raise RefusedError(500, piece.error or "the engine failed", code="engine_error")
            if piece.finish == "cancelled":  # not by us, who have stopped to listen then
                raise closing()
            left -= piece.finish is not None
            yield i, piece

    def _take(self, i: int, piece: Piece) -> None:
        """Called in the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever asked
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, (i, piece))

    def _measure(self, state: _State, piece: Piece) -> None:
        now, name = time.monotonic(), self.writer.name
        state.finish = piece.finish
        if not piece.ids:
            return
        state.ids += len(piece.ids)
        if state.at is None:
            self.metrics.first.labels(name).observe(now - self._begun)
        else:
            self.metrics.gap.labels(name).observe((now - state.at) / len(piece.ids))
        state.at = now

    def _cancel(self) -> None:
        for ticket, state in zip(self.tickets, self._states, strict=False):
            if state.finish is None:
                ticket.cancel()
