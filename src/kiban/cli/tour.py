"""`kiban tour`: the systems, each showing its signature ability."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kiban.cli.console import Console, current
from kiban.cli.options import AsJson, Lang
from kiban.files import run_folder

if TYPE_CHECKING:
    from kiban.tour.exhibit import Outcome

HEADERS = {"ja": ("展示", "内容"), "en": ("exhibit", "what it shows")}
BARS = {"ja": ("合格基準", "必要", "平均 (95%区間)", "判定"), "en": ("bar", "asked", "mean (95% interval)", "")}
WORDS = {
    "folder": {"ja": "結果", "en": "Results"},
    "plot": {"ja": "図", "en": "Plot"},
    "resume": {
        "ja": "中断しました。続きは: kiban tour {name}{quick} --out {folder}",
        "en": "Interrupted. To go on: kiban tour {name}{quick} --out {folder}",
    },
}


def tour_command(
    exhibit: Annotated[str | None, typer.Argument(help="its name; the list if left out")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="runs from scratch; a bar needs at least 3")] = 3,
    out: Annotated[
        Path | None, typer.Option(help="run folder, taken up where it was left; default: a new one under runs/")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="a reduced run, to see how it goes")] = False,
    as_json: AsJson = False,
    lang: Lang = None,
) -> None:
    """The tour: every system trained small, its signature ability measured beside an ablation.

    Examples:

      kiban tour

      kiban tour gpt --quick

      kiban tour gpt --out runs/tour-gpt --seeds 5 --json
    """
    console = current(lang)
    if exhibit is None:
        _list(console, as_json)
        return
    from kiban.tour.exhibit import find
    from kiban.tour.running import run

    found, folder = find(exhibit), out or run_folder(f"tour-{exhibit}")
    try:
        with console.progress() as progress:
            outcome = run(found, folder, seeds=seeds, quick=quick, lang=console.lang, progress=progress)
    except KeyboardInterrupt:
        words = {"name": exhibit, "quick": " --quick" if quick else "", "folder": shlex.quote(str(folder))}
        console.note(WORDS["resume"][console.lang].format(**words))
        raise
    if as_json:
        console.print((folder / "result.json").read_text(encoding="utf-8").rstrip())
    else:
        _show(console, outcome)


def _list(console: Console, as_json: bool) -> None:
    from kiban.tour.exhibit import exhibits

    found = exhibits().values()
    if as_json:
        facts = [{"name": e.name, "title": e.title[console.lang], "shows": e.shows[console.lang]} for e in found]
        console.print(json.dumps(facts, ensure_ascii=False, indent=1))
        return
    console.table(HEADERS[console.lang], [(e.name, e.title[console.lang]) for e in found])


def _show(console: Console, outcome: Outcome) -> None:
    """Table, bars, and where things lie."""
    from kiban.tour.exhibit import shown
    from kiban.tour.page import asked, notes, verdict

    lang = console.lang
    console.print(outcome.exhibit.title[lang])
    console.print(outcome.exhibit.shows[lang])
    heads, rows = outcome.table(lang)
    console.table(heads, rows)
    for line in notes(outcome, lang):
        console.print(line)
    console.table(BARS[lang], [(b.name[lang], asked(b, lang), shown(b), verdict(b, lang)) for b in outcome.bars])
    console.print(f"{WORDS['plot'][lang]}: {outcome.plot}")
    console.print(f"{WORDS['folder'][lang]}: {outcome.folder}")
