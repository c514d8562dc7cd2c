"""Corpora from raw texts: the passes over the documents, in blocks that processes work on side by side.

The bytes that are written depend on the documents and the settings alone, not on the number of processes, nor on how often
the work was interrupted. The manifest accounts for every row: rows_in = kept + dropped + quarantined.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from kiban import __version__
from kiban.data.corpus import CorpusReader
from kiban.data.growing import Growing
from kiban.data.tables import OnBadRow
from kiban.data.workers import workers
from kiban.errors import DatasetError

B = TypeVar("B")
Block = list[tuple[str, str]]  # ids and texts
Compression = Literal["gzip", "zstd"] | None
Watch = Callable[[str, int, int, int], None]
"""watch(stage, documents, bytes, all bytes): called after every block; bytes are those of the files that were read."""

BLOCK_CHARACTERS = 2**18
BLOCK_DOCUMENTS = 1024
COMMIT_BLOCKS = 8
PART_BYTES = 2**28  # of a file of documents, before compression
SAMPLES = 20  # dropped documents that are kept to look at, of each rule
SHOWN = 1000  # characters of each
QUARANTINE, DROPPED = "quarantine.jsonl", "dropped-samples.jsonl"


def unseen(stage: str, documents: int, done: int, total: int) -> None:
    """The Watch that shows nothing."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where documents come from, as for `corpus.CorpusReader`. limit: only so many of them; block_characters: at once."""

    paths: tuple[Path, ...]
    field: str = "text"
    id_field: str | None = None
    on_bad_row: OnBadRow = "stop"
    limit: int | None = None
    block_characters: int = BLOCK_CHARACTERS

    def reader(self, quarantine: Path | None = None) -> CorpusReader:
        """Raises DatasetError if there is no file."""
        return CorpusReader(
            self.paths, field=self.field, id_field=self.id_field, on_bad_row=self.on_bad_row, quarantine=quarantine
        )

    def facts(self) -> dict[str, Any]:
        """What is asked for, and the files, for the manifest."""
        files = [{"name": name, "bytes": path.stat().st_size} for path, name in self.reader().files.items()]
        named = {"field": self.field, "id_field": self.id_field, "on_bad_row": self.on_bad_row}
        return {**named, "limit": self.limit, "block_characters": self.block_characters, "inputs": files}

    def times(self) -> list[int]:
        """When the files were changed, in nanoseconds."""
        return [path.stat().st_mtime_ns for path in self.reader().files]


@dataclass(frozen=True, kw_only=True)
class Means:
    """How the work is done; nothing here changes what is written. ray: the address of a cluster, "local" for one here."""

    processes: int = 1
    ray: str | None = None
    watch: Watch = unseen
    commit_blocks: int = COMMIT_BLOCKS


def purpose(verb: str, inputs: Inputs, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what a verb writes; interrupted work goes on only for the same purpose."""
    return {"verb": verb, "kiban": __version__, **inputs.facts(), "times": inputs.times(), "settings": dict(settings)}


def blocks_of(reader: CorpusReader, inputs: Inputs) -> Iterator[Block]:
    """The documents in blocks, always cut at the same places."""
    block, size = Block(), 0
    for text in itertools.islice(reader, inputs.limit):
        block.append((text.id, text.text))
        size += len(text.text)
        if size >= inputs.block_characters or len(block) >= BLOCK_DOCUMENTS:
            yield block
            block, size = [], 0
    if block:
        yield block


class Pass:
    """One pass over the documents, which takes up where an interrupted one was committed.

    counts: numbers that handle keeps; they are stored with every commit and restored.
    """

    def __init__(self, name: str, folder: Growing, inputs: Inputs, means: Means) -> None:
        self.name, self.folder, self.inputs, self.means = name, folder, inputs, means
        self.reader = inputs.reader(folder.path / QUARANTINE)
        mine = folder.state.get("pass") == name
        self.blocks: int = folder.state["blocks"] if mine else 0
        self.counts: dict[str, Any] = folder.state["counts"] if mine else {}
        self.finished: list[str] = folder.state.get("finished", [])

    def run(self, work: Callable[[Block], B], handle: Callable[[B], None]) -> None:
        """handle(work(block)) for every block, in order."""
        places: deque[tuple[int, int]] = deque()
        before = self.blocks

        def rest() -> Iterator[Block]:
            for number, block in enumerate(blocks_of(self.reader, self.inputs)):
                if number >= before:
                    places.append((self.reader.documents, self.reader.bytes_done))
                    yield block

        with workers(self.means.processes, self.means.ray) as over:
            for result in over(work, rest()):
                handle(result)
                self.blocks += 1
                self.means.watch(self.name, *places.popleft(), self.reader.bytes_total)
                if self.blocks % self.means.commit_blocks == 0:
                    self.commit()

    def commit(self) -> None:
        values = {"pass": self.name, "blocks": self.blocks, "counts": self.counts, "finished": self.finished}
        self.folder.commit(values)

    def finish(self) -> None:
        """For a pass that others follow: it is not done again."""
        self.finished = [*self.finished, self.name]
        self.commit()

    def account(self, kept: int, dropped: Mapping[str, int]) -> dict[str, Any]:
        """Where every row went. Raises DatasetError if nothing is left of all of them; a limit is only for looking."""
        rows = {
            "rows_in": self.reader.documents + self.reader.bad_rows,
            "kept": kept,
            "dropped": dict(sorted(dropped.items())),
            "quarantined": self.reader.bad_rows,
        }
        if rows["rows_in"] != kept + sum(dropped.values()) + self.reader.bad_rows:
            raise DatasetError("corpus", why="changed while it was read", hint="run it again")
        if not kept and self.inputs.limit is None:
            worst = max(dropped, key=lambda rule: dropped[rule])
            hint = f"most broke the rule {worst}; change its threshold with --set"
            raise DatasetError("corpus", why=f"none of {rows['rows_in']} rows is left", hint=hint)
        return rows


class Parts:
    """Documents as JSON lines, in files of PART_BYTES. counts: where the last one left off."""

    def __init__(
        self, folder: Growing, counts: dict[str, Any], *, where: str = "", compress: Compression = None
    ) -> None:
        self.folder, self.where, self.compress = folder, where, compress
        self.counts = counts.setdefault(f"parts {where}", {"number": 0, "bytes": 0})

    def append(self, lines: bytes) -> None:
        if not lines:
            return
        suffix = {"gzip": ".gz", "zstd": ".zst", None: ""}[self.compress]
        data = lines if self.compress is None else packed(lines, self.compress)
        self.folder.append(f"{self.where}part-{self.counts['number']:05d}.jsonl{suffix}", data)
        self.counts["bytes"] += len(lines)
        if self.counts["bytes"] >= PART_BYTES:
            self.counts |= {"number": self.counts["number"] + 1, "bytes": 0}


def json_line(row: Mapping[str, Any]) -> bytes:
    """A row of a JSON lines file."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n"


def packed(data: bytes, kind: Literal["gzip", "zstd"]) -> bytes:
    """Data as one frame, which may follow others in a file; the same data give the same bytes."""
    if kind == "gzip":
        import gzip

        return gzip.compress(data, mtime=0)
    import pyarrow

    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


def add_counts(total: dict[str, Any], more: Mapping[str, int]) -> None:
    """total += more, key by key, for counts that are stored as JSON."""
    for name, number in more.items():
        total[name] = total.get(name, 0) + number


def settings_of(rules: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(rules).items()}
