"""What the cards of kiban-clip-emoji and kiban-sd-emoji share: templates, records, and whose pictures they learned from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from get_text import CACHE
from kiban import zoo

HERE = Path(__file__).parent


def fill(template: str, **values: Any) -> str:
    """A card. template: a file beside this one."""
    return (HERE / template).read_text(encoding="utf-8").format(**values, sources=sources())


def record(name: str) -> dict[str, Any]:
    """What benchmarks/emoji.py recorded."""
    path = HERE.parent / "benchmarks" / "results" / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8")))


def sources() -> str:
    """A table of whose pictures and words the weights learned from, as attribution asks."""
    known = json.loads((CACHE / "emoji" / "SOURCES.json").read_text(encoding="utf-8"))
    rows = [(name, f["licence"], f["attribution"]) for name, f in known["styles"].items() if not f["held_out"]]
    rows.append(("names and keywords", known["captions_licence"], known["captions_attribution"]))
    return table(("what", "licence", "whose"), rows)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))


def interval(row: Mapping[str, Any], name: str, *, percent: bool = False) -> str:
    """A value with its 95% interval. The interval's ends are under "NAME low", or "low"."""
    ends = (row.get(f"{name} {end}", row.get(end)) for end in ("low", "high"))
    value, low, high = ((100 if percent else 1) * float(x) for x in (row[name], *ends))
    return f"{value:.0f}% ({low:.0f}-{high:.0f})" if percent else f"{value:.2f} ({low:.2f}-{high:.2f})"


def publish(run: Path, folder: Path, card: str) -> None:
    """The run's model in float16, with its card; the folder must be new."""
    # Stored in float16, used in float32: half precision is slow on most processors.
    zoo.save(zoo.load(run / "final"), folder, files={"README.md": card}, stored=torch.float16)
