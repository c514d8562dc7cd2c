"""WordPiece (Wu et al. 2016) after MeCab or Sudachi: the tokenizer of a Japanese BERT."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice

from kiban.config import Progress, silent
from kiban.errors import ConfigError
from kiban.inputs.backends import JapaneseBert
from kiban.inputs.japanese import Engine, normalise, words
from kiban.inputs.japanese_bert import MAX_WORD, PREFIX, mecab_words
from kiban.inputs.learn.counts import Count, count_words
from kiban.inputs.learn.merges import BREAK, learn_merges
from kiban.inputs.tokenizer import Tokenizer

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
KANA = "".join(map(chr, (*range(0x3041, 0x3094), *range(0x30A1, 0x30F5), 0x30FC)))
COVERAGE = 0.9995  # of characters; a word with one of the rest is unknown
BATCH = 256  # texts that MeCab takes at once
ENGINES = {
    "mecab": {"mecab_kwargs": {"mecab_dic": "unidic_lite"}},
    "sudachi": {"sudachi_kwargs": {"sudachi_split_mode": "A", "sudachi_dict_type": "core"}},
}


def train_wordpiece(
    texts: Iterable[str],
    *,
    vocab_size: int,
    engine: Engine = "mecab",
    lower: bool = False,
    progress: Progress = silent,
) -> Tokenizer:
    """A tokenizer of at most vocab_size tokens that transformers opens as BertJapaneseTokenizer.

    engine: what cuts words, MeCab with unidic-lite or Sudachi with its core dictionary in mode A. Text is normalised
    (NFKC), and put in lower case if lower. Half of the tokens at most are single characters. Raises ConfigError, or
    DatasetError if the texts hold no word.
    """
    if engine not in ENGINES:
        raise ConfigError("engine", why=f"{engine!r} is unknown", hint=" or ".join(ENGINES))
    if vocab_size < 2 * len(SPECIAL):
        raise ConfigError("vocab_size", why=f"{vocab_size} leaves no room for words")
    cut = _mecab(texts) if engine == "mecab" else _sudachi(texts)
    fit = ([w.lower() if lower else w for w in ws if len(w) <= MAX_WORD and BREAK not in w] for ws in cut)
    counts = count_words(fit, progress=progress)
    progress("learn tokens", 0, None)
    tokens = list(SPECIAL.values())
    tokens += single_characters(counts, tokens, PREFIX, limit=vocab_size // 2)
    known = {token for token in tokens if len(token) == 1}
    longer = longer_tokens(counts, known, PREFIX, vocab_size - len(tokens))
    tokens += [token for token in longer if token not in tokens[: len(SPECIAL)]][: vocab_size - len(tokens)]
    settings = {
        "tokenizer_class": "BertJapaneseTokenizer",
        "word_tokenizer_type": engine,
        "subword_tokenizer_type": "wordpiece",
        "do_lower_case": lower,
        **ENGINES[engine],
    }
    backend = JapaneseBert(tokens, characters=False, lower=lower, engine=engine)
    return Tokenizer(backend, special=SPECIAL, settings=settings)


def _mecab(texts: Iterable[str]) -> Iterator[list[str]]:
    source = iter(texts)
    while batch := list(islice(source, BATCH)):
        yield from mecab_words(batch)


def _sudachi(texts: Iterable[str]) -> Iterator[list[str]]:
    for text in texts:
        yield [word.surface for word in words(normalise(text), engine="sudachi", mode="A")]


def single_characters(counts: Sequence[Count], vocabulary: Collection[str], prefix: str, *, limit: int) -> list[str]:
    """New tokens of one character, each as the beginning of a word and inside one: frequent ones, and all kana."""
    found: Counter[str] = Counter()
    for word, count in counts:
        for character in word:
            found[character] += count
    # Every kana, if that takes less than half: without one, a whole run of them would be unknown.
    always = KANA if 4 * len(KANA) <= limit else ""
    new: list[str] = []
    seen, wanted = 0, COVERAGE * found.total()
    for character in [*always, *(c for c, _ in found.most_common() if c not in always)]:
        missing = [form for form in (character, prefix + character) if form not in vocabulary]
        if character not in always and (seen >= wanted or len(new) + len(missing) > limit):
            break
        seen += found[character]
        new += missing
    return new


def longer_tokens(counts: Sequence[Count], known: set[str], prefix: str, num: int) -> list[str]:
    """Tokens of two characters and more, as WordPiece is trained."""
    spelt = [(word, count) for word, count in counts if known.issuperset(word)]
    if not spelt:
        return []
    # What the old vocabulary holds already is learned again and left out.
    _, merges = learn_merges(spelt, vocab_size=2 * (len(known) + num), prefix=prefix)
    return list(dict.fromkeys(left + right.removeprefix(prefix) for left, right in merges))
