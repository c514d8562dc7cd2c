"""One face over `tokenizers` and `sentencepiece`: text to ids and back, with offsets, streaming and chat."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from kiban.errors import ConfigError, FormatError
from kiban.inputs import build
from kiban.inputs.backends import Backend, Encoding, Fast, SentencePiece, split_controls
from kiban.inputs.batch import pad_batch
from kiban.inputs.chat import render
from kiban.inputs.japanese import without_surrogates

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
        """From a Hugging Face folder: tokenizer.json, else CLIP's vocab.json and merges.txt, else tokenizer.model or
        spiece.model, else vocab.txt.

        Raises ModelNotFoundError if none is there, FormatError or LimitError if one is unfit.
        """
        backend, settings = build.open_folder(folder)
        template = _template(folder / "chat_template.jinja", settings.get("chat_template"))
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
        return cls(
            build.from_gguf(metadata, tokens, special),
            special=special,
            chat_template=template if isinstance(template, str) else None,
            max_len=longest if isinstance(longest, int) else None,
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
        clean = [without_surrogates(text) for text in texts]
        rows = self.backend.ids(clean, add_special=add_special, parse_special=parse_special)
        if max_len is None or all(len(row) <= max_len for row in rows):
            return rows
        front, tail = self._frame if add_special else (0, 0)
        _check_length(max_len, front + tail)
        return [row if len(row) <= max_len else row[: max_len - tail] + row[len(row) - tail :] for row in rows]

    def encode_with_offsets(self, text: str, *, add_special: bool = True) -> Encoding:
        """Token ids with their places in text."""
        return self.backend.encode(without_surrogates(text), None, add_special=add_special)

    def encode_pair(self, first: str, second: str, *, max_len: int | None = None) -> Encoding:
        """Two texts in one sequence, as BERT takes them. If too long, the second loses its end, then the first."""
        first, second = without_surrogates(first), without_surrogates(second)
        found = self.backend.encode(first, second, add_special=True)
        excess = len(found.ids) - (max_len if max_len is not None else len(found.ids))
        if max_len is None or excess <= 0:
            return found
        a, b = map(len, self.backend.ids([first, second], add_special=False, parse_special=False))
        _check_length(max_len, len(found.ids) - a - b)
        front, tail = self._frame
        from_b = min(excess, b)
        ends = ((0, front + a - excess + from_b), (front + a, len(found.ids) - tail - from_b))
        keep = [*range(*ends[0]), *range(*ends[1]), *range(len(found.ids) - tail, len(found.ids))]
        return Encoding(*([values[i] for i in keep] for values in (found.ids, found.segments, found.offsets)))

    @cached_property
    def _frame(self) -> tuple[int, int]:
        """Numbers of special tokens before and behind a text."""
        bare, full = self.backend.ids(["a"], add_special=False, parse_special=False)[0], self.encode("a")
        front = next(i for i in range(len(full) + 1) if full[i : i + len(bare)] == bare)
        return front, len(full) - len(bare) - front

    # Ids to text ----------------------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of ids."""
        return self.backend.decode([int(id) for id in ids], skip_special=skip_special)

    def stream(self, *, skip_special: bool = True) -> Stream:
        """A decoder for ids that come one by one."""
        return Stream(self, skip_special)

    # Chat -----------------------------------------------------------------------------------------------------------

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> list[int]:
        """The prompt of a conversation by the model's own template, as ids.

        messages: {"role": ..., "content": ...}. Control tokens that someone typed inside a message stay plain text.
        Raises ConfigError if the model has no template, FormatError if the template refuses the messages.
        """
        if not self.chat_template:
            raise ConfigError("chat", why="this model has no chat template", hint="use generate() with a plain prompt")
        controls = self.backend.control_tokens()
        # A random mark inside each control token that a message holds keeps the template's own ones apart from it. It
        # is of private characters, which no template changes.
        mark = "".join(chr(0xE000 + secrets.randbelow(6400)) for _ in range(16))
        parts = self._render(_defused(messages, controls, mark), add_generation_prompt)
        # Two messages, or a template that edits one, may make a control token of pieces. Where breaking up all that
        # could begin one changes the control tokens, that has happened.
        strict = self._render(_defused(messages, {name[0] for name in controls}, mark), add_generation_prompt)
        if [p for p in parts if isinstance(p, int)] != [p for p in strict if isinstance(p, int)]:
            parts = strict
        plain = [part.replace(mark, "") if isinstance(part, str) else part for part in parts]
        return self.backend.mixed([part for part in plain if part != ""])

    def _render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> list[str | int]:
        special = {f"{name}_token": token for name, token in self.special.items()}
        template = self.chat_template or ""
        text = render(template, messages, add_generation_prompt=add_generation_prompt, special=special)
        return split_controls(without_surrogates(text), self.backend.control_tokens())

    def changed(self, values: Mapping[str, Any], settings: Mapping[str, Any]) -> Tokenizer:
        """This tokenizer with another tokenizer.json and tokenizer_config.json; special tokens and template stay."""
        from tokenizers import Tokenizer as Library

        return Tokenizer(
            Fast(Library.from_str(json.dumps(values, ensure_ascii=False))),
            special=self.special,
            chat_template=self.chat_template,
            max_len=self.max_len,
            settings=settings,
        )

    @property
    def hf_class(self) -> str:
        """The class of transformers that opens its files."""
        return str(self.settings.get("tokenizer_class", "PreTrainedTokenizerFast"))

    # Saving ---------------------------------------------------------------------------------------------------------

    def files(self) -> dict[str, str | bytes]:
        """The tokenizer's own files, tokenizer_config.json and the chat template, as Hugging Face tools read them."""
        settings = dict(self.settings) or {"tokenizer_class": self.hf_class}
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
        self.context: list[
            int
        ] = []  # the last ids that were given: a token's leading space depends on what precedes it
        self.pending: list[int] = []  # ids that are not given yet

    def push(self, id: int) -> str:
        """Text that this id completes; empty while a character is not whole."""
        self.pending.append(id)
        new = self._new()
        if not new or new.endswith("\ufffd"):
            return ""
        self.context, self.pending = self.pending, []
        return new

    def finish(self) -> str:
        """What is left, with a replacement character for bytes that never became one."""
        new = self._new()
        self.context, self.pending = self.pending, []
        return new

    def _new(self) -> str:
        before, after = (
            self.tokenizer.decode(ids, skip_special=self.skip_special)
            for ids in (self.context, self.context + self.pending)
        )
        return after[len(before) :]


def _template(file: Path, setting: Any) -> str | None:
    """The chat template of a folder: its own file, or one of its settings."""
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FormatError(file, why=f"cannot be read: {error}") from error
    if isinstance(setting, list):  # several named templates
        named = [t for t in setting if isinstance(t, dict)]
        setting = next((t.get("template") for t in named if t.get("name") == "default"), None)
    return setting if isinstance(setting, str) else None


def _check_length(max_len: int, num_special: int) -> None:
    if max_len < num_special:
        raise ConfigError("max_len", why=f"{max_len} leaves no room for {num_special} special tokens")


def _defused(value: Any, controls: Iterable[str], mark: str) -> Any:
    """Messages with mark behind the first character of every control token in any of their texts."""
    if isinstance(value, str):
        for control in sorted(controls, key=len, reverse=True):
            value = value.replace(control, control[0] + mark + control[1:])
        return value
    if isinstance(value, Mapping):
        return {key: _defused(part, controls, mark) for key, part in value.items()}
    return [_defused(part, controls, mark) for part in value] if isinstance(value, list | tuple) else value


def _special_texts(settings: Mapping[str, Any]) -> dict[str, str | None]:
    return {name: build.special_text(settings.get(f"{name}_token")) for name in SPECIAL}
