"""`kiban serve --replicas`: copies of each model in processes of their own, on this machine or a Ray cluster.

The server stays the only door. Keys, limits, deadlines, budgets, the ledger and metrics are those of its one process, as
without replicas; prompts as token ids go out, pieces of answers come back. The next request goes to the replica that has the
fewest. One that dies takes its running answers with it, which end with an error; the others go on, and Ray starts it anew.

The replicas are plain actors of Ray's. Deviation: not applications of Ray Serve. Its proxies would be doors of their own,
without our deadlines and each with its own counts, and what it starts outlives the process that asked for it, however that
ends; actors end with the server, even one that is killed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kiban.config import Progress, num_cores, silent
from kiban.engine.decoder import Weights
from kiban.errors import ConfigError, KibanError
from kiban.generate.constrained import Grammars
from kiban.generate.stoppable import Trial
from kiban.inputs.tokenizer import Tokenizer
from kiban.serve.remote import Group, Promised, RemoteBatcher, RemoteEngine
from kiban.serve.replica import Facts, Replica
from kiban.serve.served import Reader, Served, Writer, named
from kiban.zoo.places import locate

OPENING = 900.0  # seconds in which a replica has to have opened its model
# Whoever reaches the ports of a cluster can run programs there. One of our own opens them on the loopback alone, as Ray does
# where it has no clusters, to those who know a word that its processes know; and it tells its makers nothing.
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
STORE = 128 * 2**20  # bytes of a local cluster's shared memory; messages are small


class _Grammars(Grammars):
    def constraint(self, grammar: str, *, field: str) -> Promised:
        super().constraint(grammar, field=field)
        return Promised(grammar)


class Fleet:
    """A Ray cluster, and the thread through which all that goes to replicas and comes from them passes."""

    def __init__(self, address: str | None, processes: int) -> None:
        """address: of a cluster, as `ray.init` takes it; None starts one on this machine for so many processes.

        Raises ConfigError if Ray is not installed, the cluster does not answer or has fewer CPUs.
        """
        if address is None:
            os.environ.update(ALONE, RAY_AUTH_TOKEN=secrets.token_hex(32))  # which Ray reads when it is imported
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--replicas", why="ray is not installed", hint='pip install "kiban[ray]"') from error
        own: dict[str, Any] = {}
        if address is None:
            own = {"num_cpus": max(num_cores(), processes), "include_dashboard": False, "object_store_memory": STORE}
        try:
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
        except Exception as error:  # where it does not start in time, Ray raises just that
            ray.shutdown()
            why = f"Ray does not start: {str(error).splitlines()[0]}"
            raise ConfigError("--replicas" if address is None else "--ray", field=address, why=why) from error
        self._ray, self.trial = ray, Trial()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="kiban replicas", daemon=True).start()
        self.groups: list[Group] = []
        self.cores = self._cores(processes)

    def _cores(self, processes: int) -> int:
        """CPUs for each of so many processes, as many as they can all have."""
        nodes = [int(node["Resources"].get("CPU", 0)) for node in self._ray.nodes() if node["Alive"]]
        for cores in range(max(nodes, default=0), 0, -1):
            if sum(node // cores for node in nodes) >= processes:
                return cores
        self.close()
        why = f"{processes} processes need as many CPUs, the cluster has {sum(nodes)}"
        raise ConfigError("--replicas", why=why, hint="ask for fewer, or add machines")

    def open(self, source: str, name: str, replicas: int, *, max_waiting: int, **options: Any) -> Served:
        """Replicas of a model, as one. options: as in `open_served`. Raises its errors."""
        kind = self._ray.remote(Replica).options(num_cpus=self.cores, max_restarts=-1, max_concurrency=10_000)
        # The server in front keeps the queue short; a replica that takes over from another takes all that come.
        own = {**options, "max_waiting": max_waiting + options["max_running"]}
        actors = [kind.remote(source, name, own) for _ in range(replicas)]
        facts = self._facts(source, [actor.facts.remote() for actor in actors])
        waiting = max_waiting if facts.kind is Writer else facts.load.max_waiting
        group = Group(name, actors, facts.load, waiting, self.loop)
        self.groups.append(group)
        tokenizer, report = _tokenizer(facts.files), facts.fields["report"]
        fields = {**facts.fields, "report": report if report is not None and report.is_file() else None}
        if facts.kind is not Writer:
            assert issubclass(facts.kind, Reader)
            return facts.kind(**fields, tokenizer=tokenizer, batcher=RemoteBatcher(group))
        assert tokenizer is not None
        grammars = _Grammars(tokenizer, facts.vocab_size, self.trial)
        return Writer(**fields, tokenizer=tokenizer, engine=RemoteEngine(group, facts), grammars=grammars)

    def _facts(self, source: str, told: Sequence[Any]) -> Facts:
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        try:
            found: list[Facts] = self._ray.get(told, timeout=OPENING)
        except GetTimeoutError as error:
            why = f"was not open in {OPENING:g} s"
            raise ConfigError(source, why=why, hint="has the cluster free CPUs? `ray status` tells") from error
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, KibanError):
                raise error.cause from None
            why = f"its process did not start: {str(error).strip().splitlines()[-1]}"
            raise ConfigError(source, why=why, hint="every machine of the cluster needs the same kiban") from error
        return found[0]

    def close(self) -> None:
        """End the replicas, and a cluster that was started here."""
        for group in self.groups:
            group.close(drain=0)
        self.trial.close()
        self._ray.shutdown()
        self.loop.call_soon_threadsafe(self.loop.stop)


def open_replicas(
    sources: Sequence[str],
    replicas: int,
    address: str | None,
    *,
    weights: Weights = "fp32",
    progress: Progress = silent,
    max_running: int = 8,
    max_waiting: int = 32,
) -> tuple[Mapping[str, Served], Fleet]:
    """As `open_all`, with so many replicas of each source. max_running: answers that each replica writes at once.

    On a cluster, paths have to be there on every machine.
    """
    found = named(sources)
    if address is None:  # fetched once, and what is missing is told before anything starts
        for source in found.values():
            locate(source, progress)
    fleet = Fleet(address, replicas * len(found))
    options: dict[str, Any] = {"weights": weights, "max_running": max_running, "max_waiting": max_waiting}
    try:
        served = {name: fleet.open(_absolute(source), name, replicas, **options) for name, source in found.items()}
    except BaseException:
        fleet.close()
        raise
    return served, fleet


def _absolute(source: str) -> str:
    return str(Path(source).resolve()) if Path(source).exists() else source


def _tokenizer(files: Mapping[str, str | bytes]) -> Tokenizer | None:
    """A tokenizer from its own files, which any kind of it has, unlike a way to be pickled."""
    if not files:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        return Tokenizer.from_folder(Path(folder))
