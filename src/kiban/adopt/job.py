"""`kiban.adopt(...)`: look, list, race, measure, decide, report, leave. This file only joins the parts."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kiban import __version__
from kiban.adopt.assemble import assemble
from kiban.adopt.budget import Budget
from kiban.adopt.candidates import Skipped, check_names, fetch, list_candidates
from kiban.adopt.folder import Settings, alone, environment, keep_frame, new_folder
from kiban.adopt.model import AdoptedModel
from kiban.adopt.race import Race
from kiban.adopt.report import write_report
from kiban.adopt.report.card import model_card
from kiban.adopt.report.formats import Lang
from kiban.adopt.result import CandidateResult, Profile, Result, Splits
from kiban.adopt.sources import Source, open_source
from kiban.adopt.split import split
from kiban.adopt.strategies import load_predictor
from kiban.adopt.strategies.base import Candidate, Rows, Task
from kiban.choose.cost import Prices
from kiban.choose.requirements import Requirement, parse
from kiban.config import Progress, from_dict, silent
from kiban.errors import ConfigError, DatasetError, IntegrityError

MAX_TEST_ROWS = 2000  # more narrow the intervals little and cost every candidate time


@dataclass(frozen=True)
class Adoption:
    """A finished run."""

    folder: Path
    result: Result

    @property
    def recommended(self) -> CandidateResult | None:
        """The candidate that the run recommends; None if nothing meets the requirements."""
        id = self.result.recommendation.id
        return self.result.candidate(id) if id else None

    def pareto(self) -> list[CandidateResult]:
        """The candidates that no other beats in both macro-F1 and cost, cheapest first."""
        front = [self.result.candidate(id) for id in self.result.pareto]
        return sorted(front, key=lambda c: c.cost_per_1k_yen or 0.0)

    @cached_property
    def model(self) -> AdoptedModel:
        """The model in `final/`. Raises ConfigError if the run recommended none."""
        if self.result.recommendation.id is None:
            raise ConfigError(
                self.folder, why="no candidate met the requirements", hint="relax --require and run again"
            )
        return AdoptedModel(load_predictor(self.folder / "final"), self.result.labels)

    @property
    def report(self) -> Path:
        """The report, one HTML file."""
        return self.folder / "report.html"


def adopt(
    table: Any,
    *,
    text: str | None = None,
    label: str | None = None,
    require: str | Mapping[str, Any] = "",
    seconds: float | None = 600.0,
    steps: int | None = None,
    out: str | Path | None = None,
    progress: Progress = silent,
    log: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> Adoption:
    """Try the ways to adopt foundation models for labelled data, measure them, recommend one and leave it ready.

    table: path of a CSV, TSV, JSONL or Parquet file, a pandas or polars frame, or a folder of pictures with a folder for
    each class. text, label: columns; guessed if unambiguous; that of texts may hold paths of pictures. require:
    "p95<300ms, cost<50円/1k" or {"p95_ms": 300}. seconds bounds the race, or steps the longest fit. settings: the other
    fields of `Settings`. Raises DatasetError for data that cannot be used.
    """
    name = "frame" if not isinstance(table, str | Path) else Path(table).resolve().stem
    folder = Path(out) if out else new_folder(name)
    if (folder / "config.yaml").exists():
        raise ConfigError(folder, why="holds a run already", hint="choose another --out, or continue it with --resume")
    # What a run that never began leaves may be there.
    if folder.exists() and any(path.name not in ("table.jsonl", "quarantine.jsonl") for path in folder.iterdir()):
        raise ConfigError(folder, why="is not empty", hint="choose another --out; kiban never overwrites")
    source = Path(table) if isinstance(table, str | Path) else keep_frame(table, folder)
    settings |= {"seconds": seconds, "steps": steps}
    quarantine = folder / "quarantine.jsonl"
    resolved, data = _resolve(source, text, label, require, settings, quarantine=quarantine, progress=progress)
    folder.mkdir(parents=True, exist_ok=True)
    resolved.save(folder)
    return _run(folder, resolved, data, progress, log)


def preview(
    table: str | Path,
    *,
    text: str | None = None,
    label: str | None = None,
    require: str | Mapping[str, Any] = "",
    progress: Progress = silent,
    **settings: Any,
) -> Look:
    """What `adopt` would start from: the data's profile, the split and the candidates. Writes nothing."""
    resolved, data = _resolve(Path(table), text, label, require, settings, quarantine=None, progress=progress)
    return look(resolved, data, progress=progress)


def _resolve(
    source: Path,
    text: str | None,
    label: str | None,
    require: str | Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    quarantine: Path | None,
    progress: Progress,
) -> tuple[Settings, Source]:
    """Settings with nothing left open, and the data."""
    requirements = parse(require)  # a misspelt requirement is told before the work, not after
    settings = {**settings, **{key: _names(settings.get(key)) for key in ("models", "strategies")}}
    data = open_source(
        source,
        text=text,
        label=label,
        on_bad_row=settings.get("on_bad_row", "stop"),
        quarantine=quarantine,
        progress=progress,
    )
    known: dict[str, Any] = {
        "source": str(source),
        "source_sha256": data.sha256,
        "text": data.text,
        "label": data.label,
        "require": ", ".join(r.text for r in requirements),
    }
    if settings.get("steps") is not None:
        known["seconds"] = None
    resolved = from_dict(Settings, {**settings, **known})
    check_names(resolved.models, resolved.strategies)
    Budget(seconds=resolved.seconds, steps=resolved.steps)
    Prices(yen_per_hour=resolved.yen_per_hour, yen_per_usd=resolved.yen_per_usd)
    return resolved, data


def _names(given: str | Path | Sequence[str | Path] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    return (str(given),) if isinstance(given, str | Path) else tuple(str(name) for name in given)


def resume(
    folder: str | Path, *, progress: Progress = silent, log: Callable[[str], None] = lambda line: None
) -> Adoption:
    """Continue an interrupted run; a finished one is opened. Raises IntegrityError if its table has changed."""
    folder = Path(folder)
    settings = Settings.read(folder)
    if (folder / "result.json").exists() and (folder / "report.html").exists():
        return Adoption(folder, Result.read(folder / "result.json"))
    source = Path(settings.source)
    if not source.exists():
        hint = "put it back, or resume from the folder in which the run was started"
        raise IntegrityError(source, why="is gone", hint=hint)
    data = open_source(
        source,
        text=settings.text,
        label=settings.label,
        on_bad_row=settings.on_bad_row,
        quarantine=folder / "quarantine.jsonl",
        sha256=settings.source_sha256,
        progress=progress,
    )
    return _run(folder, settings, data, progress, log)


@dataclass(frozen=True, kw_only=True)
class Look:
    """What is known before the race."""

    task: Task
    profile: Profile
    splits: Splits
    rows: tuple[Rows, Rows, Rows]  # train, validation, test
    test_lines: tuple[int, ...]  # line in the table of each test row
    test_names: tuple[str, ...]  # what the report shows of each
    candidates: list[Candidate]
    skipped: list[Skipped]
    requirements: tuple[Requirement, ...]


def look(settings: Settings, data: Source, *, progress: Progress = silent) -> Look:
    """Profile the data, split it without leaks and list the candidates. Raises DatasetError if no race is possible."""
    progress("profile", 0, None)
    found = data.look(settings.seed)
    labels = tuple(found.labels)
    progress("split", 0, None)
    parts = split(found.groups, found.targets, seed=settings.seed, max_test=MAX_TEST_ROWS)
    if not parts.test or not parts.validation:
        things = "texts" if data.kind == "single_label" else "pictures"
        why = f"holds only {parts.groups} different {things}, too few to learn from some and test on others"
        raise DatasetError(data.name, field=data.text or None, why=why, hint=f"add other {things}")
    rows = tuple(
        Rows(inputs=[found.inputs[i] for i in part], targets=[found.targets[i] for i in part])
        for part in (parts.train, parts.validation, parts.test)
    )
    task = Task(kind=data.kind, labels=labels, language=found.profile.language, length_p95=found.profile.length_p95)
    requirements = parse(settings.require)
    candidates, skipped = list_candidates(
        task,
        models=settings.models,
        strategies=settings.strategies,
        max_memory=settings.max_memory,
        commercial=any(r.name == "license" for r in requirements),
    )
    return Look(
        task=task,
        profile=found.profile,
        splits=Splits(
            train=len(parts.train), validation=len(parts.validation), test=len(parts.test), groups=parts.groups
        ),
        rows=(rows[0], rows[1], rows[2]),
        test_lines=tuple(found.lines[i] for i in parts.test),
        test_names=tuple(found.names[i] for i in parts.test),
        candidates=candidates,
        skipped=skipped,
        requirements=requirements,
    )


def _run(folder: Path, settings: Settings, data: Source, progress: Progress, log: Callable[[str], None]) -> Adoption:
    started = time.time()
    with alone(folder):
        seen = look(settings, data, progress=progress)
        budget = Budget(seconds=settings.seconds, steps=settings.steps)
        candidates, missing = fetch(seen.candidates, progress=progress)
        for left_out in missing:
            log(f"{left_out.candidate.id}: left out: {left_out.reason}")
        seen = replace(seen, candidates=candidates, skipped=[*seen.skipped, *missing])
        race = Race(folder, seen.task, seen.rows, candidates, budget, seed=settings.seed, progress=progress, log=log)
        laps = race.run()
        measured = race.measure(laps)
        facts_here = environment()
        (folder / "environment.json").write_text(json.dumps(facts_here, ensure_ascii=False, indent=1), encoding="utf-8")
        result = assemble(
            seen,
            race,
            laps,
            measured,
            prices=Prices(yen_per_hour=settings.yen_per_hour, yen_per_usd=settings.yen_per_usd),
            seed=settings.seed,
            facts={
                "kiban_version": __version__,
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "command": settings.command,
                "source": data.name,
                "kind": data.kind,
                "text_column": settings.text,
                "label_column": settings.label,
                "environment": facts_here,
                "total_seconds": time.time() - started,
            },
        )
        lang: Lang = "ja" if settings.lang == "ja" else "en"
        if result.recommendation.id:
            card = model_card(result, result.candidate(result.recommendation.id), lang=lang)
            race.keep(result.recommendation.id, folder / "final", card=card)
        result.save(folder / "result.json")
        progress("report", 0, None)
        write_report(folder, lang=lang)
        race.clean()
    return Adoption(folder, result)
