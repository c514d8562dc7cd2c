"""Blocks of work done side by side, by processes of this machine or by a ray cluster; results come in order."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar

from kiban.errors import ConfigError, KibanError

A = TypeVar("A")
B = TypeVar("B")
AHEAD = 2  # blocks that wait for each process
KNOCK_SECONDS = 10.0


class Map(Protocol):
    """map(work, blocks): work is pickled, so it is a function of a module or an object with __call__."""

    def __call__(self, work: Callable[[A], B], blocks: Iterable[A]) -> Iterator[B]: ...


@contextlib.contextmanager
def workers(processes: int = 1, ray: str | None = None) -> Iterator[Map]:
    """A map over so many processes; over the cores of the ray cluster at an address if that is given ("local": here).

    Raises ConfigError for less than one process or a cluster that is not there, KibanError if a process is killed.
    """
    if processes < 1:
        raise ConfigError("processes", why=f"is {processes}", hint="1 or more")
    if ray is not None:
        with _cluster(ray, processes) as cluster:
            yield cluster
    elif processes == 1:
        yield _alone
    else:
        yield _Processes(processes)


def _alone(work: Callable[[A], B], blocks: Iterable[A]) -> Iterator[B]:
    yield from map(work, blocks)


class _Processes:
    """Started anew for every map, since each has its own work, which is sent to a process once."""

    def __init__(self, processes: int) -> None:
        self.processes = processes

    def __call__(self, work: Callable[[A], B], blocks: Iterable[A]) -> Iterator[B]:
        import multiprocessing

        pool = ProcessPoolExecutor(
            self.processes,
            # A fork of a process with threads, such as those of a progress bar, may hang.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(work,),
        )
        try:
            yield from _in_order(lambda block: pool.submit(_work, block).result, blocks, AHEAD * self.processes)
        except BrokenProcessPool as error:
            hint = "fewer --processes need less memory; run it again: it goes on where it was"
            raise KibanError("data", why="a process was killed", hint=hint) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _in_order(submit: Callable[[Any], Callable[[], Any]], blocks: Iterable[Any], ahead: int) -> Iterator[Any]:
    """Results in the order of the blocks; no more blocks are read than so many ahead."""
    waiting: deque[Callable[[], Any]] = deque()
    for block in blocks:
        waiting.append(submit(block))
        if len(waiting) >= ahead:
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()


# Of a worker process: the work it was started for, which comes to it no other way than by its initialiser.
_task: list[Callable[[Any], Any]] = []


def _begin(work: Callable[[Any], Any]) -> None:
    """In a new process: one thread, no reaction to Ctrl-C (the parent's matter), and no life beyond the parent's."""
    import multiprocessing
    import signal

    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _task.append(work)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _work(block: Any) -> Any:
    return _task[0](block)


@contextlib.contextmanager
def _cluster(address: str, processes: int) -> Iterator[Map]:
    """A map over a ray cluster; processes is the number of a local one."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--ray", why="ray is not installed", hint="pip install 'kiban[ray]'") from error
    _knock(address)
    local = {"num_cpus": processes, "include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
    except Exception as error:  # a node that does not start in time is a bare Exception to ray
        raise ConfigError("--ray", field=address, why=f"no cluster answers: {error}") from error

    def over_cluster(work: Callable[[A], B], blocks: Iterable[A]) -> Iterator[B]:
        task, shared = ray.remote(_apply), ray.put(work)
        ahead = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))

        def submit(block: A) -> Callable[[], B]:
            reference = task.remote(shared, block)
            return lambda: ray.get(reference)

        yield from _in_order(submit, blocks, ahead)

    try:
        yield over_cluster
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, KibanError):
            raise cause from error
        raise KibanError("--ray", why=f"the cluster failed: {str(error).splitlines()[-1]}") from error
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises ConfigError if nobody listens at host:port; ray itself would try for minutes."""
    import socket

    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise ConfigError("--ray", field=address, why=f"no cluster answers: {error}") from error


def _apply(work: Callable[[A], B], block: A) -> B:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return work(block)
