"""CLIP's tokenizer: byte-level BPE of text in lower case, whose tokens know where a word ends (Radford et al. 2021, 2.4).

Its files are vocab.json and merges.txt, or tokenizer.json. ids are those of transformers' CLIPTokenizer of version 5, which
cleans text less than OpenAI's own program does (that one also repairs broken encodings and HTML).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kiban.errors import FormatError, LimitError
from kiban.inputs.backends import Fast

VOCABULARY, MERGES, ADDED, SPECIAL_MAP = "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"
END = "</w>"  # of the last token of a word
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
SPACE = "\u0120"  # the character that stands for the byte of a space
SETTINGS = {"tokenizer_class": "CLIPTokenizer"}
TOKENS = {"unk_token": EOS, "bos_token": BOS, "eos_token": EOS, "pad_token": EOS}
MAX_BYTES = 128 * 2**20
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class ClipBPE(Fast):
    """A `tokenizers.Tokenizer` of this kind; in decoded text a space stands where a word ends.

    special: tokens that are found in text before anything else, as transformers does with all that settings name.
    """

    def __init__(self, library: Any, special: Iterable[str] = ()) -> None:
        from tokenizers import decoders

        for token in special:
            _add(library, token, special=True, normalized=False)
        library.decoder = decoders.Sequence([decoders.Replace(END, SPACE), decoders.ByteLevel()])
        super().__init__(library)

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        return super().decode(ids, skip_special=skip_special).removesuffix(" ")

    def files(self) -> dict[str, str | bytes]:
        """All three, since old programs open the pair and some new ones only the one."""
        model = json.loads(self.open.to_str())["model"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        return {
            **super().files(),
            VOCABULARY: json.dumps(model["vocab"], ensure_ascii=False),
            MERGES: "\n".join(["#version: 0.2", *merges]) + "\n",
        }


def is_clip(library: Any) -> bool:
    """Whether an open tokenizer.json is of this kind."""
    model, decoder = library.model, library.decoder
    whole = type(model).__name__ == "BPE" and model.end_of_word_suffix == END
    return whole and type(decoder).__name__ in ("ByteLevel", "Sequence") and "ByteLevel" in str(decoder)


def has_files(folder: Path) -> bool:
    """Whether vocab.json and merges.txt of this kind are there; other families have files of these names too."""
    if not all((folder / name).is_file() for name in (VOCABULARY, MERGES)):
        return False
    path = folder / VOCABULARY
    return path.stat().st_size <= MAX_BYTES and BOS.encode() in path.read_bytes()


def open_files(folder: Path, settings: Mapping[str, Any], special: Sequence[str]) -> ClipBPE:
    """The tokenizer of a folder with vocab.json and merges.txt. special: texts of its special tokens.

    Raises FormatError or LimitError if a file is unfit.
    """
    vocabulary = _read_vocabulary(folder / VOCABULARY)
    library = assemble(vocabulary, _read_merges(folder / MERGES, vocabulary))
    for id, token, options in _added(folder, settings, special):
        known = library.token_to_id(token)
        if known is None and id != library.get_vocab_size(with_added_tokens=True):
            raise FormatError(folder, field=token, why=f"has id {id}, which leaves a gap behind the vocabulary")
        if known not in (None, id):
            raise FormatError(folder, field=token, why=f"is to be token {id}, but is token {known}")
        _add(library, token, **options)
    return ClipBPE(library, special)


def assemble(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> Any:
    """A `tokenizers.Tokenizer` that puts BOS and EOS around a text.

    Raises FormatError if the library refuses the merges.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    try:
        model = models.BPE(
            dict(vocabulary), list(merges), end_of_word_suffix=END, continuing_subword_prefix="", unk_token=EOS
        )
    except Exception as error:  # the library raises nothing more exact for merges that are not tokens
        raise FormatError(MERGES, why=str(error)) from error
    library = Tokenizer(model)
    library.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    library.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    for token in (BOS, EOS):
        _add(library, token, special=True, normalized=False)
    ids = library.get_vocab()
    library.post_processor = processors.RobertaProcessing(
        (EOS, ids[EOS]), (BOS, ids[BOS]), trim_offsets=False, add_prefix_space=False
    )
    return library


def _add(library: Any, token: str, **options: Any) -> None:
    from tokenizers import AddedToken

    made = [AddedToken(token, **options)]
    _ = library.add_special_tokens(made) if options.get("special") else library.add_tokens(made)


def _added(folder: Path, settings: Mapping[str, Any], special: Sequence[str]) -> list[tuple[int, str, dict[str, bool]]]:
    """Tokens beside the vocabulary, such as those of textual inversion, by rising id: id, text, how it is found."""
    found: list[tuple[int, str, dict[str, bool]]] = []
    stated = settings.get("added_tokens_decoder")
    try:
        if isinstance(stated, dict):
            for id, token in stated.items():
                options = {name: bool(token[name]) for name in token if name != "content"}
                found.append((int(id), str(token["content"]), options))
        elif (folder / ADDED).is_file():
            for text, id in _json(folder / ADDED).items():
                found.append((int(id), text, {"special": text in special, "normalized": text not in special}))
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(folder, field="added tokens", why=f"cannot be read: {error}") from error
    return sorted(found, key=lambda entry: entry[0])


def _read_vocabulary(path: Path) -> dict[str, int]:
    vocabulary = _json(path)
    if sorted(map(str, vocabulary.values())) != sorted(map(str, range(len(vocabulary)))):
        raise FormatError(path, why="does not number its tokens from 0 on, each once")
    return vocabulary


def _read_merges(path: Path, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    lines = _text(path).split("\n")
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise FormatError(path, line=number, why=f"{line!r:.60} does not join two tokens to a third")
        merges.append((left, right))
    return merges


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise FormatError(path, why=f"cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(path, why="is not a JSON object")
    return value


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_BYTES:
        raise LimitError(path, why=f"is larger than {MAX_BYTES} bytes")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(path, offset=error.start, why="is not UTF-8") from error
    except OSError as error:
        raise FormatError(path, why=f"cannot be read: {error.strerror}") from error
