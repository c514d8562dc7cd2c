"""`kiban run`: try a model by what it can do."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from kiban.cli import draw, look
from kiban.cli.console import Console, current
from kiban.errors import ConfigError


def run_command(
    model: Annotated[
        str, typer.Argument(help="catalogue name, folder or id of Hugging Face, GGUF or LDM file, or a run's final/")
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT | classify PICTURE... | search FOLDER QUERY",
            help="a text, from standard input if left out; or pictures, for models that see them",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="chat, generate, embed, fill, classify, search or draw; default: by the model's ability"),
    ] = None,
    labels: look.Labels = None,
    top: look.Top = None,
    max_new_tokens: Annotated[int, typer.Option(help="length of an answer at most")] = 128,
    temperature: Annotated[float, typer.Option(help="0 for the likeliest answer")] = 0.0,
    top_k: Annotated[int, typer.Option(help="sample among the likeliest k; 0 for all")] = 0,
    top_p: Annotated[float, typer.Option(help="sample among the likeliest that make up this probability")] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="leave out what is less than this share as likely as the likeliest")
    ] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="above 1: avoid what was said")] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="text that ends the answer; may be given several times")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=draw.MAX_SEED, help="seed of the sampling")] = 0,
    output: draw.Output = None,
    num: draw.Num = 1,
    init: draw.Init = None,
    mask: draw.Mask = None,
    edit: draw.Edit = None,
    negative: draw.Negative = None,
    steps: draw.Steps = None,
    sampler: draw.Sampler = None,
    guidance: draw.GuidanceScale = None,
    image_guidance: draw.ImageGuidance = None,
    strength: draw.Strength = None,
    width: draw.Width = None,
    height: draw.Height = None,
    preset: draw.Preset = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    lang: Annotated[str | None, typer.Option(help="ja or en; default: from LANG")] = None,
) -> None:
    """Run a model: chat or generate, embed, fill in [MASK], classify texts or pictures, search pictures, or draw.

    Examples:

      kiban run smollm2-135m-instruct "What is the capital of France?"

      kiban run minilm-l6 "foundation models" --json

      kiban run runs/adopt-tickets-20260401-093000/final "請求書の再発行をお願いします"

      kiban run runs/icons/final "赤いりんご" -o apple.png --num 4 --steps 30

      kiban run runs/adopt-photos-20260401-093000/final photo.jpg

      kiban run my-clip classify photo.jpg photos/ --labels "猫,犬,鳥"

      kiban run my-clip search photos/ "赤い車" --top 10 -o found.png

      kiban run resnet-50-imagenet search photos/ query.jpg
    """
    console = current(lang)
    words = words or [_standard_input()]
    if not words[0]:
        raise ConfigError("kiban run", why="no text given", hint='kiban run MODEL "text"')
    from kiban.api import load
    from kiban.generate.sampling import Sampling

    controls: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": tuple(stop or ()),
        "seed": seed,
    }
    picture: dict[str, Any] = {
        "output": output,
        "init": init,
        "mask": mask,
        "edit": edit,
        "negative": negative,
        "steps": steps,
        "sampler": sampler,
        "guidance": guidance,
        "image_guidance": image_guidance,
        "strength": strength,
        "width": width,
        "height": height,
    }
    Sampling(**controls)  # a wrong number is told before the model is loaded
    how = draw.drawing(picture)
    draw.check_output(output)
    with console.progress() as progress:
        opened = load(model, preset=preset, progress=progress)
    kind, words = look.asked(opened, task, words)
    if kind not in opened.abilities:
        raise ConfigError(
            "--task", field=kind, why=f"{model} cannot do this", hint=f"it can: {', '.join(opened.abilities)}"
        )
    seen = opened.sees and kind in look.VERBS
    if not seen:
        look.refuse_options(labels, top)
    text = words[0] if words else ""
    if kind == "draw":
        draw.draw_command(console, opened, text, how, picture, num=num, seed=seed, as_json=as_json)
        return
    given = [
        n for n, value in picture.items() if value is not None and not (seen and kind == "search" and n == "output")
    ]
    if given or num > 1:
        name = (given or ["num"])[0].replace("_", "-")
        raise ConfigError(f"--{name}", why=f"{model} does not draw", hint=f"it can: {', '.join(opened.abilities)}")
    if seen:
        look.look_command(console, opened, kind, words, labels=labels, top=top, output=output, as_json=as_json)
    elif kind in ("chat", "generate"):
        if kind == "chat":
            pieces = opened.stream_chat([{"role": "user", "content": text}], **controls)
        else:
            pieces = opened.stream(text, **controls)
        _answer(console, pieces, as_json)
    elif kind == "embed":
        vector = look.embedding(opened, text)
        short = ", ".join(f"{x:.4f}" for x in vector[:8])
        console.print(json.dumps(vector) if as_json else f"[{short}, ...] ({len(vector)} numbers; --json for all)")
    elif kind == "fill":
        answers = opened.fill(text)
        lines = [f"{score:.3f}  {word}" for word, score in answers]
        console.print(json.dumps(answers, ensure_ascii=False) if as_json else "\n".join(lines))
    else:
        (scores,) = opened.predict_proba([text])
        ranked = sorted(scores.items(), key=lambda item: -item[1])
        console.print(
            json.dumps(dict(ranked), ensure_ascii=False)
            if as_json
            else "\n".join(f"{p:.3f}  {n}" for n, p in ranked[:5])
        )


def _standard_input() -> str:
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        why = f"is not {error.encoding.upper()}, as the terminal's settings say"
        raise ConfigError("standard input", offset=error.start, why=why, hint="convert the text") from error


def _answer(console: Console, pieces: object, as_json: bool) -> None:
    """Show pieces of text as they come, or all at once as JSON."""
    if as_json:
        console.print(json.dumps({"text": "".join(pieces)}, ensure_ascii=False))  # type: ignore[arg-type]
        return
    for piece in pieces:  # type: ignore[attr-defined]
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
