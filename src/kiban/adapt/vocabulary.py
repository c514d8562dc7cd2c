"""More vocabulary for a model that exists: tokens of another language, and a row of the embedding for each.

A model reads what its tokenizer cannot spell as bytes or as nothing; new tokens make Japanese shorter, and room to learn it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kiban import zoo
from kiban.config import Progress, silent
from kiban.errors import ConfigError
from kiban.inputs.backends import Fast
from kiban.inputs.japanese_bert import PREFIX
from kiban.inputs.learn.more_bpe import more_bpe
from kiban.inputs.learn.more_wordpiece import more_wordpiece
from kiban.inputs.tokenizer import Tokenizer

Init = Literal["mean", "random"]


def expand(tokenizer: Tokenizer, texts: Iterable[str], *, num_new: int, progress: Progress = silent) -> Tokenizer:
    """A tokenizer with at most num_new tokens for Japanese, learned from texts, behind its own.

    Old tokens keep their ids, and so do texts without Japanese (kana, kanji; for WordPiece also full-width characters).
    For BERT's WordPiece and for byte-level BPE. Raises ConfigError for other kinds, DatasetError if the texts hold no
    Japanese.
    """
    if num_new < 1:
        raise ConfigError("num_new", why=f"{num_new} is less than 1")
    kind = _kind(tokenizer)
    if kind == "WordPiece":
        return more_wordpiece(tokenizer, texts, num_new=num_new, progress=progress)
    if kind == "BPE":
        return more_bpe(tokenizer, texts, num_new=num_new, progress=progress)
    raise ConfigError("expand", why=f"a {kind} tokenizer cannot be expanded", hint="WordPiece and byte-level BPE can")


def grow(
    loaded: zoo.Loaded, tokenizer: Tokenizer, *, init: Init = "mean", generator: torch.Generator | None = None
) -> zoo.Loaded:
    """The model with a row for every token of tokenizer, which is its own, expanded; loaded stays as it was.

    init: "mean" makes a new row the mean of the rows of the pieces that the old tokenizer cuts the token's text into;
    "random" draws it from N(0, s^2), s that of the old rows. Where the old tokenizer has no piece at all, "mean" draws
    too. Biases over the vocabulary get the mean of their pieces, or of all. Raises ConfigError if the tokenizer is no
    expansion of the model's.
    """
    if loaded.tokenizer is None or not hasattr(loaded.config, "vocab_size"):
        raise ConfigError(loaded.source, why="has no tokenizer that could have been expanded")
    old, new = _vocabulary(loaded.tokenizer), _vocabulary(tokenizer)
    if any(new.get(token) != id for token, id in old.items()):
        raise ConfigError("tokenizer", why="does not hold every token of the model's under its id", hint="use expand()")
    fresh = sorted((id, token) for token, id in new.items() if token not in old)
    pieces = {id: _pieces(loaded.tokenizer, token) if init == "mean" else [] for id, token in fresh}
    size = loaded.config.vocab_size
    config = replace(loaded.config, vocab_size=max(size, tokenizer.vocab_size))
    module, probe = (_skeleton(loaded, c) for c in (config, replace(config, vocab_size=size + 1)))
    grown: dict[int, nn.Parameter] = {}
    for name, parameter in list(loaded.module.named_parameters(remove_duplicate=False)):
        if id(parameter) not in grown:  # a head that shares the embedding goes on sharing it
            rows = parameter.detach().clone()
            if probe.get_parameter(name).shape != rows.shape:
                rows = _with_rows(rows, config.vocab_size, pieces, generator)
            grown[id(parameter)] = nn.Parameter(rows, requires_grad=parameter.requires_grad)
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, grown[id(parameter)])
    module.train(loaded.module.training)
    return replace(loaded, config=config, module=module, tokenizer=tokenizer)


def _skeleton(loaded: zoo.Loaded, config: Any) -> nn.Module:
    """A module like loaded's without weights."""
    with torch.device("meta"):
        module = loaded.family.build(config)
        return module if loaded.head is None else loaded.family.heads[loaded.head].build(module, len(loaded.labels))


def _with_rows(old: Tensor, num: int, pieces: Mapping[int, Sequence[int]], generator: torch.Generator | None) -> Tensor:
    """Embedding (V, D) or bias (V) with num rows; pieces: the old rows whose mean each new row is, none to draw it."""
    rows = torch.cat([old, old.new_zeros(num - len(old), *old.shape[1:])])
    drawn = [id for id, ids in pieces.items() if not ids]
    if old.ndim == 1:
        rows[drawn] = old.mean()
    elif drawn:
        noise = torch.randn(len(drawn), *old.shape[1:], generator=generator)
        rows[drawn] = (noise * old.float().std().cpu()).to(old)
    for id, ids in pieces.items():
        if ids:
            rows[id] = old[list(ids)].mean(0)
    return rows


def _pieces(tokenizer: Tokenizer, token: str) -> list[int]:
    """The ids that a tokenizer makes of the text of a token, unknown ones left out."""
    backend = tokenizer.backend
    assert isinstance(backend, Fast)
    if _kind(tokenizer) == "BPE":
        return [piece.id for piece in backend.open.model.tokenize(token)]
    text = token.removeprefix(PREFIX)
    ids = [id for id in tokenizer.encode(text, add_special=False) if id != tokenizer.unk_id]
    inside = backend.token_to_id(PREFIX + backend.open.id_to_token(ids[0])) if ids and text != token else None
    return ids if inside is None else [inside, *ids[1:]]


def _kind(tokenizer: Tokenizer) -> str:
    backend = tokenizer.backend
    return backend.kind if isinstance(backend, Fast) else type(backend).__name__


def _vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    if not isinstance(tokenizer.backend, Fast):
        raise ConfigError("grow", why=f"a {_kind(tokenizer)} tokenizer cannot be expanded")
    return tokenizer.backend.vocabulary


def sentence_files(loaded: zoo.Loaded) -> dict[str, str | bytes]:
    """What else makes the folder a model came from one of sentence-transformers, for `zoo.save`; nothing if it is none."""
    folder = loaded.path
    if folder is None or not (folder / "modules.json").is_file():
        return {}
    alone = ["modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"]
    # A module has a folder with a number before its name: 1_Pooling, 2_Dense.
    paths = [folder / name for name in alone] + sorted(folder.glob("[0-9]_*/*"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.is_file()}
