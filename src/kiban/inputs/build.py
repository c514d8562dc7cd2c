"""Opening tokenizers: a Hugging Face folder, a sentencepiece model, or the metadata of a GGUF file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kiban.config import home
from kiban.errors import FormatError, LimitError, ModelNotFoundError
from kiban.inputs import clip_bpe
from kiban.inputs.backends import Backend, Fast, JapaneseBert, SentencePiece

MAX_TOKENIZER_BYTES = 128 * 2**20
CHECK_SECONDS = 30
# What the child does: open the file and try texts that make careless patterns explode, among them runs of every
# character that the file's own rules name.
CHECK = """
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
except (ImportError, ValueError, OSError):
    pass
import tokenizers
data = open(sys.argv[1], encoding="utf-8").read()
t = tokenizers.Tokenizer.from_str(data)
t.no_padding(); t.no_truncation()
def texts(rule):
    if isinstance(rule, str):
        yield rule
    elif isinstance(rule, (list, dict)):
        for part in rule.values() if isinstance(rule, dict) else rule:
            yield from texts(part)
file = json.loads(data)
named = {c for part in ("normalizer", "pre_tokenizer") for text in texts(file.get(part)) for c in text[:200]}
for i, c in enumerate(["a", " ", "1", "\\u3042", *sorted(named)[:200]]):
    size = 4000 if i < 4 else 1000
    for text in (c * size, c * size + "!", "x" + c * size + "\\0"):
        if len(t.encode(text).ids) > 100_000: sys.exit("a short text becomes very many tokens")
for text in ("", "a b", "\\u6771\\u4eac 2026"):
    ids = t.encode(text, text).ids
    if len(ids) > 1000 or len(t.decode(ids)) > 100_000: sys.exit("a short text grows without bound")
if len(t.decode(list(range(min(t.get_vocab_size(), 1000))))) > 10_000_000: sys.exit("a short text grows without bound")
"""


TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt")


def open_folder(folder: Path) -> tuple[Backend, dict[str, Any]]:
    """The tokenizer of a folder and its tokenizer_config.json. Raises ModelNotFoundError if there is none."""
    settings = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    if (folder / "tokenizer.json").is_file():
        library = _checked(folder / "tokenizer.json")
        if clip_bpe.is_clip(library):
            settings, special = _clip_settings(folder, settings)
            return clip_bpe.ClipBPE(library, special), settings
        return Fast(library), settings
    if clip_bpe.has_files(folder):
        settings, special = _clip_settings(folder, settings)
        return clip_bpe.open_files(folder, settings, special), settings
    for name in ("tokenizer.model", "spiece.model"):
        if (folder / name).is_file():
            return SentencePiece(folder / name), {
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                **settings,
            }
    if (folder / "vocab.txt").is_file():
        marks = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "mask", "unk")}
        return _from_vocab(folder / "vocab.txt", settings), {**marks, **settings}
    raise ModelNotFoundError(folder, why=f"holds none of {', '.join(TOKENIZER_FILES)}")


def has_tokenizer(folder: Path) -> bool:
    """Whether there is one that `open_folder` opens."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES) or clip_bpe.has_files(folder)


def special_text(value: Any) -> str | None:
    """The text of a special token as settings state it: by itself, or with how it is found."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _clip_settings(folder: Path, settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """tokenizer_config.json with what older files state beside it, which counts more in transformers; special tokens."""
    stated = _json(folder / clip_bpe.SPECIAL_MAP) if (folder / clip_bpe.SPECIAL_MAP).is_file() else {}
    if "added_tokens_decoder" in settings:
        stated = {}
    whole = {**clip_bpe.SETTINGS, **clip_bpe.TOKENS, **settings, **stated}
    return whole, [text for name in clip_bpe.TOKENS if (text := special_text(whole[name])) is not None]


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(path, why=f"cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(path, why="is not a JSON object")
    return value


def _checked(path: Path) -> Any:
    """Open a tokenizer.json. The library can hang or abort on a crafted one, so a child process tries each file first.

    The verdict is remembered by the file's sha256.
    """
    from tokenizers import Tokenizer

    if path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise LimitError(path, why=f"is larger than {MAX_TOKENIZER_BYTES} bytes")
    data = path.read_bytes()
    verdict = home() / "checked-tokenizers" / hashlib.sha256(data).hexdigest()
    if not verdict.exists():
        command = [sys.executable, "-c", CHECK, str(path)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=CHECK_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise LimitError(path, why=f"does not finish a short text in {CHECK_SECONDS} s") from None
        if done.returncode:
            words = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise FormatError(path, why=f"is not a usable tokenizer: {words[-1] if words else 'it ends the process'}")
        with contextlib.suppress(OSError):  # a home that cannot be written only costs the next opening a check
            verdict.parent.mkdir(parents=True, exist_ok=True)
            verdict.touch()
    return Tokenizer.from_str(data.decode("utf-8"))


def _from_vocab(path: Path, settings: Mapping[str, Any]) -> Backend:
    """A WordPiece vocabulary: a line per token."""
    try:
        tokens = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise FormatError(path, offset=error.start, why="is not UTF-8") from error
    missing = {"[CLS]", "[SEP]", "[UNK]"} - set(tokens)
    if missing:
        raise FormatError(path, why=f"lacks {', '.join(sorted(missing))}")
    if settings.get("word_tokenizer_type") == "mecab" or settings.get("tokenizer_class") == "BertJapaneseTokenizer":
        characters = settings.get("subword_tokenizer_type") == "character"
        lower = bool(settings.get("do_lower_case", False))
        return JapaneseBert(tokens, characters=characters, lower=lower)
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    lower = bool(settings.get("do_lower_case", True))
    chinese = bool(settings.get("tokenize_chinese_chars", True))
    wordpiece = BertWordPieceTokenizer(
        {token: id for id, token in enumerate(tokens)},
        lowercase=lower,
        handle_chinese_chars=chinese,
        strip_accents=settings.get("strip_accents"),
    )
    return Fast(Tokenizer.from_str(wordpiece.to_str()))


# GGUF ---------------------------------------------------------------------------------------------------------------

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # tokenizer.ggml.token_type
MAX_TOKEN = 512  # characters
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {"qwen2": _WORDS % r"\p{N}", "llama-bpe": _WORDS % r"\p{N}{1,3}", "llama3": _WORDS % r"\p{N}{1,3}"}
DIGITS_APART = ("smollm", "starcoder", "refact", "command-r")
GPT2_SPLIT = ("default", "gpt-2", "gpt2")


def from_gguf(metadata: Mapping[str, Any], tokens: Sequence[str], special: Mapping[str, str | None]) -> Backend:
    """Build the tokenizer that the metadata describe. Raises FormatError if kiban does not know its kind."""
    from tokenizers import AddedToken, processors

    kind = metadata.get("tokenizer.ggml.model")
    types = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise FormatError("GGUF metadata", field="tokenizer.ggml.token_type", why="has another length than the tokens")
    if len({*tokens}) != len(tokens) or max(map(len, tokens), default=0) > MAX_TOKEN:
        why = f"holds a token twice, or one longer than {MAX_TOKEN} characters"
        raise FormatError("GGUF metadata", field="tokenizer.ggml.tokens", why=why)
    if kind == "gpt2":
        tokenizer = _byte_level(metadata, tokens)
        add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", False))
    elif kind == "llama":
        tokenizer = _sentencepiece_like(metadata, tokens, types)
        add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", True))
    else:
        raise FormatError("GGUF metadata", field="tokenizer.ggml.model", why=f"{kind!r} is not a tokenizer kiban knows")
    for token, number in zip(tokens, types, strict=True):
        if number in (CONTROL, USER_DEFINED):
            added = [AddedToken(token, special=number == CONTROL, normalized=False)]
            _ = tokenizer.add_special_tokens(added) if number == CONTROL else tokenizer.add_tokens(added)
    bos = special.get("bos")
    if add_bos and bos is not None:
        places = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B:1", special_tokens=places
        )
    return Fast(tokenizer)


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list) or not all(isinstance(merge, str) and merge.count(" ") == 1 for merge in merges):
        raise FormatError("GGUF metadata", field="tokenizer.ggml.merges", why="is missing or malformed")
    try:
        pairs = [tuple(merge.split(" ")) for merge in merges]
        tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, pairs))
    except Exception as error:  # the library raises nothing more exact for merges that are not tokens
        raise FormatError("GGUF metadata", field="tokenizer.ggml.merges", why=str(error)) from error
    split = metadata.get("tokenizer.ggml.pre", "default")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if not isinstance(split, str):
        raise FormatError("GGUF metadata", field="tokenizer.ggml.pre", why="is not a text")
    if split in PATTERNS:
        cut = pre_tokenizers.Split(Regex(PATTERNS[split]), behavior="isolated")
        bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, bare])
        if split == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
    elif split in DIGITS_APART:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    elif split in GPT2_SPLIT:
        tokenizer.pre_tokenizer = whole
    else:
        raise FormatError("GGUF metadata", field="tokenizer.ggml.pre", why=f"{split!r} is not a split kiban knows")
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_like(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Any:
    """Llama's BPE of sentencepiece: the merge order follows from the scores; unknown characters fall back to bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens) or not all(isinstance(s, float) for s in scores):
        raise FormatError("GGUF metadata", field="tokenizer.ggml.scores", why="is missing or has another length")
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    if not isinstance(unknown, int) or not 0 <= unknown < len(tokens):
        raise FormatError("GGUF metadata", field="tokenizer.ggml.unknown_token_id", why="is no token")
    vocabulary = {token: id for id, token in enumerate(tokens)}
    merges: list[tuple[float, int, int, str, str]] = []
    for token, score, number in zip(tokens, scores, types, strict=True):
        if number != NORMAL:
            continue  # nothing that a user types may grow into a control token
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-score, vocabulary[left], vocabulary[right], left, right))
    merges.sort()
    model = models.BPE(
        vocabulary,
        [(left, right) for *_, left, right in merges],
        unk_token=tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    front = [normalizers.Prepend("▁")] if metadata.get("tokenizer.ggml.add_space_prefix", True) else []
    tokenizer.normalizer = normalizers.Sequence([*front, normalizers.Replace(" ", "▁")])
    tail = [decoders.Strip(" ", 1, 0)] if front else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *tail])
    return tokenizer
