"""Texts of several requests read at once by a model that answers each text in one go (encoders, classifiers)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kiban.engine import threads
from kiban.engine.requests import MAX_FAILURES, Load
from kiban.errors import BusyError, ClosedError, KibanError
from kiban.serve import logs
from kiban.serve.problems import RefusedError

TURN = 8  # texts of one request before the next request has its turn


@dataclass(eq=False)
class _Job:
    items: Sequence[Any]
    future: asyncio.Future[list[Any]]
    loop: asyncio.AbstractEventLoop
    results: list[Any] = field(default_factory=list)
    taken: int = 0

    def finish(self, error: BaseException | None = None) -> None:
        """Hand over the results, or the error, in the loop that waits for them."""

        def hand_over() -> None:
            if not self.future.done():
                if error is None:
                    self.future.set_result(self.results)
                else:
                    self.future.set_exception(error)

        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever asked
            self.loop.call_soon_threadsafe(hand_over)


class Batcher:
    """One thread that calls a function with what is waiting, requests in turn, at most max_batch texts at once."""

    def __init__(
        self, function: Callable[[list[Any]], Sequence[Any]], *, max_batch: int = 64, max_waiting: int = 64
    ) -> None:
        """function: a result for each item, in their order. max_waiting: requests in the queue."""
        self.function, self.max_batch, self.max_waiting = function, max_batch, max_waiting
        self._jobs: deque[_Job] = deque()
        self._running = 0
        self._closing = self._died = False
        self._failures = 0  # batches that failed since the last one that did not
        self._changed = threading.Condition()
        threads.release()  # of who has loaded the model
        self._thread = threading.Thread(target=self._run, name="kiban batcher", daemon=True)
        self._thread.start()

    async def __call__(self, items: Sequence[Any]) -> list[Any]:
        """The results for items, one or more. Raises BusyError, and what the function raises."""
        loop = asyncio.get_running_loop()
        job = _Job(items, loop.create_future(), loop)
        with self._changed:
            if self._closing:
                raise ClosedError("server", why="has failed" if self._died else "is closing")
            if len(self._jobs) >= self.max_waiting:
                raise BusyError("server", why=f"{len(self._jobs)} requests are waiting", hint="ask again later")
            self._jobs.append(job)
            self._changed.notify()
        return await job.future

    def load(self) -> Load:
        """How busy it is; it works on one batch at a time."""
        with self._changed:
            failed = self._died or self._failures >= MAX_FAILURES
            return Load(self._running, len(self._jobs), self.max_batch, self.max_waiting, 0, 0, failed=failed)

    def close(self, *, drain: float) -> None:
        """Accept nothing more, work off what waits within drain seconds, refuse the rest."""
        with self._changed:
            self._closing = True
            self._changed.notify()
            self._changed.wait_for(lambda: not self._jobs and not self._running, timeout=drain)
            left = list(self._jobs)
            self._jobs.clear()
        for job in left:
            job.finish(ClosedError("server", why="is closing"))
        self._thread.join(timeout=drain + 5)

    def _run(self) -> None:
        slices: list[tuple[_Job, Sequence[Any]]] = []
        try:
            while not self._closing or self._jobs:
                with self._changed:
                    threads.wait_for(self._changed, lambda: self._closing or bool(self._jobs))
                    slices = self._take()
                    self._running = len({id(job) for job, _ in slices})
                if slices:
                    self._work(slices)
                with self._changed:
                    slices, self._running = [], 0
                    self._changed.notify_all()
        except Exception as error:
            logs.event("batcher stopped", level=logging.CRITICAL, error=error)
        finally:  # also after a fault of our own: nobody may wait for ever
            with self._changed:
                self._died = not self._closing
                self._closing, self._running = True, 0
                left = [job for job, _ in slices] + list(self._jobs)
                self._jobs.clear()
            for job in left:
                job.finish(ClosedError("server", why="has failed"))

    def _take(self) -> list[tuple[_Job, Sequence[Any]]]:
        """Some items of each request in turn."""
        slices: list[tuple[_Job, Sequence[Any]]] = []
        left = self.max_batch
        while self._jobs and left:
            job = self._jobs.popleft()
            if job.future.cancelled():
                continue
            part = job.items[job.taken : job.taken + min(TURN, left)]
            job.taken += len(part)
            left -= len(part)
            slices.append((job, part))
            if job.taken < len(job.items):
                self._jobs.append(job)
        return slices

    def _work(self, slices: list[tuple[_Job, Sequence[Any]]]) -> None:
        try:
            results = self.function([item for _, part in slices for item in part])
        except Exception as error:
            if len({id(job) for job, _ in slices}) > 1:  # the others shall not suffer from one
                for one in slices:
                    self._work([one])
                return
            fault = (
                error
                if isinstance(error, KibanError)
                else RefusedError(500, "model: failed on this input", code="engine_error")
            )
            fault.__cause__ = None if fault is error else error
            if fault is not error:
                self._failures += 1
                logs.event("fault", level=logging.ERROR, error=error)
            job = slices[0][0]
            with self._changed:
                if job in self._jobs:
                    self._jobs.remove(job)
            job.finish(fault)
            return
        self._failures = at = 0
        for job, part in slices:
            job.results.extend(results[at : at + len(part)])
            at += len(part)
            if len(job.results) == len(job.items):
                job.finish()
