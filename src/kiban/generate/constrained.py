"""Answers that fit a JSON schema or a tool's: llguidance says which tokens may come next."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kiban.errors import ConfigError, KibanError
from kiban.generate.stoppable import LIMITS, Trial
from kiban.inputs.backends import Fast
from kiban.inputs.tokenizer import Tokenizer

MAX_GRAMMAR = 64 * 1024  # characters
KEPT = 64  # compiled grammars
# Without this a small model fills an answer with blanks, which JSON allows everywhere.
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
CALL, CALL_END = "<tool_call>\n", "\n</tool_call>"


def schema_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of JSON that fits a schema."""
    return f"%llguidance {{}}\nstart: {_json(schema)}"


def tool_grammar(functions: Mapping[str, Mapping[str, Any]], *, forced: bool, several: bool) -> str:
    """The grammar of calls, `<tool_call>` and JSON as Qwen and Hermes write them; others than these cannot be written.

    functions: the schema of the arguments by name. forced: one call and nothing else; otherwise text, in which calls may
    stand, one at most unless several.
    """
    calls = " | ".join(f"call_{i}" for i in range(len(functions)))
    lines = ["%llguidance {}"]
    if forced:
        lines.append(f"start: {json.dumps(CALL)} ({calls})")
    else:
        lines += [f"start: (begin ({calls})){'*' if several else '?'} TEXT", r"TEXT: /(.|\n)*/"]
        lines.append(f"begin[lazy]: TEXT {json.dumps(CALL)}")
    for i, (name, schema) in enumerate(functions.items()):
        front = json.dumps(f'{{"name": "{name}", "arguments": ')
        lines.append(f"call_{i}: {front} {_json(schema)} {json.dumps('}' + CALL_END)}")
    return "\n".join(lines)


def _json(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": SPACING}, ensure_ascii=False)


class Grammars:
    """Compiled grammars for one tokenizer. Opens at first use, which takes a moment."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, trial: Trial) -> None:
        """vocab_size: the number of logits, which may be more than the tokenizer has tokens."""
        self.tokenizer, self.vocab_size, self.trial = tokenizer, vocab_size, trial
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._library: Any = None
        self._lock = threading.Lock()

    def constraint(self, grammar: str, *, field: str) -> Following:
        """What an answer by this grammar may be; blocks while it compiles. Raises ConfigError about the field."""
        from llguidance import LLMatcher, LLParserLimits

        if len(grammar) > MAX_GRAMMAR:
            raise ConfigError(field, why=f"its {len(grammar):,} characters as a grammar are more than {MAX_GRAMMAR:,}")
        with self._lock:
            found: Any = self._compiled.get(grammar)
            if found is not None:
                self._compiled.move_to_end(grammar)
        if found is None:
            error = self.trial.error(grammar)
            if not error:
                limits = LLParserLimits(**LIMITS, verbose_errors=False)
                found = LLMatcher(self._open(), grammar, limits=limits, log_level=0)
                error = found.get_error()
            if error:
                why = "oneOf is not supported; write anyOf" if "coerce_one_of" in error else error.splitlines()[0][:300]
                raise ConfigError(field, why=why)
            with self._lock:
                self._compiled[grammar] = found
                if len(self._compiled) > KEPT:
                    self._compiled.popitem(last=False)
        return Following(found.deep_copy(), self.vocab_size, sorted(self.tokenizer.eos_ids))

    def token_bytes(self, id: int) -> bytes | None:
        """The bytes of a token; None where the tokenizer does not tell. Blocks a moment the first time."""
        if not self._fits:
            return None
        found = bytes(self._open().decode_bytes([id]))
        return found.removeprefix(b"\xff")  # which marks control tokens there

    @property
    def _fits(self) -> bool:
        return isinstance(self.tokenizer.backend, Fast) and bool(self.tokenizer.eos_ids)

    def _open(self) -> Any:
        from llguidance import LLTokenizer

        with self._lock:
            if self._library is None:
                if not self._fits:
                    raise ConfigError("response_format", why="this model's tokenizer does not work with schemas")
                ends = sorted(self.tokenizer.eos_ids)
                text = str(self.tokenizer.files()["tokenizer.json"])
                self._library = LLTokenizer(text, n_vocab=self.vocab_size, eos_token=ends)
            return self._library


class Following:
    """A Constraint: the state of one answer."""

    def __init__(self, matcher: Any, vocab_size: int, ends: Sequence[int]) -> None:
        self._matcher, self._vocab_size, self._ends = matcher, vocab_size, list(ends)
        self._words = np.zeros((vocab_size + 31) // 32, dtype=np.int32)

    def allowed(self) -> Tensor:
        """(V,) bool. Raises KibanError if the grammar exceeds its limits on the way."""
        if self._matcher.is_stopped():
            if self._matcher.is_error():
                raise KibanError("response_format", why=f"became too complex: {self._matcher.get_error()}")
            bits = np.zeros(self._vocab_size, dtype=np.bool_)
            bits[self._ends] = True
            return torch.from_numpy(bits)
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        if self._matcher.is_error():
            raise KibanError("response_format", why=f"became too complex: {self._matcher.get_error()}")
        bits = np.unpackbits(self._words.view(np.uint8), bitorder="little")[: self._vocab_size].astype(np.bool_)
        return torch.from_numpy(bits)

    def advance(self, id: int) -> None:
        """The token that was chosen."""
        if id not in self._ends:
            self._matcher.consume_token(id)
