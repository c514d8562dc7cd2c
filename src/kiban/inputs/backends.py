"""What stands behind the tokenizer's face: `tokenizers`, `sentencepiece`, or MeCab words with WordPiece on top."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from kiban.errors import ConfigError, FormatError
from kiban.inputs.japanese import Engine, normalise_aligned, words
from kiban.inputs.japanese_bert import Subwords, mecab_ids, mecab_surfaces


@dataclass(frozen=True)
class Encoding:
    """ids, the segment of each (0 or 1), and its (start, end) in characters of its text; specials have (0, 0)."""

    ids: list[int]
    segments: list[int]
    offsets: list[tuple[int, int]]


class Backend(Protocol):
    """The part of a tokenizer that knows its algorithm."""

    vocab_size: int

    def token_to_id(self, token: str) -> int | None: ...
    def control_tokens(self) -> dict[str, int]: ...
    def ids(self, texts: Sequence[str], *, add_special: bool, parse_special: bool) -> list[list[int]]: ...
    def mixed(self, parts: Sequence[str | int]) -> list[int]: ...
    def encode(self, text: str, pair: str | None, *, add_special: bool) -> Encoding: ...
    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str: ...
    def files(self) -> dict[str, str | bytes]: ...


def split_controls(text: str, controls: Mapping[str, int]) -> list[str | int]:
    """A text in parts: control tokens as their ids, what stands between them as text."""
    names = sorted(controls, key=len, reverse=True)
    pattern = "(" + "|".join(map(re.escape, names)) + ")" if names else "(?!)()"
    return [controls.get(part, part) for part in re.split(pattern, text) if part]


@contextmanager
def _library(name: str) -> Iterator[None]:
    """A library's refusals as FormatError; a panic of Rust code is no Exception and has no class that can be named."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise FormatError("tokenizer", why=f"{name} fails on it: {error}") from error


class Fast:
    """A `tokenizers.Tokenizer`, and a sealed copy in which control tokens have secret names.

    The library offers to read control tokens as plain text, but a unigram or word-level model still finds them in its
    vocabulary; under a name that nobody knows they cannot be typed.
    """

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.open = tokenizer
        self.vocab_size = int(tokenizer.get_vocab_size(with_added_tokens=True))
        added = tokenizer.get_added_tokens_decoder()
        # A single character is text as well: CLIP's second tokenizers pad with "!".
        special = [(token.content, int(id)) for id, token in added.items() if token.special]
        self.controls = {text: id for text, id in special if len(text) > 1}
        self.secrets = {name: f"\ue000{secrets.token_hex(12)}\ue001" for name in self.controls}
        with _library("tokenizers"):
            self.sealed = _sealed(tokenizer.to_str(), self.secrets)

    @property
    def kind(self) -> str:
        """The model's algorithm: BPE, Unigram, WordPiece or WordLevel."""
        return type(self.open.model).__name__

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of every token, added ones among them."""
        return dict(self.open.get_vocab(with_added_tokens=True))

    def token_to_id(self, token: str) -> int | None:
        found = self.open.token_to_id(token)
        return None if found is None else int(found)

    def control_tokens(self) -> dict[str, int]:
        return self.controls

    def ids(self, texts: Sequence[str], *, add_special: bool, parse_special: bool) -> list[list[int]]:
        tokenizer = self.open if parse_special else self.sealed
        with _library("tokenizers"):
            return [list(e.ids) for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special)]

    def mixed(self, parts: Sequence[str | int]) -> list[int]:
        names = {id: self.secrets[name] for name, id in self.controls.items()}
        text = "".join(part if isinstance(part, str) else names[part] for part in parts)
        return self.ids([text], add_special=False, parse_special=False)[0]

    def encode(self, text: str, pair: str | None, *, add_special: bool) -> Encoding:
        with _library("tokenizers"):
            found = self.sealed.encode(text, pair, add_special_tokens=add_special)
        return Encoding(list(found.ids), list(found.type_ids), list(found.offsets))

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        with _library("tokenizers"):
            return str(self.open.decode(list(ids), skip_special_tokens=skip_special))

    def files(self) -> dict[str, str | bytes]:
        return {"tokenizer.json": self.open.to_str(pretty=False)}


def _sealed(data: str, secret: Mapping[str, str]) -> Any:
    """A tokenizer.json with other names for some of its tokens, opened."""
    from tokenizers import Tokenizer

    values = json.loads(data)
    for token in values["added_tokens"]:
        if token["content"] in secret:
            token |= {"content": secret[token["content"]], "normalized": False}
    model = values["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {secret.get(token, token): id for token, id in model["vocab"].items()}
    else:
        model["vocab"] = [[secret.get(token, token), score] for token, score in model["vocab"]]
    if "merges" in model:
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [pair for pair in pairs if not secret.keys() & {*pair, "".join(pair)}]
    if model.get("unk_token") in secret:
        model["unk_token"] = secret[model["unk_token"]]
    return Tokenizer.from_str(json.dumps(values, ensure_ascii=False))


class SentencePiece:
    """A sentencepiece model; the beginning-of-text token stands in front, as Llama has it."""

    def __init__(self, path: Path) -> None:
        import sentencepiece

        self.data = path.read_bytes()
        if not self.data:  # to the library, nothing given
            raise FormatError(path, why="is empty")
        try:
            self.model = sentencepiece.SentencePieceProcessor(model_proto=self.data)
            self.vocab_size = int(self.model.vocab_size())
            pieces = [str(self.model.id_to_piece(i)) for i in range(self.vocab_size)]
        except (RuntimeError, OSError, TypeError, ValueError) as error:
            raise FormatError(path, why=f"is not a sentencepiece model: {error}") from error
        self.bos = int(self.model.bos_id())
        self.controls = {piece: i for i, piece in enumerate(pieces) if self.model.is_control(i)}

    def token_to_id(self, token: str) -> int | None:
        id = int(self.model.piece_to_id(token))
        return id if self.model.id_to_piece(id) == token else None

    def control_tokens(self) -> dict[str, int]:
        return self.controls

    def ids(self, texts: Sequence[str], *, add_special: bool, parse_special: bool) -> list[list[int]]:
        front = [self.bos] if add_special and self.bos >= 0 else []
        if parse_special:
            return [front + self.mixed(split_controls(text, self.controls)) for text in texts]
        return [front + list(row) for row in self.model.encode(list(texts))]

    def mixed(self, parts: Sequence[str | int]) -> list[int]:
        ids: list[int] = []
        for part in parts:
            ids += [part] if isinstance(part, int) else self.model.encode(part)
        return ids

    def encode(self, text: str, pair: str | None, *, add_special: bool) -> Encoding:
        if pair is not None:
            raise ConfigError("encode_pair", why="a sentencepiece model takes single texts")
        found = self.model.encode(text, out_type="offset_mapping")
        front = [self.bos] if add_special and self.bos >= 0 else []
        ids = front + list(found["ids"])
        offsets = [(0, 0)] * len(front) + list(found["offsets"])
        return Encoding(ids, [0] * len(ids), offsets)

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        known = [id for id in ids if id < self.vocab_size]  # a model may have more outputs than there are tokens
        return str(self.model.decode([id for id in known if not (skip_special and self.model.is_control(id))]))

    def files(self) -> dict[str, str | bytes]:
        return {"tokenizer.model": self.data}


class JapaneseBert:
    """Words of MeCab (unidic-lite) or Sudachi, then WordPiece or characters: tohoku-nlp's Japanese BERTs.

    ids are those of transformers' BertJapaneseTokenizer. Unlike it, this gives offsets into the text as it was before
    normalisation, and takes batches in parallel.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        characters: bool,
        lower: bool,
        engine: Engine = "mecab",
        mode: Literal["A", "B", "C"] = "A",
    ) -> None:
        """engine and mode: what cuts words, as in `japanese.words`; A is the mode of transformers."""
        self.vocabulary = {token: id for id, token in enumerate(vocabulary)}
        self.tokens, self.vocab_size = list(vocabulary), len(vocabulary)
        self.engine, self.mode = engine, mode
        self.cls, self.sep, self.unk = (self.vocabulary[t] for t in ("[CLS]", "[SEP]", "[UNK]"))
        self.subwords = Subwords(self.vocabulary, unk=self.unk, characters=characters, lower=lower)

    def token_to_id(self, token: str) -> int | None:
        return self.vocabulary.get(token)

    def control_tokens(self) -> dict[str, int]:
        names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        return {name: self.vocabulary[name] for name in names if name in self.vocabulary}

    def _surfaces(self, clean: str) -> list[str]:
        if self.engine == "mecab":
            return mecab_surfaces(clean)
        return [word.surface for word in words(clean, engine=self.engine, mode=self.mode)]

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        clean, spans = normalise_aligned(text)
        ids, offsets, at = [], [], 0
        for surface in self._surfaces(clean):
            first = clean.index(surface, at)
            at = first + len(surface)
            word = surface.lower() if self.subwords.lower else surface
            for id, start, end in self.subwords.pieces(word):
                ids.append(id)
                if len(word) != len(surface):  # lower case may be longer; then the whole word is the place
                    start, end = 0, len(surface)
                offsets.append((spans[first + start][0], spans[first + end - 1][1]))
        return ids, offsets

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts, no control tokens read and none added."""
        if self.engine == "mecab":
            return mecab_ids(texts, self.subwords)
        return [self._encode(text)[0] for text in texts]

    def ids(self, texts: Sequence[str], *, add_special: bool, parse_special: bool) -> list[list[int]]:
        if parse_special:
            rows = [self.mixed(split_controls(text, self.control_tokens())) for text in texts]
        else:
            rows = self._rows(texts)
        return [[self.cls, *row, self.sep] if add_special else row for row in rows]

    def mixed(self, parts: Sequence[str | int]) -> list[int]:
        ids: list[int] = []
        for part in parts:
            ids += [part] if isinstance(part, int) else self._rows([part])[0]
        return ids

    def encode(self, text: str, pair: str | None, *, add_special: bool) -> Encoding:
        ids, offsets = self._encode(text)
        if add_special:
            ids, offsets = [self.cls, *ids, self.sep], [(0, 0), *offsets, (0, 0)]
        segments = [0] * len(ids)
        if pair is not None:
            more, places = self._encode(pair)
            end = [self.sep] if add_special else []
            ids, offsets = ids + more + end, offsets + places + [(0, 0)] * len(end)
            segments += [1] * (len(more) + len(end))
        return Encoding(ids, segments, offsets)

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        special = set(self.control_tokens().values()) if skip_special else set()
        text = " ".join(self.tokens[id] for id in ids if id not in special and id < self.vocab_size)
        return text.replace(" ##", "")

    def files(self) -> dict[str, str | bytes]:
        return {"vocab.txt": "\n".join(self.tokens) + "\n"}
