"""Models to files: Hugging Face folders, folders of several parts, GGUF."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kiban.errors import ConfigError
from kiban.inputs.gguf import to_gguf
from kiban.weights.folder import write_folder
from kiban.weights.gguf_write import write_gguf
from kiban.weights.names import to_published
from kiban.weights.pipeline_folder import INDEX, tokenizer_folder, write_parts
from kiban.zoo.registry import Loaded, head_of
from kiban.zoo.tensors import in_dtype, stored_tensors


def save(
    loaded: Loaded,
    path: Path,
    *,
    files: Mapping[str, str | bytes] | None = None,
    manifest: Mapping[str, Any] | None = None,
    stored: torch.dtype | None = None,
) -> None:
    """Write a folder as Hugging Face's tools keep it, a system of several parts as diffusers does: configuration,
    safetensors, tokenizers, chat template, and a manifest with sha256s.

    stored: the type of the tensors in the file, by default the model's own, in which the folder is opened either way.
    """
    tensors = {name: in_dtype(t, stored or t.dtype) for name, t in stored_tensors(loaded.module).items()}
    facts = {"family": loaded.family.name, "head": loaded.head, **(manifest or {})}
    if loaded.family.components is not None:
        _save_parts(loaded, path, tensors, files or {}, facts)
        return
    values, names = _values_and_names(loaded)
    tokenizer_files = dict(loaded.tokenizer.files()) if loaded.tokenizer else {}
    write_folder(
        path,
        tensors=to_published(names, tensors),
        config=values,
        files={**tokenizer_files, **_preprocessor(loaded), **(files or {})},
        manifest=facts,
    )


def _preprocessor(loaded: Loaded) -> dict[str, str]:
    """preprocessor_config.json, for models that see."""
    if loaded.family.preprocessor is None:
        return {}
    return {"preprocessor_config.json": json.dumps(loaded.family.preprocessor(loaded.config), indent=2)}


def _values_and_names(loaded: Loaded) -> tuple[dict[str, Any], Any]:
    """config.json, and the name table."""
    family, config = loaded.family, loaded.config
    values = family.to_hf(config)
    names = family.hf_names(config)
    if loaded.head is not None:
        head = head_of(family, loaded.head)
        names = head.names(config)
        # "ForSequenceClassification" stands behind the name of the variant ("Mistral"), other names are whole.
        variant = values["architectures"][0].removesuffix("ForCausalLM")
        values["architectures"] = [
            variant + head.architecture if head.architecture.startswith("For") else head.architecture
        ]
    if loaded.labels:
        values["id2label"] = {str(i): label for i, label in enumerate(loaded.labels)}
        values["label2id"] = {label: i for i, label in enumerate(loaded.labels)}
    values["dtype"] = _dtype(loaded)
    if loaded.tokenizer is not None:
        for key in ("pad_id", "bos_id", "eos_id"):
            values[key.replace("_id", "_token_id")] = getattr(loaded.tokenizer, key)
    return values, names


def _dtype(loaded: Loaded) -> str:
    return str(next(loaded.module.parameters()).dtype).removeprefix("torch.")


def _save_parts(
    loaded: Loaded,
    path: Path,
    tensors: Mapping[str, Tensor],
    files: Mapping[str, str | bytes],
    facts: Mapping[str, Any],
) -> None:
    family, config = loaded.family, loaded.config
    assert family.components is not None
    components, settings = family.components(config), family.to_hf(config)
    places = [place for part in components if (place := tokenizer_folder(part)) is not None]
    tokenizers = loaded.tokenizers
    if tokenizers and len(tokenizers) != len(places):
        why = f"has {len(tokenizers)} tokenizers for {len(places)} text towers"
        raise ConfigError(loaded.source, why=why, hint="give it one for each (tokenizer, more_tokenizers)")
    own: dict[str, str | bytes] = {}
    for place, tokenizer in zip(places, tokenizers):
        own |= {f"{place}/{name}": content for name, content in tokenizer.files().items()}
        settings[INDEX][place] = ["transformers", tokenizer.hf_class]
    if not tokenizers:  # diffusers then opens the rest, and takes embedded prompts
        settings[INDEX] |= {place: [None, None] for place in places}
    for (
        part
    ) in components:  # transformers would open a part in the type of its file, diffusers opens the others in float32
        if tokenizer_folder(part) is not None:
            settings[f"{part.folder}/config.json"]["dtype"] = _dtype(loaded)
    published = to_published(family.hf_names(config), tensors)
    write_parts(path, components, published, settings=settings, files={**own, **files}, manifest=facts)


def save_gguf(loaded: Loaded, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write one GGUF file with the weights in float32 or float16, and the tokenizer.

    Raises ConfigError if the format has no place for the family, a head, or the way the tokenizer cuts text.
    """
    family = loaded.family
    if family.to_gguf is None or family.gguf_names is None or loaded.head is not None:
        raise ConfigError(loaded.source, why="cannot be written as GGUF", hint="write a Hugging Face folder")
    if loaded.tokenizer is None:
        raise ConfigError(loaded.source, why="has no tokenizer, without which a GGUF file is of no use")
    parameters = {name: p.detach() for name, p in loaded.module.named_parameters()}
    published = to_published(family.gguf_names(loaded.config), parameters)
    # Vectors stay in float32, as other tools expect.
    tensors = {name: tensor.to(dtype if tensor.ndim > 1 else torch.float32) for name, tensor in published.items()}
    write_gguf(path, {**family.to_gguf(loaded.config), **to_gguf(loaded.tokenizer)}, tensors)
