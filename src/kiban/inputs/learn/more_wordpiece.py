"""Japanese for a WordPiece tokenizer that was made for another language: more tokens, and voicing marks that stay.

BERT's uncased normaliser takes the marks off accented letters and so makes か of が and は of ぱ. Here kana pass it
unchanged; all else goes through it as before, so the ids of English text stay what they were.
"""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from kiban.config import Progress, silent
from kiban.errors import ConfigError
from kiban.inputs.backends import Fast
from kiban.inputs.learn.counts import Count, count_words
from kiban.inputs.learn.wordpiece import longer_tokens, single_characters
from kiban.inputs.learn.words import HAN, HIRAGANA, JAPANESE, KATAKANA, MAX_RUN, as_class, japanese_runs
from kiban.inputs.tokenizer import Tokenizer

PRIVATE = 0xE000  # BERT's normaliser has deleted private characters by the time that ours stand in for kana
# Full-width ASCII, half-width katakana, and units and words in one square (㌔, ㍿).
FOLDED = (*range(0xFF01, 0xFF5F), *range(0xFF61, 0xFF9E), *range(0x3300, 0x3358), *range(0x3371, 0x33FF))
SETTINGS = {"tokenizer_class": "PreTrainedTokenizerFast"}
# What transformers' BertTokenizer would rebuild the normaliser from.
OWN_SETTINGS = ("do_lower_case", "tokenize_chinese_chars", "strip_accents", "do_basic_tokenize", "never_split")


def more_wordpiece(
    tokenizer: Tokenizer, texts: Iterable[str], *, num_new: int, progress: Progress = silent
) -> Tokenizer:
    """tokenizer with at most num_new Japanese tokens behind its own, whose ids stay.

    A text without kana, kanji and full-width characters keeps its ids. Runs of hiragana, katakana and kanji become words
    of their own; half of the new tokens at most are single characters. Raises ConfigError if it is not BERT's WordPiece.
    """
    assert isinstance(tokenizer.backend, Fast)
    values = json.loads(tokenizer.backend.open.to_str())
    kinds = (values["normalizer"] or {}).get("type"), (values["pre_tokenizer"] or {}).get("type")
    if kinds != ("BertNormalizer", "BertPreTokenizer"):
        raise ConfigError(
            "expand", why="this WordPiece tokenizer does not normalise as BERT's", hint="begin with BERT's"
        )
    values["normalizer"] = normaliser(values["normalizer"])
    counts = _counted(values["normalizer"], texts, progress)
    vocabulary: dict[str, int] = values["model"]["vocab"]
    vocabulary |= {token["content"]: token["id"] for token in values["added_tokens"]}
    prefix = values["model"]["continuing_subword_prefix"]
    progress("learn tokens", 0, None)
    new = single_characters(counts, vocabulary, prefix, limit=num_new // 2)
    known = {c for c in {c for word, _ in counts for c in word} if {c, prefix + c} <= {*vocabulary, *new}}
    longer = [token for token in longer_tokens(counts, known, prefix, num_new) if token not in vocabulary]
    new += longer[: num_new - len(new)]
    first = max(vocabulary.values()) + 1
    vocabulary |= {token: first + i for i, token in enumerate(new)}
    values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [values["pre_tokenizer"], _split(known)]}
    settings = {k: v for k, v in tokenizer.settings.items() if k not in OWN_SETTINGS} | SETTINGS
    return tokenizer.changed(values, settings)


def _counted(normalizer: dict[str, Any], texts: Iterable[str], progress: Progress) -> list[Count]:
    from tokenizers import Tokenizer, models

    library = Tokenizer.from_str(json.dumps({**json.loads(Tokenizer(models.BPE()).to_str()), "normalizer": normalizer}))
    find = re.compile(japanese_runs(space=False)).findall
    return count_words((find(library.normalizer.normalize_str(text)) for text in texts), progress=progress)


def _split(known: set[str]) -> dict[str, Any]:
    """A pre-tokenizer that keeps known characters of one script together and sets other Japanese ones apart."""
    classes = [as_class(known & _within(known, script)) for script in (HIRAGANA, KATAKANA, HAN)]
    parts = [f"[{inside}]{{1,{MAX_RUN}}}" for inside in classes if inside]
    return {
        "type": "Split",
        "pattern": {"Regex": "|".join([*parts, f"[{JAPANESE}]"])},
        "behavior": "Isolated",
        "invert": False,
    }


def _within(characters: set[str], script: str) -> set[str]:
    return set(re.findall(f"[{script}]", "".join(sorted(characters))))


def normaliser(bert: dict[str, Any]) -> dict[str, Any]:
    """BERT's normaliser, for kana without the stripping of marks; half-width katakana and full-width ASCII become usual."""
    fold = [(chr(code), unicodedata.normalize("NFKC", chr(code))) for code in FOLDED]
    fold += [("\uff9e", "\u3099"), ("\uff9f", "\u309a")]
    bert = {**bert, "handle_chinese_chars": False}  # _split sets kanji apart, those that it does not keep together
    strip = bert["lowercase"] if bert["strip_accents"] is None else bert["strip_accents"]
    if not strip:
        return {"type": "Sequence", "normalizers": [_replacing(fold), bert]}
    kana = map(chr, range(0x3041, 0x3100))
    voiced = [c for c in kana if {"\u3099", "\u309a"} & set(unicodedata.normalize("NFD", c)[1:])]
    hidden = [(c, chr(PRIVATE + i)) for i, c in enumerate(voiced)]
    steps = [
        _replacing(fold),
        {"type": "NFC"},  # a kana and its mark become one; for all other letters, stripping undoes it
        {**bert, "strip_accents": False, "lowercase": False},  # cleans
        _replacing(hidden),
        {**bert, "strip_accents": True, "clean_text": False},
        _replacing([(private, c) for c, private in hidden]),
    ]
    return {"type": "Sequence", "normalizers": steps}


def _replacing(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A normaliser that replaces characters in one pass, as sentencepiece compiles it."""
    import sentencepiece

    sentencepiece.SetMinLogLevel(2)
    data = sentencepiece.SentencePieceNormalizer(norm_map=pairs).serialized_normalizer_spec()
    # A protobuf message whose one set field is number 2, the table: its key, its length as a varint, its bytes.
    assert data[0] == 0x12
    start = next(i for i in range(1, len(data)) if data[i] < 0x80) + 1
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data[start:]).decode("ascii")}
