"""One face over `tokenizers` and `sentencepiece`: text to ids and back, with offsets, streaming and chat."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kiban.errors import ConfigError, FormatError
from kiban.inputs import build
from kiban.inputs.backends import Backend, Encoding, SentencePiece
from kiban.inputs.batch import pad_batch
from kiban.inputs.chat import render

__all__ = ["Encoding", "Stream", "Tokenizer", "pad_batch"]

TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")
SPECIAL = ("pad", "bos", "eos", "cls", "sep", "mask", "unk")


class Tokenizer:
    """Text to token ids and back. ids of special tokens are None where the model has no such token."""

    def __init__(
        self,
        backend: Backend,
        *,
        special: Mapping[str, str | None],
        chat_template: str | None = None,
        max_len: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """special: the text of each special token by its short name; settings: tokenizer_config.json as it was."""
        self.backend, self.chat_template, self.max_len = backend, chat_template, max_len
        self.special = {name: token for name, token in special.items() if token is not None}
        self.settings = dict(settings or {})
        self.vocab_size = backend.vocab_size
        ids = {name: backend.token_to_id(token) for name, token in self.special.items()}
        self.pad_id, self.bos_id, self.eos_id = ids.get("pad"), ids.get("bos"), ids.get("eos")
        self.cls_id, self.sep_id, self.mask_id, self.unk_id = (ids.get(n) for n in ("cls", "sep", "mask", "unk"))
        # Chat models end a turn with a token of their own beside the end of the text.
        ends = [self.eos_id, *(backend.token_to_id(token) for token in TURN_ENDS)]
        self.eos_ids = frozenset(id for id in ends if id is not None)

    # Opening --------------------------------------------------------------------------------------------------------

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """From a Hugging Face folder: tokenizer.json, else tokenizer.model or spiece.model, else vocab.txt.

        Raises ModelNotFoundError if none is there, FormatError or LimitError if one is unfit.
        """
        backend, settings = build.open_folder(folder)
        template = settings.get("chat_template")
        if (folder / "chat_template.jinja").is_file():
            template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        if isinstance(template, list):  # several named templates
            template = next((t.get("template") for t in template if t.get("name") == "default"), None)
        longest = settings.get("model_max_length")
        known = longest if isinstance(longest, int) and 0 < longest < 10**9 else None
        special = _special_texts(settings)
        return cls(backend, special=special, chat_template=template, max_len=known, settings=settings)

    @classmethod
    def from_sentencepiece(cls, path: Path) -> Tokenizer:
        """From a sentencepiece `.model` file. Raises FormatError."""
        return cls(SentencePiece(path), special={"bos": "<s>", "eos": "</s>", "unk": "<unk>"})

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """From the metadata of a GGUF file. Raises FormatError if its tokenizer is unknown."""
        tokens = metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise FormatError("GGUF metadata", field="tokenizer.ggml.tokens", why="is missing")
        names = {"pad": "padding", "unk": "unknown", "sep": "seperator"}  # sic: the key is spelt so in the format
        special: dict[str, str | None] = {}
        for name in SPECIAL:
            id = metadata.get(f"tokenizer.ggml.{names.get(name, name)}_token_id")
            special[name] = tokens[id] if isinstance(id, int) and 0 <= id < len(tokens) else None
        kind = metadata.get("general.architecture")
        longest = metadata.get(f"{kind}.context_length")
        template = metadata.get("tokenizer.chat_template")
        backend = build.from_gguf(metadata, tokens, special)
        return cls(
            backend, special=special, chat_template=template, max_len=longest if isinstance(longest, int) else None
        )

    # Text to ids ----------------------------------------------------------------------------------------------------

    def encode(
        self, text: str, *, add_special: bool = True, max_len: int | None = None, parse_special: bool = False
    ) -> list[int]:
        """Token ids. Cut to max_len only if it is given; the special tokens at the ends are kept.

        parse_special: read control tokens that are written in text as such, instead of as plain text.
        """
        return self.encode_batch([text], add_special=add_special, max_len=max_len, parse_special=parse_special)[0]

    def encode_batch(
        self,
        texts: Sequence[str],
        *,
        add_special: bool = True,
        max_len: int | None = None,
        parse_special: bool = False,
    ) -> list[list[int]]:
        """Token ids of many texts, in parallel where the library can."""
        clean = [_clean(text) for text in texts]
        rows = self.backend.ids(clean, add_special=add_special, parse_special=parse_special)
        if max_len is None or all(len(row) <= max_len for row in rows):
            return rows
        tail = self._num_closing() if add_special else 0
        return [row if len(row) <= max_len else row[: max_len - tail] + row[len(row) - tail :] for row in rows]

    def encode_with_offsets(self, text: str, *, add_special: bool = True) -> Encoding:
        """Token ids with their places in text."""
        return self.backend.encode(_clean(text), None, add_special=add_special)

    def encode_pair(self, first: str, second: str, *, max_len: int | None = None) -> Encoding:
        """Two texts in one sequence, as BERT takes them. If too long, the end of the second is dropped."""
        found = self.backend.encode(_clean(first), _clean(second), add_special=True)
        if max_len is None or len(found.ids) <= max_len:
            return found
        tail = self._num_closing()
        keep = [*range(max_len - tail), *range(len(found.ids) - tail, len(found.ids))]
        return Encoding(*([values[i] for i in keep] for values in (found.ids, found.segments, found.offsets)))

    def _num_closing(self) -> int:
        """Special tokens that stand behind a text."""
        bare, full = self.backend.ids(["a"], add_special=False, parse_special=False)[0], self.encode("a")
        return len(full) - len(bare) - next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)

    # Ids to text ----------------------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of ids."""
        return self.backend.decode([int(id) for id in ids], skip_special=skip_special)

    def stream(self, *, skip_special: bool = True) -> Stream:
        """A decoder for ids that come one by one."""
        return Stream(self, skip_special)

    # Chat -----------------------------------------------------------------------------------------------------------

    def chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> list[int]:
        """The prompt of a conversation by the model's own template, as ids.

        messages: {"role": ..., "content": ...}. Control tokens that someone typed inside a message stay plain text.
        Raises ConfigError if the model has no template, FormatError if the template refuses the messages.
        """
        if not self.chat_template:
            raise ConfigError("chat", why="this model has no chat template", hint="use generate() with a plain prompt")
        # A random mark inside each control token that a message holds keeps the template's own ones apart from it.
        mark = "\ue000" + secrets.token_hex(8) + "\ue001"
        controls = self.backend.control_tokens()
        names = sorted(controls, key=len, reverse=True)
        safe = [{**m, "content": _defuse(str(m.get("content", "")), names, mark)} for m in messages]
        special = {f"{name}_token": token for name, token in self.special.items()}
        text = _clean(render(self.chat_template, safe, add_generation_prompt=add_generation_prompt, special=special))
        if mark not in text:
            return self.backend.ids([text], add_special=False, parse_special=True)[0]
        ids: list[int] = []
        for piece in re.split("(" + "|".join(re.escape(name) for name in names) + ")", text):
            plain = piece.replace(mark, "")
            if piece in controls:
                ids.append(controls[piece])
            elif plain:
                ids += self.backend.ids([plain], add_special=False, parse_special=False)[0]
        return ids

    # Saving ---------------------------------------------------------------------------------------------------------

    def files(self) -> dict[str, str | bytes]:
        """The tokenizer's own files, tokenizer_config.json and the chat template, as Hugging Face tools read them."""
        settings = dict(self.settings) or {"tokenizer_class": "PreTrainedTokenizerFast"}
        settings |= {f"{name}_token": token for name, token in self.special.items()}
        settings.pop("chat_template", None)
        if self.max_len:
            settings["model_max_length"] = self.max_len
        result = {**self.backend.files(), "tokenizer_config.json": json.dumps(settings, ensure_ascii=False, indent=1)}
        if self.chat_template:
            result["chat_template.jinja"] = self.chat_template
        return result

    def save(self, folder: Path) -> None:
        """Write `files()` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (folder / name).write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


class Stream:
    """Turns ids that come one by one into text, whole characters only."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool) -> None:
        self.tokenizer, self.skip_special = tokenizer, skip_special
        self.ids: list[int] = []
        self.given = 0  # characters of the pending text that were handed out
        self.start = 0  # ids before it are settled

    def push(self, id: int) -> str:
        """Text that this id completes; empty while a character is not whole."""
        self.ids.append(id)
        text = self._text(self.start)
        if text.endswith("\ufffd"):
            return ""
        new = text[self.given :]
        self.given = len(text)
        if len(self.ids) - self.start > 16:
            # Keep a few ids as context: a token's leading space depends on what stands before it.
            self.start = len(self.ids) - 4
            self.given = len(self._text(self.start))
        return new

    def finish(self) -> str:
        """What is left, with a replacement character for bytes that never became one."""
        text = self._text(self.start)
        new, self.given = text[self.given :], len(text)
        return new

    def _text(self, start: int) -> str:
        return self.tokenizer.decode(self.ids[start:], skip_special=self.skip_special)


def _clean(text: str) -> str:
    """Lone surrogates cannot be encoded in UTF-8; they become replacement characters."""
    return text.encode("utf-8", "replace").decode("utf-8") if any("\ud800" <= c <= "\udfff" for c in text) else text


def _defuse(text: str, controls: Sequence[str], mark: str) -> str:
    """Put mark after the first character of every control token in text, so that it is none any more."""
    for control in controls:
        if control in text:
            text = text.replace(control, control[0] + mark + control[1:])
    return text


def _special_texts(settings: Mapping[str, Any]) -> dict[str, str | None]:
    result: dict[str, str | None] = {}
    for name in SPECIAL:
        token = settings.get(f"{name}_token")
        result[name] = token.get("content") if isinstance(token, dict) else token
    return result
