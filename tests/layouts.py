"""How answers lie in pages before a step that takes one token of each."""

from __future__ import annotations

import torch

from kiban.engine.decoder import DecoderPlan
from kiban.engine.pages import PAGE, PagedKeys, Part

Layout = list[tuple[int, list[int]]]  # tokens with the new one, and pages
LAYOUTS: dict[str, Layout] = {
    "one": [(1, [3])],
    "contiguous": [(40, [4, 5]), (96, [0, 1, 2])],
    "apart": [(40, [9, 2]), (97, [5, 1, 7, 3]), (1, [11])],
    "a page shared": [(50, [6, 2]), (60, [6, 9]), (33, [6, 0])],
    "longer than a bucket": [(300, list(range(20, 30))), (257, [40, *range(10, 18)]), (31, [3])],
    "pages to come": [(31, [8, 4, 1]), (32, [9, 2])],
    "many": [(5 + 7 * i, [30 - 2 * i, 31 - 2 * i]) for i in range(5)],
}


def filled(plan: DecoderPlan, layout: Layout) -> tuple[list[Part], PagedKeys]:
    """The step's parts, keys of all before their tokens, and NaN wherever nothing was written."""
    keys = PagedKeys(plan.config, 48, dtype=plan.keys_dtype, device=plan.device)
    keys.both.fill_(torch.nan)
    generator = torch.Generator().manual_seed(1)
    shared = torch.randint(0, plan.config.vocab_size, (PAGE,), generator=generator).tolist()
    parts = []
    for end, pages in layout:
        ids = [*shared, *torch.randint(0, plan.config.vocab_size, (end,), generator=generator).tolist()][:end]
        if end > 1:
            plan.step([Part(ids[:-1], 0, pages)], keys)
        parts.append(Part(ids[-1:], end - 1, pages))
    return parts, keys
