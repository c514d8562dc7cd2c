"""LoRA. Hu et al. 2021. A linear layer keeps its weights and learns a product of two thin matrices beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kiban import zoo
from kiban.errors import ConfigError, FormatError
from kiban.files import read_json, verify_folder
from kiban.weights.folder import write_folder
from kiban.weights.names import Same
from kiban.weights.safetensors import read_safetensors, tensor_bytes


class LoRALinear(nn.Module):
    """base(x) + alpha/rank * up(down(x)) (section 4.1, eq. 3). x: (..., in), out: (..., out).

    down starts as Kaiming-uniform noise, up as zeros, so at first nothing changes.
    """

    def __init__(
        self, base: nn.Linear, *, rank: int, alpha: float, dropout: float, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.base, self.rank, self.alpha = base.requires_grad_(False), rank, alpha
        self.down = nn.Linear(base.in_features, rank, bias=False, dtype=base.weight.dtype, device=base.weight.device)
        self.up = nn.Linear(rank, base.out_features, bias=False, dtype=base.weight.dtype, device=base.weight.device)
        self.dropout = nn.Dropout(dropout)
        bound = math.sqrt(1 / base.in_features)
        with torch.no_grad():
            self.down.weight.uniform_(-bound, bound, generator=generator)
            self.up.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        change = self.up(self.down(self.dropout(x)))
        return torch.as_tensor(self.base(x) + change * (self.alpha / self.rank))

    def merged(self) -> nn.Linear:
        """The base layer with the change added to its weight."""
        with torch.no_grad():
            self.base.weight += (self.up.weight @ self.down.weight) * (self.alpha / self.rank)
        return self.base


def add_lora(
    module: nn.Module,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[str]:
    """Freeze module and put LoRA beside every linear layer whose own name is among targets; returns their paths.

    Raises ConfigError if rank is below 1 or nothing has such a name.
    """
    if rank < 1:
        raise ConfigError("lora", field="rank", why="must be at least 1")
    module.requires_grad_(False)
    places = [n for n, m in module.named_modules() if isinstance(m, nn.Linear) and n.rpartition(".")[2] in targets]
    if not places:
        raise ConfigError("lora", field="targets", why=f"no linear layer is named {', '.join(targets)}")
    for place in places:
        wrap(module, place, rank=rank, alpha=alpha, dropout=dropout, generator=generator)
    return places


def wrap(
    module: nn.Module,
    place: str,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> LoRALinear:
    """Put LoRA beside the linear layer at this path of module."""
    parent, _, leaf = place.rpartition(".")
    base = module.get_submodule(place)
    assert isinstance(base, nn.Linear)
    adapter = LoRALinear(base, rank=rank, alpha=alpha, dropout=dropout, generator=generator)
    setattr(module.get_submodule(parent), leaf, adapter)
    return adapter


def adapters(module: nn.Module) -> dict[str, LoRALinear]:
    """Every LoRA layer by its path."""
    return {name: m for name, m in module.named_modules() if isinstance(m, LoRALinear)}


def merge_lora(module: nn.Module) -> None:
    """Add every change to its base weight and put the plain layers back; outputs stay the same to rounding."""
    for place, adapter in adapters(module).items():
        parent, _, leaf = place.rpartition(".")
        setattr(module.get_submodule(parent), leaf, adapter.merged())


def peft_files(loaded: zoo.Loaded, *, base: str) -> dict[str, str | bytes]:
    """adapter_config.json and adapter_model.safetensors, as PEFT reads them. base: name or folder of the base model."""
    found = adapters(loaded.module)
    first = next(iter(found.values()))
    published = _published_places(loaded)
    tensors: dict[str, Tensor] = {}
    for place, adapter in found.items():
        path = f"base_model.model.{published[place]}"
        tensors[f"{path}.lora_A.weight"] = adapter.down.weight.detach()
        tensors[f"{path}.lora_B.weight"] = adapter.up.weight.detach()
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if loaded.head == "sequence_classification" else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": first.dropout.p,
        "target_modules": sorted({published[place].rpartition(".")[2] for place in found}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
    }
    if loaded.head == "sequence_classification":
        config["modules_to_save"] = ["score"]
        tensors["base_model.model.score.weight"] = loaded.module.get_parameter("score.weight").detach()
    files: dict[str, str | bytes] = {
        "adapter_config.json": json.dumps(config, indent=1),
        "adapter_model.safetensors": tensor_bytes(tensors),
    }
    return files


def save_peft(loaded: zoo.Loaded, folder: Path, *, base: str) -> None:
    """Write the adapter alone, in PEFT's layout."""
    files = peft_files(loaded, base=base)
    write_folder(folder, tensors={}, config={}, files=files, manifest={"adapter_of": base})


def load_peft(loaded: zoo.Loaded, folder: Path) -> None:
    """Put the adapter of a PEFT folder on loaded.module. Raises FormatError if it does not fit."""
    verify_folder(folder)
    config = read_json(folder / "adapter_config.json")
    tensors = read_safetensors(folder / "adapter_model.safetensors")
    ours = {path: place for place, path in _published_places(loaded).items()}
    paths = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in tensors if ".lora_" in name}
    unfit = sorted(path for path in paths if not _fits(loaded, ours.get(path), tensors, path, config))
    plain = config.get("peft_type") == "LORA" and not config.get("use_dora") and not config.get("use_rslora")
    if not plain or unfit or not paths:
        raise FormatError(folder, why="is not a LoRA adapter of this model", hint=", ".join(unfit[:3]))
    add_lora(
        loaded.module,
        rank=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        targets=sorted({ours[path].rpartition(".")[2] for path in paths}),
    )
    with torch.no_grad():
        for path in paths:
            adapter = adapters(loaded.module)[ours[path]]
            adapter.down.weight.copy_(tensors[f"base_model.model.{path}.lora_A.weight"])
            adapter.up.weight.copy_(tensors[f"base_model.model.{path}.lora_B.weight"])
        for name, tensor in tensors.items():
            if name.endswith("score.weight"):
                loaded.module.get_parameter("score.weight").copy_(tensor)


def _fits(
    loaded: zoo.Loaded, place: str | None, tensors: Mapping[str, Tensor], path: str, config: Mapping[str, Any]
) -> bool:
    """Whether both matrices of a layer are there, of the rank stated and of its width."""
    pair = [tensors.get(f"base_model.model.{path}.lora_{letter}.weight") for letter in "AB"]
    if place is None or pair[0] is None or pair[1] is None:
        return False
    layer = loaded.module.get_submodule(place)
    rank = config.get("r")
    return isinstance(layer, nn.Linear) and (tuple(pair[0].shape), tuple(pair[1].shape)) == (
        (rank, layer.in_features),
        (layer.out_features, rank),
    )


def _published_places(loaded: zoo.Loaded) -> dict[str, str]:
    """Our path of each block's linear layers to the published one, by the family's name table."""
    family = loaded.family
    table = family.heads[loaded.head].names(loaded.config) if loaded.head else family.hf_names(loaded.config)
    places = {}
    for published, rule in table.items():
        if isinstance(rule, Same) and published.endswith(".weight"):
            for layer in range(loaded.config.num_layers):
                ours = rule.ours.replace("{}", str(layer)).removesuffix(".weight")
                places[ours] = published.replace("{}", str(layer)).removesuffix(".weight")
    return places
