"""The log of a race: one line of `metrics.jsonl` for each finished fit, whole or not there."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from kiban.errors import FormatError
from kiban.files import write_text


@dataclass(frozen=True, kw_only=True)
class Lap:
    """One candidate on one rung. predicted are label indices for the first rows of the validation set."""

    id: str
    rung: int
    steps: int
    train_rows: int
    seconds: float
    predicted: tuple[int, ...]
    failed: str = ""  # why it is out
    left_out: bool = False  # it was not at fault: the time did not suffice for it


def read_laps(path: Path) -> dict[tuple[str, int], Lap]:
    """Finished laps by candidate and rung; a last line cut by a kill is dropped, also from the file.

    Raises FormatError if another line is damaged.
    """
    if not path.exists():
        return {}
    *whole, cut = path.read_bytes().split(b"\n")
    laps = []
    for number, line in enumerate(whole, start=1):
        try:
            values = json.loads(line)
            laps.append(Lap(**{**values, "predicted": tuple(values["predicted"])}))
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(
                path, line=number, why=f"is damaged: {error}", hint="start again in a new folder"
            ) from error
    if cut:
        write_text(path, b"".join(line + b"\n" for line in whole).decode("utf-8"))
    return {(lap.id, lap.rung): lap for lap in laps}


def append_lap(path: Path, lap: Lap) -> None:
    """Add a line and flush it to disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(lap.__dict__, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
