"""`kiban pretrain`: a model of one's own from a folder of text."""

from __future__ import annotations

import datetime
import json
import time as clock
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiban.cli.console import Console, current
from kiban.cli.data_options import open_tokenizer
from kiban.cli.options import AsJson, Field, Lang
from kiban.cli.pretrain_words import WORDS
from kiban.cli.sizes import as_count, as_seconds
from kiban.config import num_cores, to_dict, write_yaml
from kiban.errors import ConfigError
from kiban.files import run_folder

if TYPE_CHECKING:
    from kiban.config import Progress
    from kiban.recipes.base import Recipe
    from kiban.recipes.corpus import Corpus
    from kiban.recipes.pretrain import Plan, Pretrained
    from kiban.recipes.settings import Settings
    from kiban.train.parallel import Parallel

TRAINING_SHARE = 0.93  # of the time that is left after preparation; the rest is for the last measurement and for saving


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
    field: Field = "text",
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
    as_json: AsJson = False,
    lang: Lang = None,
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
    from kiban.recipes.settings import read, resolve

    console = current(lang)
    if sizes:
        return _list_sizes(console, family)
    folder = resume or out
    if resume is not None:
        settings = read(resume)
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
        settings = resolve(given, config, changes or ())
    from kiban.train.parallel import parallel_of
    from kiban.train.precision import usual_device

    parallel = parallel_of("auto", device=usual_device())
    if folder is None:
        # Processes do not look at their clocks in the same second.
        begun = datetime.datetime.fromtimestamp(parallel.first(int(clock.time())))
        folder = run_folder(f"pretrain-{settings.family}", begun)
    if parallel.rank:
        console = Console(console.lang, silent=True)
    elif resume is None and folder.exists() and any(folder.iterdir()):
        raise ConfigError(folder, why="exists already", hint=f"--resume {folder} goes on with it")
    with parallel.together(), console.progress() as progress:
        run = _Run(settings, folder, console, parallel, progress)
        try:
            run.prepare()
            if not dry_run:
                run.train(as_json)
        except KeyboardInterrupt:
            console.note(_say("stopped", console, folder=folder))
            raise
    parallel.close()


class _Run:
    """One run, in one process or in several; the first of several prepares, speaks and writes."""

    def __init__(
        self, settings: Settings, folder: Path, console: Console, parallel: Parallel, progress: Progress
    ) -> None:
        self.settings, self.folder, self.console = settings, folder, console
        self.parallel, self.progress, self.started = parallel, progress, clock.monotonic()

    def prepare(self) -> None:
        """Make the corpus and choose a size; a resumed run has both already."""
        from kiban.recipes import settings as recipe_settings

        if self.parallel.rank == 0:
            self._begin()
        self.parallel.first(0)  # all that the first process has written is there now
        self.settings = recipe_settings.read(self.folder)
        (recipe,) = recipe_settings.recipes(self.settings).values()
        self.plan = recipe_settings.plan(self.settings, recipe, self._corpus(recipe))

    def _begin(self) -> None:
        from kiban.adopt.folder import environment
        from kiban.recipes import settings as recipe_settings

        found = recipe_settings.recipes(self.settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_yaml(self.folder / "config.yaml", to_dict(self.settings))
        facts = json.dumps(environment(), ensure_ascii=False, indent=1)
        (self.folder / "environment.json").write_text(facts, encoding="utf-8")
        corpus = self._corpus(next(iter(found.values())))
        _tell_corpus(self.console, corpus)
        plans = {name: recipe_settings.plan(self.settings, recipe, corpus) for name, recipe in found.items()}
        chosen = _choose(plans, self._left(), corpus, self.console)
        write_yaml(self.folder / "config.yaml", to_dict(replace(self.settings, size=chosen.recipe.size)))
        self.console.note(_say("run", self.console, folder=self.folder))

    def _corpus(self, recipe: Recipe) -> Corpus:
        from kiban.recipes.corpus import prepare

        return prepare(
            Path(self.settings.data),
            self.folder / "data",
            recipe,
            vocab_size=self.settings.vocab_size,
            tokenizer=open_tokenizer(self.settings.tokenizer, self.console) if self.settings.tokenizer else None,
            field=self.settings.field,
            processes=self.settings.processes or num_cores(),
            progress=self.progress,
        )

    def _left(self) -> float:
        """Seconds of the time budget that are left for training; 0 where none was given."""
        if not self.settings.seconds:
            return 0.0
        left = TRAINING_SHARE * (self.settings.seconds - (clock.monotonic() - self.started))
        if left < 5:
            why = f"{self.settings.seconds:g} s are too few for this text"
            raise ConfigError("--time", why=why, hint="give more time")
        return left

    def train(self, as_json: bool) -> None:
        """Train, measure, and leave the model."""
        from kiban import __version__
        from kiban.recipes.leave import leave, plot
        from kiban.recipes.pretrain import MAX_PASSES, Length, pretrain

        seconds = self.parallel.first(int(self._left()))
        length = Length(steps=self.settings.steps or 0, tokens=self.settings.tokens or 0, seconds=seconds)
        note, progress = self.console.note, self.progress
        loaded, result = pretrain(self.plan, length, self.folder, parallel=self.parallel, note=note, progress=progress)
        if result.stopped_by == "sigterm":
            note(_say("stopped", self.console, folder=self.folder))
            raise typer.Exit(143)
        if self.settings.seconds and result.ngram_bits_per_character and round(result.epochs, 1) >= MAX_PASSES:
            note(_say("passes", self.console, passes=MAX_PASSES))
        if self.parallel.rank == 0:
            plot(self.folder, result, lang=self.console.lang)
            data = Path(self.settings.data).name
            final = leave(self.plan, loaded, result, self.folder, data=data, version=__version__)
            _tell_result(self.console, result, final, as_json)


def _choose(plans: dict[str, Plan], seconds: float, corpus: Corpus, console: Console) -> Plan:
    """The plan that the scaling law and the speed here recommend; larger ones are tried until the loss rises."""
    from kiban.choose.scaling import Rung, best_size
    from kiban.recipes.pretrain import MAX_PASSES
    from kiban.recipes.speed import measure, settle_threads

    if len(plans) == 1:
        return next(iter(plans.values()))
    threads, all_of_them, one = settle_threads(next(iter(plans.values())))
    if threads == 1 and one:
        console.note(_say("busy", console, all=all_of_them, one=one))
    rungs: dict[str, Rung] = {}
    for name, plan in plans.items():
        parameters, rate = measure(plan)
        tokens = seconds * rate
        if plan.recipe.objective == "causal_lm":
            tokens = min(tokens, MAX_PASSES * corpus.train.facts.tokens)
        rungs[name] = Rung(parameters, tokens)
        facts = {"size": name, "parameters": parameters, "rate": rate, "tokens": tokens}
        console.note(_say("rung", console, **facts))
        best, _ = best_size(rungs, corpus.train.facts.tokens)
        if best != name:
            break
    console.note(_say("size", console, size=best))
    return plans[best]


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
    from kiban.recipes.settings import FAMILIES

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
