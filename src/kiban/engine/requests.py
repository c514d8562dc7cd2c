"""What a server asks of an engine, and what it hears back. One request is one answer; n answers are n requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from kiban.generate.sampling import Sampling

Finish = Literal["stop", "length", "cancelled", "error"]
MAX_FAILURES = 3  # steps of an engine, or batches, that may fail in a row before it counts as failed


class Constraint(Protocol):
    """What the next token may be, such as a JSON schema asks. It belongs to one answer."""

    def allowed(self) -> Tensor:
        """(V,) bool: the tokens that may come next."""
        ...

    def advance(self, id: int) -> None:
        """The token that was chosen."""
        ...


@dataclass(frozen=True)
class Likely:
    """A token and the natural logarithm of its probability before sampling's changes; top: the most likely ones."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What came since the last one: whole characters (maybe none), the tokens, and at the end why it ended.

    likely: one for each of ids where the request asks for it. error: one line, where finish is "error".
    """

    text: str
    ids: tuple[int, ...]
    likely: tuple[Likely, ...] = ()
    finish: Finish | None = None
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One answer to a prompt of token ids. on_piece is called from the engine's thread, must not block and never raises.

    client: who asks; engines admit clients in turn. num_top: most likely tokens to tell with each, None for none at all.
    """

    prompt: Sequence[int]
    sampling: Sampling
    on_piece: Callable[[Piece], None]
    client: str = ""
    num_top: int | None = None
    constraint: Constraint | None = None


class Ticket(Protocol):
    """A request that was accepted."""

    def cancel(self) -> None:
        """End it soon, from any thread; a last piece with finish "cancelled" follows, unless it has ended."""
        ...

    @property
    def num_cached(self) -> int:
        """Tokens of the prompt that did not have to be read again."""
        ...


@dataclass(frozen=True)
class Load:
    """How busy an engine is. more: other gauges, by name. failed: it answers nobody any more."""

    running: int
    waiting: int
    max_running: int
    max_waiting: int
    pages_used: int
    pages: int
    more: Mapping[str, float] = field(default_factory=dict)
    failed: bool = False

    def wait(self, seconds: float) -> float:
        """Seconds until a place in a full queue may be free, 1 to 60, where an answer takes so many lately."""
        return min(60.0, max(1.0, seconds * (self.waiting + 1) / max(1, self.max_running)))


class TextEngine(Protocol):
    """Many answers at once from one model. All methods may be called from any thread."""

    max_seq_len: int

    def submit(self, request: Request) -> Ticket:
        """Accept it. Raises LimitError with the counts if it can never fit, BusyError if the queue is full or it closes."""
        ...

    def load(self) -> Load:
        """How busy it is."""
        ...

    def close(self, *, drain: float) -> None:
        """Accept nothing more, let what runs end within drain seconds, cancel the rest and stop the thread."""
        ...
