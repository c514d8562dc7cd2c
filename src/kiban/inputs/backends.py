"""What stands behind the tokenizer's face: `tokenizers`, `sentencepiece`, or MeCab words with WordPiece on top."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kiban.errors import FormatError
from kiban.inputs.japanese import normalise_aligned, words


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
    def encode(self, text: str, pair: str | None, *, add_special: bool) -> Encoding: ...
    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str: ...
    def files(self) -> dict[str, str | bytes]: ...


class Fast:
    """A `tokenizers.Tokenizer`. Two copies: one reads control tokens in a text as such, the other as plain text."""

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import Tokenizer

        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.parsing = tokenizer
        self.plain = Tokenizer.from_str(tokenizer.to_str())
        self.plain.encode_special_tokens = True
        self.vocab_size = int(tokenizer.get_vocab_size(with_added_tokens=True))

    def token_to_id(self, token: str) -> int | None:
        found = self.parsing.token_to_id(token)
        return None if found is None else int(found)

    def control_tokens(self) -> dict[str, int]:
        added = self.parsing.get_added_tokens_decoder()
        return {token.content: int(id) for id, token in added.items() if token.special}

    def ids(self, texts: Sequence[str], *, add_special: bool, parse_special: bool) -> list[list[int]]:
        tokenizer = self.parsing if parse_special else self.plain
        return [list(e.ids) for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special)]

    def encode(self, text: str, pair: str | None, *, add_special: bool) -> Encoding:
        found = self.plain.encode(text, pair, add_special_tokens=add_special)
        return Encoding(list(found.ids), list(found.type_ids), list(found.offsets))

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        return str(self.parsing.decode(list(ids), skip_special_tokens=skip_special))

    def files(self) -> dict[str, str | bytes]:
        return {"tokenizer.json": self.parsing.to_str(pretty=False)}


class SentencePiece:
    """A sentencepiece model; the beginning-of-text token stands in front, as Llama has it."""

    def __init__(self, path: Path) -> None:
        import sentencepiece

        self.data = path.read_bytes()
        try:
            self.model = sentencepiece.SentencePieceProcessor(model_proto=self.data)
            self.vocab_size = int(self.model.vocab_size())
        except (RuntimeError, OSError, TypeError) as error:
            raise FormatError(path, why=f"is not a sentencepiece model: {error}") from error
        self.bos = int(self.model.bos_id())

    def token_to_id(self, token: str) -> int | None:
        id = int(self.model.piece_to_id(token))
        return id if self.model.id_to_piece(id) == token else None

    def control_tokens(self) -> dict[str, int]:
        ids = [i for i in range(min(self.vocab_size, 1000)) if self.model.is_control(i)]
        return {str(self.model.id_to_piece(i)): i for i in ids}

    def ids(self, texts: Sequence[str], *, add_special: bool, parse_special: bool) -> list[list[int]]:
        front = [self.bos] if add_special and self.bos >= 0 else []
        if not parse_special:
            return [front + list(row) for row in self.model.encode(list(texts))]
        pattern = re.compile("|".join(re.escape(token) for token in self.control_tokens()) or r"(?!)")
        rows = []
        for text in texts:
            row, at = list(front), 0
            for match in pattern.finditer(text):
                row += self.model.encode(text[at : match.start()]) if match.start() > at else []
                row.append(self.model.piece_to_id(match[0]))
                at = match.end()
            rows.append(row + list(self.model.encode(text[at:])) if at < len(text) else row)
        return rows

    def encode(self, text: str, pair: str | None, *, add_special: bool) -> Encoding:
        assert pair is None, "sentencepiece models take single texts"
        found = self.model.encode(text, out_type="offset_mapping")
        front = [self.bos] if add_special and self.bos >= 0 else []
        ids = front + list(found["ids"])
        offsets = [(0, 0)] * len(front) + list(found["offsets"])
        return Encoding(ids, [0] * len(ids), offsets)

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        kept = [int(id) for id in ids if not (skip_special and self.model.is_control(int(id)))]
        return str(self.model.decode(kept))

    def files(self) -> dict[str, str | bytes]:
        return {"tokenizer.model": self.data}


class JapaneseBert:
    """MeCab words (unidic-lite), then WordPiece or single characters, as tohoku-nlp's Japanese BERTs.

    Unlike Hugging Face's, it gives offsets into the text as it was before normalisation.
    """

    def __init__(self, vocabulary: Sequence[str], *, characters: bool, lower: bool, settings: dict[str, Any]) -> None:
        self.vocabulary = {token: id for id, token in enumerate(vocabulary)}
        self.tokens, self.vocab_size = list(vocabulary), len(vocabulary)
        self.characters, self.lower, self.settings = characters, lower, settings
        self.cls, self.sep, self.unk = (self.vocabulary[t] for t in ("[CLS]", "[SEP]", "[UNK]"))

    def token_to_id(self, token: str) -> int | None:
        return self.vocabulary.get(token)

    def control_tokens(self) -> dict[str, int]:
        names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        return {name: self.vocabulary[name] for name in names if name in self.vocabulary}

    def _pieces(self, word: str) -> list[tuple[int, int, int]]:
        """(id, start, end) inside one word: the longest pieces from the left (Wu et al. 2016), or its characters."""
        if self.characters:
            return [(self.vocabulary.get(c, self.unk), i, i + 1) for i, c in enumerate(word)]
        if len(word) > 100:
            return [(self.unk, 0, len(word))]
        pieces, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                id = self.vocabulary.get(("##" if start else "") + word[start:end])
                if id is not None:
                    pieces.append((id, start, end))
                    start = end
                    break
            else:
                return [(self.unk, 0, len(word))]
        return pieces

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids, offsets = [], []
        for word in words(text, engine="mecab"):
            surface = word.surface.lower() if self.lower else word.surface
            _, spans = normalise_aligned(text[word.start : word.end])
            for id, start, end in self._pieces(surface):
                ids.append(id)
                # Lower-casing and NFKC may change lengths; then the whole word is the place.
                fits = len(spans) == len(surface)
                place = (spans[start][0], spans[end - 1][1]) if fits else (0, word.end - word.start)
                offsets.append((word.start + place[0], word.start + place[1]))
        return ids, offsets

    def ids(self, texts: Sequence[str], *, add_special: bool, parse_special: bool) -> list[list[int]]:
        controls = self.control_tokens()
        pattern = re.compile("|".join(re.escape(token) for token in controls))
        rows = []
        for text in texts:
            row: list[int] = []
            at = 0
            for match in pattern.finditer(text) if parse_special else ():
                row += [*self._encode(text[at : match.start()])[0], controls[match[0]]]
                at = match.end()
            row += self._encode(text[at:])[0]
            rows.append([self.cls, *row, self.sep] if add_special else row)
        return rows

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
        text = " ".join(self.tokens[id] for id in ids if id not in special)
        return text.replace(" ##", "")

    def files(self) -> dict[str, str | bytes]:
        return {"vocab.txt": "\n".join(self.tokens) + "\n"}
