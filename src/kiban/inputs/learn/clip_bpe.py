"""A tokenizer of CLIP's kind, trained on captions of any language, that transformers and diffusers open as CLIPTokenizer."""

from __future__ import annotations

from collections.abc import Iterable

from kiban.config import Progress, silent
from kiban.errors import ConfigError
from kiban.inputs.clip_bpe import BOS, END, EOS, SETTINGS, TOKENS, ClipBPE, assemble
from kiban.inputs.learn.bpe import byte_symbols
from kiban.inputs.learn.counts import count_words
from kiban.inputs.learn.merges import BREAK, learn_merges
from kiban.inputs.tokenizer import Tokenizer

LAST = 0xF0000  # from here on, private characters stand for the bytes that end a word


def train_clip_bpe(
    texts: Iterable[str], *, vocab_size: int, max_len: int = 77, progress: Progress = silent
) -> Tokenizer:
    """A tokenizer of at most vocab_size tokens: every byte, every byte at the end of a word, merges, BOS and EOS.

    EOS has the largest id and pads, as in the published one. max_len: what transformers and diffusers cut and pad to.
    Text comes back in lower case, with a space behind every word. Raises ConfigError if there is no room for merges, or
    DatasetError if the texts hold no word.
    """
    symbols = list(byte_symbols().values())
    if vocab_size <= 2 * len(symbols) + 2:
        why = f"{vocab_size} leaves no room beside {2 * len(symbols)} bytes and two special tokens"
        raise ConfigError("vocab_size", why=why)
    # The same steps as in use, so that what is counted is what is merged later.
    bare = assemble({EOS: 0}, [])
    last = {symbol: chr(LAST + number) for number, symbol in enumerate(symbols)}

    def words(text: str) -> list[str]:
        clean = bare.normalizer.normalize_str(text.replace(BREAK, ""))
        return [word for word, _ in bare.pre_tokenizer.pre_tokenize_str(clean)]

    counts = count_words(map(words, texts), progress=progress)
    progress("learn merges", 0, None)
    spelt = [(word[:-1] + last[word[-1]], count) for word, count in counts]
    tokens, merges = learn_merges(spelt, vocab_size=vocab_size - 2, alphabet=[*symbols, *last.values()])
    ends = str.maketrans({private: symbol + END for symbol, private in last.items()})
    longer = [token.translate(ends) for token in tokens if len(token) > 1]
    known = [*symbols, *(symbol + END for symbol in symbols), *longer, BOS, EOS]
    pairs = [(left.translate(ends), right.translate(ends)) for left, right in merges]
    library = assemble({token: id for id, token in enumerate(known)}, pairs)
    special = {name.removesuffix("_token"): token for name, token in TOKENS.items()}
    return Tokenizer(ClipBPE(library), special=special, max_len=max_len, settings=SETTINGS)
