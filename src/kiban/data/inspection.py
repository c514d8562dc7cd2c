"""What a corpus is made of: languages, kinds of characters, lengths, copies, lines that many documents share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiban.data.characters import NAMES, count
from kiban.data.language import identify
from kiban.data.prepare import Block, Inputs, Means, blocks_of
from kiban.data.seen import hash64
from kiban.data.workers import workers
from kiban.errors import ConfigError

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
SAMPLED = 2**20  # distinct lines and texts that are remembered
MIN_LINE = 10  # characters; shorter lines ("Note", "。") are shared by chance
PLOTTED = 4  # languages


@dataclass
class Seen:
    """A block, as it is told to the whole: lengths and languages of the documents, hashes of texts and lines."""

    characters: NDArray[np.int64]
    num_bytes: int
    languages: list[str]
    kinds: NDArray[np.int64]
    texts: NDArray[np.uint64]
    lines: NDArray[np.uint64]  # those of a document once
    line_sizes: NDArray[np.int64]


@dataclass
class Report:
    """Lengths are in characters. duplicates and repeated_lines are shares; the first of several copies is none."""

    documents: int
    quarantined: int
    characters: int
    bytes: int
    languages: dict[str, dict[str, int]]
    kinds: dict[str, float]  # share of all characters
    quantiles: dict[str, float]
    duplicates: float
    repeated_lines: float  # of the characters in lines of MIN_LINE and more
    lengths: dict[str, list[int]] = field(repr=False)  # by language, for the plot

    def as_dict(self) -> dict[str, Any]:
        """Without the single lengths."""
        values = asdict(self)
        del values["lengths"]
        return values


class Repeats:
    """How much of a stream of (hash, weight) repeats earlier hashes, exactly up to SAMPLED distinct ones.

    Beyond that only the hashes that end in more and more zero bits are followed, which makes an unbiased estimate.
    """

    def __init__(self) -> None:
        self.first: dict[int, int] = {}  # weights by hash
        self.later: dict[int, int] = {}  # sums of the weights of those that came again
        self.mask = 0

    def add(self, hashes: NDArray[np.uint64], weights: NDArray[np.int64]) -> None:
        chosen = (hashes & np.uint64(self.mask)) == 0
        for value, weight in zip(hashes[chosen].tolist(), weights[chosen].tolist(), strict=True):
            if value in self.first:
                self.later[value] = self.later.get(value, 0) + weight
            elif not value & self.mask:
                self.first[value] = weight
                while len(self.first) > SAMPLED:
                    self.mask = 2 * self.mask + 1
                    self.first = {kept: w for kept, w in self.first.items() if not kept & self.mask}
                    self.later = {kept: w for kept, w in self.later.items() if not kept & self.mask}

    @property
    def share(self) -> float:
        again = sum(self.later.values())
        return again / max(1, again + sum(self.first.values()))


def look(block: Block) -> Seen:
    """The work on a block."""
    counts = [count(text) for _, text in block]
    hashes, sizes = list[int](), list[int]()
    for _, text in block:
        lines = {hash64(s): len(s) for s in map(str.strip, text.split("\n")) if len(s) >= MIN_LINE}
        hashes += lines
        sizes += lines.values()
    return Seen(
        np.asarray([len(text) for _, text in block], dtype=np.int64),
        sum(len(text.encode("utf-8")) for _, text in block),
        [identify(text, number) for (_, text), number in zip(block, counts, strict=True)],
        np.asarray(counts, dtype=np.int64).sum(0),
        np.asarray([hash64("".join(text.split())) for _, text in block], dtype=np.uint64),
        np.asarray(hashes, dtype=np.uint64),
        np.asarray(sizes, dtype=np.int64),
    )


def inspect(inputs: Inputs, means: Means | None = None) -> Report:
    """Look at every document. Raises DatasetError for bad rows, unless they are skipped."""
    means, reader = means or Means(), inputs.reader()
    kinds, size = np.zeros(len(NAMES), dtype=np.int64), 0
    lengths: dict[str, list[NDArray[np.int64]]] = {}
    texts, lines, documents = Repeats(), Repeats(), 0
    with workers(means.processes, means.ray) as over:
        for seen in over(look, blocks_of(reader, inputs)):
            languages = np.asarray(seen.languages)
            for code in np.unique(languages).tolist():
                lengths.setdefault(code, []).append(seen.characters[languages == code])
            kinds, size, documents = kinds + seen.kinds, size + seen.num_bytes, documents + len(languages)
            texts.add(seen.texts, np.ones(len(seen.texts), dtype=np.int64))
            lines.add(seen.lines, seen.line_sizes)
            means.watch("inspecting", documents, reader.bytes_done, reader.bytes_total)
    by_language = {code: np.concatenate(parts) for code, parts in lengths.items()}
    by_language = dict(sorted(by_language.items(), key=lambda pair: (-len(pair[1]), pair[0])))
    everything = np.concatenate(list(by_language.values()))
    return Report(
        documents=documents,
        quarantined=reader.bad_rows,
        characters=int(everything.sum()),
        bytes=size,
        languages={c: {"documents": len(n), "characters": int(n.sum())} for c, n in by_language.items()},
        kinds={name: int(number) / max(1, int(kinds.sum())) for name, number in zip(NAMES, kinds, strict=True)},
        quantiles={f"{q:.0%}": float(np.quantile(everything, q)) for q in QUANTILES},
        duplicates=texts.share,
        repeated_lines=lines.share,
        lengths={code: numbers.tolist() for code, numbers in by_language.items()},
    )


def check_plot(path: Path) -> None:
    """Raises ConfigError if the file cannot be one that a plot is drawn into."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError("plot", field=str(path), why="is no kind of picture that is drawn", hint=".png, .svg or .pdf")


def plot_lengths(report: Report, path: Path) -> None:
    """Draw how long the documents are, by language. Raises ConfigError if path does not end in .png, .svg or .pdf."""
    from matplotlib.figure import Figure

    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(
            "--plot", field=str(path), why="is no kind of picture that is drawn", hint=".png, .svg or .pdf"
        )
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    longest = max(2.0, report.quantiles["100%"])
    edges = np.geomspace(1, longest, 50).tolist()
    shown = list(report.lengths.items())
    rest = [length for _, numbers in shown[PLOTTED:] for length in numbers]
    for code, numbers in [*shown[:PLOTTED], *([("other", rest)] if rest else [])]:
        axes.hist(np.maximum(numbers, 1), bins=edges, histtype="step", label=f"{code} ({len(numbers):,})")
    axes.set(xscale="log", xlabel="characters in a document", ylabel="documents")
    axes.legend()
    try:
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    except OSError as error:
        raise ConfigError("plot", field=str(path), why=f"cannot be written: {error.strerror}") from error
