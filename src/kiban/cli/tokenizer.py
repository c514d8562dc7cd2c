"""`kiban tokenizer`: train one, add Japanese to one, compare several."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiban.cli.console import Console, current
from kiban.cli.data_options import one_of, open_tokenizer
from kiban.cli.options import TRIAL, AsJson, Field, Lang, Out
from kiban.errors import ConfigError

if TYPE_CHECKING:
    from kiban.config import Progress
    from kiban.inputs.tokenizer import Tokenizer

tokenizer_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
KINDS = ("bpe", "unigram", "wordpiece")
COMPARED = 10_000  # of the user's documents
WORDS = {
    "ja": {
        "vocab_size": "語彙の大きさ",
        "new_tokens": "追加したトークン",
        "folder": "保存先",
        "per_token": "1トークンあたりの文字数 ({})",
        "dry_run": f"試行: 先頭の {TRIAL:,} 文書だけを見ました。何も保存していません。",
    },
    "en": {
        "vocab_size": "vocabulary",
        "new_tokens": "new tokens",
        "folder": "folder",
        "per_token": "characters per token ({})",
        "dry_run": f"A dry run: it looked at the first {TRIAL:,} documents, and nothing was kept.",
    },
}
COLUMNS = {
    "ja": ("トークナイザー", "語彙", "文字/トークン {}", "未知 {}", "トークン/1,000字 (ja)", "価格/1,000字 (ja)"),
    "en": ("tokenizer", "vocabulary", "characters/token {}", "unknown {}", "tokens/1,000 ja", "price/1,000 ja"),
}

Paths = Annotated[list[Path], typer.Argument(help="files or folders: .txt .md .jsonl (+ .gz .zst) .parquet")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="look at some documents only, and leave nothing")]


@tokenizer_app.callback()
def tokenizer() -> None:
    """Tokenizers: train one on your texts, give one Japanese words, compare what they make of a language.

    Examples:

      kiban tokenizer train corpus/ --kind bpe --vocab-size 32000 --out my-tokenizer

      kiban tokenizer expand minilm-l6 corpus/ --new 8000 --out minilm-ja

      kiban tokenizer compare smollm2-135m-instruct my-tokenizer --price-per-million 0.15
    """


@tokenizer_app.command("train", no_args_is_help=True)
def train_command(
    paths: Paths,
    out: Out = None,
    kind: Annotated[str, typer.Option(help="bpe (byte-level), unigram, or wordpiece (for a Japanese BERT)")] = "bpe",
    vocab_size: Annotated[int, typer.Option(min=10, help="tokens at most")] = 32_000,
    engine: Annotated[str, typer.Option(help="what cuts words for wordpiece: mecab or sudachi")] = "mecab",
    lower: Annotated[bool, typer.Option("--lower", help="wordpiece: put Latin letters in lower case")] = False,
    digits: Annotated[int, typer.Option(min=1, max=3, help="digits in one token, for bpe 1 to 3, unigram 1 or 3")] = 1,
    special: Annotated[
        list[str] | None, typer.Option(help="name=token, for example eos=</s>; names: pad bos eos unk cls sep mask")
    ] = None,
    control: Annotated[list[str] | None, typer.Option(help="a further control token; may be repeated")] = None,
    field: Field = "text",
    dry_run: DryRun = False,
    as_json: AsJson = False,
    lang: Lang = None,
) -> None:
    """Train a tokenizer on texts of any size; memory stays below 4 GB.

    The result opens in transformers. bpe and unigram give every text back; digits stand alone unless told otherwise.

    Examples:

      kiban tokenizer train wiki.jsonl.zst books/ --vocab-size 32000 --out my-tokenizer

      kiban tokenizer train corpus/ --kind wordpiece --engine sudachi --out my-bert-tokenizer
    """
    console = current(lang)
    one_of("--kind", kind, KINDS)
    _check_out(out, dry_run)
    options = _options(kind, engine, lower, digits, special or [], control or [])
    with console.progress() as progress:
        texts = _texts(paths, field, progress, limit=TRIAL if dry_run else None)
        trained = _train(kind, texts, vocab_size, options, progress)
    if not dry_run:
        assert out is not None
        trained.save(out)
    _tell(console, trained, {"kind": kind, "vocab_size": trained.vocab_size}, None if dry_run else out, as_json)


@tokenizer_app.command("expand", no_args_is_help=True)
def expand_command(
    source: Annotated[str, typer.Argument(help="a catalogue name, a folder or a GGUF file")],
    paths: Paths,
    out: Out = None,
    num_new: Annotated[int, typer.Option("--new", min=1, help="tokens to add, at most")] = 8000,
    init: Annotated[str, typer.Option(help="new rows: mean of the old pieces' rows, or random")] = "mean",
    seed: Annotated[int, typer.Option(help="for what is drawn at random")] = 0,
    field: Field = "text",
    dry_run: DryRun = False,
    as_json: AsJson = False,
    lang: Lang = None,
) -> None:
    """Add Japanese tokens to a model's tokenizer, and rows for them to the model; ids of other text stay as they were.

    For BERT's WordPiece and for byte-level BPE. A folder that holds only a tokenizer gives only a tokenizer. The rows
    know nothing yet: train the model further on Japanese.

    Example:

      kiban tokenizer expand smollm2-135m-instruct corpus/ --new 8000 --out smollm2-ja
    """
    console = current(lang)
    way: Any = one_of("--init", init, ("mean", "random"))
    _check_out(out, dry_run)
    from kiban.adapt.vocabulary import expand

    old = open_tokenizer(source, console)
    with console.progress() as progress:
        texts = _texts(paths, field, progress, limit=TRIAL if dry_run else None)
        new = expand(old, texts, num_new=num_new, progress=_without_counts(progress))
        if not dry_run:
            assert out is not None
            progress("write", 0, None)
            _save_expanded(source, new, out, way, seed)
    facts = {"source": source, "vocab_size": new.vocab_size, "new_tokens": new.vocab_size - old.vocab_size}
    _tell(console, new, facts, None if dry_run else out, as_json)


@tokenizer_app.command("compare", no_args_is_help=True)
def compare_command(
    sources: Annotated[list[str], typer.Argument(help="catalogue names, folders, GGUF files, sentencepiece models")],
    on: Annotated[list[Path] | None, typer.Option(help="texts to compare on; default: a built-in sample")] = None,
    price: Annotated[
        float | None, typer.Option("--price-per-million", min=0, help="price of a million tokens, in any currency")
    ] = None,
    field: Field = "text",
    as_json: AsJson = False,
    lang: Lang = None,
) -> None:
    """Characters per token by language, and the price of 1,000 Japanese characters.

    More characters per token mean cheaper and faster answers, and more text in a context. Of --on, the first 10,000
    documents count.

    Examples:

      kiban tokenizer compare minilm-l6 smollm2-135m-instruct

      kiban tokenizer compare smollm2-135m-instruct smollm2-ja --on corpus/ --price-per-million 0.15 --json
    """
    from kiban.inputs.learn.compare import by_language, fits, sample

    console = current(lang)
    with console.progress() as progress:
        texts = by_language(_texts(on, field, progress, limit=COMPARED)) if on else sample()
    rows = []
    for source in sources:
        tokenizer = open_tokenizer(source, console)
        found = fits(tokenizer, texts)
        row: dict[str, Any] = {"tokenizer": source, "vocab_size": tokenizer.vocab_size}
        row["languages"] = {
            name: {"characters": f.characters, "tokens": f.tokens, "per_token": f.per_token, "unknown": f.unknown}
            for name, f in found.items()
        }
        if price is not None and "ja" in found:
            row["price_per_1000_ja"] = found["ja"].price(price)
        rows.append(row)
    if as_json:
        console.print(json.dumps(rows, ensure_ascii=False, indent=1))
    else:
        _table(console, rows, list(texts))


def _table(console: Console, rows: list[dict[str, Any]], languages: list[str]) -> None:
    name, vocabulary, per_token, unknown, tokens, price = COLUMNS[console.lang]
    headers = [name, vocabulary, *(t.format(language) for language in languages for t in (per_token, unknown))]
    headers += [tokens] if "ja" in languages else []
    headers += [price] if any("price_per_1000_ja" in row for row in rows) else []
    cells = []
    for row in rows:
        cell = [row["tokenizer"], f"{row['vocab_size']:,}"]
        for fit in row["languages"].values():
            cell += [f"{fit['per_token']:.2f}", f"{fit['unknown']:.1%}"]
        if "ja" in row["languages"]:
            cell.append(f"{1000 / row['languages']['ja']['per_token']:,.0f}")
        if "price_per_1000_ja" in row:
            cell.append(f"{row['price_per_1000_ja']:.3g}")
        cells.append(cell)
    console.table(headers, cells)


def _check_out(out: Path | None, dry_run: bool) -> None:
    if out is None and not dry_run:
        raise ConfigError("--out", why="is missing", hint="name a new folder, or pass --dry-run")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(out, why="exists already", hint="give a new folder; kiban never overwrites one")


def _options(
    kind: str, engine: str, lower: bool, digits: int, special: list[str], controls: list[str]
) -> dict[str, Any]:
    """The options of one kind of trainer. Raises ConfigError for one that it does not have."""
    from kiban.inputs.tokenizer import SPECIAL

    named: dict[str, str] = {}
    for assignment in special:
        name, equals, token = assignment.partition("=")
        if not equals or not token or name not in SPECIAL:
            raise ConfigError(
                "--special", field=assignment, why="is not name=token", hint=f"names: {' '.join(SPECIAL)}"
            )
        named[name] = token
    if kind == "wordpiece":
        if named or controls or digits != 1:
            why = "has [PAD], [UNK], [CLS], [SEP] and [MASK], and cuts digits as MeCab or Sudachi do"
            raise ConfigError("wordpiece", why=why, hint="leave --special, --control and --digits out")
        return {"engine": one_of("--engine", engine, ("mecab", "sudachi")), "lower": lower}
    if lower or engine != "mecab":
        raise ConfigError(kind, why="takes text as it is", hint="leave --lower and --engine out")
    common: dict[str, Any] = {"controls": controls, **({"special": named} if named else {})}
    if kind == "bpe":
        return {**common, "digits": digits}
    if digits == 2:
        raise ConfigError("--digits", why="is 1 or 3 for unigram")
    return {**common, "split_digits": digits == 1}


def _train(kind: str, texts: Iterator[str], vocab_size: int, options: dict[str, Any], progress: Progress) -> Tokenizer:
    from kiban.inputs.learn import train_bpe, train_unigram, train_wordpiece

    train: Any = {"bpe": train_bpe, "unigram": train_unigram, "wordpiece": train_wordpiece}[kind]
    trained: Tokenizer = train(texts, vocab_size=vocab_size, progress=_without_counts(progress), **options)
    return trained


def _texts(paths: list[Path], field: str, progress: Progress, limit: int | None = None) -> Iterator[str]:
    from kiban.data.corpus import read_texts

    return (row.text for row in islice(read_texts(paths, field=field, progress=progress), limit))


def _without_counts(progress: Progress) -> Progress:
    """Counting goes along with reading, which tells how much there is."""
    return lambda stage, done, total: None if stage == "count words" else progress(stage, done, total)


def _save_expanded(source: str, tokenizer: Tokenizer, out: Path, init: Any, seed: int) -> None:
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        tokenizer.save(out)
        return
    import torch

    from kiban import zoo
    from kiban.adapt.vocabulary import grow, sentence_files

    loaded = zoo.load(source)
    grown = grow(loaded, tokenizer, init=init, generator=torch.Generator().manual_seed(seed))
    zoo.save(grown, out, files=sentence_files(loaded))


def _tell(console: Console, tokenizer: Tokenizer, facts: dict[str, Any], out: Path | None, as_json: bool) -> None:
    from kiban.inputs.learn.compare import fits, sample

    words = WORDS[console.lang]
    per_token = {language: fit.per_token for language, fit in fits(tokenizer, sample()).items()}
    if as_json:
        folder = str(out) if out else None
        console.print(json.dumps({**facts, "per_token": per_token, "folder": folder}, ensure_ascii=False, indent=1))
        return
    for name in ("vocab_size", "new_tokens"):
        if name in facts:
            console.print(f"{words[name]}: {facts[name]:,}")
    for language, value in per_token.items():
        console.print(f"{words['per_token'].format(language)}: {value:.2f}")
    console.print(f"{words['folder']}: {out}" if out else words["dry_run"])
