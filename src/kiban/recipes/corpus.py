"""From a folder of text to what a model is trained on: a part held out, a tokenizer, token ids on disk."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kiban.config import Progress, silent
from kiban.data.corpus import read_texts
from kiban.data.prepare import Inputs, Means
from kiban.data.shards import TOKENIZER, Shards
from kiban.data.tokenize import tokenize
from kiban.errors import DatasetError
from kiban.inputs import learn
from kiban.inputs.tokenizer import Tokenizer
from kiban.recipes.base import Recipe

HELD_OUT = 0.03  # share of the documents
LEARN_CHARACTERS = 2 * 10**8  # of the training text that a tokenizer is learned from
# Vocabulary by characters of training text: a row of the embedding must be seen often enough to be learned.
VOCABULARY = ((5 * 10**6, 2048), (5 * 10**7, 4096), (2 * 10**8, 8192), (2 * 10**9, 16384))
LARGEST = 32768


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents held out, as token ids of one tokenizer."""

    train: Shards
    held_out: Shards
    tokenizer: Tokenizer


def is_held_out(text: str) -> bool:
    """Whether a document is kept for evaluation: by its hash, so that equal texts are always on one side."""
    number = int.from_bytes(hashlib.blake2b(text.strip().encode("utf-8", "replace"), digest_size=4).digest())
    return number < HELD_OUT * 2**32


def prepare(
    data: Path | Sequence[Path],
    folder: Path,
    recipe: Recipe,
    *,
    vocab_size: int = 0,
    tokenizer: Tokenizer | None = None,
    field: str = "text",
    processes: int = 1,
    progress: Progress = silent,
) -> Corpus:
    """Split, learn a tokenizer unless one is given, and tokenise into folder; what is there already is not made again.

    vocab_size: of the tokenizer to learn, 0 for one that suits the amount of text. Raises DatasetError if the texts are
    too few to hold some out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = {name: folder / f"{name}.jsonl" for name in ("train", "held_out")}
    if not all(path.exists() for path in parts.values()):
        _split(data, parts, field, progress)
    place = folder / TOKENIZER
    if not place.exists():
        found = tokenizer or _learn(parts["train"], recipe, vocab_size, progress)
        found.save(place)
    opened = Tokenizer.from_folder(place)
    for name, path in parts.items():
        out = folder / name

        def watch(stage: str, documents: int, done: int, total: int) -> None:
            progress(stage, done, total)

        if not out.exists():
            tokenize(Inputs(paths=(path,)), out, opened, means=Means(processes=processes, watch=watch))
    return Corpus(Shards(folder / "train"), Shards(folder / "held_out"), opened)


def _split(data: Path | Sequence[Path], parts: dict[str, Path], field: str, progress: Progress) -> None:
    counts = dict.fromkeys(parts, 0)
    staged = {name: path.with_suffix(".tmp") for name, path in parts.items()}
    files = {name: path.open("w", encoding="utf-8") for name, path in staged.items()}
    try:
        for text in read_texts(data, field=field, progress=progress):
            name = "held_out" if is_held_out(text.text) else "train"
            files[name].write(json.dumps({"id": text.id, "text": text.text}, ensure_ascii=False) + "\n")
            counts[name] += 1
    finally:
        for file in files.values():
            file.close()
    if not all(counts.values()):
        why = f"holds {sum(counts.values())} documents, too few to hold {HELD_OUT:.0%} of them out"
        source = data if isinstance(data, Path) else ", ".join(map(str, data))
        raise DatasetError(source, why=why, hint="give more documents, or cut long ones into chapters")
    for name, path in parts.items():
        staged[name].replace(path)


def _learn(path: Path, recipe: Recipe, vocab_size: int, progress: Progress) -> Tokenizer:
    characters = path.stat().st_size // 2  # of UTF-8, between English and Japanese
    size = vocab_size or recipe.vocab_size or next((v for limit, v in VOCABULARY if characters < limit), LARGEST)
    train = learn.train_bpe if recipe.tokenizer == "bpe" else learn.train_wordpiece
    return train(_texts(path), vocab_size=size, progress=progress)


def _texts(path: Path) -> Iterator[str]:
    """The texts of our own JSON lines, as many as a tokenizer needs; evenly, so that no source is left out."""
    step = max(1, path.stat().st_size // (2 * LEARN_CHARACTERS))
    with path.open(encoding="utf-8") as file:
        for line in itertools.islice(file, 0, None, step):
            yield json.loads(line)["text"]
