"""Byte-level BPE (Radford et al. 2019, section 2.2) that knows where Japanese words may end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from kiban.config import Progress, silent
from kiban.errors import ConfigError
from kiban.inputs.backends import Fast
from kiban.inputs.learn.counts import count_words
from kiban.inputs.learn.merges import BREAK, Merge, learn_merges
from kiban.inputs.learn.words import python_word_pattern, word_pattern
from kiban.inputs.tokenizer import Tokenizer

# One token ends a text and begins the next, as in GPT-2. Padding has its own: were it the end, masking the padding out of
# the loss would mask the end too, and a model would never learn to stop.
SPECIAL = {"eos": "<|endoftext|>", "bos": "<|endoftext|>", "pad": "<|pad|>"}
SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_input_names": ["input_ids", "attention_mask"],
    "clean_up_tokenization_spaces": False,
}


def train_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    special: Mapping[str, str] = SPECIAL,
    controls: Sequence[str] = (),
    digits: int = 1,
    progress: Progress = silent,
) -> Tokenizer:
    """A byte-level BPE tokenizer of at most vocab_size tokens; it knows every text and gives it back exactly.

    special: special tokens by their short names (pad, bos, eos, cls, sep, mask, unk); they get the first ids. None is
    added to a text by itself. controls: more tokens that text cannot spell, such as those of a chat template. digits:
    how many a token may hold, 1 to 3. Raises ConfigError, or DatasetError if the texts hold no word.
    """
    reserved = list(dict.fromkeys([*special.values(), *controls]))
    if not 1 <= digits <= 3:
        raise ConfigError("digits", why=f"{digits} is not 1, 2 or 3")
    if vocab_size < len(reserved) + 256:
        raise ConfigError("vocab_size", why=f"{vocab_size} is less than 256 bytes and {len(reserved)} special tokens")
    find = python_word_pattern(digits=digits).findall
    counts = count_words((find(text.replace(BREAK, "")) for text in texts), progress=progress)
    progress("learn merges", 0, None)
    spelt = [(as_symbols(word), count) for word, count in counts]
    tokens, merges = learn_merges(spelt, vocab_size=vocab_size - len(reserved), alphabet=byte_symbols().values())
    return _assembled([*reserved, *tokens], merges, special=special, controls=reserved, digits=digits)


def _assembled(
    tokens: Sequence[str], merges: Sequence[Merge], *, special: Mapping[str, str], controls: Sequence[str], digits: int
) -> Tokenizer:
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    library = Library(models.BPE({token: id for id, token in enumerate(tokens)}, list(merges)))
    cut = pre_tokenizers.Split(Regex(word_pattern(digits=digits)), behavior="isolated")
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in controls])
    return Tokenizer(Fast(library), special=special, settings=SETTINGS)


@cache
def byte_symbols() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(rest)}}


def as_symbols(text: str) -> str:
    """A text as the characters that stand for its UTF-8 bytes."""
    return text.encode("utf-8", "replace").decode("latin-1").translate(_table())


@cache
def _table() -> dict[int, Any]:
    return dict(byte_symbols())
