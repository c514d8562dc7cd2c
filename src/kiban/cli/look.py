"""What `kiban run` does with a model that sees: classify pictures by names, and search a folder of them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kiban.cli.console import Console
from kiban.cli.draw import check_output
from kiban.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from kiban.api import Model

VERBS = ("classify", "search")
SHOWN = 5  # labels of a picture; all of them in JSON
THUMBNAIL = 192  # pixels
Labels = Annotated[
    str | None, typer.Option(help='classes of pictures, for example "cat,dog" / 絵を分ける名前。例 "猫,犬,鳥"')
]
Top = Annotated[int | None, typer.Option(min=1, help="pictures that a search shows; default 5 / 検索で示す枚数")]
WORDS = {
    "left_out": {"ja": "除外: {error}", "en": "Left out: {error}"},
    "picture": {"ja": "絵", "en": "picture"},
    "likeness": {"ja": "類似度", "en": "likeness"},
    "sheet": {"ja": "一覧: {path}", "en": "All of them: {path}"},
}


def asked(model: Model, task: str | None, words: list[str]) -> tuple[str, list[str]]:
    """What is asked of the model, and the words that it is asked about. `classify` and `search` may stand before these.

    Raises ConfigError for several texts, or for what needs eyes if the model has none.
    """
    verb = words[0] if words and words[0] in VERBS and (len(words) > 1 or model.sees) else None
    if task is None and verb is not None:
        if verb not in model.abilities and not model.sees:
            hint = f"it can: {', '.join(model.abilities)}; `kiban models --reads image` lists models that see"
            raise ConfigError(verb, why="this model sees no pictures", hint=hint)
        task, words = verb, words[1:]
    kind = task or model.ability
    if len(words) > 1 and not (model.sees and kind in VERBS):
        raise ConfigError("kiban run", field=words[1], why="is one text too many", hint="put the whole text in quotes")
    return kind, words


def embedding(model: Model, text: str) -> list[float]:
    """Of a text, or of a picture if text is the name of its file and the model sees."""
    found = model.embed(images=Path(text)) if model.sees and _is_picture(text) else model.embed(text)
    return [float(x) for x in found]


def _is_picture(text: str) -> bool:
    """Whether it is the name of a picture, or of some file; a name that is only mistyped is no text to search for."""
    from kiban.data.photos import PICTURES

    path = Path(text)
    try:
        return path.suffix.lower() in PICTURES or path.is_file()
    except (OSError, ValueError):  # a text can be longer than a name
        return False


def look_command(
    console: Console,
    model: Model,
    kind: str,
    words: Sequence[str],
    *,
    labels: str | None,
    top: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Do what is asked, and print it. Raises ConfigError for options that are of no use to it."""
    name, useless = ("--top", top) if kind == "classify" else ("--labels", labels)
    if useless is not None:
        raise ConfigError(name, why=f"is of no use to {kind}", hint="leave it out")
    if kind == "classify":
        _classify(console, model, words, labels, as_json=as_json)
    else:
        _search(console, model, words, top=5 if top is None else top, output=output, as_json=as_json)


def refuse_options(labels: str | None, top: int | None) -> None:
    """Raises ConfigError for options of this module that were given for something else."""
    for name, value in (("--labels", labels), ("--top", top)):
        if value is not None:
            hint = "kiban run MODEL classify|search ..., with a model that sees"
            raise ConfigError(name, why="is for pictures alone", hint=hint)


def _classify(console: Console, model: Model, words: Sequence[str], labels: str | None, *, as_json: bool) -> None:
    from kiban.evaluate.album import picture_files

    names = [name.strip() for name in re.split("[,、，]", labels or "") if name.strip()]
    if labels is not None and not names:
        raise ConfigError("--labels", why="names no class", hint='for example --labels "cat,dog"')
    pictures: list[Path] = []
    loose: set[int] = set()  # found in a folder, where one that is broken is no reason to stop
    for word in words:
        path = Path(word)
        found = picture_files(path) if path.is_dir() else [path]
        loose |= set(range(len(pictures), len(pictures) + len(found))) if path.is_dir() else set()
        pictures += found
    if not pictures:
        hint = 'kiban run MODEL classify picture.png --labels "cat,dog"'
        raise ConfigError("kiban run", why="no picture given", hint=hint)

    def on_broken(place: int, error: DatasetError) -> None:
        if place not in loose:
            raise error
        console.note(WORDS["left_out"][console.lang].format(error=error))

    with console.progress() as progress:
        answers = model.classify_images(pictures, names, on_broken=on_broken, progress=progress)
    rows = [(str(path), _ranked(answer)) for path, answer in zip(pictures, answers, strict=True) if answer is not None]
    if as_json:
        told = [{"file": file, "labels": dict(ranked)} for file, ranked in rows]
        console.print(json.dumps(told, ensure_ascii=False))
        return
    shown = min(SHOWN, max((len(ranked) for _, ranked in rows), default=0))
    headers = [WORDS["picture"][console.lang], *map(str, range(1, shown + 1))]
    console.table(headers, [(file, *(f"{name} {p:.3f}" for name, p in ranked[:shown])) for file, ranked in rows])


def _ranked(answer: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(answer.items(), key=lambda item: -item[1])


def _search(
    console: Console, model: Model, words: Sequence[str], *, top: int, output: Path | None, as_json: bool
) -> None:
    if len(words) != 2 or not words[1].strip():
        hint = 'kiban run MODEL search FOLDER "a red car", or a picture in place of the text'
        raise ConfigError("kiban run", why="search takes a folder and what to look for", hint=hint)
    check_output(output)
    folder, query = Path(words[0]), Path(words[1]) if _is_picture(words[1]) else words[1]
    with console.progress() as progress:
        # The query first: it is checked in a moment, and the folder may take minutes.
        vector = model.embed(query) if isinstance(query, str) else model.embed(images=query)
        album = model.album(folder, progress=progress)
    for error in album.left_out:
        console.note(WORDS["left_out"][console.lang].format(error=error))
    found = album.nearest(vector, most=top)
    told = [{"file": str(path), "similarity": cosine} for path, cosine in found]
    if output is not None:
        _write_sheet(output, [path for path, _ in found], {"search": str(words[1]), "found": told})
    if as_json:
        console.print(json.dumps(told, ensure_ascii=False))
        return
    headers = (WORDS["likeness"][console.lang], WORDS["picture"][console.lang])
    console.table(headers, [(f"{cosine:.3f}", str(path)) for path, cosine in found])
    if output is not None:
        console.print(WORDS["sheet"][console.lang].format(path=output))


def _write_sheet(output: Path, paths: Sequence[Path], facts: dict[str, object]) -> None:
    from kiban.inputs.image import read_image
    from kiban.inputs.picture_file import contact_sheet, write_png

    images = [read_image(path) for path in paths]
    for image in images:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
    write_png(contact_sheet(images), output, facts)
