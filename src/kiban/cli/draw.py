"""What `kiban run` does with a model that draws: options, files, words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiban.cli.console import Console
from kiban.errors import ConfigError

if TYPE_CHECKING:
    from kiban.api import Model
    from kiban.generate.draw import Drawing

MAX_SEED = 2**63 - 1
Output = Annotated[Path | None, typer.Option("--output", "-o", help="PNG file of the picture / 絵を書く PNG ファイル")]
Init = Annotated[Path | None, typer.Option(help="picture to start from / 元にする絵")]
Mask = Annotated[Path | None, typer.Option(help="with --init: white where to paint / --init の絵を描き直す所を白く")]
Edit = Annotated[Path | None, typer.Option(help="picture that the prompt tells how to change / 指示文どおりに直す絵")]
Negative = Annotated[str | None, typer.Option(help="what to keep away from / 避けたいもの")]
Steps = Annotated[int | None, typer.Option(help="steps of the sampler; default 25 / ステップ数")]
Sampler = Annotated[str | None, typer.Option(help="ddim, dpm++2m (default), euler, euler-a, heun, plms or ddpm")]
GuidanceScale = Annotated[
    float | None, typer.Option("--guidance", help="how strongly to follow the prompt; default 7.5 / 指示への忠実さ")
]
ImageGuidance = Annotated[
    float | None, typer.Option(help="with --edit: how much to keep of the picture; default 1.5 / 元の絵への忠実さ")
]
Strength = Annotated[
    float | None, typer.Option(help="with --init: how much to change, 0 to 1 / --init の絵を変える度合い")
]
Width = Annotated[int | None, typer.Option(help="pixels, a multiple of 8 / 幅")]
Height = Annotated[int | None, typer.Option(help="pixels, a multiple of 8 / 高さ")]
Num = Annotated[int, typer.Option(min=1, help="pictures, with this seed and those after it, and a sheet of all / 枚数")]
Preset = Annotated[
    str | None, typer.Option(help="size of a Stable Diffusion in one .safetensors file, if two fit, e.g. sd2-768")
]
WORDS = {
    "written": {"ja": "{path} (シード {seed})", "en": "{path} (seed {seed})"},
    "refused": {
        "ja": "{path} (シード {seed}): 検査で不適切とされたため、黒い絵に置き換えました",
        "en": "{path} (seed {seed}): refused by the check, a black picture stands in its place",
    },
    "sheet": {"ja": "一覧: {path}", "en": "All of them: {path}"},
}


def drawing(options: Mapping[str, Any]) -> Drawing:
    """The settings of a drawing from those options that were given. Raises ConfigError for impossible ones."""
    from kiban.generate.draw import Drawing
    from kiban.generate.images import ImageSampling

    names = {"sampler": "sampler", "steps": "num_steps"}
    sampling = {ours: options[name] for name, ours in names.items() if options[name] is not None}
    names = {"guidance": "guidance_scale", "image_guidance": "image_guidance_scale"}
    names |= {name: name for name in ("negative", "strength", "width", "height")}
    given = {ours: options[name] for name, ours in names.items() if options[name] is not None}
    return Drawing(sampling=ImageSampling(**sampling), **given)


def check_output(path: Path | None) -> None:
    """Raises ConfigError for a file that cannot be written, or cannot hold the settings, before the long work."""
    if path is None:
        return
    if path.suffix.lower() != ".png":
        hint = "name it .png: such files hold the settings with which they were made"
        raise ConfigError("--output", field=str(path), why="is no PNG file", hint=hint)
    if not path.parent.is_dir():
        raise ConfigError("--output", field=str(path.parent), why="is no folder", hint="make it, or name another")


def draw_command(
    console: Console,
    model: Model,
    prompt: str,
    how: Drawing,
    options: Mapping[str, Any],
    *,
    num: int,
    seed: int,
    as_json: bool,
) -> None:
    """Draw num pictures and write them: one to the output, several beside it, and the output then shows all of them.

    options: the output and the pictures to start from, by name.
    """
    from kiban.inputs.picture_file import contact_sheet, write_png

    output: Path | None = options["output"]
    if output is None:
        raise ConfigError("--output", why="is missing; this model draws", hint="for example -o out.png")
    seeds = [first % (MAX_SEED + 1) for first in range(seed, seed + num)]
    pictures = {name: options[name] for name in ("init", "mask", "edit") if options[name] is not None}
    with console.progress() as progress:
        drawn = model.draw(prompt, how, seeds=seeds, progress=progress, **pictures)
    paths = [output] if num == 1 else [output.with_stem(f"{output.stem}-{n}") for n in range(1, num + 1)]
    for path, picture in zip(paths, drawn, strict=True):
        write_png(picture.image, path, picture.facts)
    if num > 1:
        facts = {**drawn[0].facts, "seed": seeds, "sheet": [path.name for path in paths]}
        write_png(contact_sheet([picture.image for picture in drawn]), output, facts)
    rows = [(str(path), seed, d.refused) for path, seed, d in zip(paths, seeds, drawn, strict=True)]
    if as_json:
        console.print(json.dumps([{"file": f, "seed": s, "refused": r} for f, s, r in rows], ensure_ascii=False))
        return
    for path_, number, refused in rows:
        words = WORDS["refused" if refused else "written"][console.lang]
        console.print(words.format(path=path_, seed=number))
    if num > 1:
        console.print(WORDS["sheet"][console.lang].format(path=output))
