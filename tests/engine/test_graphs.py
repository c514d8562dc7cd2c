"""The step that becomes a CUDA graph, run without one, against the plan's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kiban.engine.graphs import Graphs, bucket
from kiban.engine.pages import PAGE, PagedKeys, Part
from layouts import LAYOUTS, filled
from listener import plan_of, small_llama


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("changes", [{}, {"sliding_window": 40}, {"num_kv_heads": 6}], ids=["plain", "window", "mha"])
def test_the_step_gives_the_logits_of_the_plan_and_stores_the_keys(changes: dict[str, Any], layout: str) -> None:
    plan = plan_of(small_llama(**changes))
    parts, keys = filled(plan, LAYOUTS[layout])
    wanted = plan.step(parts, keys)
    stored = keys.both.clone()
    parts, keys = filled(plan, LAYOUTS[layout])
    found = Graphs(plan, keys)(parts)
    assert found is not None and found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1e-4 * max(1.0, float(wanted.abs().max()))
    spare = keys.spare * PAGE
    torch.testing.assert_close(keys.both[..., :spare, :], stored[..., :spare, :], equal_nan=True)


def test_other_steps_are_left_to_the_plan() -> None:
    plan = plan_of(small_llama())
    graphs = Graphs(plan, PagedKeys(plan.config, 20, dtype=torch.float32))
    assert graphs([Part([1, 2], 0, [0])]) is None
    assert graphs([Part([1], 0, [0], num_logits=0)]) is None
    assert graphs([Part([1], 384, list(range(13)))]) is None  # the model ends before it


def test_sizes_go_in_buckets() -> None:
    assert [bucket(number, 1, 4096)[0] for number in (1, 2, 3, 5, 8, 9, 32, 33)] == [1, 2, 4, 8, 8, 16, 32, 64]
    widths = [bucket(1, longest, 4000)[1] * PAGE for longest in (1, 256, 257, 385, 512, 513, 769, 1025, 3073)]
    assert widths == [256, 256, 384, 512, 512, 768, 1024, 1536, 4000]
    assert bucket(1, 70, 96) == (1, 3)
