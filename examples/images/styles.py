"""The styles that the emoji are drawn in, as small pictures on white."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from images.concepts import COLOUR, Concept

SIZE = 64  # pixels
Files = Mapping[str, bytes]
Pictures = Iterator[tuple[Concept, bytes]]


@dataclass(frozen=True)
class Style:
    """A set of emoji by one hand. held_out: none of its pictures is in the training part."""

    name: str
    package: str
    read: Callable[[Files, Sequence[Concept], Mapping[str, str]], Pictures]
    licence: str
    attribution: str
    held_out: bool = False


def on_white(data: bytes, size: int, *, square: bool = True) -> bytes:
    """A picture as PNG in RGB, what is transparent in white: size x size pixels, or no side longer than size.

    PNG of the size that is asked for keep their pixels.
    """
    from PIL import Image

    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    if max(picture.size) > size or (square and max(picture.size) != size):
        scale = size / max(picture.size)
        shape = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        # Premultiplied, else the colour of transparent pixels bleeds into the edges.
        picture = picture.convert("RGBa").resize(shape, Image.Resampling.LANCZOS).convert("RGBA")
    ground = Image.new("RGBA", (size, size) if square else picture.size, "white")
    left, top = (ground.width - picture.width) // 2, (ground.height - picture.height) // 2
    ground.alpha_composite(picture, (left, top))
    file = io.BytesIO()
    ground.convert("RGB").save(file, "PNG", optimize=True)
    return file.getvalue()


def render(svg: str, size: int) -> bytes:
    """An SVG picture as PNG with transparency, its longer side of size pixels; one without a viewBox keeps its size."""
    import resvg_py

    tag = re.search(r"<svg\b[^>]*>", svg)
    box = re.search(r'viewBox="([^"]+)"', tag[0]) if tag else None
    side = {}
    if box:
        width, height = map(float, re.split(r"[ ,]+", box[1].strip())[2:])
        side = {"width" if width >= height else "height": size}
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, dpi=96, skip_system_fonts=True, **side))


def slug(name: str) -> str:
    """A name as the files of icon sets spell it: "man: red hair" is man-red-hair."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain.replace("&", "and").replace("'", "")).strip("-")


def slugs(concepts: Sequence[Concept]) -> dict[str, str]:
    """Concept -> slug of its English name, where no other concept has the same."""
    found = {concept.id: slug(concept.names["en"]) for concept in concepts}
    count = Counter(found.values())
    return {id: name for id, name in found.items() if count[name] == 1}


def datasource(folder: str, files: Files, concepts: Sequence[Concept], names: Mapping[str, str]) -> Pictures:
    """PNG of emoji-datasource, which are of the size already; their names are the code points."""
    for concept in concepts:
        data = files.get(f"package/img/{folder}/{SIZE}/{concept.id.lower()}.png")
        if data is not None:
            yield concept, on_white(data, SIZE)


def openmoji(files: Files, concepts: Sequence[Concept], names: Mapping[str, str]) -> Pictures:
    """SVG by code points, with or without the marks that ask for colour."""
    for concept in concepts:
        for id in (concept.id, concept.id.replace(f"-{COLOUR}", "")):
            data = files.get(f"package/color/svg/{id}.svg")
            if data is not None:
                yield concept, on_white(render(data.decode("utf-8"), SIZE), SIZE)
                break


def iconify(files: Files, concepts: Sequence[Concept], names: Mapping[str, str]) -> Pictures:
    """SVG of an icon set in Iconify's JSON. A concept's icon is the one that chars.json names, else that of its slug."""
    icons = json.loads(files["package/icons.json"])
    chars = {code.replace(f"-{COLOUR.lower()}", ""): name for code, name in _chars(files).items()}
    for concept in concepts:
        named = chars.get(concept.id.lower().replace(f"-{COLOUR.lower()}", ""))
        for name in filter(None, (named, names.get(concept.id))):
            if name in icons["icons"] or name in icons.get("aliases", {}):
                yield concept, on_white(render(icon_svg(icons, name), SIZE), SIZE)
                break


def _chars(files: Files) -> dict[str, str]:
    return dict(json.loads(files["package/chars.json"]))


def icon_svg(icons: Mapping[str, Any], name: str) -> str:
    """The SVG of an icon, or of the one that it is an alias of, mirrored if the alias says so."""
    mirrored = False
    while name not in icons["icons"]:
        alias = icons["aliases"][name]
        mirrored ^= alias.get("hFlip", False)
        name = alias["parent"]
    icon = icons["icons"][name]
    left, top = (icon.get(side, icons.get(side, 0)) for side in ("left", "top"))
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    body = icon["body"]
    if mirrored:
        body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">{body}</svg>'


STYLES = [
    Style(
        "noto", "emoji-datasource-google", partial(datasource, "google"), "Apache-2.0",
        "Noto Emoji, Google (github.com/googlefonts/noto-emoji), packed by emoji-datasource (MIT, Cal Henderson)",
    ),
    Style(
        "twemoji", "emoji-datasource-twitter", partial(datasource, "twitter"), "CC-BY-4.0",
        "Twemoji, Twitter, Inc and other contributors (github.com/jdecked/twemoji), packed by emoji-datasource",
    ),
    Style(
        "noto-v1", "@iconify-json/noto-v1", iconify, "Apache-2.0",
        "Noto Emoji of 2016, the blobs, Google (github.com/googlefonts/noto-emoji), packed by Iconify",
    ),
    Style(
        "emojione", "@iconify-json/emojione", iconify, "CC-BY-4.0",
        "Emoji One 2.3, Emoji One and EmojiTwo (github.com/EmojiTwo/emojitwo), packed by Iconify",
    ),
    Style(
        "fluent", "@iconify-json/fluent-emoji", iconify, "MIT",
        "Fluent Emoji, Microsoft Corporation (github.com/microsoft/fluentui-emoji), packed by Iconify",
    ),
    Style(
        "fluent-flat", "@iconify-json/fluent-emoji-flat", iconify, "MIT",
        "Fluent Emoji Flat, Microsoft Corporation (github.com/microsoft/fluentui-emoji), packed by Iconify",
    ),
    # Drawn with outlines, unlike the others; and share-alike, so that no weights are trained on it.
    Style(
        "openmoji", "openmoji", openmoji, "CC-BY-SA-4.0",
        "OpenMoji, the open-source emoji and icon project (openmoji.org), HfG Schwäbisch Gmünd", held_out=True,
    ),
]  # fmt: skip
