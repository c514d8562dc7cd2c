"""The registry of families, and the one way to open, make and save a model: a scan of `families/`, no list to keep."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kiban import families as families_package
from kiban.catalogue.entries import entries, find
from kiban.catalogue.pull import pull
from kiban.config import Family, Head, Progress, Traits, did_you_mean, silent
from kiban.errors import ConfigError, FormatError, ModelNotFoundError
from kiban.files import read_json, verify_folder
from kiban.inputs.build import TOKENIZER_FILES
from kiban.inputs.gguf import to_gguf
from kiban.inputs.tokenizer import Tokenizer
from kiban.weights.folder import write_folder
from kiban.weights.gguf import read_gguf
from kiban.weights.gguf_write import write_gguf
from kiban.weights.names import to_ours, to_published
from kiban.weights.safetensors import read_folder_tensors

__all__ = [
    "Family",
    "Head",
    "Loaded",
    "Traits",
    "create",
    "families",
    "family_of",
    "initialise",
    "load",
    "new",
    "presets",
    "save",
    "save_gguf",
]


@dataclass
class Loaded:
    """A model in memory with all that belongs to it. head names its task head, None for the bare model."""

    family: Family
    config: Any
    module: nn.Module
    tokenizer: Tokenizer | None
    head: str | None
    labels: tuple[str, ...]
    source: str
    path: Path | None

    @property
    def num_parameters(self) -> int:
        """Parameters, shared ones counted once."""
        return sum(p.numel() for p in self.module.parameters())


@cache
def families() -> dict[str, Family]:
    """Every family by name."""
    names = [module.name for module in pkgutil.iter_modules(families_package.__path__)]
    found = [importlib.import_module(f"kiban.families.{name}").FAMILY for name in names]
    return {family.name: family for family in found}


def presets() -> dict[str, tuple[Family, Any]]:
    """Every published size by name, with its family and configuration."""
    return {name: (family, config) for family in families().values() for name, config in family.presets.items()}


def create(
    preset: str,
    *,
    head: str | None = None,
    labels: Sequence[str] = (),
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Loaded:
    """A new model with random weights (on device "meta": sizes only). Raises ConfigError if the preset is unknown."""
    if preset not in presets():
        raise ConfigError("preset", field=preset, why="unknown", hint=did_you_mean(preset, presets()))
    family, config = presets()[preset]
    return new(family, config, preset, head=head, labels=labels, generator=generator, dtype=dtype, device=device)


def new(
    family: Family,
    config: Any,
    source: str,
    *,
    head: str | None = None,
    labels: Sequence[str] = (),
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Loaded:
    """A model of this configuration with random weights, named source. As `create`."""
    with torch.device(device):
        module = family.build(config).to(dtype)
        module = module if head is None else _head(family, head).build(module, len(labels)).to(dtype)
    if torch.device(device).type != "meta":
        initialise(module, generator)
    return Loaded(family, config, module, None, head, tuple(labels), source, None)


def initialise(module: nn.Module, generator: torch.Generator | None) -> nn.Module:
    """Draw all weights of a model, body first, as its paper does; returns it."""
    for part in [m for m in module.children() if hasattr(m, "initialise")] + [module]:
        part.initialise(generator)  # type: ignore[operator]
    return module


def load(
    source: str | Path,
    *,
    head: str | None = None,
    labels: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> Loaded:
    """Open a catalogue name, a Hugging Face folder, a GGUF file or a hub id ("owner/name"). The model is in eval mode.

    head: a task head. One that the files lack is drawn from generator and needs labels. Raises ModelNotFoundError,
    FormatError, UnsafeFormatError or IntegrityError.
    """
    path = _locate(source, progress)
    opened = _open_gguf(path, dtype) if path.is_file() else _open_folder(path, head, dtype)
    if head is not None and opened.head != head:
        if not labels:
            raise ConfigError(source, field=head, why="has no such head, and no labels were given for a new one")
        module = _head(opened.family, head).build(opened.module, len(labels)).to(dtype)
        module.initialise(generator)  # type: ignore[operator]
        opened = replace(opened, module=module, head=head, labels=tuple(labels))
    opened.module.to(device).eval()
    return replace(opened, source=str(source), path=path)


def family_of(path: Path) -> Family:
    """The family of a Hugging Face folder or GGUF file, without its weights."""
    if path.is_file():
        with read_gguf(path) as file:
            return _gguf_family(path, file.metadata)
    return _hf_family(path, read_json(path / "config.json"))


def save(
    loaded: Loaded,
    path: Path,
    *,
    files: Mapping[str, str | bytes] | None = None,
    manifest: Mapping[str, Any] | None = None,
    stored: torch.dtype | None = None,
) -> None:
    """Write a Hugging Face folder: configuration, safetensors, tokenizer, chat template, and a manifest with sha256s.

    stored: the type of the tensors in the file, by default the model's own, in which the folder is opened either way.
    """
    family, config = loaded.family, loaded.config
    values = family.to_hf(config)
    names = family.hf_names(config)
    if loaded.head is not None:
        head = _head(family, loaded.head)
        names = head.names(config)
        # "ForSequenceClassification" stands behind the name of the variant ("Mistral"), other names are whole.
        variant = values["architectures"][0].removesuffix("ForCausalLM")
        values["architectures"] = [
            variant + head.architecture if head.architecture.startswith("For") else head.architecture
        ]
    if loaded.labels:
        values["id2label"] = {str(i): label for i, label in enumerate(loaded.labels)}
        values["label2id"] = {label: i for i, label in enumerate(loaded.labels)}
    parameters = {name: p.detach() for name, p in loaded.module.named_parameters()}
    values["dtype"] = str(next(iter(parameters.values())).dtype).removeprefix("torch.")
    if loaded.tokenizer is not None:
        for key in ("pad_id", "bos_id", "eos_id"):
            values[key.replace("_id", "_token_id")] = getattr(loaded.tokenizer, key)
    tokenizer_files = dict(loaded.tokenizer.files()) if loaded.tokenizer else {}
    write_folder(
        path,
        tensors=to_published(names, {name: p.to(stored or p.dtype) for name, p in parameters.items()}),
        config=values,
        files={**tokenizer_files, **(files or {})},
        manifest={"family": family.name, "head": loaded.head, **(manifest or {})},
    )


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


def _head(family: Family, name: str) -> Head:
    if name not in family.heads:
        raise ConfigError(family.name, field=name, why="has no such head", hint=did_you_mean(name, family.heads))
    return family.heads[name]


def _locate(source: str | Path, progress: Progress) -> Path:
    path = Path(source)
    if path.exists():
        return path
    name = str(source)
    if name in entries():
        return pull(find(name), progress=progress)
    if isinstance(source, str) and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _from_hub(name)
    find(name)  # raises, with the closest name
    raise ModelNotFoundError(name, why="is neither a catalogue name, a folder, a file nor a hub id")


def _from_hub(name: str) -> Path:
    """Fetch from the hub what we read, and never a pickle. Honours HF_HOME, HF_HUB_OFFLINE and HF_TOKEN."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "tokenizer.model", "vocab.txt", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError, LocalEntryNotFoundError, HfHubHTTPError) as error:
        hint = "check the id and the network; a catalogue name (see `kiban models`) or a folder works without one"
        raise ModelNotFoundError(name, why=f"could not be fetched from the hub: {error}", hint=hint) from error


def _hf_family(path: Path, config: Mapping[str, Any]) -> Family:
    kind = config.get("model_type")
    for family in families().values():
        if kind in family.hf_model_types:
            return family
    known = [kind for family in families().values() for kind in family.hf_model_types]
    raise FormatError(path / "config.json", field="model_type", why=f"{kind!r} is unknown", hint=f"known: {known}")


def _gguf_family(path: Path, metadata: Mapping[str, Any]) -> Family:
    kind = metadata.get("general.architecture")
    for family in families().values():
        if kind in family.gguf_architectures:
            return family
    raise FormatError(path, field="general.architecture", why=f"{kind!r} is unknown")


def _open_folder(path: Path, wanted_head: str | None, dtype: torch.dtype) -> Loaded:
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
    tensors = read_folder_tensors(path)
    _assign(module, names, tensors, source=str(path), dtype=dtype)
    # Bare weights are of use too: to convert, to compare, to train on token ids.
    has_tokenizer = any((path / name).is_file() for name in TOKENIZER_FILES)
    tokenizer = Tokenizer.from_folder(path) if has_tokenizer else None
    return Loaded(family, config, module, tokenizer, head, ordered, str(path), path)


def _open_gguf(path: Path, dtype: torch.dtype) -> Loaded:
    with read_gguf(path) as file:
        metadata = {**file.metadata, "kiban.tied": "output.weight" not in file.tensors}
        family = _gguf_family(path, metadata)
        assert family.from_gguf is not None and family.gguf_names is not None
        config = family.from_gguf(metadata)
        with torch.device("meta"):
            module = family.build(config)
        tensors = {name: tensor.dequantise(dtype) for name, tensor in file.tensors.items()}
        _assign(module, family.gguf_names(config), tensors, source=str(path), dtype=dtype)
        return Loaded(family, config, module, Tokenizer.from_gguf(metadata), None, (), str(path), path)


def _assign(module: nn.Module, names: Any, tensors: Mapping[str, Tensor], *, source: str, dtype: torch.dtype) -> None:
    """Put tensors in place of the module's meta parameters. Raises FormatError on a wrong shape."""
    shared: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), []).append(name)
    expected = {group[0]: module.get_parameter(group[0]).shape for group in shared.values()}
    ours = to_ours(names, tensors, wanted=expected, source=source)
    for name, shape in expected.items():
        tensor = ours.get(name)
        if tensor is None:  # the table lets a file lack it (BERT's pooler)
            tensor = torch.zeros(shape)
        if tensor.shape != shape:
            raise FormatError(source, field=name, why=f"has shape {tuple(tensor.shape)}, expected {tuple(shape)}")
        ours[name] = tensor.to(dtype)
    module.load_state_dict(ours, strict=False, assign=True)
    for first, *rest in shared.values():
        for name in rest:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, module.get_parameter(first))
