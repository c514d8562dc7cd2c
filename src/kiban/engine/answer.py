"""One answer of a scheduler while it grows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kiban.engine.pages import PAGE, digests
from kiban.engine.requests import Likely, Piece, Request
from kiban.engine.speculate import Lookup
from kiban.errors import KibanError
from kiban.generate.sampling import Sampler
from kiban.generate.text import Row
from kiban.inputs.tokenizer import Tokenizer

Best = tuple[float, int]
"""The largest logit, NaN if there is one, and its token."""


class Answer:
    """A request, what was chosen so far, and the pages with the keys of its first `filled` tokens. It is its own Ticket."""

    def __init__(self, tokenizer: Tokenizer, request: Request) -> None:
        self.request = request
        self.row = Row(tokenizer, list(request.prompt), request.sampling)
        self.sampler = Sampler(request.sampling, [request.sampling.seed])
        self.pages: list[int] = []
        self.filled = 0
        self.cancelled = False
        self.started = 0.0  # when it last got a slot
        self.turn = 0  # the step in which its prompt was read last
        self.lookup = Lookup()
        self._digests: list[bytes] = []
        self._num_cached = 0

    # What a ticket can do -------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """End it before the next step; only a flag, so any thread may."""
        self.cancelled = True

    @property
    def num_cached(self) -> int:
        """Tokens of the prompt that did not have to be read again."""
        return self._num_cached

    # What the scheduler does ----------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Tokens whose keys are not stored yet: one once the prompt is read."""
        return len(self.row.seen) - self.filled

    def guess(self) -> list[int]:
        """Tokens that may come next, so few that the last one would still be wanted."""
        return self.lookup.guess(self.row.seen, self.request.sampling.max_new_tokens - len(self.row.ids) - 1)

    def digests(self, end: int) -> list[bytes]:
        """Of the whole pages among the first end tokens."""
        number = end // PAGE
        if len(self._digests) < number:
            digests(self.row.seen[: number * PAGE], self._digests)
        return self._digests[:number]

    def take_over(self, page: int) -> None:
        """The next page of the prompt was read by someone else."""
        self.pages.append(page)
        self.filled += PAGE
        if not self.row.ids:
            self._num_cached += PAGE

    def start_over(self) -> None:
        """Its pages were let go, so what it has has to be read again."""
        assert not self.pages
        self.filled = 0
        if not self.row.ids:
            self._num_cached = 0

    def tell(self, piece: Piece) -> None:
        """Call on_piece."""
        try:
            self.request.on_piece(piece)
        except Exception:
            self.cancel()  # nobody listens any more, such as when the server's loop has ended

    def choose(self, logits: Tensor, best: Sequence[Best], ids: Sequence[int]) -> list[Piece]:
        """The next token by each row of logits (N, V), as long as it is what was guessed.

        best: of each row. ids: what was put in; logits are those of its last N. The last piece may tell of an error.
        """
        guess = ids[len(ids) - len(logits) + 1 :]
        pieces: list[Piece] = []
        for number, row in enumerate(logits):
            try:
                pieces.append(self._chosen(row, best[number]))
            except Exception as error:
                pieces.append(Piece("", (), finish="error", error=line_of(error)))
            if pieces[-1].finish or pieces[-1].ids != tuple(guess[number : number + 1]):
                break
        if guess:
            self.lookup.judge(len(guess), len(pieces) - 1)
        return pieces

    def _chosen(self, logits: Tensor, best: Best) -> Piece:
        """The next token by logits (V,). Raises KibanError on NaN, and what the constraint raises."""
        if math.isnan(best[0]):
            raise KibanError("model", why="computed NaN for this prompt")
        constraint, sampling, id = self.request.constraint, self.request.sampling, best[1]
        if constraint is not None:
            allowed = constraint.allowed().to(logits.device)
            (id,) = self.sampler(logits.masked_fill(~allowed, -torch.inf)[None], [self.row.seen])
            constraint.advance(id)
        elif sampling.temperature or sampling.repetition_penalty != 1:
            (id,) = self.sampler(logits[None], [self.row.seen])
        text = self.row.push(id)
        likely = () if self.request.num_top is None else (_likely(logits, id, self.request.num_top),)
        return Piece(text, (id,), likely, self.row.reason)


def best_of(logits: Tensor) -> list[Best]:
    """Of each row of logits (N, V), in one copy from a GPU."""
    values, ids = logits.max(-1)
    values, ids = torch.stack((values.double(), ids.double())).tolist()
    return [(value, int(id)) for value, id in zip(values, ids, strict=True)]


def line_of(error: Exception) -> str:
    """What a user may read: our own sentence, or the kind of a fault that is not his."""
    return str(error) if isinstance(error, KibanError) else f"{type(error).__name__} in the engine"


def _likely(logits: Tensor, id: int, num_top: int) -> Likely:
    """How likely a token is by logits (V,), and the num_top most likely ones."""
    logprobs = logits.log_softmax(-1)
    values, ids = logprobs.topk(num_top)
    return Likely(id, float(logprobs[id]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
