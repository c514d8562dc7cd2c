"""Fetch real pictures with captions in Japanese and English into examples/cache/.

    python examples/get_images.py emoji     # needs npm and pip install resvg-py; 169 MB of downloads
    python examples/get_images.py stamps    # needs apt (Debian 12) and resvg-py; 161 MB; for tests only, see IMAGES.md
    python examples/get_images.py all

emoji/ holds 1,644 concepts in seven drawing styles at 64 x 64 pixels, in four parts: train/; new-concepts/, concepts that
train/ does not show; new-style/, its concepts in a style that it does not show; and new-both/. Each part is a folder of
PNG and a metadata.jsonl that `kiban.data.pairs` and Hugging Face's imagefolder read. stamps/ holds photographs and
drawings with whole sentences; stamps/test/ has a folder for each of 16 categories, as `kiban adopt` takes it. Archives are
checked against a pinned sha256 (those of Debian by apt), kept in examples/cache/archives/, and read member by member:
nothing is installed or run. What is there already is not made again; delete the folder to renew it. What the pictures are,
and their licences: examples/data/IMAGES.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from images import stamps as tux
from images.classes import GROUPS, SUBGROUPS
from images.concepts import (
    LANGUAGES,
    Concept,
    check_split,
    distinct_captions,
    group,
    is_held_out,
    read_annotations,
    read_concepts,
)  # fmt: skip
from images.packages import PACKAGES, members
from images.styles import STYLES, Pictures, slugs
from texts.archives import Archives, UnavailableError

CACHE = Path(os.path.relpath(Path(__file__).parent / "cache"))
CLDR = ("cldr-annotations-full", "cldr-annotations-derived-full")
PARTS = {(False, False): "train", (True, False): "new-concepts", (False, True): "new-style", (True, True): "new-both"}


class Folder:
    """A folder of parts that appears when all is written: pictures, metadata.jsonl of each part, SOURCES.json."""

    def __init__(self, path: Path) -> None:
        self.path, self.part = path, path.with_name(f".{path.name}.part")
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.bytes = 0
        shutil.rmtree(self.part, ignore_errors=True)

    def add(self, part: str, name: str, picture: bytes, **row: Any) -> None:
        """Write a picture; keep its row."""
        path = self.part / part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
        self.bytes += len(picture)
        self.rows.setdefault(part, []).append({"file_name": name, **row})

    def finish(self, facts: dict[str, Any]) -> None:
        """Write the rows and facts, and move everything to its place."""
        for part, rows in self.rows.items():
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (self.part / part / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
        text = json.dumps({**facts, "bytes": self.bytes}, ensure_ascii=False, indent=1)
        (self.part / "SOURCES.json").write_text(text, encoding="utf-8")
        self.part.replace(self.path)


def row_of(concept: Concept, group: str, captions: dict[str, list[str]]) -> dict[str, Any]:
    """What metadata.jsonl says of a concept."""
    return {
        "id": concept.id,
        "emoji": concept.text,
        "concept": group,
        "captions": captions,
        "keywords": concept.keywords,
        "group_en": concept.category,
        "group_ja": GROUPS[concept.category],
        "subgroup_en": concept.subcategory,
        "subgroup_ja": SUBGROUPS[concept.subcategory],
    }


def unambiguous(pictures: Pictures, groups: Mapping[str, str]) -> Pictures:
    """The pictures of a style without those that stand for concepts of different groups.

    An old set calls the game "cricket", which is an insect today; such icons come up twice. groups: concept -> group.
    """
    found = list(pictures)
    shown: dict[bytes, set[str]] = {}
    for concept, picture in found:
        shown.setdefault(picture, set()).add(groups[concept.id])
    return (item for item in found if len(shown[item[1]]) == 1)


def emoji(target: Path, archives: Path) -> dict[str, Any]:
    """Write the emoji in all styles; returns what SOURCES.json says."""
    annotations = [item for name in CLDR for item in members(name, archives).items()]
    said = {
        language: read_annotations(data for name, data in annotations if f"/{language}/" in name)
        for language in LANGUAGES
    }
    concepts = read_concepts(members(STYLES[0].package, archives)["package/emoji.json"], said)
    groups = group(concepts)
    held_out = [is_held_out(name) for name in groups]
    by_language = [distinct_captions(concepts, groups, language) for language in LANGUAGES]
    captions = [dict(zip(LANGUAGES, texts, strict=True)) for texts in zip(*by_language, strict=True)]
    check_split(concepts, held_out, [list(itertools.chain(*texts.values())) for texts in captions])
    rows = {c.id: row_of(c, name, texts) for c, name, texts in zip(concepts, groups, captions, strict=True)}
    folder, counts, names = Folder(target), Counter[tuple[str, str]](), slugs(concepts)
    for style in STYLES:
        drawn = style.read(members(style.package, archives), concepts, names)
        for concept, picture in unambiguous(drawn, dict(zip(rows, groups, strict=True))):
            row = rows[concept.id]
            part = PARTS[is_held_out(row["concept"]), style.held_out]
            place = f"{style.name}/{concept.id.lower()}.png"
            folder.add(part, place, picture, style=style.name, licence=style.licence, **row)
            counts[part, style.name] += 1
        print(f"{style.name}: {sum(n for (_, s), n in counts.items() if s == style.name):,} pictures", flush=True)
    result = summary(rows.values(), sum(held_out), counts)
    folder.finish(result)
    return result


def summary(rows: Collection[dict[str, Any]], held_out: int, counts: Counter[tuple[str, str]]) -> dict[str, Any]:
    """Counts, licences and attribution. rows: one a concept."""
    packages = [*CLDR, *(style.package for style in STYLES)]
    return {
        "concepts": {"shown": len(rows) - held_out, "held out": held_out},
        "captions": {language: sum(len(row["captions"][language]) for row in rows) for language in LANGUAGES},
        "pictures": {part: sum(n for (p, _), n in counts.items() if p == part) for part in PARTS.values()},
        "styles": {
            style.name: {
                "pictures": sum(n for (_, s), n in counts.items() if s == style.name),
                "licence": style.licence, "attribution": style.attribution, "held_out": style.held_out,
            }
            for style in STYLES
        },
        "captions_licence": "Unicode-3.0", "captions_attribution": "Unicode CLDR 48, Unicode, Inc. (unicode.org)",
        "packages": {name: {"version": PACKAGES[name].version, "sha256": PACKAGES[name].sha256} for name in packages},
    }  # fmt: skip


def stamps(target: Path, archives: Path) -> dict[str, Any]:
    """Write the stamps of Tux Paint; returns what SOURCES.json says."""
    folder, counts = Folder(target), Counter[str]()
    with tempfile.TemporaryDirectory() as scratch:
        source = Archives(archives, Path(scratch))
        for stamp in tux.stamps(source):
            folder.add("test", stamp.name, stamp.picture, captions=stamp.captions, label=stamp.category)
            counts[stamp.category] += 1
    result = {
        "pictures": counts.total(), "categories": dict(counts.most_common()),
        "licence": "GPL-2 as a whole; single pictures also GFDL, CC BY-SA and others",
        "attribution": "Tux Paint stamps, Bill Kendrick and contributors (tuxpaint.org)", "packages": source.used,
    }  # fmt: skip
    folder.finish(result)
    return result


SETS = {"emoji": emoji, "stamps": stamps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*SETS, "all"])
    name = parser.parse_args().name
    for module, package in (("PIL", "pillow"), ("resvg_py", "resvg-py")):
        if importlib.util.find_spec(module) is None:
            sys.exit(f"get_images.py: needs {package} to draw pictures; run: pip install {package}")
    for chosen in SETS if name == "all" else [name]:
        target = CACHE / chosen
        if target.exists():
            print(f"{target} is already there")
            continue
        try:
            facts = SETS[chosen](target, CACHE / "archives")
        except UnavailableError as error:
            sys.exit(f"get_images.py: {error}")
        shown = {key: value for key, value in facts.items() if key not in ("packages", "styles")}
        print(f"{target}: {json.dumps(shown, ensure_ascii=False, indent=1)}")


if __name__ == "__main__":
    main()
