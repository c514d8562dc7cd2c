"""MeCab with unidic-lite for many texts at once: only the words' surfaces, on all cores.

fugashi makes an object of every word and holds Python's lock while it searches. Here its own copy of MeCab is called
through the C interface, with one model for all threads; where that copy cannot be reached, through fugashi.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from kiban.config import num_cores

Cut = Callable[[bytes], bytes]
"""UTF-8 text without NUL to its words with a space between two. Spaces, tabs and line feeds are in no word."""
T = TypeVar("T")
MAX_THREADS = 16
BLOCK = 16_384  # characters that a thread takes at a time


class Mecab:
    """Cuts texts into words. One for the process (`mecab()`): the dictionary is large."""

    def __init__(self) -> None:
        model = _Model.find()
        self.num_threads = min(MAX_THREADS, num_cores()) if model else 1
        self._idle: SimpleQueue[Cut] = SimpleQueue()
        for _ in range(self.num_threads):
            self._idle.put(model.cut() if model else _through_fugashi())

    @contextmanager
    def cut(self) -> Iterator[Cut]:
        """A cutter that nobody else uses meanwhile."""
        found = self._idle.get()
        try:
            yield found
        finally:
            self._idle.put(found)

    def map(self, work: Callable[[Cut, str], T], texts: Sequence[str]) -> list[T]:
        """work(cutter, text) for every text, in order; in threads if there is enough of it."""

        def block(part: Sequence[str]) -> list[T]:
            with self.cut() as cut:
                return [work(cut, text) for text in part]

        parts = _blocks(texts)
        if self.num_threads == 1 or len(parts) == 1:
            return [result for part in parts for result in block(part)]
        with ThreadPoolExecutor(self.num_threads) as pool:
            return [result for results in pool.map(block, parts) for result in results]


@cache
def mecab() -> Mecab:
    """MeCab, loaded on first use."""
    return Mecab()


class _Model:
    """A model of the C interface (mecab.h), never freed: it lives as long as the process."""

    def __init__(self, library: Any) -> None:
        self.library = library
        for name, takes, gives in (
            ("mecab_model_new", [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)], ctypes.c_void_p),
            ("mecab_model_new_tagger", [ctypes.c_void_p], ctypes.c_void_p),
            ("mecab_sparse_tostr2", [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t], ctypes.c_char_p),
        ):
            function = getattr(library, name)
            function.argtypes, function.restype = takes, gives
        arguments = [os.fsencode(argument) for argument in ("mecab", *_arguments())]
        self.model = library.mecab_model_new(len(arguments), (ctypes.c_char_p * len(arguments))(*arguments))

    @classmethod
    def find(cls) -> _Model | None:
        """The MeCab that fugashi brings or was built with; None where its symbols are out of reach (Windows)."""
        from fugashi import fugashi

        try:
            # The extension module is linked with MeCab, and a search in it goes on in what it is linked with.
            model = cls(ctypes.CDLL(fugashi.__file__))
        except (AttributeError, OSError):
            return None
        return model if model.model else None

    def cut(self) -> Cut:
        tagger, parse = self.library.mecab_model_new_tagger(self.model), self.library.mecab_sparse_tostr2

        def cut(text: bytes) -> bytes:
            found = parse(tagger, text, len(text))
            assert found is not None, "MeCab parses every text"
            return bytes(found).removesuffix(b"\n").removesuffix(b" ")

        return cut


def _through_fugashi() -> Cut:
    import fugashi

    tagger = fugashi.GenericTagger(" ".join(f'"{argument}"' for argument in _arguments()))
    return lambda text: " ".join(str(word.surface) for word in tagger(text.decode("utf-8"))).encode("utf-8")


def _arguments() -> list[str]:
    import unidic_lite

    folder = Path(unidic_lite.DICDIR)
    return ["-Owakati", "-d", str(folder), "-r", str(folder / "mecabrc")]


def _blocks(texts: Sequence[str]) -> list[Sequence[str]]:
    """Runs of texts of about BLOCK characters each."""
    parts, start, size = [], 0, 0
    for i, text in enumerate(texts, start=1):
        size += len(text)
        if size >= BLOCK:
            parts.append(texts[start:i])
            start, size = i, 0
    return [*parts, texts[start:]] if start < len(texts) else parts
