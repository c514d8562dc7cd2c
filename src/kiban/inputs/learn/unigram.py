"""A unigram tokenizer (Kudo 2018), trained by sentencepiece on counted words, kept in the format of `tokenizers`."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kiban.config import Progress, silent
from kiban.errors import ConfigError
from kiban.inputs.backends import Fast
from kiban.inputs.learn.bpe import SETTINGS
from kiban.inputs.learn.bpe import SPECIAL as BPE_SPECIAL
from kiban.inputs.learn.counts import Count, count_words, in_proportion
from kiban.inputs.learn.words import python_word_pattern, word_pattern
from kiban.inputs.tokenizer import Tokenizer

SPECIAL = {"unk": "<unk>", **BPE_SPECIAL}
SPACE = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
COVERAGE = 0.9995  # of characters; the rest become bytes, or unknown without them
MAX_FED = 8_000_000  # words, repetitions counted; sentencepiece takes about 90 bytes for each repetition

Piece = tuple[str, float]


def train_unigram(
    texts: Iterable[str],
    *,
    vocab_size: int,
    special: Mapping[str, str] = SPECIAL,
    controls: Sequence[str] = (),
    byte_fallback: bool = True,
    split_digits: bool = True,
    progress: Progress = silent,
) -> Tokenizer:
    """A unigram tokenizer of at most vocab_size tokens. Text is not normalised, and no space is put before it.

    special: special tokens by their short names, "unk" among them; they get the first ids. None is added to a text by
    itself. controls: more tokens that text cannot spell. byte_fallback: what no piece spells becomes its UTF-8 bytes
    instead of "unk", so that every text comes back (only U+2581, which stands for the space, does not). split_digits: a
    digit is a token of its own; else three may be one. Raises ConfigError, or DatasetError if the texts hold no word.
    """
    if "unk" not in special:
        raise ConfigError("special", field="unk", why="is missing; a unigram model needs one")
    reserved = list(dict.fromkeys([*special.values(), *controls, *(BYTES if byte_fallback else [])]))
    if vocab_size <= len(reserved):
        raise ConfigError(
            "vocab_size", why=f"{vocab_size} leaves no room beside {len(reserved)} special tokens and bytes"
        )
    digits = 1 if split_digits else 3
    find = python_word_pattern(digits=digits).findall
    counts = count_words((find(text.replace(SPACE, " ")) for text in texts), progress=progress)
    progress("learn pieces", 0, None)
    learned = _pieces(counts, vocab_size - len(reserved), avoid=reserved)
    pieces = [*((token, 0.0) for token in reserved), *learned]
    marks = [token for token in reserved if token not in BYTES]
    return _assembled(pieces, marks=marks, special=special, byte_fallback=byte_fallback, digits=digits)


def _pieces(counts: Sequence[Count], num: int, *, avoid: Sequence[str]) -> list[Piece]:
    """At most num pieces with their log probabilities, the likeliest first."""
    import sentencepiece

    model, fed = io.BytesIO(), in_proportion(counts, MAX_FED)
    with tempfile.TemporaryDirectory(prefix="kiban-unigram-") as folder:
        path = Path(folder) / "words.tsv"
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{word}\t{count}\n" for word, count in fed if not {"\t", "\n", "\r"} & set(word))
        try:
            sentencepiece.SentencePieceTrainer.train(
                input=str(path),
                input_format="tsv",  # a word and how often it was counted
                model_writer=model,
                model_type="unigram",
                vocab_size=num + 1,  # sentencepiece's own unknown token
                hard_vocab_limit=False,  # of a small corpus there may be fewer
                character_coverage=COVERAGE,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                split_by_unicode_script=False,  # words are runs of one script already
                split_by_number=False,
                max_sentencepiece_length=16,
                bos_id=-1,
                eos_id=-1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ConfigError(
                "train_unigram", why=f"sentencepiece refuses: {error}", hint="try a larger vocabulary"
            ) from error
    found = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [(found.id_to_piece(i), float(found.get_score(i))) for i in range(1, found.vocab_size())]
    return [(piece, score) for piece, score in pieces if piece not in avoid]


def _assembled(
    pieces: Sequence[Piece], *, marks: Sequence[str], special: Mapping[str, str], byte_fallback: bool, digits: int
) -> Tokenizer:
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    unk = next(i for i, (piece, _) in enumerate(pieces) if piece == special["unk"])
    library = Library(models.Unigram(list(pieces), unk_id=unk, byte_fallback=byte_fallback))
    # Cut as the words were that it learned from; so nobody can spell "<0x0A>" in one word either.
    cut = pre_tokenizers.Split(Regex(word_pattern(digits=digits)), behavior="isolated")
    spaces = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([cut, spaces])
    library.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    library.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in marks])
    return Tokenizer(Fast(library), special=special, settings=SETTINGS)
