"""How the training scripts tell how far they are."""

from __future__ import annotations

import time

from kiban.config import Progress

SECONDS = 10


def teller() -> Progress:
    """Prints a stage at most every ten seconds."""
    last = 0.0

    def tell(stage: str, done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS:
            last = time.monotonic()
            print(f"{stage} {done}/{total or '?'}", flush=True)

    return tell
