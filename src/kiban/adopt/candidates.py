"""Which models, adapted how, enter the race: the catalogue filtered by the task, the machine and the licence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kiban import zoo
from kiban.adopt.strategies import BASELINES, BY_KIND, NAMES, strategy
from kiban.adopt.strategies.base import Candidate, Task
from kiban.catalogue.entries import Entry, entries, find
from kiban.catalogue.pull import pull
from kiban.choose import memory
from kiban.config import Progress, Traits, did_you_mean, silent
from kiban.errors import ConfigError, KibanError
from kiban.weights.gguf import read_gguf
from kiban.weights.safetensors import check_header

# Other strategies only load.
WAYS: dict[str, memory.Way] = {"finetune_encoder": "full", "lora_decoder": "lora", "image_lora": "lora"}
# Of what is learned without a model: that of the library, or of this one.
LICENCES = {"baseline": "BSD-3-Clause", "image_baseline": "BSD-3-Clause", "small_cnn": "Apache-2.0"}


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A candidate that does not enter, and why."""

    candidate: Candidate
    reason: str


def check_names(models: Sequence[str] | None, strategies: Sequence[str] | None) -> None:
    """Raises ConfigError or ModelNotFoundError, with the closest name, if a strategy or a model is unknown."""
    for name in strategies or ():
        strategy(name)
    for name in models or ():
        _look_up(name)


def list_candidates(
    task: Task,
    *,
    models: Sequence[str] | None = None,
    strategies: Sequence[str] | None = None,
    max_memory: int | None = None,
    commercial: bool = False,
) -> tuple[list[Candidate], list[Skipped]]:
    """The candidates that can serve the task, cheapest strategy first, and those left out. Nothing is fetched.

    models: catalogue names or folders; by default what the catalogue says can be tuned and is not opt-in. max_memory in
    bytes. commercial: leave out what may not be used commercially. Raises ConfigError or ModelNotFoundError for unknown
    names.
    """
    chosen: list[Candidate] = []
    skipped: list[Skipped] = []
    known = BY_KIND.get(task.kind, BY_KIND["single_label"])
    check_names((), strategies)  # the models are looked up below
    for kind in strategies or ():
        if kind not in known:
            raise ConfigError("strategies", field=kind, why="is for other data", hint=did_you_mean(kind, known))
    for kind in known:
        if kind not in BASELINES and strategies and kind not in strategies:
            continue
        alone = Candidate(strategy=kind, model=None, licence=LICENCES.get(kind, "unknown"), commercial_use=True)
        refused = strategy(kind).refusal(task, None)
        if not refused:
            chosen.append(alone)
        elif kind in BASELINES:
            skipped.append(Skipped(candidate=alone, reason=refused))
    usual = [entry.name for entry in entries().values() if entry.tuning and not entry.opt_in]
    named = usual if models is None else list(dict.fromkeys(models))
    for name in named:
        entry, traits = _look_up(name)
        for kind in known[1:]:
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
            else:
                chosen.append(candidate)
    chosen.sort(key=lambda c: (NAMES.index(c.strategy), c.id))
    ids = [c.id for c in chosen]
    twice = next((c for c in chosen if ids.count(c.id) > 1), None)
    if twice is not None:
        why = "two models have the same last name, and could not be told apart"
        raise ConfigError("models", field=Path(str(twice.model)).name, why=why, hint="rename one of the folders")
    return chosen, skipped


def fetch(candidates: Sequence[Candidate], *, progress: Progress = silent) -> tuple[list[Candidate], list[Skipped]]:
    """The candidates with their weights in place, pulled if need be, and those whose weights could not be had."""
    found, skipped = list[Candidate](), list[Skipped]()
    failed: dict[str, str] = {}
    for candidate in candidates:
        path = Path(candidate.model) if candidate.model else None
        if candidate.model and path and not path.exists() and candidate.model not in failed:
            try:
                path = pull(candidate.model, progress=progress)
            except KibanError as error:
                failed[candidate.model] = str(error)
        if candidate.model in failed:
            skipped.append(Skipped(candidate=candidate, reason=failed[str(candidate.model)]))
        else:
            found.append(replace(candidate, path=path))
    return found, skipped


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
    if max_memory is not None:
        parameters = entry.parameters if entry else _parameters(Path(str(candidate.model)))
        need = memory.estimate(parameters or 0, WAYS.get(candidate.strategy, "load"))
        if need > max_memory:
            return f"needs about {need / 2**30:.1f} GiB, more than the {max_memory / 2**30:.1f} GiB allowed"
    return ""


def _parameters(path: Path) -> int:
    """Parameters in a folder or GGUF file of the user's, from the headers of its weights."""
    if path.is_file():
        with read_gguf(path) as file:
            return sum(math.prod(tensor.shape) for tensor in file.tensors.values())
    headers = [check_header(weights) for weights in path.glob("*.safetensors")]
    return sum(math.prod(entry["shape"]) for header in headers for entry in header.values())
