"""Systems of several parts: the folder that diffusers keeps, and the one file of latent diffusion's first code (LDM)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kiban.config import Family
from kiban.errors import ConfigError, FormatError
from kiban.files import verify_folder
from kiban.inputs.build import has_tokenizer
from kiban.inputs.tokenizer import Tokenizer
from kiban.weights.names import to_ours
from kiban.weights.pipeline_folder import INDEX, check_listed, read_parts, read_settings, tokenizer_folder
from kiban.weights.safetensors import check_header, read_safetensors
from kiban.zoo.registry import Loaded, families, find_preset, presets
from kiban.zoo.tensors import assign, stored_tensors

UNET = "model.diffusion_model."
# What else a file may hold, such as averaged weights and the noise schedule, is left.
PREFIXES = (UNET, "first_stage_model.", "cond_stage_model.", "conditioner.embedders.")


def family_of(folder: Path, index: Mapping[str, Any]) -> Family:
    """The family of a folder by its model_index.json. Raises FormatError if none reads it."""
    kind = index.get("_class_name")
    systems = [family for family in families().values() if family.components is not None]
    for family in systems:
        if kind in family.hf_model_types:
            return family
    known = [kind for family in systems for kind in family.hf_model_types]
    raise FormatError(folder / INDEX, field="_class_name", why=f"{kind!r} is unknown", hint=f"known: {known}")


def open_folder(folder: Path, dtype: torch.dtype) -> Loaded:
    """A system from a folder of diffusers. Raises FormatError, UnsafeFormatError, IntegrityError, ModelNotFoundError."""
    verify_folder(folder)
    settings = read_settings(folder)
    family = family_of(folder, settings[INDEX])
    assert family.components is not None
    try:
        config = family.from_hf(settings)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise FormatError(folder, why=f"a setting is missing or of the wrong kind: {error}") from error
    components = family.components(config)
    places = [place for part in components if (place := tokenizer_folder(part)) is not None]
    check_listed(folder, [*(part.folder for part in components), *places])
    with torch.device("meta"):
        module = family.build(config)
    assign(module, family.hf_names(config), read_parts(folder, components), source=str(folder), dtype=dtype)
    return _loaded(family, config, module, folder, [folder / place for place in places])


def open_file(path: Path, preset: str | None, dtype: torch.dtype) -> Loaded:
    """A system from one file with LDM's names. Its tokenizers are read from `tokenizer` and `tokenizer_2` beside it.

    Raises FormatError if the file holds another one, ConfigError if preset is not told and several fit.
    """
    family, config = preset_of(path, preset)
    assert family.components is not None and family.ldm_names is not None
    with torch.device("meta"):
        module = family.build(config)
    tensors = _of_system(read_safetensors(path))
    assign(module, family.ldm_names(config), tensors, source=str(path), dtype=dtype)
    places = [place for part in family.components(config) if (place := tokenizer_folder(part)) is not None]
    return _loaded(family, config, module, path, [path.parent / place for place in places])


def preset_of(path: Path, preset: str | None) -> tuple[Family, Any]:
    """The size of the system in a file: preset, else the one whose shapes are in it. Raises as `open_file`."""
    header = check_header(path)
    if not any(name.startswith(UNET) for name in header):
        hint = "give the folder that it lies in, if that has a config.json"
        raise FormatError(path, why=f"holds no latent diffusion model ({UNET}...)", hint=hint)
    if preset is not None:
        family, config = find_preset(preset)
        if family.ldm_names is None:
            raise ConfigError("preset", field=preset, why="is never kept in one file of this kind")
        return family, config
    shapes = {name: torch.empty(entry["shape"], device="meta") for name, entry in _of_system(header).items()}
    fitting = {name: found for name, found in presets().items() if _fits(*found, shapes)}
    if not fitting:
        raise FormatError(path, why="has the shapes of no published size", hint="convert it to a folder of diffusers")
    if len(fitting) > 1:
        names = " and ".join(fitting)
        raise ConfigError(path, field="preset", why=f"{names} have the same shapes", hint="say which one it is")
    return next(iter(fitting.values()))


def _of_system(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if name.startswith(PREFIXES)}


def _fits(family: Family, config: Any, shapes: Mapping[str, Tensor]) -> bool:
    if family.ldm_names is None:
        return False
    with torch.device("meta"):
        expected = stored_tensors(family.build(config))
    # Counting first spares most sizes the long way through the names.
    counts = (
        sum(tensor.numel() for name, tensor in tensors.items() if name.startswith(prefix))
        for tensors, prefix in ((expected, "unet."), (shapes, UNET))
    )
    if len({*counts}) > 1:
        return False
    try:
        ours = to_ours(family.ldm_names(config), shapes, wanted=expected, source="")
    except FormatError:
        return False
    return all(name in ours and ours[name].shape == tensor.shape for name, tensor in expected.items())


def _loaded(family: Family, config: Any, module: nn.Module, path: Path, folders: list[Path]) -> Loaded:
    """With the tokenizers of these folders, or without any if one is missing: weights are of use without them too."""
    complete = all(has_tokenizer(folder) for folder in folders)
    tokenizers = [Tokenizer.from_folder(folder) for folder in folders] if complete else []
    first = tokenizers[0] if tokenizers else None
    return Loaded(family, config, module, first, None, (), str(path), path, tuple(tokenizers[1:]))
