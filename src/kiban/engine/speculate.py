"""Prompt lookup (Saxena 2023): what followed the last tokens where they stood before is guessed to follow again.

A guess costs a row in a step and saves a step where it is right. Tokens are chosen from the model's logits one after the
other as ever, and guesses that differ are dropped, so answers are the same, sampled ones too.
"""

from __future__ import annotations

from collections.abc import Sequence

MOST = 8  # tokens in a guess
GRAM = 3  # tokens that must have stood before
REFRESH = 32  # so often the way that seems slower is taken once, to keep its time known
FORGET = 0.2  # weight of the newest observation


class Lookup:
    """Guesses for one answer, as long as they were right lately."""

    def __init__(self) -> None:
        self.rate = 0.5  # of guessed tokens that came true, lately
        self._places: dict[tuple[int, ...], int] = {}  # where a gram's continuation begins, the latest one
        self._until = GRAM  # grams that end before this place are known

    def guess(self, seen: Sequence[int], most: int) -> list[int]:
        """Up to most tokens that may follow seen, which only ever grows."""
        # The last gram is entered when it has a continuation, so that it does not find itself.
        for end in range(self._until, len(seen)):
            self._places[tuple(seen[end - GRAM : end])] = end
        self._until = max(self._until, len(seen))
        start = self._places.get(tuple(seen[-GRAM:]))
        size = min(most, max(1, round(MOST * self.rate)))
        return [] if start is None else list(seen[start : start + size])

    def judge(self, guessed: int, right: int) -> None:
        """How many of the guessed tokens came true."""
        self.rate += FORGET * (right / guessed - self.rate)


class Payoff:
    """Whether steps with guesses give more tokens per second than steps without; measured while it runs."""

    def __init__(self) -> None:
        # Of a step, by whether it had guesses and its number of rows as a power of two: steps without may be compiled.
        self._seconds: dict[tuple[bool, int], float] = {}
        self._asked = 0

    def observe(self, rows: int, seconds: float, *, guessed: bool) -> None:
        """What a step took that read no prompt."""
        known = self._seconds.setdefault((guessed, _size(rows)), seconds)
        self._seconds[guessed, _size(rows)] = known + FORGET * (seconds - known)

    def pays(self, rows: int, guessed: int, expected: float) -> bool:
        """rows: of a step without guesses; expected: number of guessed tokens that will come true, on average."""
        plain, wide = self._seconds.get((False, _size(rows))), self._seconds.get((True, _size(rows + guessed)))
        self._asked += 1
        if plain is None or wide is None:
            return plain is not None
        better = (rows + expected) * plain > rows * wide
        return better != (self._asked % REFRESH == 0)


def _size(rows: int) -> int:
    """Sizes with the same number of bits are taken together, or far too many would have to be tried."""
    return (rows - 1).bit_length()
