"""Build examples/data/debian-ja.csv and debian-en.csv: descriptions of Debian packages, labelled by their Section.

    python examples/build_debian.py      # needs apt; fetches about 17 MB into a temporary folder, changes no settings

Every text was written by people: the English one by the package's maintainer, the Japanese one by the translators of
the Debian Description Translation Project. Both files hold the same packages in the same order. The same indices give
the same files.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Class (ja, en) -> Debian sections. Left out are sections that name a form and not a subject (devel, libdevel, doc,
# debug, oldlibs, metapackages, tasks, introspection), catch-alls (utils, misc, otherosfs) and ones with too few
# families to learn from (database, vcs, embedded ...).
CLASSES: dict[tuple[str, str], tuple[str, ...]] = {
    ("ゲーム", "games"): ("games",),
    ("音声・動画", "sound and video"): ("sound", "video"),
    ("画像", "graphics"): ("graphics",),
    ("科学・数学", "science and mathematics"): ("science", "math", "electronics", "hamradio", "gnu-r"),
    ("文章・組版", "text and typesetting"): ("text", "tex", "editors"),
    ("フォント・言語対応", "fonts and localization"): ("fonts", "localization"),
    ("ネットワーク・Web", "network and web"): ("net", "web", "httpd", "comm"),
    ("メール・ニュース", "mail and news"): ("mail", "news"),
    ("システム管理", "system administration"): ("admin", "shells", "kernel"),
    ("デスクトップ", "desktop"): ("x11", "gnome", "kde", "xfce", "gnustep"),
    ("プログラミング言語", "programming languages"): (
        "perl", "python", "java", "ruby", "haskell", "ocaml", "lisp", "interpreters", "javascript", "php", "golang",
    ),
    ("ライブラリ", "libraries"): ("libs",),
}  # fmt: skip
CLASS_OF = {section: pair for pair, sections in CLASSES.items() for section in sections}
MAX_CHARACTERS = {"ja": 300, "en": 600}  # Japanese says about twice as much per character
MOST_ROWS = 2_000
SAME = 0.5  # Jaccard similarity of character 5-grams above which two texts count as one


@dataclass(frozen=True)
class Row:
    """One package: its texts by language, its class as (ja, en)."""

    package: str
    family: str
    text: dict[str, str]
    label: tuple[str, str]


def fetch_indices(folder: Path) -> dict[str, list[Path]]:
    """Let apt fetch its indices into a private folder; returns index files by name (Packages ...)."""
    options = [f"Dir::State::lists={folder}/lists", f"Dir::Cache={folder}/cache", "Acquire::Languages=ja,en"]
    options += ["APT::Sandbox::User=root"]  # else apt, started by root, drops to a user who may not enter the folder
    flags = [part for option in options for part in ("-o", option)]
    for sub in ("lists/partial", "cache/archives/partial"):
        (folder / sub).mkdir(parents=True)
    print("apt-get update, into a private folder ...", flush=True)
    subprocess.run(["apt-get", "update", *flags], check=True)
    filters = ["Origin: Debian", "Component: main"]
    listing = subprocess.run(
        ["apt-get", "indextargets", *flags, "--format", "$(METAKEY) $(FILENAME)", *filters],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    files: dict[str, list[Path]] = defaultdict(list)
    for line in sorted(listing.splitlines()):
        key, _, name = line.partition(" ")
        if Path(name).exists():
            files[Path(key).name].append(Path(name))
    return files


def paragraphs(file: Path) -> Iterator[dict[str, str]]:
    """The records of an index (deb822), compressed or not."""
    data = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", str(file)], check=True, capture_output=True).stdout
    for block in data.decode("utf-8").split("\n\n"):
        record: dict[str, str] = {}
        key = ""
        for line in filter(None, block.split("\n")):
            if line[0] in " \t":
                record[key] += "\n" + line[1:]
            else:
                key, _, value = line.partition(":")
                record[key] = value.strip()
        if record:
            yield record


def flatten(description: str) -> str:
    """Undo the line wrapping of a description: one line, " ." paragraph marks removed."""
    lines = [line.strip() for line in description.split("\n")]
    lines = [re.sub(r"\s+", " ", line) for line in lines if line and line != "."]
    text = lines[0] + " " if lines else ""
    for before, line in zip(lines[1:] or [], [*lines[2:], ""]):
        # Between two Japanese characters a wrap hides no space; next to a Latin letter the translators write one.
        wide = bool(line) and ord(before[-1]) > 0x2E7F and ord(line[0]) > 0x2E7F
        text += before + ("" if wide else " ")
    return text.strip()


def cut(text: str, limit: int) -> str:
    """At most limit characters, cut at the end of a sentence if one ends in the second half."""
    if len(text) <= limit:
        return text
    ends = [found.end() for found in re.finditer(r"。|[.!?](?= )", text[:limit])]
    if ends and ends[-1] >= limit // 2:
        return text[: ends[-1]]
    space = text.rfind(" ", limit // 2, limit)
    return text[: space if space > 0 else limit].rstrip()


def is_japanese(text: str) -> bool:
    """Whether a description is translated throughout: a third of it kana and kanji, no paragraph left in English."""
    wide = sum("\u3040" <= c <= "\u30ff" or "\u4e00" <= c <= "\u9fff" for c in text)
    return wide >= len(text) / 3 and not re.search(r"<trans>|(?:[A-Za-z,'()-]+ ){9}", text)


def read_rows(files: dict[str, list[Path]]) -> list[Row]:
    """Packages that have a section among CLASSES and a description in both languages, by name."""
    texts: dict[str, dict[str, str]] = {}
    for language in ("ja", "en"):
        texts[language] = {
            record["Description-md5"]: record[f"Description-{language}"]
            for file in files[f"Translation-{language}"]
            for record in paragraphs(file)
            if f"Description-{language}" in record
        }
    rows: dict[str, Row] = {}
    for file in files["Packages"]:
        for record in paragraphs(file):
            name, md5, label = record["Package"], record.get("Description-md5", ""), CLASS_OF.get(record["Section"])
            if label is None or md5 not in texts["ja"] or md5 not in texts["en"]:
                continue
            text = {language: cut(flatten(texts[language][md5]), MAX_CHARACTERS[language]) for language in texts}
            if is_japanese(text["ja"]) and len(text["ja"]) >= 40 and len(text["en"]) >= 60:
                source = record.get("Source", name).split()[0]
                # gcc-11 and gcc-12, or libfoo1 and libfoo2, are versions of one thing.
                rows[name] = Row(name, re.sub(r"[-.]?\d[\d.]*", "", source), text, label)
    return [rows[name] for name in sorted(rows)]


def one_per_family(rows: list[Row]) -> list[Row]:
    """Of the packages of one source (-data, -common, -gtk ...), the one with the shortest name: the main one."""
    best: dict[str, Row] = {}
    for row in rows:
        held = best.get(row.family)
        if held is None or (len(row.package), row.package) < (len(held.package), held.package):
            best[row.family] = row
    return sorted(best.values(), key=lambda row: row.package)


def without_near_duplicates(rows: list[Row]) -> list[Row]:
    """Drop every row whose text resembles an earlier one in either language."""
    kept: list[Row] = []
    index: dict[str, dict[str, list[int]]] = {"ja": defaultdict(list), "en": defaultdict(list)}
    sizes: list[dict[str, int]] = []
    for row in rows:
        grams = {lang: {text[i : i + 5] for i in range(len(text) - 4)} for lang, text in row.text.items()}
        like = False
        for lang, own in grams.items():
            shared = Counter(other for gram in own for other in index[lang].get(gram, ()))
            like |= any(n / (len(own) + sizes[other][lang] - n) > SAME for other, n in shared.items())
        if like:
            continue
        for lang, own in grams.items():
            for gram in own:
                index[lang][gram].append(len(kept))
        sizes.append({lang: len(own) for lang, own in grams.items()})
        kept.append(row)
    return kept


def balance(rows: list[Row]) -> list[Row]:
    """At most MOST_ROWS, the cap per class as high as that allows; which rows stay is decided by a hash of the name."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: hashlib.sha256(row.package.encode()).digest()):
        groups[row.label].append(row)
    cap = max(cap for cap in range(1, MOST_ROWS) if sum(min(cap, len(g)) for g in groups.values()) <= MOST_ROWS)
    return sorted((row for group in groups.values() for row in group[:cap]), key=lambda row: row.package)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="folder for the two files")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        rows = read_rows(fetch_indices(Path(folder)))
    print(f"{len(rows)} packages described in both languages")
    rows = one_per_family(rows)
    print(f"{len(rows)} after keeping one package per source")
    rows = without_near_duplicates(rows)
    print(f"{len(rows)} without near-duplicates")
    rows = balance(rows)
    out.mkdir(parents=True, exist_ok=True)
    for side, language, header in ((0, "ja", ("パッケージ", "本文", "区分")), (1, "en", ("package", "text", "label"))):
        path = out / f"debian-{language}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows((row.package, row.text[language], row.label[side]) for row in rows)
        print(f"{path}: {len(rows)} rows, {path.stat().st_size:,} bytes")
    for (ja, en), count in Counter(row.label for row in rows).most_common():
        print(f"{count:6} {en} ({ja})")


if __name__ == "__main__":
    main()
