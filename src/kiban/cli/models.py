"""`kiban models`: the catalogue."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiban.cli.console import current
from kiban.cli.options import AsJson, Lang
from kiban.cli.sizes import as_bytes, shown

if TYPE_CHECKING:
    from kiban.catalogue.entries import Entry

models_app = typer.Typer(rich_markup_mode=None)
HEADERS = {
    "ja": ("名前", "系列", "入力→出力", "言語", "パラメータ", "メモリ", "取得", "ライセンス", "手元"),
    "en": ("name", "family", "reads→writes", "languages", "parameters", "memory", "download", "licence", "here"),
}


@models_app.callback(invoke_without_command=True)
def list_models(
    context: typer.Context,
    family: Annotated[str | None, typer.Option(help="only this family, for example bert")] = None,
    language: Annotated[str | None, typer.Option(help="only models of this language, for example ja")] = None,
    reads: Annotated[str | None, typer.Option(help="only models that read text, image or audio")] = None,
    writes: Annotated[str | None, typer.Option(help="only models that write text, embedding, image or audio")] = None,
    commercial: Annotated[bool, typer.Option("--commercial", help="only where commercial use is allowed")] = False,
    max_memory: Annotated[str | None, typer.Option(help="only what fits, for example 2GB")] = None,
    as_json: AsJson = False,
    lang: Lang = None,
) -> None:
    """The catalogue: list what can be loaded by name, show all about a model, pull its weights.

    Examples:

      kiban models --writes embedding

      kiban models --commercial --max-memory 1GB --json

      kiban models pull smollm2-135m-instruct
    """
    if context.invoked_subcommand:
        return
    from kiban.catalogue.entries import entries
    from kiban.catalogue.pull import is_pulled

    console, limit = current(lang), as_bytes(max_memory, "--max-memory") if max_memory else None
    found = [
        entry
        for entry in entries().values()
        if (family is None or entry.family == family)
        and (language is None or language in entry.languages)
        and (reads is None or reads in entry.reads)
        and (writes is None or writes in entry.writes)
        and (not commercial or entry.commercial_use is True)
        and (limit is None or (entry.memory_bytes is not None and entry.memory_bytes <= limit))
    ]
    if as_json:
        console.print(json.dumps([_facts(entry) for entry in found], ensure_ascii=False, indent=1))
        return
    rows = [
        (
            entry.name,
            entry.family,
            f"{'+'.join(entry.reads)}→{'+'.join(entry.writes)}",
            ", ".join(entry.languages),
            f"{entry.parameters / 1e6:.0f}M" if entry.parameters else "unknown",
            shown(entry.memory_bytes),
            shown(entry.download_bytes),
            entry.licence,
            "✓" if is_pulled(entry) else "",
        )
        for entry in found
    ]
    console.table(HEADERS[console.lang], rows)


@models_app.command("show")
def show(name: str, as_json: AsJson = False, lang: Lang = None) -> None:
    """Everything that is known about a model."""
    from kiban.catalogue.entries import find

    console, facts = current(lang), _facts(find(name))
    if as_json:
        console.print(json.dumps(facts, ensure_ascii=False, indent=1))
        return
    console.table(("", ""), [(key, ", ".join(v) if isinstance(v, list) else str(v)) for key, v in facts.items()])


@models_app.command("pull")
def pull_model(name: str, lang: Lang = None) -> None:
    """Fetch a model's weights into the cache (KIBAN_HOME); afterwards they work offline."""
    from kiban.catalogue.pull import pull

    console = current(lang)
    with console.progress() as progress:
        path = pull(name, progress=progress)
    console.print(str(path))


def _facts(entry: Entry) -> dict[str, Any]:
    """The entry as plain values; None is told as unknown."""
    facts = dataclasses.asdict(entry)
    for hidden in ("member", "main_file", "main_sha256"):
        facts.pop(hidden)
    facts["wheels"] = [f"{wheel.name}=={wheel.version}" for wheel in entry.wheels]
    facts["tarball"] = f"npm {entry.tarball.name}@{entry.tarball.version}" if entry.tarball else ""
    facts |= {"download_bytes": entry.download_bytes, "memory_bytes": entry.memory_bytes}
    return {
        key: "unknown" if value is None else list(value) if isinstance(value, tuple) else value
        for key, value in facts.items()
    }
