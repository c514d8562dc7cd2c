"""`kiban data`: what the verbs print and leave, in both languages, and the errors that options give."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kiban.cli import rates as rates_module
from kiban.cli.console import current
from kiban.cli.data_show import HEADERS, RULES, WORDS
from kiban.cli.rates import rates
from kiban.data.characters import NAMES
from kiban.data.quality import RULES as QUALITY
from kiban.data.shards import Shards
from kiban.inputs.tokenizer import Tokenizer

Command = Callable[..., Any]
EXAMPLES = Path(__file__).parents[2] / "examples" / "data"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 texts: Japanese, English, ten copies, and three that are too short."""
    folder = tmp_path_factory.mktemp("corpus")
    with (EXAMPLES / "debian-ja.csv").open(encoding="utf-8") as file:
        texts = [row["本文"] for row in csv.DictReader(file)][:100]
    with (EXAMPLES / "debian-en.csv").open(encoding="utf-8") as file:
        texts += [row["text"] for row in csv.DictReader(file) if len(row["text"]) > 200][:37]
    rows = [{"text": text} for text in [*texts, *texts[:10], "短い", "short", "。"]]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


@pytest.fixture
def tokenizer_folder(byte_tokenizer: Tokenizer, tmp_path: Path) -> Path:
    byte_tokenizer.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_the_verbs_follow_each_other(kiban: Command, corpus: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    a, b, c, d = (str(tmp_path / name) for name in "abcd")
    cleaned = kiban("data", "clean", str(corpus), "--out", a, "--languages", "ja,en", "--processes", "1")
    assert cleaned.code == 0 and "too short" in cleaned.out and f"Folder: {a}" in cleaned.out and not cleaned.err
    unique = json.loads(kiban("data", "dedup", a, "--out", b, "--json", "--processes", "2").out)
    assert unique["dropped"] == {"duplicate": 10} and unique["kept"] == 137
    parts = kiban("data", "split", b, "--out", c, "--shares", "train=0.8,test=0.2", "--processes", "1")
    assert parts.code == 0 and "train: " in parts.out and "test: " in parts.out
    said = kiban("data", "tokenize", f"{c}/train", "--tokenizer", str(tokenizer_folder), "--out", d, "--processes", "1")
    assert said.code == 0 and "characters per token: 0." in said.out
    assert (
        len(Shards(Path(d))) == json.loads((Path(c) / "kiban.json").read_text("utf-8"))["splits"]["train"]["documents"]
    )
    # The tokenizer of a corpus of tokens serves for the next one.
    said = kiban("data", "tokenize", f"{c}/test", "--tokenizer", d, "--out", str(tmp_path / "e"), "--processes", "1")
    assert said.code == 0


@pytest.mark.parametrize(("lang", "words"), [("ja", ("文書 150 件", "ひらがな", "短すぎる", "残した文書")),
                                             ("en", ("150 documents", "hiragana", "too short", "kept"))])  # fmt: skip
def test_both_languages(lang: str, words: tuple[str, ...], kiban: Command, corpus: Path, tmp_path: Path) -> None:
    looked = kiban(
        "data", "inspect", str(corpus), "--lang", lang, "--processes", "1", "--plot", str(tmp_path / "x.png")
    )
    cleaned = kiban("data", "clean", str(corpus), "--out", str(tmp_path / "a"), "--lang", lang, "--processes", "1")
    for word in words:
        assert word in looked.out + cleaned.out
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_inspect_as_json(kiban: Command, corpus: Path) -> None:
    report = json.loads(kiban("data", "inspect", str(corpus), "--json", "--processes", "1").out)
    assert report["documents"] == 150 and report["languages"]["ja"]["documents"] == 110 + 1
    assert report["duplicates"] == pytest.approx(10 / 150) and {*report["kinds"]} == {*NAMES}


def test_a_dry_run_leaves_nothing(kiban: Command, corpus: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    for verb, options, words in (
        ("clean", [], "a.jsonl:148: 短い"),
        ("dedup", [], "copy (duplicate):"),
        ("split", ["--shares", "train=0.5,test=0.5"], "train: "),
        ("tokenize", ["--tokenizer", str(tokenizer_folder)], "tokens: "),
    ):
        said = kiban(
            "data", verb, str(corpus), "--dry-run", "--processes", "1", *options, "--out", str(tmp_path / "out")
        )
        assert said.code == 0 and words in said.out and "nothing was kept" in said.out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_of_cleaning_looks_at_a_part(kiban: Command, tmp_path: Path) -> None:
    good = json.dumps(
        {"text": "これは十分に長い文章なので、規則に触れることはありません。何も問題はないはずです。最後まで読めます。"}
    )
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n{good}\n' * 1500, "utf-8")
    facts = json.loads(kiban("data", "clean", str(tmp_path), "--dry-run", "--json", "--processes", "1").out)
    assert facts["rows_in"] == 2000 and facts["dropped"] == {"too_short": 1000}
    said = kiban("data", "clean", str(tmp_path), "--dry-run", "--languages", "fr", "--processes", "1")
    assert said.code == 0 and "other language" in said.out and "これは十分に" in said.out


ERRORS: list[tuple[list[str], str]] = [
    (["clean", "nowhere", "--dry-run"], "no such file"),
    (["clean", "CORPUS"], "--out"),
    (["clean", "CORPUS", "--dry-run", "--text", "txt"], "did you mean 'text'?"),
    (["clean", "CORPUS", "--dry-run", "--set", "min_word=1"], "min_words"),
    (["clean", "CORPUS", "--dry-run", "--set", "nothing=1"], "max_repeated_lines"),
    (["clean", "CORPUS", "--dry-run", "--set", "min_words=x"], "a number from 0"),
    (["clean", "CORPUS", "--dry-run", "--set", "min_words"], "name=value"),
    (["clean", "CORPUS", "--dry-run", "--form", "NFD"], "NFKC"),
    (["clean", "CORPUS", "--dry-run", "--adult", "maybe"], "drop"),
    (["clean", "CORPUS", "--dry-run", "--personal-data", "x"], "mask"),
    (["clean", "CORPUS", "--dry-run", "--on-bad-row", "x"], "skip"),
    (["clean", "CORPUS", "--dry-run", "--compress", "rar"], "zstd"),
    (["clean", "CORPUS", "--out", "out", "--languages", "fr"], "broke the rule language"),
    (["clean", "CORPUS", "--dry-run", "--ray", "127.0.0.1:9"], "--ray"),
    (["dedup", "CORPUS", "--dry-run", "--id", "key"], "'key'"),
    (["split", "CORPUS", "--dry-run", "--shares", "train"], "name=share"),
    (["split", "CORPUS", "--dry-run", "--shares", "a=0.5,a=0.5"], "name=share"),
    (["split", "CORPUS", "--dry-run", "--shares", "a=0.5,b=0.2"], "sum to 0.7"),
    (["tokenize", "CORPUS", "--dry-run", "--tokenizer", "minilm-l7"], "minilm-l6"),
    (["tokenize", "CORPUS", "--dry-run", "--tokenizer", "CORPUS"], "tokenizer.json"),
    (["inspect", "CORPUS", "--plot", "x.bmp"], ".png"),
    (["inspect", "CORPUS", "--lang", "fr"], "ja or en"),
]


@pytest.mark.parametrize(("arguments", "words"), ERRORS, ids=[" ".join(a) for a, _ in ERRORS])
def test_errors_are_one_line_that_tells_what_to_do(
    arguments: list[str], words: str, kiban: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = kiban("data", *(str(corpus) if a == "CORPUS" else a for a in arguments))
    assert said.code == 1 and said.err.startswith("error: ") and said.err.count("\n") == 1 and words in said.err
    assert not said.out and not list(tmp_path.iterdir())


def test_bad_rows_are_told_or_put_aside(kiban: Command, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    data = (corpus / "a.jsonl").read_bytes()
    (tmp_path / "in" / "a.jsonl").write_bytes(data + b'{"text": "\xff"}\n')
    arguments = ["data", "clean", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--processes", "1"]
    said = kiban(*arguments)
    assert said.code == 1 and "line 151" in said.err and "--on-bad-row skip" in said.err
    said = kiban(*arguments, "--on-bad-row", "skip")
    assert said.code == 0 and "quarantined" in said.out
    assert json.loads((tmp_path / "out" / "quarantine.jsonl").read_text("utf-8"))["line"] == 151
    said = kiban(*arguments, "--on-bad-row", "skip")
    assert said.code == 1 and "exists already" in said.err


@pytest.mark.parametrize("verb", ["inspect", "clean", "dedup", "split", "tokenize"])
def test_help_shows_an_example(verb: str, kiban: Command) -> None:
    said = kiban("data", verb, "--help")
    assert said.code == 0 and f"kiban data {verb} " in said.out.split("Example")[1]


def test_every_word_is_there_in_both_languages() -> None:
    assert {*QUALITY} < {*RULES} and {*NAMES} < {*WORDS}
    for words in (WORDS, RULES, HEADERS):
        for ja, en in words.values():
            assert ja and en and ja != en


def test_the_rate_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every ten seconds, and at the end of a stage, from the second block on."""
    clock = [0.0]
    monkeypatch.setattr(rates_module.time, "monotonic", lambda: clock[0])
    for lang in ("en", "ja"):
        with rates(current(lang)) as watch:  # type: ignore[arg-type]
            for second in range(25):
                clock[0] += 1
                watch("cleaning", 100 * (second + 1), 2_000_000 * (second + 1), 10**8)
            watch("writing", 1, 1, 10**8)
        lines = capsys.readouterr().err.splitlines()
        rate = "100 documents/s, 2.0 MB/s" if lang == "en" else "100 件/秒、2.0 MB/秒"
        assert len(lines) == 3 and all(rate in line for line in lines)
        name, amount = ("cleaning", "1,000 documents") if lang == "en" else ("整形・選別", "1,000 件")
        assert lines[0].startswith(f"{name} | {amount}") and lines[0].endswith("20/100")
        assert lines[2].startswith(f"{name}: ")
