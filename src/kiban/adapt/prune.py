"""Fewer tokens for a model that exists: rows of the embedding that a use never needs are left out, and ids move up."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from kiban import zoo
from kiban.errors import ConfigError
from kiban.inputs.backends import Fast
from kiban.inputs.tokenizer import Tokenizer


def prune(loaded: zoo.Loaded, keep: Iterable[int], *, dropout: float | None = None) -> zoo.Loaded:
    """A bare BERT with the tokens of keep, in the order of their ids, and its special tokens; loaded stays as it was.

    A word whose token is gone is spelt by others, or unknown. dropout: another rate. Raises ConfigError if the tokenizer
    is not WordPiece.
    """
    tokenizer = loaded.tokenizer
    backend = tokenizer.backend if tokenizer else None
    if not isinstance(backend, Fast) or backend.kind != "WordPiece" or loaded.head is not None:
        raise ConfigError(loaded.source, why="is not a bare model with a WordPiece tokenizer")
    assert tokenizer is not None
    kept = sorted({*keep, *backend.control_tokens().values()})
    if not 0 <= kept[0] <= kept[-1] < loaded.config.vocab_size:
        raise ConfigError("prune", field="keep", why=f"ids run from 0 to {loaded.config.vocab_size - 1}")
    config = replace(loaded.config, vocab_size=len(kept))
    if dropout is not None:
        config = replace(config, dropout=dropout)
    with torch.device("meta"):
        module = loaded.family.build(config)
    state = {name: value.detach().clone() for name, value in loaded.module.state_dict().items()}
    state["embed.token.weight"] = state["embed.token.weight"][kept].clone()
    module.load_state_dict(state, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_()
    return replace(loaded, config=config, module=module.eval(), tokenizer=_renumbered(tokenizer, backend, kept))


def _renumbered(tokenizer: Tokenizer, backend: Fast, kept: list[int]) -> Tokenizer:
    values = json.loads(backend.open.to_str())
    new = {old: place for place, old in enumerate(kept)}
    vocabulary = values["model"]["vocab"]
    values["model"]["vocab"] = {token: new[id] for token, id in vocabulary.items() if id in new}
    for token in values["added_tokens"]:
        token["id"] = new[token["id"]]
    _renumber(values["post_processor"], new)
    settings = {key: value for key, value in tokenizer.settings.items() if key != "added_tokens_decoder"}
    return tokenizer.changed(values, settings)


def _renumber(post: dict[str, Any] | None, new: dict[int, int]) -> None:
    """The ids that a post-processor puts around a text."""
    if post is None:
        return
    if post["type"] == "TemplateProcessing":
        for token in post["special_tokens"].values():
            token["ids"] = [new[id] for id in token["ids"]]
        return
    assert post["type"] in ("BertProcessing", "RobertaProcessing"), post["type"]
    for name in ("sep", "cls"):
        post[name] = [post[name][0], new[post[name][1]]]
