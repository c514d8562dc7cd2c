"""Documents as token ids on disk (`kiban.data.shards`)."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kiban.data.growing import growing_folder
from kiban.data.prepare import Block, Inputs, Means, Pass, purpose
from kiban.data.shards import KIND, SHARD_TOKENS, TOKENIZER, ShardFacts, ShardWriter
from kiban.errors import ConfigError, FormatError
from kiban.files import inside

if TYPE_CHECKING:
    from kiban.inputs.tokenizer import Tokenizer

Files = tuple[tuple[str, bytes], ...]  # of a tokenizer: names and contents


@dataclass
class Tokens:
    """A block as ids without end-of-text tokens, (sum of lengths,) uint32; documents without a character are left out."""

    ids: NDArray[np.uint32]
    lengths: NDArray[np.int64]
    characters: NDArray[np.int64]
    empty: int


@dataclass(frozen=True)
class Tokenizing:
    """The work on a block, by a tokenizer that every process opens from its files."""

    files: Files

    def __call__(self, block: Block) -> Tokens:
        texts = [text for _, text in block if text.strip()]
        rows = _opened(self.files).encode_batch(texts, add_special=False)
        return Tokens(
            np.concatenate([np.asarray(row, dtype=np.uint32) for row in rows] or [np.zeros(0, np.uint32)]),
            np.asarray([len(row) for row in rows], dtype=np.int64),
            np.asarray([len(text) for text in texts], dtype=np.int64),
            len(block) - len(texts),
        )


def tokenize(
    inputs: Inputs,
    out: Path,
    tokenizer: Tokenizer,
    *,
    name: str = "",
    shard_tokens: int = SHARD_TOKENS,
    means: Means | None = None,
) -> dict[str, Any]:
    """Write a tokenised corpus that `shards.Shards` reads; returns the manifest. name: where the tokenizer came from.

    Documents begin with the end-of-text token, with the separator where a tokenizer has no such token. Raises ConfigError
    if it has neither, DatasetError for bad rows and if there is no document, KibanError if out exists.
    """
    files = files_of(tokenizer)
    eos_id = end_of(tokenizer)
    settings = {"tokenizer": name, "shard_tokens": shard_tokens, "files": _hash(files)}
    with growing_folder(out, purpose("tokenize", inputs, settings)) as folder:
        stage = Pass("tokenizing", folder, inputs, means or Means())
        totals = stage.counts
        totals.setdefault("empty", 0)
        writer = ShardWriter(
            folder.append,
            vocab_size=tokenizer.vocab_size,
            eos_id=eos_id,
            shard_tokens=shard_tokens,
            counts=totals.get("written"),
        )

        def handle(done: Tokens) -> None:
            writer.add(done.ids, done.lengths, done.characters)
            totals["written"] = writer.counts
            totals["empty"] += done.empty

        _opened(files)  # what is wrong with it is told before any process starts
        stage.run(Tokenizing(files), handle)
        facts: ShardFacts = writer.facts()
        rows = stage.account(facts.documents, {"empty": totals["empty"]} if totals["empty"] else {})
        for file, content in files:
            path = inside(folder.path, f"{TOKENIZER}/{file}", source=out)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        made = {"made_by": "tokenize", **rows, **inputs.facts(), "settings": settings}
        folder.manifest = {"kind": KIND, **facts.__dict__, **made}
    return folder.manifest


def files_of(tokenizer: Tokenizer) -> Files:
    """The files that open a tokenizer again."""
    found = tokenizer.files().items()
    return tuple(sorted((name, c.encode("utf-8") if isinstance(c, str) else c) for name, c in found))


def end_of(tokenizer: Tokenizer) -> int:
    """The token that stands between documents. Raises ConfigError if there is none."""
    for id in (tokenizer.eos_id, tokenizer.sep_id):
        if id is not None:
            return id
    hint = "name one in its tokenizer_config.json"
    raise ConfigError("tokenizer", field="eos_token", why="there is no token that ends a text", hint=hint)


def _hash(files: Files) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files}


@lru_cache(maxsize=1)
def _opened(files: Files) -> Tokenizer:
    from kiban.inputs.tokenizer import Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name, content in files:
            if Path(name).name != name:
                raise FormatError("tokenizer", field=name, why="is not the name of a file")
            (Path(folder) / name).write_bytes(content)
        return Tokenizer.from_folder(Path(folder))
