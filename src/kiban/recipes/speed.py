"""How fast a plan trains on this machine as it is now."""

from __future__ import annotations

import time

import torch

from kiban.config import silent
from kiban.recipes.pretrain import Length, Plan, rows_of, trainer_of
from kiban.train.parallel import Parallel
from kiban.train.precision import usual_device
from kiban.train.settings import Hooks

GAIN = 1.2  # one thread must be so much faster before the others are given up


def measure(plan: Plan, *, steps: int = 3) -> tuple[int, float]:
    """Parameters of the plan's model, and tokens that it learns from in a second here: the best of some steps."""
    loaded = plan.model(device=usual_device())
    rows, collate, objective = rows_of(plan, plan.corpus.held_out)
    trainer = trainer_of(
        plan, loaded, (rows, collate, objective), Length(steps=steps + 1), None, Hooks(), Parallel(), silent
    )
    best = 0.0
    for _ in range(steps + 1):
        ids, start = trainer.loader.next_ids(), time.perf_counter()
        tokens = trainer._gradients(ids)[2]
        for optimizer in trainer.optimizers:
            optimizer.step()
        best = max(best, tokens / (time.perf_counter() - start))
    return loaded.num_parameters, best


def settle_threads(plan: Plan) -> tuple[int, float, float]:
    """Use one thread where that is faster than all of them; returns threads, and tokens a second with all and with one.

    Threads wait for each other after every operation: on a machine that is busy with something else, two can be six
    times as slow as one.
    """
    usual = torch.get_num_threads()
    if usual == 1 or usual_device() == "cuda":
        return usual, 0.0, 0.0
    rates = []
    for threads in (usual, 1):
        torch.set_num_threads(threads)
        rates.append(measure(plan, steps=2)[1])
    threads = 1 if rates[1] > GAIN * rates[0] else usual
    torch.set_num_threads(threads)
    return threads, rates[0], rates[1]
