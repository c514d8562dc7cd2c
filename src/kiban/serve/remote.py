"""The replicas of one model as a server uses them: one queue, an engine or a batcher in front of them all."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kiban.engine.answer import line_of
from kiban.engine.requests import Load, Piece, Request
from kiban.errors import BusyError, ClosedError, ConfigError, KibanError, LimitError
from kiban.generate.constrained import Following
from kiban.serve import logs
from kiban.serve.batcher import Batcher
from kiban.serve.problems import RefusedError
from kiban.serve.replica import Asked, Facts

PULSE = 1.0  # seconds between two looks at a replica
ENDED = "the process that worked on this has ended; ask again"


class Promised(Following):
    """A constraint by a grammar that was found fine here; it is followed where the model is."""

    def __init__(self, grammar: str) -> None:
        self.grammar = grammar


@dataclass(eq=False)
class Member:
    """One replica as the server sees it. asked: requests that it has; load: what it told last."""

    actor: Any
    load: Load
    asked: int = 0
    up: bool = True


class Group:
    """The replicas of one model. All methods may be called from any thread, coroutines of it run in loop."""

    def __init__(
        self, name: str, actors: Sequence[Any], load: Load, max_waiting: int, loop: asyncio.AbstractEventLoop
    ) -> None:
        """load: of one that has nothing to do; max_waiting: requests that may wait for all of them together."""
        self.name, self.max_waiting, self.loop = name, max_waiting, loop
        self.members = [Member(actor, load) for actor in actors]
        self.tasks: set[asyncio.Task[Any]] = set()
        self._changed = threading.Condition()  # guards what follows, and the members
        self._closing = self._ended = False
        self._watches = [asyncio.run_coroutine_threadsafe(self._watch(member), loop) for member in self.members]

    def take(self) -> Member:
        """The replica for the next request, until `leave`. Raises BusyError."""
        with self._changed:
            if self._closing:
                raise ClosedError("server", why="is closing")
            up = [member for member in self.members if member.up]
            if not up:
                raise BusyError(self.name, retry_after=5, why="none of its processes is up", hint="ask again later")
            load = self._load()
            if load.waiting >= load.max_waiting + load.max_running - load.running:
                why = f"{load.waiting} requests are waiting"
                raise BusyError("server", retry_after=load.wait(1.0), why=why, hint="ask again later")
            member = min(up, key=lambda member: member.asked)
            member.asked += 1
            return member

    def leave(self, member: Member) -> None:
        """A request of this replica has ended."""
        with self._changed:
            member.asked -= 1
            self._changed.notify_all()

    def load(self) -> Load:
        """How busy they are together. more: sums, and how many there are."""
        with self._changed:
            return self._load()

    def _load(self) -> Load:
        up = [member for member in self.members if member.up]
        running = sum(min(member.asked, member.load.max_running) for member in self.members)
        more: Counter[str] = Counter({"replicas": len(self.members), "replicas_up": len(up)})
        for member in up:
            more.update(member.load.more)
        return Load(
            running=running,
            waiting=sum(member.asked for member in self.members) - running,
            max_running=sum(member.load.max_running for member in up),
            max_waiting=self.max_waiting,
            pages_used=sum(member.load.pages_used for member in up),
            pages=sum(member.load.pages for member in up),
            more=more,
            failed=not up,
        )

    def fault(self, member: Member, error: Exception) -> KibanError:
        """What a client is told where a call to a replica raised error."""
        from ray.exceptions import RayActorError, RayTaskError

        if isinstance(error, RayTaskError) and isinstance(error.cause, KibanError):
            return error.cause
        if isinstance(error, RayActorError):
            self._set(member, up=False)
            if self._closing:
                return ClosedError("server", why="is closing")
        return RefusedError(500, ENDED if isinstance(error, RayActorError) else line_of(error), code="engine_error")

    def close(self, *, drain: float) -> None:
        """Take nothing more, let what runs end within drain seconds, cancel the rest. Closing twice is fine."""
        with self._changed:
            self._closing = True
            if self._ended:
                return
            self._changed.wait_for(lambda: not any(member.asked for member in self.members), timeout=drain)
            self._ended = True
        asyncio.run_coroutine_threadsafe(self._end(), self.loop).result()

    async def _end(self) -> None:
        import ray

        for watch in self._watches:
            watch.cancel()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for member in self.members:
            ray.kill(member.actor)

    def _set(self, member: Member, *, up: bool) -> None:
        with self._changed:
            changed, member.up = member.up != up, up
        if changed and not self._closing:
            level = logging.INFO if up else logging.WARNING
            logs.event("replica", level=level, model=self.name, number=self.members.index(member), up=up)

    async def _watch(self, member: Member) -> None:
        """Learn how busy it is, and whether it has died or is back. One whose engine has failed is started anew."""
        import ray
        from ray.exceptions import RayError

        while True:
            try:
                member.load = await member.actor.load.remote()
                self._set(member, up=not member.load.failed)
                if member.load.failed:
                    ray.kill(member.actor, no_restart=False)
            except RayError:
                self._set(member, up=False)
            await asyncio.sleep(PULSE)


class RemoteEngine:
    """A TextEngine whose answers are written by replicas."""

    def __init__(self, group: Group, facts: Facts) -> None:
        self.group, self.max_seq_len, self.vocab_size = group, facts.max_seq_len, facts.vocab_size

    def submit(self, request: Request) -> Carried:
        """As `TextEngine` says. Raises ConfigError for an unknown token."""
        new = request.sampling.max_new_tokens
        if len(request.prompt) + new > self.max_seq_len:
            why = f"{len(request.prompt)} tokens and {new} new ones exceed the model's {self.max_seq_len}"
            raise LimitError("prompt", why=why, hint="shorten the prompt or lower max_new_tokens")
        if not 0 <= min(request.prompt) <= max(request.prompt) < self.vocab_size:
            raise ConfigError("prompt", why="holds a token that the model does not know")
        return Carried(self.group, self.group.take(), request)

    def load(self) -> Load:
        """As `TextEngine` says."""
        return self.group.load()

    def close(self, *, drain: float) -> None:
        """As `TextEngine` says."""
        self.group.close(drain=drain)


class Carried:
    """An answer on its way here from a replica. It is its own Ticket."""

    def __init__(self, group: Group, member: Member, request: Request) -> None:
        self.group, self.member, self.request = group, member, request
        self.num_cached = 0
        self._told: Any = None
        group.loop.call_soon_threadsafe(self._begin)

    def cancel(self) -> None:
        """As `Ticket` says."""
        self.group.loop.call_soon_threadsafe(lambda: self._task.cancel())

    def _begin(self) -> None:
        self._task = self.group.loop.create_task(self._carry())
        self.group.tasks.add(self._task)
        self._task.add_done_callback(self._end)

    async def _carry(self) -> Piece:
        """Tell all pieces but the last one, which is returned."""
        r = self.request
        assert r.constraint is None or isinstance(r.constraint, Promised)
        grammar = r.constraint.grammar if r.constraint is not None else None
        self._told = self.member.actor.write.remote(
            Asked(prompt=list(r.prompt), sampling=r.sampling, client=r.client, num_top=r.num_top, grammar=grammar)
        )
        async for message in self._told:
            pieces, self.num_cached = await message
            for piece in pieces:
                if piece.finish is not None:
                    return piece  # type: ignore[no-any-return]
                r.on_piece(piece)
        raise AssertionError("an answer without an end")

    def _end(self, task: asyncio.Task[Piece]) -> None:
        """Give the place back, then tell the end. A task may be cancelled before its first line runs."""
        import ray

        self.group.tasks.discard(task)
        if task.cancelled():
            last = Piece("", (), finish="cancelled")
            if self._told is not None:
                ray.cancel(self._told)
        elif (error := task.exception()) is not None:
            assert isinstance(error, Exception)
            last = Piece("", (), finish="error", error=str(self.group.fault(self.member, error)))
        else:
            last = task.result()
        self.group.leave(self.member)
        self.request.on_piece(last)


class RemoteBatcher(Batcher):
    """A Batcher whose items are read by replicas, each of which has one of its own."""

    def __init__(self, group: Group) -> None:
        self.group = group

    async def __call__(self, items: Sequence[Any]) -> list[Any]:
        import ray

        member = self.group.take()
        result = member.actor.read.remote(list(items))
        try:
            return await result  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            ray.cancel(result)
            raise
        except Exception as error:
            raise self.group.fault(member, error) from error
        finally:
            self.group.leave(member)

    def load(self) -> Load:
        return self.group.load()

    def close(self, *, drain: float) -> None:
        self.group.close(drain=drain)
