"""Many answers at once from one model: continuous batching (Yu et al. 2022, Orca), on a CPU or a GPU.

Every step takes one token of each answer that is being written and a chunk of the prompts that are being read (Agrawal et
al. 2023, SARATHI), so running answers keep moving. What an answer says depends on its own prompt, seed and sampling alone,
up to the rounding of sums that are taken in another order.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from itertools import chain

import torch

from kiban.engine import threads
from kiban.engine.answer import Answer, best_of, line_of
from kiban.engine.batch import batched
from kiban.engine.pages import PAGE, Pages, Part
from kiban.engine.requests import MAX_FAILURES, Load, Piece, Request
from kiban.engine.speculate import Payoff
from kiban.errors import BusyError, ClosedError, ConfigError, LimitError
from kiban.generate.text import CausalModel, check_lengths
from kiban.inputs.tokenizer import Tokenizer

LOGGER = logging.getLogger("kiban.engine")
GIB = 1 << 30
COUNTS = (  # totals that `load` tells
    "steps",
    "pauses",  # answers that lost their pages to older ones
    "tokens_read",
    "tokens_shared",  # of prompts, taken over instead of being read
    "tokens_written",
    "tokens_guessed",
    "tokens_guessed_right",
)


class Scheduler:
    """A TextEngine with a thread of its own, which starts at once.

    model: a plan of the engine or a family's module, in evaluation. max_running: answers written at once; max_waiting: those
    that may wait. memory: bytes for keys and values. chunk: tokens of prompts that one step reads. share: take over pages of
    prompts that begin alike. speculate: guess tokens where that pays. compiled: compile steps in the background.
    """

    def __init__(
        self,
        model: CausalModel,
        tokenizer: Tokenizer,
        *,
        max_running: int = 8,
        max_waiting: int = 32,
        memory: int = GIB,
        chunk: int = 128,
        share: bool = True,
        speculate: bool = True,
        compiled: bool = False,
    ) -> None:
        """Raises ConfigError if a number is out of range, LimitError if memory holds no page."""
        for name, value, least in (
            ("max_running", max_running, 1),
            ("max_waiting", max_waiting, 0),
            ("chunk", chunk, PAGE),
        ):
            if value < least:
                raise ConfigError("scheduler", field=name, why=f"{value} is less than {least}")
        self.model, self.tokenizer = model, tokenizer
        self.max_running, self.max_waiting, self.chunk, self.share = max_running, max_waiting, chunk, share
        self.max_seq_len: int = model.config.max_seq_len
        most = -(-self.max_seq_len // PAGE) * max_running
        self._batch, num_pages = batched(model, memory, most, compiled=compiled)
        self._pages = Pages(num_pages)
        self._changed = threading.Condition()  # guards what follows
        self._waiting: dict[str, deque[Answer]] = {}  # by client, in the order in which they are served
        self._running: list[Answer] = []  # oldest first
        self._paused: deque[Answer] = deque()  # lost their pages to older ones; oldest first
        self._closing = self._stopped = self._died = False
        self._failures = 0  # steps that failed since the last one that did not
        self._seconds = 1.0  # that an answer takes, lately
        self._payoff = Payoff() if speculate else None
        self._counts = dict.fromkeys(COUNTS, 0)
        threads.release()  # of who has loaded the model
        self._thread = threading.Thread(target=self._run, name="kiban-scheduler", daemon=True)
        self._thread.start()

    # From any thread ------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> Answer:
        """As `TextEngine` says. Raises ConfigError for an empty prompt or an unknown token."""
        new = request.sampling.max_new_tokens
        check_lengths(self.model, [request.prompt], new)
        if not 0 <= min(request.prompt) <= max(request.prompt) < self.model.config.vocab_size:
            raise ConfigError("prompt", why="holds a token that the model does not know")
        room = self._pages.num_pages * PAGE
        if len(request.prompt) + new > room:
            why = f"{len(request.prompt)} tokens and {new} new ones exceed the {room} that the memory for keys holds"
            raise LimitError("prompt", why=why, hint="give the engine more memory")
        answer = Answer(self.tokenizer, request)
        with self._changed:
            if self._closing:
                raise ClosedError("server", why="has failed" if self._died else "is closing")
            load = self._load()
            if load.waiting >= self.max_waiting + self.max_running - load.running:
                why = f"{load.waiting} requests are waiting"
                raise BusyError("server", retry_after=load.wait(self._seconds), why=why, hint="ask again later")
            self._waiting.setdefault(request.client, deque()).append(answer)
            self._changed.notify_all()
        return answer

    def load(self) -> Load:
        """How busy it is. more: idle pages whose content is known, compiled sizes of steps, totals since the start."""
        with self._changed:
            return self._load()

    def close(self, *, drain: float) -> None:
        """As `TextEngine` says; what waits may still run. Closing twice is fine."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopped, timeout=drain)
            for answer in self._all():
                answer.cancel()
            self._changed.notify_all()
        self._thread.join()
        self._batch.close()

    def _load(self) -> Load:
        return Load(
            running=len(self._running),
            waiting=len(self._paused) + sum(map(len, self._waiting.values())),
            max_running=self.max_running,
            max_waiting=self.max_waiting,
            pages_used=self._pages.num_used,
            pages=self._pages.num_pages,
            more={"pages_idle": self._pages.num_idle, "compiled": self._batch.num_compiled, **self._counts},
            failed=self._died or self._failures >= MAX_FAILURES,
        )

    # In the thread of the engine ------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except Exception as error:
            LOGGER.critical("engine stopped", exc_info=error)
        finally:  # also after a fault of our own: nobody may wait for ever
            with self._changed:
                self._died = not self._closing
                self._closing = self._stopped = True
                left = list(self._all())
                for answer in left:
                    self._remove(answer)
                self._changed.notify_all()
            for answer in left:
                answer.tell(Piece("", (), finish="error", error="the engine has stopped"))

    def _turn(self) -> bool:
        """One step, or a wait for something to do; False if there will be nothing more."""
        with self._changed:
            threads.wait_for(self._changed, lambda: self._closing or any(True for _ in self._all()))
            cancelled = [answer for answer in self._all() if answer.cancelled]
            for answer in cancelled:
                self._remove(answer)
            self._admit()
            plan = self._plan()
        for answer in cancelled:
            answer.tell(Piece("", (), finish="cancelled"))
        if plan:
            self._step(plan)
        return bool(plan) or not self._closing

    def _admit(self) -> None:
        """Give free slots to those who lost theirs, then to the clients in turn."""
        while len(self._running) < self.max_running:
            queue = self._paused or next(iter(self._waiting.values()), self._paused)
            if not queue:
                return
            # A page for each that runs already, since they grow.
            needed = len(queue[0].row.seen) // PAGE + 1 + len(self._running)
            if self._running and self._pages.num_available < needed:
                return
            answer = queue.popleft()
            if queue is not self._paused:
                del self._waiting[answer.request.client]
                if queue:
                    self._waiting[answer.request.client] = queue  # behind the others
            answer.started = time.monotonic()
            self._running.append(answer)

    def _plan(self) -> list[tuple[Answer, Part]]:
        """Who takes part in the next step with which tokens. There is room for all of them afterwards."""
        reading = [answer for answer in self._running if answer.pending > 1]
        guesses = {} if reading else self._guesses()
        sizes = {answer: 1 + len(guesses.get(answer, ())) for answer in self._running if answer.pending == 1}
        left = self.chunk
        for answer in sorted(reading, key=lambda answer: answer.turn):  # who waited longest for a turn
            if self.share:
                self._take_over(answer)
            size = min(answer.pending, left)
            if size < answer.pending:
                size -= (answer.filled + size) % PAGE  # only whole pages can be taken over by others
            if size > 0:
                sizes[answer], answer.turn = size, self._counts["steps"] + 1
                left -= size
        for answer in list(self._running):
            if answer in sizes and answer in self._running:
                self._make_room(answer, sizes[answer])
        return [
            (answer, _part(answer, sizes[answer], guesses.get(answer, [])))
            for answer in self._running
            if answer in sizes
        ]

    def _guesses(self) -> dict[Answer, list[int]]:
        """What may come next, if it pays to try. Nobody loses pages for a guess."""
        if self._payoff is None or self._pages.num_available < len(self._running):
            return {}
        guesses = {answer: guess for answer in self._running if (guess := answer.guess())}
        expected = sum(answer.lookup.rate * len(guess) for answer, guess in guesses.items())
        guessed = sum(map(len, guesses.values()))
        return guesses if guesses and self._payoff.pays(len(self._running), guessed, expected) else {}

    def _take_over(self, answer: Answer) -> None:
        """Pages that others have read; the last token is left, since its logits are needed."""
        for digest in answer.digests(len(answer.row.seen) - 1)[len(answer.pages) :]:
            page = self._pages.share(digest)
            if page is None:
                return
            answer.take_over(page)
            self._counts["tokens_shared"] += PAGE

    def _make_room(self, answer: Answer, size: int) -> None:
        """Pages for size more tokens; if there are none, the youngest answers lose theirs, maybe this one itself."""
        needed = -(-(answer.filled + size) // PAGE) - len(answer.pages)
        while needed > self._pages.num_available:
            youngest = self._running.pop()
            self._pages.release(youngest.pages)
            youngest.start_over()
            self._paused.appendleft(youngest)
            self._counts["pauses"] += 1
            if youngest is answer:
                return
        self._pages.grow(answer.pages, max(0, needed))

    def _step(self, plan: list[tuple[Answer, Part]]) -> None:
        """Run the model once, and tell everyone what came of it."""
        start, ready = time.perf_counter(), self._batch.num_compiled
        try:
            logits = self._batch.step([part for _, part in plan])
            best = best_of(logits)
        except Exception as error:
            self._failures += 1
            LOGGER.error("engine fault", exc_info=error)
            for answer, _ in plan:
                self._finish(answer, Piece("", (), finish="error", error=line_of(error)))
            return
        self._failures = 0
        self._counts["steps"] += 1
        if (
            self._payoff
            and ready == self._batch.num_compiled
            and all(part.num_logits == len(part.ids) for _, part in plan)
        ):
            self._payoff.observe(len(logits), time.perf_counter() - start, guessed=len(logits) > len(plan))
        row = 0
        for answer, part in plan:
            end = row + part.num_logits
            pieces = [] if answer.cancelled else answer.choose(logits[row:end], best[row:end], part.ids)
            row = end
            if part.num_logits > 1:
                self._counts["tokens_guessed"] += part.num_logits - 1
                self._counts["tokens_guessed_right"] += max(0, len(pieces) - 1)
            with self._changed:
                self._store(answer, part, max(1, len(pieces)))
            for piece in pieces:
                self._finish(answer, piece)

    def _store(self, answer: Answer, part: Part, chosen: int) -> None:
        """The keys of a part are stored, of its guesses those that were chosen; whole pages can be taken over."""
        answer.filled = part.end - max(0, part.num_logits - chosen)
        name = "tokens_written" if part.num_logits == len(part.ids) else "tokens_read"
        self._counts[name] += answer.filled - part.past
        if self.share:
            first = part.past // PAGE
            for number, digest in enumerate(answer.digests(answer.filled)[first:], first):
                self._pages.know(answer.pages[number], digest)

    def _finish(self, answer: Answer, piece: Piece) -> None:
        """Tell a piece; if it is the last one, slot and pages are free before anyone hears of it."""
        if piece.finish:
            with self._changed:
                self._remove(answer)
                self._seconds += 0.1 * (time.monotonic() - answer.started - self._seconds)
        answer.tell(piece)

    def _remove(self, answer: Answer) -> None:
        """Forget an answer wherever it is."""
        self._pages.release(answer.pages)
        client = answer.request.client
        for group in (self._running, self._paused, self._waiting.get(client, [])):
            if answer in group:
                group.remove(answer)
        if not self._waiting.get(client, True):
            del self._waiting[client]

    def _all(self) -> Iterator[Answer]:
        return chain(self._running, self._paused, *self._waiting.values())


def _part(answer: Answer, size: int, guess: list[int]) -> Part:
    ids = [*answer.row.seen[answer.filled : answer.filled + size], *guess]
    return Part(ids, answer.filled, list(answer.pages), num_logits=len(guess) + (answer.pending <= size))
