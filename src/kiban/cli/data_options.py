"""What the options of `kiban data` mean."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiban.cli.console import Console
from kiban.config import num_cores
from kiban.errors import ConfigError

if TYPE_CHECKING:
    from kiban.data.prepare import Inputs, Means
    from kiban.inputs.tokenizer import Tokenizer


def inputs(paths: list[Path], field: str, id_field: str | None, on_bad_row: str, limit: int | None = None) -> Inputs:
    from kiban.data.prepare import Inputs

    mode: Any = one_of("--on-bad-row", on_bad_row, ("stop", "skip"))
    return Inputs(paths=tuple(paths), field=field, id_field=id_field, on_bad_row=mode, limit=limit)


def means(processes: int | None, ray: str | None, watch: Any) -> Means:
    from kiban.data.prepare import Means

    return Means(processes=processes or num_cores(), ray=ray, watch=watch)


def one_of(option: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ConfigError(option, field=value, why="is not known", hint=", ".join(known))
    return value


def compression(name: str | None) -> Any:
    return None if name is None else one_of("--compress", name, ("gzip", "zstd"))


def rules(languages: str | None, adult: str, personal_data: str, changes: list[str]) -> Any:
    """The rules with the options' and the --set changes. Raises ConfigError naming the setting."""
    from kiban.config import from_dict, override
    from kiban.data.quality import Rules

    values = asdict(Rules()) | {"adult": adult, "personal_data": personal_data}
    if languages:
        values["languages"] = [code.strip() for code in languages.split(",") if code.strip()]
    if "help" in changes:
        raise ConfigError(
            "--set", why="known thresholds", hint=", ".join(f"{n}={v}" for n, v in asdict(Rules()).items())
        )
    values = override(values, changes)
    return from_dict(Rules, {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def as_shares(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, share = part.strip().partition("=")
        try:
            if not equals or name in found:
                raise ValueError
            found[name] = float(share)
        except ValueError:
            raise ConfigError("--shares", field=part, why="is not name=share", hint="train=0.98,test=0.02") from None
    return found


def open_tokenizer(source: str, console: Console) -> Tokenizer:
    """A tokenizer by catalogue name, or from a folder, a GGUF file or a sentencepiece model.

    Raises ModelNotFoundError, with the closest name, if there is none.
    """
    from kiban.inputs.tokenizer import Tokenizer

    path = Path(source)
    if not path.exists():
        from kiban.catalogue.entries import find
        from kiban.catalogue.pull import pull

        with console.progress() as progress:
            path = pull(find(source), progress=progress)
    if path.is_dir():
        inner = next((path / name for name in ("tokenizer", "final") if (path / name).is_dir()), path)
        return Tokenizer.from_folder(inner)
    if path.suffix == ".model":
        return Tokenizer.from_sentencepiece(path)
    from kiban.weights.gguf import read_gguf

    with read_gguf(path) as file:
        return Tokenizer.from_gguf(file.metadata)
