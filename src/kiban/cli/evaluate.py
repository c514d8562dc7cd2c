"""`kiban eval`: how fast a model that writes is in each format, and what that costs in quality."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kiban.cli.console import Console, current
from kiban.cli.options import AsJson, Field, Lang
from kiban.cli.sizes import shown
from kiban.config import Progress
from kiban.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from kiban import zoo
    from kiban.engine.decoder import DecoderPlan, Weights
    from kiban.evaluate.fidelity import Fidelity

FORMATS: tuple[Weights, ...] = ("fp32", "bf16", "int8", "int4")
CONTEXT = 512  # tokens of a text that are read together
MOST = 4096  # tokens of a language that are scored
PROMPT, NEW, REPEATS = 32, 16, 3  # of the timing
HEADERS = {
    "ja": ("形式", "重み", "速度 (fp32 比)", "言語", "トークン", "KL (95%区間)", "第一候補の一致", "パープレキシティ"),
    "en": ("format", "weights", "speed (of fp32)", "text", "tokens", "KL (95% interval)", "same first", "perplexity"),
}
WORDS = {
    "ja": "KL: 元の重み (fp32) との隔たり、1トークン当たり nat。速度: 1件ずつの生成、トークン/秒",
    "en": "KL: distance from the exact weights (fp32), nats per token. Speed: one answer at a time, tokens/s",
}


@dataclass(frozen=True)
class Measured:
    """A format. num_bytes: of the weights; speed: tokens a second of one answer; times: its speed by that of fp32."""

    format: Weights
    num_bytes: int
    speed: float
    times: float
    fidelity: Mapping[str, Fidelity]  # by language


def eval_command(
    model: Annotated[str, typer.Argument(help="catalogue name, folder or GGUF file of a model that writes")],
    on: Annotated[list[Path] | None, typer.Option(help="texts to measure on; default: a built-in sample")] = None,
    format: Annotated[
        Literal["all", "fp32", "bf16", "int8", "int4"], typer.Option(help="how the weights are kept")
    ] = "all",
    field: Field = "text",
    as_json: AsJson = False,
    lang: Lang = None,
) -> None:
    """Speed and quality of the formats that `kiban serve --weights` offers: KL and first choices beside fp32.

    Examples:

      kiban eval smollm2-135m-instruct

      kiban eval smollm2-135m-instruct --format int4 --on letters/ --json
    """
    console = current(lang)
    from kiban.api import load
    from kiban.engine.decoder import DecoderPlan

    with console.progress() as progress:
        loaded = load(model, progress=progress).loaded
        if loaded is None or not DecoderPlan.fits(loaded):
            raise ConfigError(model, why="is not a model that writes, of Llama's shape", hint="`kiban models`")
        if loaded.tokenizer is None:
            raise ConfigError(model, why="has no tokenizer", hint="add its tokenizer.json to the folder")
        texts = _texts(on, field, progress)
        rows = {language: pieces for language, some in texts.items() if (pieces := _rows(loaded, some))}
        if not rows:
            raise DatasetError("--on", why="has no text of two tokens", hint="give a longer text")
        exact = DecoderPlan(loaded)
        found = []
        for number, name in enumerate(FORMATS if format == "all" else (format,)):
            progress(name, number, len(FORMATS) if format == "all" else 1)
            found.append(_measured(loaded, exact, name, rows))
    if as_json:
        told = {"model": model, "context": CONTEXT, "formats": [dataclasses.asdict(one) for one in found]}
        console.print(json.dumps(told, ensure_ascii=False, indent=1))
    else:
        _show(console, found)


def _texts(on: list[Path] | None, field: str, progress: Progress) -> dict[str, list[str]]:
    """By language, no more than can be scored."""
    from kiban.data.corpus import read_texts
    from kiban.inputs.learn.compare import by_language, sample

    if not on:
        return sample()
    chosen, characters = [], 0
    for row in read_texts(on, field=field, progress=progress):
        chosen.append(row.text)
        characters += len(row.text)
        if characters > 16 * MOST:
            break
    return by_language(chosen)


def _rows(loaded: zoo.Loaded, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts, in pieces that the model can read, MOST in all."""
    assert loaded.tokenizer is not None
    size, left = min(CONTEXT, loaded.config.max_seq_len), MOST
    pieces: list[list[int]] = []
    for ids in loaded.tokenizer.encode_batch(list(texts), add_special=False):
        kept = ids[:left]
        left -= len(kept)
        pieces += [kept[start : start + size] for start in range(0, len(kept), size)]
    return [piece for piece in pieces if len(piece) > 1]


def _measured(
    loaded: zoo.Loaded, exact: DecoderPlan, name: Weights, rows: Mapping[str, Sequence[Sequence[int]]]
) -> Measured:
    from kiban.engine.decoder import DecoderPlan
    from kiban.engine.probe import measure
    from kiban.evaluate.fidelity import fidelity

    plan = exact if name == "fp32" else DecoderPlan(loaded, weights=name)
    prompt = next(row for some in rows.values() for row in some)[:PROMPT]
    seconds = measure({"fp32": partial(_write, exact, prompt), name: partial(_write, plan, prompt)}, repeats=REPEATS)
    module: Any = loaded.module
    return Measured(
        format=name,
        num_bytes=plan.num_bytes,
        speed=NEW / seconds[name],
        times=seconds["fp32"] / seconds[name],
        fidelity={language: fidelity(plan, module, some) for language, some in rows.items()},
    )


def _write(plan: DecoderPlan, prompt: Sequence[int]) -> None:
    """Decode NEW tokens greedily."""
    import torch

    cache, tokens = plan.make_cache(1, len(prompt) + NEW), torch.tensor([list(prompt)])
    for _ in range(NEW):
        tokens = plan(tokens, cache=cache, last_only=True).argmax(-1)


def _show(console: Console, found: Sequence[Measured]) -> None:
    rows = []
    for one in found:
        facts: tuple[str, ...] = (one.format, shown(one.num_bytes), f"{one.speed:.1f} ({one.times:.2f})")
        for number, (language, f) in enumerate(one.fidelity.items()):
            kl, top1 = f"{f.kl[0]:.2e} ({f.kl[1]:.2e}–{f.kl[2]:.2e})", f"{100 * f.top1[0]:.1f}%"
            facts = ("", "", "") if number else facts
            rows.append((*facts, language, f"{f.tokens:,}", kl, top1, f"{f.perplexity[0]:.2f}"))
    console.table(HEADERS[console.lang], rows)
    console.note(WORDS[console.lang])
