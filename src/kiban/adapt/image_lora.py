"""LoRA (Hu et al. 2021) on Stable Diffusion: attention of the U-Net and, if asked for, of the text towers.

The file is what diffusers' `pipeline.save_lora_weights` writes: PEFT's names behind the folder of a part (`unet.`,
`text_encoder.`), and ranks and alphas in the header. Read are also files without that header, for which alpha is the rank,
and kohya's (`lora_unet_...`, with alphas as tensors), as far as they name layers as diffusers does, which those for SDXL do
not. Adapters beside convolutions are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from kiban.adapt.lora import LoRALinear, adapters, add_lora, wrap
from kiban.errors import FormatError
from kiban.families.stable_diffusion import StableDiffusion, components
from kiban.files import parse_json, write_manifest
from kiban.files import staged_folder as staged
from kiban.weights.names import Same, Skip, Split
from kiban.weights.safetensors import read_safetensors

FILE, HEADER = "pytorch_lora_weights.safetensors", "lora_adapter_metadata"
TARGETS = ("q", "k", "v", "o")
KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te"}
ENDS = {".lora_A.weight": "down", ".lora_B.weight": "up", ".lora_down.weight": "down", ".lora_up.weight": "up"}


@dataclass(frozen=True)
class Place:
    """A layer of the published model: its path there, ours (several if it packs them), and how its weight is stored."""

    published: str
    ours: tuple[str, ...]
    rule: Same | Split


@dataclass(frozen=True)
class Found:
    """What a file holds of one layer: down (rank, in) and up (out, rank)."""

    down: Tensor
    up: Tensor
    alpha: float


def add_image_lora(
    model: StableDiffusion, *, rank: int, alpha: float, texts: bool = False, generator: torch.Generator | None = None
) -> None:
    """Freeze model and put LoRA beside the projections of its attention. texts: also in the text towers.

    Raises ConfigError if rank is below 1.
    """
    model.requires_grad_(False)
    for part in [model.unet, *(model.texts if texts else [])]:
        add_lora(part, rank=rank, alpha=alpha, targets=TARGETS, generator=generator)


def image_lora_bytes(model: StableDiffusion) -> bytes:
    """The file that holds the model's adapters."""
    found = adapters(model)
    tensors: dict[str, Tensor] = {}
    header: dict[str, Any] = {}
    for folder in (component.folder for component in components(model.config)):
        layers: dict[str, tuple[int, float]] = {}  # rank and alpha
        for place in _places(model):
            own = [found[name] for name in place.ours if name in found]
            if not own or not place.published.startswith(f"{folder}."):
                continue
            down, up = _packed(own, place)
            tensors[f"{place.published}.lora_A.weight"], tensors[f"{place.published}.lora_B.weight"] = down, up
            # transformers 5 has no `text_model.` in its paths; PEFT compares their ends.
            path = place.published.removeprefix(f"{folder}.").removeprefix("text_model.")
            layers[path] = down.shape[0], own[0].alpha / own[0].rank * down.shape[0]
        header |= {f"{folder}.{name}": value for name, value in _config(layers).items()}
    assert tensors, "the model has no adapter"
    metadata = {"format": "pt", HEADER: json.dumps(header, indent=1)}
    return bytes(safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()}, metadata=metadata))


def _packed(own: list[LoRALinear], place: Place) -> tuple[Tensor, Tensor]:
    """Both matrices of a published layer: of one that packs several of ours, theirs side by side."""
    down = torch.cat([adapter.down.weight.detach() for adapter in own])
    up: Tensor = torch.block_diag(*[adapter.up.weight.detach() for adapter in own])  # type: ignore[no-untyped-call]
    assert len(own) == len(place.ours) and len({adapter.alpha / adapter.rank for adapter in own}) == 1
    return (place.rule.save(down), place.rule.save(up)) if isinstance(place.rule, Same) else (down, up)


def _config(layers: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    """What PEFT has to know of the layers of one part, by path."""
    if not layers:
        return {}
    rank, alpha = next(iter(layers.values()))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {path: r for path, (r, _) in layers.items() if r != rank},
        "alpha_pattern": {path: a for path, (_, a) in layers.items() if a != alpha},
        "target_modules": sorted(layers),
    }


def save_image_lora(model: StableDiffusion, folder: Path, *, base: str) -> None:
    """Write a folder that `pipeline.load_lora_weights` of diffusers opens. base: name of the model that it adapts."""
    with staged(folder) as new:
        (new / FILE).write_bytes(image_lora_bytes(model))
        write_manifest(new, {"adapter_of": base})


def load_image_lora(model: StableDiffusion, path: Path) -> None:
    """Freeze model and put the adapters of a file on it, or of a folder with one. Raises FormatError if they don't fit."""
    file = path / FILE if path.is_dir() else path
    places = {name: place for place in _places(model) for name in _spellings(place.published)}
    found = _read(file)
    for name, layer in found.items():
        if name not in places or not _fits(model, places[name], layer):
            raise FormatError(file, field=name, why="is not an adapter of a linear layer that this model has")
    model.requires_grad_(False)
    for name, layer in found.items():
        place = places[name]
        ups = (layer.up,) if isinstance(place.rule, Same) else place.rule.load(layer.up)
        for ours, up in zip(place.ours, ups, strict=True):
            adapter = wrap(model, ours, rank=len(layer.down), alpha=layer.alpha)
            with torch.no_grad():
                adapter.down.weight.copy_(layer.down)  # layers that are packed into one share it
                adapter.up.weight.copy_(up)


def _read(file: Path) -> dict[str, Found]:
    """The adapters of a file, by the path of their layer as it is spelt there."""
    tensors = read_safetensors(file)
    with safe_open(file, framework="pt") as opened:
        header = (opened.metadata() or {}).get(HEADER)
    config = parse_json(header.encode(), file) if header else {}
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        end = next((end for end in (*ENDS, ".alpha") if name.endswith(end)), None)
        if end is None:
            raise FormatError(file, field=name, why="is not a part of a LoRA adapter")
        layers.setdefault(name.removesuffix(end), {})[ENDS.get(end, "alpha")] = tensor
    found = {}
    for path, parts in layers.items():
        if not {"down", "up"} <= parts.keys():
            raise FormatError(file, field=path, why="lacks one of its two matrices")
        down, up = parts["down"], parts["up"]
        if min(down.ndim, up.ndim) < 2:
            raise FormatError(file, field=path, why="has a matrix that is none")
        try:
            alpha = float(parts["alpha"]) if "alpha" in parts else _alpha(config, path, len(down))
        except (AttributeError, TypeError, ValueError, RuntimeError, re.error) as error:
            raise FormatError(file, field=path, why=f"has an alpha that cannot be read: {error}") from error
        # Beside a layer that is stored as a 1x1 convolution they are convolutions, too.
        found[path] = Found(down.flatten(1), up.flatten(1), alpha)
    return found


def _alpha(config: Mapping[str, Any], path: str, rank: int) -> float:
    """A layer's alpha by the header; the rank if it does not tell."""
    folder, _, rest = path.partition(".")
    special = config.get(f"{folder}.alpha_pattern") or {}
    plain = float(config.get(f"{folder}.lora_alpha", rank))
    # PEFT reads a pattern as an expression that the end of a path has to match.
    return next((float(a) for pattern, a in special.items() if re.fullmatch(rf"(.*\.)?({pattern})", rest)), plain)


def _fits(model: StableDiffusion, place: Place, layer: Found) -> bool:
    """Whether both matrices have the rank of each other and the widths of the layer."""
    bases = [model.get_submodule(name) for name in place.ours]
    if not all(isinstance(base, nn.Linear) for base in bases):
        return False  # it has an adapter already
    widths = [(base.in_features, base.out_features) for base in bases if isinstance(base, nn.Linear)]
    rank, inputs, outputs = len(layer.down), widths[0][0], sum(out for _, out in widths)
    return rank > 0 and layer.down.shape == (rank, inputs) and layer.up.shape == (outputs, rank)


def _spellings(published: str) -> list[str]:
    """How files call a layer: PEFT's way, with `text_model.` or without, and kohya's."""
    folder, _, rest = published.partition(".")
    bare = f"{folder}.{rest.removeprefix('text_model.')}"
    kohya = [f"{KOHYA[folder]}_{rest.replace('.', '_')}"] if folder in KOHYA else []
    return [published, bare, *kohya]


def _places(model: StableDiffusion) -> list[Place]:
    """Every linear layer of U-Net and text towers that has a published name."""
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.Linear | LoRALinear)]
    found = []
    for component in components(model.config):
        if component.part == "vae":
            continue
        own = [name.removeprefix(f"{component.part}.") for name in layers if name.startswith(f"{component.part}.")]
        for pattern, rule in component.names.items():
            if isinstance(rule, Skip) or not pattern.endswith(".weight"):
                continue
            first = re.compile(re.escape(rule.names[0].removesuffix(".weight")).replace(r"\{\}", "([0-9]+)"))
            for match in filter(None, map(first.fullmatch, own)):
                ours = tuple(name.removesuffix(".weight").format(*match.groups()) for name in rule.names)
                published = pattern.removesuffix(".weight").format(*match.groups())
                places = tuple(f"{component.part}.{name}" for name in ours)
                found.append(Place(f"{component.folder}.{published}", places, rule))
    return found
