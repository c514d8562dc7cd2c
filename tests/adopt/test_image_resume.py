"""A run on pictures that was stopped in the middle of its race ends as one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kiban.adopt.job import adopt, resume


def test_a_stopped_run_goes_on_to_the_same_end(photos: Path, tmp_path: Path, tiny_clip_folder: Path) -> None:
    settings: dict[str, Any] = {
        "steps": 4, "models": [str(tiny_clip_folder)], "strategies": ["image_lora"], "seed": 1,
    }  # fmt: skip
    laps = 0

    def stop(line: str) -> None:
        nonlocal laps
        laps += "validation macro-F1" in line
        if laps == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adopt(photos, out=tmp_path / "stopped", log=stop, **settings)
    whole, again = adopt(photos, out=tmp_path / "whole", **settings), resume(tmp_path / "stopped")
    for a, b in zip(whole.result.candidates, again.result.candidates, strict=True):
        assert (a.id, a.macro_f1, a.confusion, a.steps) == (b.id, b.macro_f1, b.confusion, b.steps)
