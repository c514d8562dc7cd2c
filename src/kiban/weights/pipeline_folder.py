"""Folders of several parts in the layout of diffusers: model_index.json, and a folder with config and weights per part."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from kiban.errors import FormatError, IntegrityError, ModelNotFoundError
from kiban.files import MANIFEST, inside, read_json, staged_folder, write_manifest
from kiban.weights.diffusers_pipeline import Component
from kiban.weights.safetensors import PICKLES, read_safetensors, refuse_pickle, write_safetensors

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
WHOLE = 2**63  # bytes of a file that is never cut into shards


def read_settings(folder: Path) -> dict[str, Any]:
    """model_index.json and the JSON files of the parts it lists, under their paths. Raises FormatError."""
    index = read_json(folder / INDEX)
    parts = [name for name, entry in index.items() if isinstance(entry, list) and entry and entry[0] is not None]
    paths = [SCHEDULER, *(f"{name}/config.json" for name in parts)]
    found = {path: inside(folder, path, source=folder / INDEX) for path in paths}
    return {INDEX: index, **{path: read_json(file) for path, file in found.items() if file.is_file()}}


def check_listed(folder: Path, names: Sequence[str]) -> None:
    """Every file in these folders of a model is in its manifest, if it has one. Raises IntegrityError that names one."""
    if not (folder / MANIFEST).exists():
        return
    files = read_json(folder / MANIFEST).get("files", {})
    for name in names:
        for member in sorted((folder / name).rglob("*")):
            if member.is_file() and member.relative_to(folder).as_posix() not in files:
                raise IntegrityError(member, why=f"is not one of the files that {MANIFEST} lists", hint="remove it")


def tokenizer_folder(component: Component) -> str | None:
    """Where the tokenizer of a text tower lies; None for another part."""
    here = component.folder.startswith("text_encoder")
    return component.folder.replace("text_encoder", "tokenizer") if here else None


def read_parts(folder: Path, components: Sequence[Component]) -> dict[str, Tensor]:
    """The tensors of all parts; a name is the part's folder, a dot, and the name in its file.

    Raises FormatError, UnsafeFormatError if there are only pickles, ModelNotFoundError if a part is not there.
    """
    tensors: dict[str, Tensor] = {}
    for part in components:
        for file in _files(folder, part):
            own = {f"{part.folder}.{name}": tensor for name, tensor in read_safetensors(file).items()}
            twice = sorted(tensors.keys() & own.keys())
            if twice:
                raise FormatError(file, field=twice[0], why="stands in two files")
            tensors |= own
    return tensors


def _files(folder: Path, part: Component) -> list[Path]:
    """The files with a part's weights: one, shards, or one in float16 if there is nothing else."""
    place = folder / part.folder
    for name in (part.weights, f"{part.weights}.index.json", part.weights.replace(".safetensors", ".fp16.safetensors")):
        path = inside(folder, f"{part.folder}/{name}", source=folder)
        if path.is_file():
            return [path] if path.suffix == ".safetensors" else _shards(folder, part, path)
    for path in sorted(place.glob("*")):
        if path.suffix.lower() in PICKLES:
            refuse_pickle(path)
    raise ModelNotFoundError(place, why=f"holds no {part.weights}", hint="fetch the folder again")


def _shards(folder: Path, part: Component, index: Path) -> list[Path]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise FormatError(index, field="weight_map", why="must map tensor names to files")
    names = sorted(set(places.values()))
    shards = [inside(folder, f"{part.folder}/{name}", source=index) for name in names]
    lacking = [shard for shard in shards if not shard.is_file()]
    if lacking:
        raise ModelNotFoundError(
            lacking[0], why=f"is missing, and {index.name} lists it", hint="fetch the folder again"
        )
    return shards


def write_parts(
    path: Path,
    components: Sequence[Component],
    tensors: Mapping[str, Tensor],
    *,
    settings: Mapping[str, Any],
    files: Mapping[str, str | bytes],
    manifest: Mapping[str, Any],
) -> None:
    """Write a folder of parts atomically; path must be new.

    tensors: as `read_parts` names them. settings: the JSON files, under their paths. files: others, under theirs.
    """
    texts = {name: json.dumps(value, ensure_ascii=False, indent=2) for name, value in settings.items()}
    with staged_folder(path) as folder:
        for name, content in {**texts, **files}.items():
            member = inside(folder, name, source=path)
            member.parent.mkdir(parents=True, exist_ok=True)
            member.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        for part in components:
            front = f"{part.folder}."
            own = {name.removeprefix(front): t for name, t in tensors.items() if name.startswith(front)}
            place = folder / part.folder
            write_safetensors(place, own, max_shard_bytes=WHOLE)
            (place / "model.safetensors").replace(place / part.weights)
        write_manifest(folder, manifest)
