"""Plain types that every layer shares, and frozen-dataclass configuration: read, write, override, did-you-mean."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from kiban.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

Progress = Callable[[str, int, int | None], None]
"""progress(stage, done, total): called by long work; total is None while unknown. The caller decides how to show it.

What stands behind " | " in stage is news of the same stage.
"""


def silent(stage: str, done: int, total: int | None) -> None:
    """The Progress that shows nothing."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a family takes and gives. Code asks these and never looks at names."""

    reads: frozenset[str]  # of "text", "image", "audio"
    writes: frozenset[str]  # of "text", "image", "audio", "embedding"
    causal: bool  # predicts the next token from those before it


@dataclass(frozen=True, kw_only=True)
class Head:
    """A task head on a family's body.

    build(body, num_labels) returns the module that holds both; architecture is the Hugging Face class that opens it;
    names(config) is its name table (ours -> published, see `kiban.weights.names`), body included.
    """

    build: Callable[[Any, int], nn.Module]
    architecture: str
    names: Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture: how to build it, its published sizes, and how its weights are named elsewhere."""

    name: str
    config_class: type
    build: Callable[[Any], nn.Module]
    traits: Traits
    presets: Mapping[str, Any]
    architecture: str  # Hugging Face class of the bare model, e.g. "LlamaForCausalLM"
    hf_model_types: tuple[str, ...]
    from_hf: Callable[[Mapping[str, Any]], Any]  # config.json -> config
    to_hf: Callable[[Any], dict[str, Any]]
    hf_names: Callable[[Any], Any]  # config -> name table
    heads: Mapping[str, Head] = field(default_factory=dict)
    gguf_architectures: tuple[str, ...] = ()
    from_gguf: Callable[[Mapping[str, Any]], Any] | None = None
    gguf_names: Callable[[Any], Any] | None = None
    to_gguf: Callable[[Any], dict[str, Any]] | None = None  # config -> metadata, for families that can be written so
    # A system of several parts: config -> `weights.diffusers_pipeline.Component`s. The functions above then take and give
    # the JSON files of all of them under their paths, and hf_model_types are class names in model_index.json.
    components: Callable[[Any], tuple[Any, ...]] | None = None
    ldm_names: Callable[[Any], Any] | None = None  # config -> name table of all parts in one file
    preprocessor: Callable[[Any], dict[str, Any]] | None = (
        None  # config -> preprocessor_config.json of what reads pictures
    )


def home() -> Path:
    """Where kiban keeps weights and verdicts: KIBAN_HOME, else `kiban` in the user's cache folder."""
    if os.environ.get("KIBAN_HOME"):
        return Path(os.environ["KIBAN_HOME"]).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "kiban" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "kiban"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kiban"


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint that names the closest known spelling, or lists what is known."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build the dataclass cls from values. Raises ConfigError on unknown or missing keys."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(cls.__name__, field=key, why="unknown setting", hint=did_you_mean(key, fields))
    missing = [
        name
        for name, f in fields.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(cls.__name__, why=f"missing settings: {', '.join(missing)}")
    return cls(**values)


def to_dict(config: Any) -> dict[str, Any]:
    """The dataclass as plain values, ready for YAML or JSON."""
    return dataclasses.asdict(config)


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as YAML 1.2 does; the library follows 1.1, which wants 1.0e-3."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse(text: str) -> Any:
    return _Loader(text).get_single_data()


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises ConfigError if it is anything else."""
    try:
        values = _parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(path, why=f"cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(path, why="expected `name: value` lines at the top level")
    return values


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write values as YAML that a person can edit; Japanese stays readable."""
    path.write_text(yaml.safe_dump(dict(values), allow_unicode=True, sort_keys=False), encoding="utf-8")


def override(values: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Apply `a.b=value` assignments (value in YAML) to a copy of values. Raises ConfigError on anything else."""
    result = copy.deepcopy(values)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(assignment, why="expected name=value", hint="for example --set seed=1")
        *parents, last = path.strip().split(".")
        node = result
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                raise ConfigError(assignment, field=parent, why="no such section", hint=did_you_mean(parent, node))
            node = node[parent]
        if last not in node:
            raise ConfigError(assignment, field=last, why="unknown setting", hint=did_you_mean(last, node))
        try:
            node[last] = _parse(text)
        except yaml.YAMLError as error:
            raise ConfigError(assignment, field=last, why=f"cannot be read as YAML: {error}") from error
    return result
