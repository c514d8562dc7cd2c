"""What is served: a source opened as a model that writes, embeds or classifies, each with a thread that works for all."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kiban import zoo
from kiban.adopt.strategies import BY_KIND
from kiban.adopt.strategies.base import Predictor
from kiban.api import load, sentence_length
from kiban.config import Progress, silent
from kiban.engine.decoder import DecoderPlan, Weights, usual_on_gpu
from kiban.engine.encoder import EncoderPlan
from kiban.engine.requests import Load, TextEngine
from kiban.engine.scheduler import Scheduler
from kiban.errors import ConfigError
from kiban.files import read_json
from kiban.generate.constrained import Grammars
from kiban.generate.stoppable import Trial
from kiban.generate.text import device_of
from kiban.inputs.tokenizer import Tokenizer
from kiban.serve.batcher import Batcher
from kiban.serve.problems import TOO_LONG, RefusedError
from kiban.train.precision import usual_device

MALLOPT = {  # by glibc's numbers
    -8: 4,  # arenas
    -3: 4 << 20,  # bytes from which a block goes back when it is freed
    -1: 16 << 20,  # bytes that an arena keeps
}


@dataclass(kw_only=True)
class Served(ABC):
    """A model under its name. report: the page of the run that it comes from."""

    name: str
    created: int = field(default_factory=lambda: int(time.time()))
    report: Path | None = None

    @property
    @abstractmethod
    def abilities(self) -> tuple[str, ...]:
        """Of chat, generate, embed, classify."""

    @abstractmethod
    def load(self) -> Load:
        """How busy it is."""

    @abstractmethod
    def close(self, *, drain: float) -> None:
        """End what runs within drain seconds."""


@dataclass(kw_only=True)
class Writer(Served):
    """A model that writes text."""

    engine: TextEngine
    tokenizer: Tokenizer
    grammars: Grammars

    @property
    def abilities(self) -> tuple[str, ...]:
        return ("chat", "generate") if self.tokenizer.chat_template else ("generate",)

    def load(self) -> Load:
        return self.engine.load()

    def close(self, *, drain: float) -> None:
        self.engine.close(drain=drain)


@dataclass(kw_only=True)
class Reader(Served):
    """What reads texts through a batcher. tokenizer: None for a baseline, which has none and takes any length."""

    batcher: Batcher
    tokenizer: Tokenizer | None
    max_len: int | None

    def load(self) -> Load:
        return self.batcher.load()

    def close(self, *, drain: float) -> None:
        self.batcher.close(drain=drain)

    def lengths(self, rows: Sequence[Sequence[int]], *, param: str) -> int:
        """The tokens of all rows. Raises RefusedError that names the first that is too long, with the counts."""
        for i, row in enumerate(rows):
            if self.max_len is not None and len(row) > self.max_len:
                place = f"{param}[{i}]" if len(rows) > 1 else param
                why = f"has {len(row)} tokens, {self.name} takes {self.max_len}; nothing was cut"
                raise RefusedError(400, f"{place}: {why}", param=place, code=TOO_LONG)
        return sum(map(len, rows))


@dataclass(kw_only=True)
class Embedder(Reader):
    """Sentences to vectors of length 1; the batcher takes rows of token ids."""

    tokenizer: Tokenizer
    dim: int

    @property
    def abilities(self) -> tuple[str, ...]:
        return ("embed",)


@dataclass(kw_only=True)
class Classifier(Reader):
    """Texts to the probabilities of labels; the batcher takes texts."""

    labels: tuple[str, ...]

    @property
    def abilities(self) -> tuple[str, ...]:
        return ("classify", "chat")


def open_served(
    source: str, name: str, trial: Trial, *, weights: Weights = "fp32", progress: Progress = silent, **engine: Any
) -> Served:
    """Open what `kiban.load` opens. Raises its errors, and ConfigError if it cannot be served.

    trial: compiles the grammars of clients first. weights: of decoders, as in `DecoderPlan`. engine: of models that write,
    as in `Scheduler`.
    """
    model = load(source, progress=progress)
    if model.predictor is not None:
        return _classifier(name, Path(source), model.predictor)
    abilities, loaded = model.abilities, model.loaded
    assert loaded is not None
    if "generate" in abilities:
        return writer(name, loaded, trial, weights=weights, **engine)
    if abilities == ["embed"] and loaded.tokenizer is not None:
        plan = EncoderPlan(loaded, max_len=sentence_length(loaded))
        batcher = Batcher(lambda rows: list(plan.embed_ids(rows).numpy()))
        return Embedder(
            name=name, batcher=batcher, tokenizer=loaded.tokenizer, max_len=plan.max_len, dim=loaded.config.dim
        )
    hint = "models that write or embed texts, and runs of `kiban adopt` on texts"
    raise ConfigError(source, why=f"can {', '.join(abilities) or 'nothing that'} is not served", hint=hint)


def writer(name: str, loaded: zoo.Loaded, trial: Trial, *, weights: Weights = "fp32", **engine: Any) -> Writer:
    """A model that writes, under an engine; engine as in `Scheduler`. On a GPU if there is one, with half of the memory that
    is left there for keys, unless engine says how much.

    Raises ConfigError if it has no tokenizer, or on a GPU if the weights are packed.
    """
    if loaded.tokenizer is None:
        raise ConfigError(loaded.source, why="has no tokenizer", hint="add its tokenizer.json to the folder")
    if usual_device() == "cuda":
        _move(loaded, "cuda", weights)
    model: Any = DecoderPlan(loaded, weights=weights) if DecoderPlan.fits(loaded) else loaded.module
    if (device := device_of(model)).type == "cuda":
        if model is not loaded.module:
            loaded.module.to("meta")  # the plan has what it needs, and keys need the memory
            torch.cuda.empty_cache()
        engine.setdefault("memory", torch.cuda.mem_get_info(device)[0] // 2)
    scheduler = Scheduler(model, loaded.tokenizer, **{"compiled": True, **engine})
    grammars = Grammars(loaded.tokenizer, loaded.config.vocab_size, trial)
    return Writer(name=name, engine=scheduler, tokenizer=loaded.tokenizer, grammars=grammars)


def _move(loaded: zoo.Loaded, device: str, weights: Weights) -> None:
    """To a device, a plan's matrices in bf16 if it will have them so: in float32 a large model fits the GPU only half."""
    if (usual_on_gpu() if weights == "auto" else weights) == "bf16" and DecoderPlan.fits(loaded):
        with torch.no_grad():
            for parameter in loaded.module.parameters():  # shared ones come once
                dtype = torch.bfloat16 if parameter.ndim == 2 else parameter.dtype
                parameter.data = parameter.data.to(device, dtype)
    loaded.module.to(device)


def _classifier(name: str, source: Path, predictor: Predictor) -> Classifier:
    folder = source / "final" if (source / "final").is_dir() else source
    strategy = read_json(folder / "kiban.json").get("strategy") if (folder / "kiban.json").is_file() else None
    if strategy in BY_KIND["image"]:
        raise ConfigError(source, why="reads pictures, which are not served yet", hint="`kiban run` classifies them")
    loaded: Any = getattr(predictor, "loaded", None)
    max_len = getattr(predictor, "max_len", None) or getattr(predictor, "max_text_tokens", None)
    report = folder.parent / "report.html"

    def predict(texts: list[Any]) -> list[NDArray[np.float64]]:
        return list(predictor.predict(texts))

    return Classifier(
        name=name,
        report=report if report.is_file() else None,
        batcher=Batcher(predict, max_batch=32),
        tokenizer=loaded.tokenizer if loaded is not None else None,
        max_len=max_len,
        labels=tuple(predictor.labels),
    )


def bound_caches() -> None:
    """Before the first product: oneDNN keeps programs for a thousand shapes and more, and texts come in all lengths; glibc
    keeps up to 64 MB of what each of many threads has freed, which looks like a leak."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "64")
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, value in MALLOPT.items():
            libc.mallopt(option, value)


def name_of(source: str) -> str:
    """The name under which a source is served: the folder of its run, the stem of its file, or what it is called."""
    path = Path(source)
    if path.is_file():
        return path.stem
    if path.is_dir():
        path = path.resolve()
        return path.parent.name if path.name in ("final", "model") else path.name
    return source


def open_all(
    sources: Sequence[str], *, weights: Weights = "fp32", progress: Progress = silent, **engine: Any
) -> tuple[Mapping[str, Served], Trial]:
    """Open several, each MODEL or NAME=MODEL; the rest as in `open_served`. Raises its errors, and those of `named`."""
    found = named(sources)
    bound_caches()
    trial = Trial()
    more: dict[str, Any] = {"weights": weights, "progress": progress, **engine}
    return {name: open_served(source, name, trial, **more) for name, source in found.items()}, trial


def named(sources: Sequence[str]) -> dict[str, str]:
    """Sources by the names under which they are served, each MODEL or NAME=MODEL. Raises ConfigError if two have one."""
    pairs = [(name_of(s), s) if not sep else (n, s) for n, sep, s in (_split(source) for source in sources)]
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            hint = f"give names, for example a={dict(pairs)[name]}"
            raise ConfigError("kiban serve", field=name, why="two models have this name", hint=hint)
    return dict(pairs)


def _split(source: str) -> tuple[str, str, str]:
    name, sep, rest = source.partition("=")
    return (name, sep, rest) if sep and name and rest and not Path(source).exists() else ("", "", source)
