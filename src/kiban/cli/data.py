"""`kiban data`: corpora to train on, from raw texts to shards of tokens."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiban.cli.console import Console, current
from kiban.cli.data_options import as_shares, compression, inputs, means, one_of, open_tokenizer, rules
from kiban.cli.data_show import rule, samples, show_facts, show_report, word
from kiban.cli.options import TRIAL, AsJson, Field, Lang, Out
from kiban.cli.rates import rates
from kiban.errors import ConfigError

if TYPE_CHECKING:
    from kiban.data.prepare import Means

data_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)

Paths = Annotated[list[Path], typer.Argument(help="files or folders: .txt .md .jsonl .ndjson (+ .gz .zst) .parquet")]
Id = Annotated[str | None, typer.Option("--id", help="column that names each document; it must be there and differ")]
OnBadRow = Annotated[str, typer.Option(help="stop, or skip (bad rows go to quarantine.jsonl)")]
Processes = Annotated[int | None, typer.Option(min=1, help="default: one per core")]
Ray = Annotated[str | None, typer.Option(help="address of a ray cluster that does the work instead")]
Compress = Annotated[str | None, typer.Option(help="gzip or zstd")]
Similarity = Annotated[
    float, typer.Option(min=0.5, max=1.0, help="from which texts are near-copies; 1: exact ones only")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="tell what would come of it, leave nothing")]


@data_app.callback()
def data() -> None:
    """Corpora to train on: look at raw texts, clean them, leave out copies, split, and turn them into tokens.

    Examples:

      kiban data inspect wiki.jsonl.zst books/

      kiban data clean wiki.jsonl.zst books/ --out clean --languages ja,en

      kiban data dedup clean --out unique

      kiban data split unique --out parts

      kiban data tokenize parts/train --tokenizer smollm2-135m-instruct --out tokens
    """


@data_app.command("inspect")
def inspect_command(
    paths: Paths,
    field: Field = "text",
    id_field: Id = None,
    on_bad_row: OnBadRow = "stop",
    plot: Annotated[Path | None, typer.Option(help="draw the lengths: a .png, .svg or .pdf file")] = None,
    processes: Processes = None,
    ray: Ray = None,
    as_json: AsJson = False,
    lang: Lang = None,
) -> None:
    """Languages, kinds of characters, lengths, copies, and lines that many documents share.

    Example:

      kiban data inspect corpus/ --plot lengths.png
    """
    from kiban.data.inspection import check_plot, inspect, plot_lengths

    console, found = current(lang), inputs(paths, field, id_field, on_bad_row)
    if plot is not None:
        check_plot(plot)
    with rates(console) as watch:
        report = inspect(found, means(processes, ray, watch))
    if plot is not None:
        plot_lengths(report, plot)
    if as_json:
        console.print(json.dumps(report.as_dict(), ensure_ascii=False, indent=1))
    else:
        show_report(console, report)


@data_app.command("clean")
def clean_command(
    paths: Paths,
    out: Out = None,
    languages: Annotated[str | None, typer.Option(help="keep only these, with commas: ja,en")] = None,
    adult: Annotated[str, typer.Option(help="keep, or drop texts of adult sites")] = "keep",
    personal_data: Annotated[
        str, typer.Option(help="keep, mask (as <email>, <phone>, <number>), or drop texts that hold such data")
    ] = "keep",
    form: Annotated[str, typer.Option(help="Unicode form: NFC, NFKC or none")] = "NFC",
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="threshold=value, for example min_words=5; may be repeated")
    ] = None,
    compress: Compress = None,
    field: Field = "text",
    id_field: Id = None,
    on_bad_row: OnBadRow = "stop",
    processes: Processes = None,
    ray: Ray = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    lang: Lang = None,
) -> None:
    """Make texts uniform and drop those that break a rule: too short, repetitive, garbled, lists, other languages ...

    A dry run looks at the first 2,000 documents. --set with a name that is none lists all thresholds.

    Examples:

      kiban data clean web.jsonl.gz --out clean --languages ja --adult drop --personal-data mask

      kiban data clean manuals/ --dry-run --set min_words=5
    """
    from kiban.data.clean import clean

    console = current(lang)
    thresholds = rules(languages, adult, personal_data, changes or [])
    found = inputs(paths, field, id_field, on_bad_row, limit=TRIAL if dry_run else None)
    options: dict[str, Any] = {"rules": thresholds, "form": one_of("--form", form, ("NFC", "NFKC", "none"))}

    def run(folder: Path, means: Means) -> dict[str, Any]:
        return clean(found, folder, **options, compress=compression(compress), means=means)

    _do(console, run, out, processes, ray, dry_run, as_json)


@data_app.command("dedup")
def dedup_command(
    paths: Paths,
    out: Out = None,
    similarity: Similarity = 0.8,
    compress: Compress = None,
    field: Field = "text",
    id_field: Id = None,
    on_bad_row: OnBadRow = "stop",
    processes: Processes = None,
    ray: Ray = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    lang: Lang = None,
) -> None:
    """Keep the first of every group of copies and near-copies.

    Example:

      kiban data dedup clean/ --out unique --similarity 0.8
    """
    from kiban.data.dedup import dedup

    found = inputs(paths, field, id_field, on_bad_row)

    def run(folder: Path, means: Means) -> dict[str, Any]:
        return dedup(found, folder, similarity=similarity, compress=compression(compress), means=means)

    _do(current(lang), run, out, processes, ray, dry_run, as_json)


@data_app.command("split")
def split_command(
    paths: Paths,
    out: Out = None,
    shares: Annotated[str, typer.Option(help="names and shares")] = "train=0.98,validation=0.01,test=0.01",
    seed: Annotated[int, typer.Option(help="another one gives another split")] = 0,
    similarity: Similarity = 0.8,
    compress: Compress = None,
    field: Field = "text",
    id_field: Id = None,
    on_bad_row: OnBadRow = "stop",
    processes: Processes = None,
    ray: Ray = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    lang: Lang = None,
) -> None:
    """Split by a hash of each document; copies and near-copies stay together.

    Example:

      kiban data split unique/ --out parts --shares train=0.9,test=0.1
    """
    from kiban.data.dedup import split

    found = inputs(paths, field, id_field, on_bad_row)
    options: dict[str, Any] = {"shares": as_shares(shares), "seed": seed, "similarity": similarity}

    def run(folder: Path, means: Means) -> dict[str, Any]:
        return split(found, folder, **options, compress=compression(compress), means=means)

    _do(current(lang), run, out, processes, ray, dry_run, as_json)


@data_app.command("tokenize")
def tokenize_command(
    paths: Paths,
    tokenizer: Annotated[str, typer.Option(help="catalogue name, folder, GGUF file or sentencepiece .model")],
    out: Out = None,
    field: Field = "text",
    id_field: Id = None,
    on_bad_row: OnBadRow = "stop",
    processes: Processes = None,
    ray: Ray = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    lang: Lang = None,
) -> None:
    """Turn documents into shards of token ids that training reads through the memory map.

    A dry run measures the first 2,000 documents.

    Example:

      kiban data tokenize parts/train --tokenizer smollm2-135m-instruct --out tokens
    """
    from kiban.data.tokenize import tokenize

    console = current(lang)
    found = inputs(paths, field, id_field, on_bad_row, limit=TRIAL if dry_run else None)
    opened = open_tokenizer(tokenizer, console)

    def run(folder: Path, means: Means) -> dict[str, Any]:
        return tokenize(found, folder, opened, name=tokenizer, means=means)

    _do(console, run, out, processes, ray, dry_run, as_json)


def _do(
    console: Console,
    run: Callable[[Path, Means], dict[str, Any]],
    out: Path | None,
    processes: int | None,
    ray: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run a verb, into a folder that goes away for a dry run, and show its manifest."""
    if out is None and not dry_run:
        raise ConfigError("--out", why="is missing", hint="name a new folder, or pass --dry-run")
    try:
        with rates(console) as watch, tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "trial" if dry_run or out is None else out
            facts = run(folder, means(processes, ray, watch))
            dropped = samples(folder)
    except KeyboardInterrupt:
        console.note(word(console, "interrupted"))
        raise
    if as_json:
        console.print(json.dumps(facts, ensure_ascii=False, indent=1))
        return
    show_facts(console, facts)
    for name, texts in dropped.items() if dry_run else ():
        console.print(f"{rule(console, name)} ({name}):")
        for text in texts:
            console.print(f"  {text}")
    console.print(word(console, "trial") if dry_run else f"{word(console, 'folder')}: {out}")
