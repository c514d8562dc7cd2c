"""Train kiban-encoder-ja-en: MiniLM's English sentence space for Japanese, in minutes on a GPU or an hour on one core.

    python examples/get_text.py parallel ja en       # the text, once
    python examples/train_encoder_ja_en.py           # to runs/encoder-ja-en; started again, it goes on where it was
    python examples/train_encoder_ja_en.py --gpu     # more steps, and masked language modelling before them
    python examples/train_encoder_ja_en.py --minutes 5 --run runs/pilot
    python examples/train_encoder_ja_en.py --publish weights/kiban-encoder-ja-en     # after benchmarks/encoder_ja_en.py

Every row of examples/data/debian-ja.csv and debian-en.csv, and every paragraph of those packages' descriptions, is kept
out of the training pairs, so that `kiban adopt` can be measured on them.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from build_debian import paragraphs
from encoder_card import card
from get_text import CACHE, Archives
from kiban import zoo
from kiban.recipes.encoder_ja_en import ON_GPU, Settings, publish, train
from kiban.recipes.parallel_text import Forbidden, Pair, Selection, select
from telling import teller
from texts.pairs import CATALOGUES, described
from texts.sources import use

DATA = Path(__file__).parent / "data"
RECORD = Path(__file__).parent.parent / "benchmarks" / "results" / "encoder-ja-en.json"
DEV = ("debian-edu-doc", "subversion", "maint-guide")
TEST = ("gnome-user-docs", "developers-reference", "apache2-doc", "minetest-data", "gnupg-l10n")
CAP = 3_000
# A headword, its reading, then what it means; (P) marks the common ones.
EDICT = re.compile(r"(\S+) (?:\[(.+?)\] )?/(.*)/")
REMARK = re.compile(r"\((?!\w+ )[^)]*\)|\([^)]*\)")


def parallel() -> Iterator[Pair]:
    """The pairs that get_text.py fetched."""
    with (CACHE / "parallel-ja-en.jsonl").open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            strings = row["source"] in CATALOGUES or row["source"] == "japanese-law-translation"
            yield Pair(row["ja"], row["en"], row["source"], row["licence"], row["machine"], strings)


def japanese() -> list[dict[str, str]]:
    """The Japanese texts that get_text.py fetched and whose licence allows it."""
    rows = []
    for source in sorted((CACHE / "text-ja").glob("*.jsonl")):
        with source.open(encoding="utf-8") as file:
            rows += [row for row in map(json.loads, file) if use(row["licence"]) in ("free", "copyleft")]
    return rows


def dictionary(archives: Archives) -> Iterator[Pair]:
    """Common words of EDICT and their first two meanings."""
    for name, data in archives.members("edict", r"usr/share/edict/(edict|compdic)"):
        for line in data.decode("euc_jp", "replace").splitlines():
            found = EDICT.match(line)
            if found is None or ("(P)" not in line and name.endswith("/edict")):
                continue
            meanings = [REMARK.sub("", meaning).strip() for meaning in found[3].split("/")]
            meanings = [meaning for meaning in meanings if meaning and not meaning.startswith("EntL")]
            if meanings:
                yield Pair(found[1], "; ".join(meanings[:2]), "edict", "EDRDG (CC-BY-SA-3.0)")


def labelled() -> Iterator[tuple[str, str]]:
    """(package, text) of the labelled sets."""
    for language in ("ja", "en"):
        with (DATA / f"debian-{language}.csv").open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            next(rows)
            yield from ((package, text) for package, text, _ in rows)


def whole_descriptions(archives: Archives, packages: set[str]) -> Iterator[str]:
    """Every paragraph, in both languages, of what Debian says of these packages."""
    for language in ("ja", "en"):
        for file in archives.indices()[f"Translation-{language}"]:
            for record in paragraphs(file):
                if record.get("Package") in packages and f"Description-{language}" in record:
                    yield from described(record[f"Description-{language}"])


def selection() -> Selection:
    """Train, dev and test pairs."""
    with tempfile.TemporaryDirectory() as scratch:
        archives = Archives(CACHE / "archives", Path(scratch))
        rows = list(labelled())
        texts = [text for _, text in rows] + list(whole_descriptions(archives, {package for package, _ in rows}))
        pairs = [*dictionary(archives), *parallel()]
    return select(pairs, dev=DEV, test=TEST, forbidden=Forbidden.of(texts), cap=CAP)


def stored_selection(path: Path) -> Selection:
    """The selection of a run, made once: package indices change from week to week, and a run must go on with its own."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        chosen = selection()
        value = {name: [vars(p) for p in getattr(chosen, name)] for name in ("train", "dev", "test")}
        part.write_text(json.dumps({**value, "removed": chosen.removed}, ensure_ascii=False), encoding="utf-8")
        part.replace(path)
    value = json.loads(path.read_text(encoding="utf-8"))
    train, dev, test = ([Pair(**p) for p in value[name]] for name in ("train", "dev", "test"))
    return Selection(train, dev, test, value["removed"])


def published(run: Path, folder: Path, settings: Settings) -> None:
    """Publish run/final with a card that tells the run and the benchmark's last record."""
    chosen, student = stored_selection(run / "pairs.json"), zoo.load(run / "final")
    pairs = min(settings.rows, len(chosen.train)) or len(chosen.train)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    facts = json.loads((run / "result.json").read_text(encoding="utf-8"))
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    held = {"dev": DEV, "test": TEST}
    text = card(settings, chosen.train, pairs, chosen.removed, held, lines, record, result=facts)
    publish(student, folder, card=text, facts={"teacher": settings.teacher, "pairs": pairs, **facts})


def main() -> None:
    """Train, or go on with a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/encoder-ja-en"), help="folder of the run")
    parser.add_argument(
        "--gpu", action="store_true", help="more steps, and masked language modelling; minutes on a GPU"
    )
    parser.add_argument("--minutes", type=float, default=55.0, help="of training, besides the teacher's embeddings")
    parser.add_argument("--steps", type=int, default=0, help="instead of --minutes: repeats exactly on any machine")
    parser.add_argument("--rows", type=int, default=0, help="pairs to use, 0 for all")
    parser.add_argument("--publish", type=Path, help="write a finished run to this folder, with its card; must be new")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(seconds=60 * arguments.minutes, rows=arguments.rows)
    if arguments.gpu:
        settings = replace(ON_GPU, rows=arguments.rows)
    if arguments.steps:
        settings = replace(settings, seconds=0.0, steps=arguments.steps)
    if arguments.publish:
        published(arguments.run, arguments.publish, settings)
        return
    texts = [row["text"] for row in japanese()] if settings.masked_steps else ()
    begun = time.monotonic()
    selection = stored_selection(arguments.run / "pairs.json")
    student, result = train(selection, arguments.run, settings, texts=texts, progress=teller())
    print(f"{result.steps} steps, {result.tokens} tokens, {result.seconds:.0f} s, ended by {result.stopped_by}")
    if result.stopped_by != "sigterm":
        zoo.save(student, arguments.run / "final")
        device = f"one {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "one core"
        seconds = round(time.monotonic() - begun)
        facts = {"steps": result.steps, "tokens": result.tokens, "seconds": seconds, "device": device}
        facts["num_tokens"] = student.config.vocab_size
        (arguments.run / "result.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
