"""Which models, adapted how, enter the race: the catalogue filtered by the task, the machine and the licence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiban import zoo
from kiban.adopt.strategies import NAMES, strategy
from kiban.adopt.strategies.base import Candidate, Task
from kiban.catalogue.entries import Entry, entries, find
from kiban.catalogue.pull import pull
from kiban.choose import memory
from kiban.config import Progress, Traits, silent
from kiban.errors import ConfigError

WAYS: dict[str, memory.Way] = {"finetune_encoder": "full", "lora_decoder": "lora"}  # other strategies only load


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A candidate that does not enter, and why."""

    candidate: Candidate
    reason: str


def list_candidates(
    task: Task,
    *,
    models: Sequence[str] | None = None,
    strategies: Sequence[str] | None = None,
    max_memory: int | None = None,
    commercial: bool = False,
    progress: Progress = silent,
) -> tuple[list[Candidate], list[Skipped]]:
    """The candidates that can serve the task, cheapest strategy first, and those left out.

    models: catalogue names or folders; by default what the catalogue marks as embedded. max_memory in bytes.
    commercial: leave out what may not be used commercially. Pulls the weights that are needed.
    """
    chosen: list[Candidate] = [Candidate(strategy="baseline", model=None, licence="BSD-3-Clause", commercial_use=True)]
    skipped: list[Skipped] = []
    unknown = set(strategies or ()) - set(NAMES)
    if unknown:
        strategy(sorted(unknown)[0])
    named = [e.name for e in entries().values() if not e.opt_in] if models is None else list(models)
    for name in named:
        entry, traits = _look_up(name)
        for kind in NAMES[1:]:
            if strategies and kind not in strategies:
                continue
            licence = entry.licence if entry else "unknown"
            use = entry.commercial_use if entry else None
            candidate = Candidate(strategy=kind, model=name, licence=licence, commercial_use=use)
            if strategy(kind).refusal(task, traits):
                continue  # not a way to use this model at all
            reason = _obstacle(candidate, entry, max_memory, commercial)
            if reason:
                skipped.append(Skipped(candidate=candidate, reason=reason))
                continue
            path = pull(entry, progress=progress) if entry else Path(name)
            chosen.append(Candidate(strategy=kind, model=name, path=path, licence=licence, commercial_use=use))
    chosen.sort(key=lambda c: (NAMES.index(c.strategy), c.id))
    return chosen, skipped


def _look_up(name: str) -> tuple[Entry | None, Traits]:
    """The catalogue entry of a name, or None for a folder of the user's, and the traits of its family."""
    if Path(name).exists():
        return None, zoo.family_of(Path(name)).traits
    entry = find(name)
    families: dict[str, Any] = zoo.families()
    if entry.family not in families:
        raise ConfigError("models", field=name, why=f"family {entry.family!r} is not built yet")
    return entry, families[entry.family].traits


def _obstacle(candidate: Candidate, entry: Entry | None, max_memory: int | None, commercial: bool) -> str:
    if commercial and candidate.commercial_use is not True:
        return f"licence {candidate.licence} is not known to allow commercial use"
    if max_memory is not None and entry is not None and entry.parameters:
        need = memory.estimate(entry.parameters, WAYS.get(candidate.strategy, "load"))
        if need > max_memory:
            return f"needs about {need / 2**30:.1f} GiB, more than the {max_memory / 2**30:.1f} GiB allowed"
    return ""
