"""`kiban pretrain`: a model of one's own from a folder of text."""

from __future__ import annotations

import datetime
import json
import time as clock
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiban.cli.console import Console, current
from kiban.cli.pretrain_words import WORDS
from kiban.cli.sizes import as_count, as_seconds
from kiban.config import did_you_mean, from_dict, override, read_yaml, to_dict, write_yaml
from kiban.errors import ConfigError

if TYPE_CHECKING:
    from kiban.recipes.base import Recipe
    from kiban.recipes.corpus import Corpus
    from kiban.recipes.pretrain import Plan, Pretrained

FAMILIES = ("gpt", "llama", "bert")
TRAINING_SHARE = 0.93  # of the time that is left after preparation; the rest is for the last measurement and for saving


@dataclass(frozen=True, kw_only=True)
class Settings:
    """config.yaml of a run: all that repeats it. seconds are of the whole run; of steps, tokens and seconds one is given."""

    family: str
    data: str
    size: str = "auto"
    seconds: float | None = None
    tokens: int | None = None
    steps: int | None = None
    tokenizer: str | None = None
    vocab_size: int = 0
    field: str = "text"
    precision: str = "auto"
    compile: bool = False
    recompute: bool = False
    ema: float = 0.0
    processes: int = 0
    seed: int = 0
    lang: str = "en"
    recipe: dict[str, Any] | None = None  # settings of the recipe that differ from its own: lr, batch_tokens ...


def pretrain_command(
    family: Annotated[str | None, typer.Argument(help="gpt, llama or bert")] = None,
    data: Annotated[
        Path | None, typer.Option(help="file or folder of text: .txt, .md, .jsonl, .parquet, also .gz and .zst")
    ] = None,
    time: Annotated[str | None, typer.Option(help="time for the whole run, for example 20m; chooses a size")] = None,
    tokens: Annotated[str | None, typer.Option(help="instead of --time: tokens to train on, for example 50M")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="instead of --time: optimiser steps")] = None,
    size: Annotated[str, typer.Option(help="auto, or a size of the recipe; see --sizes")] = "auto",
    tokenizer: Annotated[str | None, typer.Option(help="a folder or catalogue name; default: learn one")] = None,
    vocab_size: Annotated[int, typer.Option(min=0, help="of the tokenizer to learn; 0: by the amount of text")] = 0,
    field: Annotated[str, typer.Option(help="column of the text in JSONL and Parquet")] = "text",
    out: Annotated[Path | None, typer.Option(help="run folder; default: a new one under runs/")] = None,
    resume: Annotated[Path | None, typer.Option(help="continue an interrupted run, with its own settings")] = None,
    config: Annotated[Path | None, typer.Option(help="the config.yaml of a run, to repeat it")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="name=value of config.yaml, for example recipe.lr=1e-3")
    ] = None,
    sizes: Annotated[bool, typer.Option("--sizes", help="list the sizes of a family and stop")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="prepare the text, tell the plan, do not train")] = False,
    compile_model: Annotated[
        bool, typer.Option("--compile", help="compile the blocks (a minute, then faster)")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
    lang: Annotated[str | None, typer.Option(help="ja or en; default: from LANG")] = None,
) -> None:
    """Pretrain a model from random weights on your own text; leaves a model that opens in Hugging Face tools.

    With --time a size is chosen by the scaling law and the speed measured here. Beside the model stands an n-gram model
    (Kneser-Ney, order 5) of the same text and vocabulary, which pretraining has to beat.

    Examples:

      kiban pretrain gpt --data manuals/ --time 20m

      kiban pretrain llama --data corpus.jsonl.zst --size 11m --tokens 100M

      kiban pretrain bert --data manuals/ --size mini --steps 2000 --set recipe.lr=1e-3

      kiban pretrain --resume runs/pretrain-gpt-20260401-093000

      torchrun --nproc_per_node 2 -m kiban pretrain gpt --data manuals/ --tokens 50M --size 3m
    """
    console = current(lang)
    if sizes:
        return _list_sizes(console, family)
    if resume is not None:
        settings, folder = _read(resume), resume
    else:
        given = {
            "family": family,
            "data": None if data is None else str(data.resolve()),
            "size": size,
            "seconds": as_seconds(time, "--time") if time else None,
            "tokens": as_count(tokens, "--tokens") if tokens else None,
            "steps": steps,
            "tokenizer": tokenizer,
            "vocab_size": vocab_size,
            "field": field,
            "compile": compile_model,
            "seed": seed,
            "lang": console.lang,
        }
        settings = _settings(given, config, changes or ())
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        folder = out or Path("runs") / f"pretrain-{settings.family}-{stamp}"
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(folder, why="exists already", hint=f"--resume {folder} goes on with it")
    with console.progress() as progress:
        _run(settings, folder, console, progress, dry_run=dry_run, as_json=as_json)


def _settings(given: dict[str, Any], config: Path | None, changes: Any) -> Settings:
    values = to_dict(Settings(family="", data=""))
    if config is not None:
        values |= read_yaml(config)
    usual = to_dict(Settings(family="", data=""))
    values |= {key: value for key, value in given.items() if value is not None and (value != usual[key] or not config)}
    if values["recipe"] is None:
        values["recipe"] = {}
    names = {change.partition("=")[0].removeprefix("recipe.") for change in changes if change.startswith("recipe.")}
    settings = from_dict(Settings, override({**values, "recipe": dict.fromkeys(names) | values["recipe"]}, changes))
    if settings.family not in FAMILIES:
        hint = did_you_mean(settings.family or "", FAMILIES)
        raise ConfigError("pretrain", field=settings.family or "family", why="there is no recipe for it", hint=hint)
    if not settings.data:
        raise ConfigError("pretrain", field="--data", why="is missing", hint="give a file or folder of text")
    if sum(bool(value) for value in (settings.seconds, settings.tokens, settings.steps)) != 1:
        raise ConfigError("pretrain", why="needs one of --time, --tokens and --steps", hint="for example --time 20m")
    return settings


def _read(folder: Path) -> Settings:
    path = folder / "config.yaml"
    if not path.exists():
        raise ConfigError(folder, why="is not a run folder", hint="give the folder that `kiban pretrain` printed")
    return from_dict(Settings, read_yaml(path))


def _run(settings: Settings, folder: Path, console: Console, progress: Any, *, dry_run: bool, as_json: bool) -> None:
    from kiban import __version__
    from kiban.adopt.folder import environment
    from kiban.inputs.tokenizer import Tokenizer
    from kiban.recipes.corpus import prepare
    from kiban.recipes.leave import leave, plot
    from kiban.recipes.pretrain import Length, pretrain

    started = clock.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    write_yaml(folder / "config.yaml", to_dict(settings))
    facts = json.dumps(environment(), ensure_ascii=False, indent=1)
    (folder / "environment.json").write_text(facts, encoding="utf-8")
    recipes = _recipes(settings)
    own = _tokenizer(settings.tokenizer) if settings.tokenizer else None
    assert own is None or isinstance(own, Tokenizer)
    corpus = prepare(
        Path(settings.data),
        folder / "data",
        next(iter(recipes.values())),
        vocab_size=settings.vocab_size,
        tokenizer=own,
        field=settings.field,
        processes=settings.processes or _cores(),
        progress=progress,
    )
    _tell_corpus(console, corpus)
    seconds = settings.seconds or 0.0
    plans = {name: _plan(settings, recipe, corpus) for name, recipe in recipes.items()}
    plan = _choose(plans, seconds - (clock.monotonic() - started), corpus, console)
    settings = replace(settings, size=plan.recipe.size)  # a resumed run does not choose again
    write_yaml(folder / "config.yaml", to_dict(settings))
    console.note(_say("run", console, folder=folder))
    if dry_run:
        return
    if seconds:
        plan_seconds = TRAINING_SHARE * (seconds - (clock.monotonic() - started))
        if plan_seconds < 5:
            raise ConfigError("--time", why=f"{seconds:g} s are too few for this text", hint="give more time")
        length = Length(seconds=plan_seconds)
    else:
        length = Length(steps=settings.steps or 0, tokens=settings.tokens or 0)
    loaded, result = pretrain(plan, length, folder, note=console.note, progress=progress)
    if result.stopped_by == "sigterm":
        console.note(_say("stopped", console, folder=folder))
        raise typer.Exit(143)
    plot(folder, result, lang=console.lang)
    final = leave(plan, loaded, result, folder, data=Path(settings.data).name, version=__version__)
    _tell_result(console, result, final, as_json)


def _recipes(settings: Settings) -> dict[str, Recipe]:
    """The recipe that was asked for, or those that a time budget chooses from."""
    import importlib

    from kiban.recipes.base import find

    module = importlib.import_module(f"kiban.recipes.{settings.family}")
    if settings.size == "auto" and not settings.seconds:
        raise ConfigError("--size", why="is needed with --tokens and --steps", hint="one of --sizes, or give --time")
    names = module.LADDER if settings.size == "auto" else (settings.size,)
    changes = settings.recipe or {}
    for key in changes:
        if key not in (
            "lr",
            "batch_tokens",
            "micro_tokens",
            "optimizer",
            "weight_decay",
            "schedule",
            "warmup",
            "z_loss",
        ):
            raise ConfigError("recipe", field=key, why="cannot be set")
    return {name: replace(find(module.SIZES, name), **changes) for name in names}


def _plan(settings: Settings, recipe: Recipe, corpus: Corpus) -> Plan:
    from kiban.recipes.pretrain import Plan

    return Plan(
        recipe=recipe,
        corpus=corpus,
        seed=settings.seed,
        precision=settings.precision,  # type: ignore[arg-type]
        compile=settings.compile,
        recompute=settings.recompute,
        ema=settings.ema,
    )


def _choose(plans: dict[str, Plan], seconds: float, corpus: Corpus, console: Console) -> Plan:
    """The plan that the scaling law and the speed here recommend; larger ones are tried until the loss rises."""
    from kiban.choose.scaling import Rung, best_size
    from kiban.recipes.pretrain import measure

    if len(plans) == 1:
        return next(iter(plans.values()))
    rungs: dict[str, Rung] = {}
    for name, plan in plans.items():
        parameters, rate = measure(plan)
        rungs[name] = Rung(parameters, TRAINING_SHARE * seconds * rate)
        best, losses = best_size(rungs, corpus.train.facts.tokens)
        facts = {"size": name, "parameters": parameters, "rate": rate, "loss": losses[name]}
        console.note(_say("rung", console, **facts))
        if best != name:
            break
    console.note(_say("size", console, size=best))
    return plans[best]


def _tokenizer(name: str) -> Any:
    from kiban.inputs.tokenizer import Tokenizer

    if Path(name).is_dir():
        return Tokenizer.from_folder(Path(name))
    from kiban import zoo

    return zoo.load(name).tokenizer


def _cores() -> int:
    import os

    return os.cpu_count() or 1


def _say(key: str, console: Console, **values: Any) -> str:
    return WORDS[key][console.lang].format(**values)


def _tell_corpus(console: Console, corpus: Corpus) -> None:
    facts = corpus.train.facts
    per = facts.characters / facts.tokens
    words = {"documents": facts.documents, "tokens": facts.tokens, "per": per, "held": len(corpus.held_out)}
    console.note(_say("corpus", console, **words))


def _tell_result(console: Console, result: Pretrained, final: Path, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        console.print(json.dumps(asdict(result) | {"final": str(final)}, ensure_ascii=False))
        return
    ours, ngram = result.metrics.get("bits_per_character"), result.ngram_bits_per_character
    if ours is not None and ngram is not None:
        console.print(_say("better" if ours < ngram else "worse", console, ours=ours, ngram=ngram))
    else:
        console.print("  ".join(f"{name} {value:.3f}" for name, value in result.metrics.items()))
    console.print(_say("model", console, final=final))


def _list_sizes(console: Console, family: str | None) -> None:
    import importlib

    from kiban import zoo

    if family not in FAMILIES:
        raise ConfigError("--sizes", field=family or "family", why="there is no recipe for it", hint=str(FAMILIES))
    module, rows = importlib.import_module(f"kiban.recipes.{family}"), []
    import torch

    for name, recipe in module.SIZES.items():
        config = recipe.config(recipe.vocab_size or 4096)
        with torch.device("meta"):
            count = sum(p.numel() for p in zoo.families()[recipe.family].build(config).parameters())
        row = (name, f"{count:,}", f"{config.vocab_size:,}", f"{recipe.seq_len:,}", f"{recipe.batch_tokens:,}")
        rows.append((*row, recipe.optimizer, f"{recipe.lr:.2g}"))
    heads = {
        "ja": ("大きさ", "パラメータ", "語彙", "文脈", "バッチのトークン", "最適化", "学習率"),
        "en": ("size", "parameters", "vocabulary", "context", "tokens a batch", "optimiser", "lr"),
    }
    console.table(heads[console.lang], rows)
