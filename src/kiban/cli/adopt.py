"""`kiban adopt`: the main job."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiban.cli.console import Console, current
from kiban.cli.sizes import as_bytes, as_seconds
from kiban.config import did_you_mean, override, read_yaml
from kiban.errors import ConfigError

if TYPE_CHECKING:
    from kiban.adopt.job import Adoption, Look

OPTIONS = {"source": "table", "seconds": "time"}  # settings whose option has another name
WORDS: dict[str, dict[str, Any]] = {
    "look": {
        "ja": "データ: {rows} 行、{classes} クラス、言語 {language}",
        "en": "Data: {rows} rows, {classes} classes, language {language}",
    },
    "look_images": {
        "ja": "データ: 画像 {rows} 枚、{classes} クラス",
        "en": "Data: {rows} pictures, {classes} classes",
    },
    "splits": {
        "ja": "分割: 学習 {train} 行、検証 {validation} 行、テスト {test} 行",
        "en": "Split: {train} rows to train, {validation} to validate, {test} to test",
    },
    "candidates": {"ja": "候補", "en": "Candidates"},
    "skipped": {"ja": "対象外", "en": "left out"},
    "report": {"ja": "レポート", "en": "Report"},
    "model": {"ja": "モデル", "en": "Model"},
    "resume": {
        "ja": "中断しました。続きは: kiban adopt --resume {folder}",
        "en": "Interrupted. To go on: kiban adopt --resume {folder}",
    },
    "headers": {
        "ja": ("方法", "macro-F1 (95%区間)", "テスト行", "p50", "p95", "メモリ", "1,000件あたり", "状態"),
        "en": ("way", "macro-F1 (95% interval)", "test rows", "p50", "p95", "memory", "per 1,000", "status"),
    },
    "status": {
        "ja": {"finished": "完了", "stopped_early": "途中で打切り", "failed": "失敗", "skipped": "対象外"},
        "en": {"finished": "finished", "stopped_early": "stopped early", "failed": "failed", "skipped": "left out"},
    },
}


def adopt_command(
    context: typer.Context,
    table: Annotated[
        Path | None,
        typer.Argument(
            help="CSV, TSV, JSONL or Parquet file with a text and a label column, or a folder of pictures by class"
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="column of the text, or of the pictures' paths; guessed if unambiguous")
    ] = None,
    label: Annotated[str | None, typer.Option(help="column of the label; guessed if unambiguous")] = None,
    require: Annotated[
        str, typer.Option(help='for example "p95<300ms, cost<50円/1k, macro_f1>0.8, memory<2GB, license=commercial"')
    ] = "",
    time: Annotated[str, typer.Option(help="time for the race, for example 90s, 20m, 1h")] = "10m",
    steps: Annotated[
        int | None, typer.Option(min=1, help="instead of --time: optimiser steps of the longest fit; repeats exactly")
    ] = None,
    max_memory: Annotated[str | None, typer.Option(help="leave out what needs more, for example 4GB")] = None,
    models: Annotated[
        str | None, typer.Option(help="catalogue names or folders, with commas; default: all embedded ones")
    ] = None,
    strategies: Annotated[str | None, typer.Option(help="ways to try, with commas; default: all")] = None,
    out: Annotated[Path | None, typer.Option(help="run folder; default: a new one under runs/")] = None,
    resume: Annotated[Path | None, typer.Option(help="continue an interrupted run, with its own settings")] = None,
    config: Annotated[
        Path | None, typer.Option(help="the config.yaml of a run: what no other option sets is taken from it")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="name=value of config.yaml; may be given several times")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="look at the data and list the candidates, nothing more")
    ] = False,
    on_bad_row: Annotated[str, typer.Option(help="stop, or skip (bad rows go to quarantine.jsonl)")] = "stop",
    yen_per_hour: Annotated[float, typer.Option(min=0.0, help="price of this machine")] = 15.0,
    yen_per_usd: Annotated[float, typer.Option(min=0.01, help="exchange rate")] = 150.0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="seed of splits, models and intervals")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
    lang: Annotated[str | None, typer.Option(help="ja or en; default: from LANG")] = None,
) -> None:
    """Try the ways to adopt foundation models for your own texts or pictures; measure, decide, and leave a ready model.

    Examples:

      kiban adopt tickets.csv --text 本文 --label 区分 --require "p95<300ms, cost<50円/1k" --time 20m

      kiban adopt reviews.parquet --strategies baseline,linear_head --lang en

      kiban adopt photos/ --time 10m          (a folder of pictures for each class)

      kiban adopt --resume runs/adopt-tickets-20260401-093000

      kiban adopt --config runs/adopt-tickets-20260401-093000/config.yaml --set seed=1
    """
    console = current(lang)
    given = {name for name in context.params if _is_given(context, name)}
    ignored = sorted(given - {"resume", "as_json", "lang"})
    if resume is not None and ignored:
        why = f"goes on with the settings of the run; {', '.join(ignored)} cannot be given"
        raise ConfigError("--resume", why=why, hint="for other settings begin a new run, with --config")
    settings: dict[str, Any] = {
        "source": None if table is None else str(table),
        "text": text,
        "label": label,
        "require": require,
        "seconds": as_seconds(time, "--time"),
        "steps": steps,
        "max_memory": as_bytes(max_memory, "--max-memory") if max_memory else None,
        "models": _names(models),
        "strategies": _names(strategies),
        "seed": seed,
        "lang": console.lang,
        "on_bad_row": on_bad_row,
        "yen_per_hour": yen_per_hour,
        "yen_per_usd": yen_per_usd,
    }
    if config is not None:
        settings |= _stored(config, settings, given)
    settings = _changed(settings, changes or (), given)
    source = settings.pop("source")
    if resume is None and source is None:
        raise ConfigError("kiban adopt", why="no table given", hint="kiban adopt TABLE --text COLUMN --label COLUMN")
    from kiban.adopt import job
    from kiban.adopt.folder import new_folder

    if dry_run:
        with console.progress() as progress:
            seen = job.preview(source, progress=progress, **settings)
        _show_look(console, seen, as_json)
        return
    folder = resume or out or new_folder(Path(str(source)).resolve().stem)
    try:
        with console.progress() as progress:
            if resume:
                run = job.resume(resume, progress=progress, log=console.note)
            else:
                run = job.adopt(source, out=folder, progress=progress, log=console.note, **settings)
    except KeyboardInterrupt:
        if (folder / "config.yaml").is_file():
            console.note(WORDS["resume"][console.lang].format(folder=shlex.quote(str(folder))))
        raise
    _show(console, run, as_json)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _stored(config: Path, known: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """What a config.yaml sets and the command line does not. Raises ConfigError for a setting that is not known."""
    stored = {key: value for key, value in read_yaml(config).items() if key != "source_sha256"}
    for key in stored:
        if key not in known:
            raise ConfigError(config, field=str(key), why="unknown setting", hint=did_you_mean(str(key), known))
    return {key: value for key, value in stored.items() if OPTIONS.get(key, key) not in given}


def _changed(settings: dict[str, Any], changes: Sequence[str], given: set[str]) -> dict[str, Any]:
    """settings with the changes of --set, checked. Raises ConfigError naming the setting."""
    from kiban.adopt.folder import check

    settings = override(settings, changes)
    named = given | {OPTIONS.get(key, key) for key in (change.partition("=")[0].strip() for change in changes)}
    if "time" in named and "steps" not in named:
        settings["steps"] = None  # of the run that is repeated
    check(settings)
    return settings


def _names(text: str | None) -> tuple[str, ...] | None:
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else None


def _show_look(console: Console, seen: Look, as_json: bool) -> None:
    """What a dry run prints."""
    from kiban.adopt.findings import sentence

    if as_json:
        names = {
            "candidates": [c.id for c in seen.candidates],
            "skipped": {s.candidate.id: s.reason for s in seen.skipped},
        }
        console.print(
            json.dumps({"splits": seen.splits.__dict__, "labels": seen.task.labels, **names}, ensure_ascii=False)
        )
        return
    _show_data(console, seen)
    for finding in seen.profile.findings:
        console.print(f"  - {sentence(finding, console.lang)}")
    console.print(_word(console, "candidates") + ":")
    for candidate in seen.candidates:
        console.print(f"  {candidate.id}")
    for left_out in seen.skipped:
        console.print(f"  {left_out.candidate.id} ({_word(console, 'skipped')}: {left_out.reason})")


def _show_data(console: Console, seen: Look) -> None:
    profile, splits = seen.profile, seen.splits
    line = _word(console, "look_images" if seen.task.kind == "image" else "look").format(
        rows=profile.usable_rows, classes=len(seen.task.labels), language=profile.language
    )
    console.print(line)
    console.print(_word(console, "splits").format(train=splits.train, validation=splits.validation, test=splits.test))


def _show(console: Console, run: Adoption, as_json: bool) -> None:
    """The decision, a table, and where things lie."""
    result = run.result
    if as_json:
        console.print((run.folder / "result.json").read_text(encoding="utf-8"))
        return
    rows = []
    for c in sorted(result.candidates, key=lambda c: -(c.macro_f1.value if c.macro_f1 else -1.0)):
        mark = "★ " if c.id == result.recommendation.id else "  "
        status = WORDS["status"][console.lang][c.status]
        if c.macro_f1 is None:
            rows.append((mark + c.id, "-", "-", "-", "-", "-", "-", status))
            continue
        cost = f"{c.cost_per_1k_yen:.3g}円" if console.lang == "ja" else f"${c.cost_per_1k_usd:.2g}"
        rows.append(
            (
                mark + c.id,
                f"{c.macro_f1.value:.3f} ({c.macro_f1.low:.3f}–{c.macro_f1.high:.3f})",
                str(c.test_rows),
                f"{c.p50_ms:.0f} ms",
                f"{c.p95_ms:.0f} ms",
                f"{(c.peak_memory_bytes or 0) / 1e6:.0f} MB",
                cost,
                status,
            )
        )
    console.table(WORDS["headers"][console.lang], rows)
    decision = result.recommendation
    console.print(decision.reason_ja if console.lang == "ja" else decision.reason_en)
    console.print(f"{_word(console, 'report')}: {run.report}")
    if decision.id:
        console.print(f"{_word(console, 'model')}: {run.folder / 'final'}")


def _word(console: Console, key: str) -> str:
    return str(WORDS[key][console.lang])
