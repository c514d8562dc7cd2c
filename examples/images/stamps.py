"""The stamps of Tux Paint: photographs and drawings, each with a sentence in Japanese and in English."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from images.styles import on_white, render
from texts.archives import Archives

PACKAGE, ROOT = "tuxpaint-stamps-default", "usr/share/tuxpaint/stamps"
SIZE = 256  # pixels of the longer side at most


@dataclass(frozen=True)
class Stamp:
    """A picture as PNG. name: its file's; category: the topmost folder, animals."""

    name: str
    picture: bytes
    captions: dict[str, list[str]]
    category: str


def sentences(text: str) -> dict[str, list[str]]:
    """Language -> the sentence, of a stamp's .txt: English in the first line, then ja.utf8=... and others."""
    first, *lines = text.splitlines() or [""]
    japanese = next((line.partition("=")[2] for line in lines if re.match(r"ja(\.utf8)?=", line)), "")
    both = {"ja": " ".join(japanese.split()), "en": " ".join(first.split())}
    return {language: [sentence] for language, sentence in both.items() if sentence}


def stamps(archives: Archives) -> Iterator[Stamp]:
    """The stamps that have both sentences, by name; of a picture in both formats the PNG."""
    files = dict(archives.members(PACKAGE, rf"{ROOT}/.*\.(png|svg|txt)"))
    for name in sorted(files):
        path = PurePosixPath(name)
        if path.suffix != ".txt":
            continue
        captions = sentences(files[name].decode("utf-8", "replace"))
        pixels, drawing = files.get(str(path.with_suffix(".png"))), files.get(str(path.with_suffix(".svg")))
        if len(captions) < 2 or (pixels is None and drawing is None):
            continue
        if pixels is None:
            assert drawing is not None
            pixels = render(drawing.decode("utf-8"), SIZE)
        where = path.relative_to(ROOT)
        yield Stamp(str(where.with_suffix(".png")), on_white(pixels, SIZE, square=False), captions, where.parts[0])
