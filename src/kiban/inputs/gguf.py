"""A tokenizer as the metadata of a GGUF file."""

from __future__ import annotations

import json
from typing import Any

from kiban.errors import ConfigError
from kiban.inputs.backends import Fast
from kiban.inputs.build import CONTROL, NORMAL
from kiban.inputs.tokenizer import Tokenizer

WHOLE = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


def to_gguf(tokenizer: Tokenizer) -> dict[str, Any]:
    """Vocabulary, merges and special tokens of a byte-level BPE that cuts text as GPT-2 does.

    Raises ConfigError for any other tokenizer: the format names ways to cut text and cannot describe a new one.
    """
    backend = tokenizer.backend
    values = json.loads(backend.open.to_str()) if isinstance(backend, Fast) else {"model": {}}
    cut = {key: (values.get("pre_tokenizer") or {}).get(key) for key in WHOLE}
    if values["model"].get("type") != "BPE" or cut != WHOLE or values.get("normalizer"):
        why = "does not cut text as GPT-2 does, and GGUF cannot say how it does"
        raise ConfigError("tokenizer", why=why, hint="export to a Hugging Face folder, whose tokenizer.json can")
    assert isinstance(backend, Fast)
    vocabulary = backend.vocabulary
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
        raise ConfigError("tokenizer", why="leaves out some ids, which GGUF cannot")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in values["model"]["merges"]]
    found: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if token in backend.controls else NORMAL for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": False,
    }
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    for ours, theirs in names.items():
        id = getattr(tokenizer, f"{ours}_id")
        if id is not None:
            found[f"tokenizer.ggml.{theirs}_token_id"] = id
    if tokenizer.chat_template:
        found["tokenizer.chat_template"] = tokenizer.chat_template
    return found
