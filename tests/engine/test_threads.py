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


@pytest.mark.skipif(torch.get_num_threads() < 2, reason="a single processor")
@pytest.mark.skipif(threads._pause() is None, reason="not GNU's OpenMP")
def test_threads_are_let_go_and_come_back() -> None:
    counts = []

    def work() -> None:
        process = psutil.Process()
        for _ in range(2):
            before = process.num_threads()
            threads.release()
            idle = process.num_threads()
            assert float(compute().mean()) == 4.0
            counts.append((process.num_threads() - idle, idle - before))
        threads.release()

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    more = torch.get_num_threads() - 1
    assert counts == [(more, 0), (more, -more)]
