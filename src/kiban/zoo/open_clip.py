"""CLIP in the form of OpenAI and open_clip: their names, and folders with open_clip_config.json. ResNets have no other."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from kiban.errors import FormatError, ModelNotFoundError
from kiban.families.clip import CLIP, CLIPConfig, ResNetConfig, config_of
from kiban.files import inside, read_json, staged_folder, verify_folder, write_manifest
from kiban.weights import clip_config, clip_names
from kiban.weights.names import NameTable, to_published
from kiban.weights.safetensors import read_safetensors, write_safetensors
from kiban.zoo.tensors import assign, stored_tensors

CONFIG = "open_clip_config.json"


def names(c: CLIPConfig) -> NameTable:
    """OpenAI's, which are open_clip's too."""
    return clip_names.openai(resnet=isinstance(c.vision, ResNetConfig))


def read_openai(path: Path, config: CLIPConfig) -> CLIP:
    """A model from a safetensors file with these names, in float32 and eval mode.

    Raises FormatError if the file holds another architecture, UnsafeFormatError if it is a pickle.
    """
    with torch.device("meta"):
        model = CLIP(config)
    tensors = read_safetensors(path)
    scale = tensors.get("logit_scale")
    if scale is not None and scale.numel() == 1:
        tensors["logit_scale"] = scale.reshape(())  # some files keep it as a vector
    assign(model, names(config), tensors, source=str(path), dtype=torch.float32)
    return model.eval()


def load_open_clip(folder: Path) -> CLIP:
    """A model from a folder as open_clip keeps them. Raises FormatError, IntegrityError or ModelNotFoundError."""
    verify_folder(folder)
    path = folder / CONFIG
    values = read_json(path)
    try:
        config = config_of(clip_config.from_open_clip(values.get("model_cfg", values)))
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise FormatError(path, why=f"a setting is missing or of the wrong kind: {error}") from error
    for name in ("open_clip_model.safetensors", "model.safetensors"):
        if (folder / name).exists():
            return read_openai(inside(folder, name, source=folder), config)
    raise ModelNotFoundError(folder, why="holds neither open_clip_model.safetensors nor model.safetensors")


def save_open_clip(model: CLIP, folder: Path) -> None:
    """Write a folder that open_clip and `load_open_clip` open. Raises KibanError if there is something already."""
    values = {"model_cfg": clip_config.to_open_clip(asdict(model.config))}
    with staged_folder(folder) as staged:
        (staged / CONFIG).write_text(json.dumps(values, indent=2), encoding="utf-8")
        write_safetensors(staged, to_published(names(model.config), stored_tensors(model)))
        write_manifest(staged, {"family": "clip"})
