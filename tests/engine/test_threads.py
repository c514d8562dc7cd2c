"""Threads that wait are let go, and come back."""

from __future__ import annotations

import threading

import psutil
import pytest
import torch

from kiban.engine import threads


def compute() -> torch.Tensor:
    """Something that torch does in parallel."""
    return torch.ones(4_000_000).add_(1).mul_(2)


def alive() -> set[int]:
    """The system's numbers of all threads."""
    return {thread.id for thread in psutil.Process().threads()}


@pytest.mark.skipif(threads._pause() is None, reason="not GNU's OpenMP")
def test_threads_are_let_go_and_come_back() -> None:
    counts = []

    def work() -> None:
        torch.set_num_threads(3)  # of this thread alone
        for _ in range(2):
            before = alive()
            assert float(compute().mean()) == 4.0
            made = alive() - before
            threads.release()
            counts.append((len(made), len(made & alive())))

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    assert counts == [(2, 0), (2, 0)]
