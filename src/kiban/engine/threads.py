"""The threads that torch computes with beside the one that calls it.

OpenMP gives every thread that ever computed in parallel its own ones, which wait by spinning for what comes next. When
there are more of them than processors, as after a server has loaded a model in one thread and answers in another, it lets
them sleep at once instead, and every operation then waits until they are awake: steps take 1.6 times as long.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from threading import Condition
from typing import Any

SOFT = 1  # omp_pause_soft of the OpenMP specification: settings stay


def release() -> None:
    """End those of the calling thread; they come back when it next computes. For who will compute no more for a while."""
    pause = _pause()
    if pause is not None:
        pause(SOFT)


def wait_for(condition: Condition, wanted: Callable[[], bool]) -> None:
    """`condition.wait_for(wanted)`, without them if there is something to wait for."""
    if not wanted():
        release()
        condition.wait_for(wanted)


@cache
def _pause() -> Any:
    """GNU's function, which is torch's own on Linux; None where there is none."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            return ctypes.CDLL("libgomp.so.1").omp_pause_resource_all
    return None
