"""The run folder: its settings, its lock, and what this machine is."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiban import __version__, files
from kiban.config import from_dict, read_yaml, to_dict, write_yaml
from kiban.data.tables import OnBadRow, from_frame
from kiban.errors import ConfigError, DatasetError

# What each setting of config.yaml may be; None where that means "not given".
KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("require", "lang", "on_bad_row", "source_sha256"), (str,)),
    **dict.fromkeys(("source", "text", "label"), (str, type(None))),
    **dict.fromkeys(("yen_per_hour", "yen_per_usd"), (int, float)),
    **dict.fromkeys(("steps", "max_memory"), (int, type(None))),
    **dict.fromkeys(("models", "strategies"), (str, list, tuple, type(None))),
    "seconds": (int, float, type(None)),
    "seed": (int,),
}
CHOICES = {"on_bad_row": ("stop", "skip"), "lang": ("ja", "en")}


def check(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError naming the first setting, of those that are known, whose value cannot be."""
    for key, kinds in KINDS.items():
        value = settings.get(key)
        if key in settings and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise ConfigError("settings", field=key, why=f"{value!r} is of the wrong kind", hint="as in config.yaml")
        if key in CHOICES and key in settings and value not in CHOICES[key]:
            raise ConfigError("settings", field=key, why=f"{value!r} is unknown", hint=" or ".join(CHOICES[key]))
    if not 0 <= settings.get("seed", 0) < 2**32:
        raise ConfigError("settings", field="seed", why="is out of range", hint="0 to 4294967295")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """config.yaml of a run: all that repeats it. Times in seconds, memory in bytes."""

    source: str
    source_sha256: str
    text: str  # columns; "" for a folder of pictures
    label: str
    require: str = ""
    seconds: float | None = 600.0
    steps: int | None = None  # instead of seconds: optimiser steps of the longest fit; repeats exactly on any machine
    max_memory: int | None = None
    models: tuple[str, ...] | None = None  # None: every embedded model of the catalogue
    strategies: tuple[str, ...] | None = None
    seed: int = 0
    lang: str = "en"
    on_bad_row: OnBadRow = "stop"
    yen_per_hour: float = 15.0  # a small cloud machine of two cores
    yen_per_usd: float = 150.0

    @property
    def command(self) -> str:
        """The command line that repeats the run."""
        words = ["kiban adopt", shlex.quote(self.source)]
        words += ["--text", shlex.quote(self.text), "--label", shlex.quote(self.label)] if self.text else []
        words += ["--time", f"{self.seconds:g}s"] if self.steps is None else ["--steps", str(self.steps)]
        words += ["--require", shlex.quote(self.require)] if self.require else []
        words += ["--max-memory", f"{self.max_memory}B"] if self.max_memory else []
        words += ["--models", shlex.quote(",".join(self.models))] if self.models else []
        words += ["--strategies", ",".join(self.strategies)] if self.strategies else []
        words += ["--on-bad-row", self.on_bad_row] if self.on_bad_row != "stop" else []
        words += ["--seed", str(self.seed), "--yen-per-hour", f"{self.yen_per_hour:g}"]
        return " ".join([*words, "--yen-per-usd", f"{self.yen_per_usd:g}", "--lang", self.lang])

    def save(self, folder: Path) -> None:
        """Write config.yaml."""
        values = to_dict(self)
        write_yaml(folder / "config.yaml", {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()})

    @classmethod
    def read(cls, folder: Path) -> Settings:
        """Read config.yaml. Raises ConfigError if the folder holds no run, or a setting that cannot be."""
        if not (folder / "config.yaml").exists():
            raise ConfigError(folder, why="is not a run folder", hint="give the folder that `kiban adopt` printed")
        values = read_yaml(folder / "config.yaml")
        check(values)
        lists = {key: tuple(values[key]) for key in ("models", "strategies") if values.get(key) is not None}
        return from_dict(cls, {**values, **lists})


def alone(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Hold a run folder. Raises ConfigError if another process works on it."""
    busy = ConfigError(folder, why="another kiban process works on this run", hint="wait for it")
    return files.exclusive(folder / ".lock", error=busy)


def new_folder(name: str) -> Path:
    """Where a run goes that was given no folder."""
    return files.run_folder(f"adopt-{name}")


def keep_frame(frame: Any, folder: Path) -> Path:
    """A frame becomes a file of the run, so that the run can be resumed and repeated."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "table.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for row in from_frame(frame).rows:
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    return path


def sha256_of(table: Path) -> str:
    """What tells whether a table is still the same. Raises DatasetError if it cannot be read."""
    try:
        return files.sha256_of(table)
    except OSError as error:
        raise DatasetError(table, why=f"cannot be read: {error.strerror}") from error


def environment() -> dict[str, Any]:
    import psutil
    import torch

    memory = psutil.virtual_memory().total
    return {
        "kiban": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
