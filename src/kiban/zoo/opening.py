"""Files to models: Hugging Face folders, folders of several parts, one file of a whole system, GGUF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kiban.config import Family, Progress, silent
from kiban.errors import ConfigError, FormatError
from kiban.files import read_json, verify_folder
from kiban.inputs.build import has_tokenizer
from kiban.inputs.tokenizer import Tokenizer
from kiban.weights.gguf import read_gguf
from kiban.weights.pipeline_folder import INDEX
from kiban.weights.safetensors import read_folder_tensors
from kiban.zoo import open_clip, parts
from kiban.zoo.places import locate
from kiban.zoo.registry import Loaded, families, head_of
from kiban.zoo.tensors import assign


def load(
    source: str | Path,
    *,
    head: str | None = None,
    labels: Sequence[str] = (),
    preset: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> Loaded:
    """Open a catalogue name, a folder of Hugging Face, diffusers or open_clip, one file of GGUF or of the first code of
    latent diffusion (.safetensors), or a hub id ("owner/name"). The model is in eval mode.

    head: a task head. One that the files lack is drawn from generator and needs labels. preset: the published size of
    latent diffusion's one file, where two fit it. Raises ModelNotFoundError, FormatError, UnsafeFormatError,
    IntegrityError or ConfigError.
    """
    path = locate(source, progress)
    if path.suffix == ".safetensors" and path.is_file():
        opened = parts.open_file(path, preset, dtype)
    elif preset is not None:
        raise ConfigError("preset", field=preset, why=f"{source} says itself what it is", hint="leave preset out")
    else:
        opened = _open_gguf(path, dtype) if path.is_file() else _open_folder(path, head, dtype)
    if head is not None and opened.head != head:
        if not labels:
            raise ConfigError(source, field=head, why="has no such head, and no labels were given for a new one")
        module = head_of(opened.family, head).build(opened.module, len(labels)).to(dtype)
        module.initialise(generator)  # type: ignore[operator]
        opened = replace(opened, module=module, head=head, labels=tuple(labels))
    opened.module.to(device).eval()
    return replace(opened, source=str(source), path=path)


def family_of(path: Path) -> Family:
    """The family of a folder or file that `load` opens, without its weights."""
    if path.is_file():
        if path.suffix == ".safetensors":
            return parts.preset_of(path, None)[0]
        with read_gguf(path) as file:
            return _gguf_family(path, file.metadata)
    if (path / INDEX).is_file():
        return parts.family_of(path, read_json(path / INDEX))
    if _is_open_clip(path):
        return families()["clip"]
    return _hf_family(path, read_json(path / "config.json"))


def _hf_family(path: Path, config: Mapping[str, Any]) -> Family:
    kind = config.get("model_type")
    single = [family for family in families().values() if family.components is None]
    for family in single:
        if kind in family.hf_model_types:
            return family
    known = [kind for family in single for kind in family.hf_model_types]
    raise FormatError(path / "config.json", field="model_type", why=f"{kind!r} is unknown", hint=f"known: {known}")


def _is_open_clip(path: Path) -> bool:
    return (path / open_clip.CONFIG).is_file() and not (path / "config.json").is_file()


def _gguf_family(path: Path, metadata: Mapping[str, Any]) -> Family:
    kind = metadata.get("general.architecture")
    for family in families().values():
        if kind in family.gguf_architectures:
            return family
    raise FormatError(path, field="general.architecture", why=f"{kind!r} is unknown")


def _open_folder(path: Path, wanted_head: str | None, dtype: torch.dtype) -> Loaded:
    if (path / INDEX).is_file():
        return parts.open_folder(path, dtype)
    if _is_open_clip(path):
        module = open_clip.load_open_clip(path)
        return Loaded(families()["clip"], module.config, module.to(dtype), _tokenizer(path), None, (), str(path), path)
    return _open_hf(path, wanted_head, dtype)


def _open_hf(path: Path, wanted_head: str | None, dtype: torch.dtype) -> Loaded:
    verify_folder(path)
    values = read_json(path / "config.json")
    family = _hf_family(path, values)
    try:
        config = family.from_hf(values)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FormatError(path / "config.json", why=f"a setting is missing or of the wrong kind: {error}") from error
    architecture = (values.get("architectures") or [""])[0]
    stored = next((n for n, h in family.heads.items() if architecture.endswith(h.architecture)), None)
    # A classifier folder opens as one; a bare model is had from it by asking for another head.
    head = stored if wanted_head in (None, stored) else None
    labels = values.get("id2label") or {}
    ordered = tuple(str(labels[key]) for key in sorted(labels, key=int)) if head and labels else ()
    with torch.device("meta"):
        module = family.build(config)
        if head is not None:
            module = family.heads[head].build(module, len(ordered))
    names = family.heads[head].names(config) if head else family.hf_names(config)
    assign(module, names, read_folder_tensors(path), source=str(path), dtype=dtype)
    return Loaded(family, config, module, _tokenizer(path), head, ordered, str(path), path)


def _tokenizer(folder: Path) -> Tokenizer | None:
    """That of a folder. Bare weights are of use too: to convert, to compare, to train on token ids."""
    return Tokenizer.from_folder(folder) if has_tokenizer(folder) else None


def _open_gguf(path: Path, dtype: torch.dtype) -> Loaded:
    with read_gguf(path) as file:
        metadata = {**file.metadata, "kiban.tied": "output.weight" not in file.tensors}
        family = _gguf_family(path, metadata)
        assert family.from_gguf is not None and family.gguf_names is not None
        config = family.from_gguf(metadata)
        with torch.device("meta"):
            module = family.build(config)
        tensors = {name: tensor.dequantise(dtype) for name, tensor in file.tensors.items()}
        assign(module, family.gguf_names(config), tensors, source=str(path), dtype=dtype)
        return Loaded(family, config, module, Tokenizer.from_gguf(metadata), None, (), str(path), path)
