"""`kiban tokenizer`: train, expand and compare, as a user types them."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kiban.cli.tokenizer import tokenizer_app
from kiban.errors import ConfigError, KibanError, ModelNotFoundError
from kiban.inputs.tokenizer import Tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """What a command prints; errors come through."""
    monkeypatch.setenv("LC_ALL", "en_US.UTF-8")

    def call(*arguments: str) -> str:
        tokenizer_app(list(arguments), standalone_mode=False)
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Japanese in JSON lines, English in plain text, a part of it compressed."""
    folder = tmp_path_factory.mktemp("corpus")
    columns = {}
    for name, column in (("debian-ja.csv", "本文"), ("debian-en.csv", "text")):
        with (EXAMPLES / name).open(encoding="utf-8", newline="") as file:
            columns[name] = [row[column] for row in csv.DictReader(file)][:600]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in columns["debian-ja.csv"]]
    (folder / "ja.jsonl").write_text("\n".join(lines[:300]), "utf-8")
    (folder / "ja2.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[300:]).encode()))
    (folder / "en.txt").write_text("\n".join(columns["debian-en.csv"][:300]), "utf-8")
    return folder


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_train_leaves_a_tokenizer_that_opens(kind: str, corpus: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "mine"
    said = json.loads(run("train", str(corpus), "--kind", kind, "--vocab-size", "2500", "--out", str(out), "--json"))
    tokenizer = Tokenizer.from_folder(out)
    assert said["vocab_size"] == tokenizer.vocab_size <= 2500 and said["folder"] == str(out)
    assert said["per_token"]["ja"] > 0.8, "of which 0.33 would be bytes"
    text = "パッケージを管理するためのツールです。"
    assert len(tokenizer.encode(text, add_special=False)) < 0.7 * len(text)


def test_train_says_in_the_users_language_what_came_of_it(corpus: Path, tmp_path: Path, run: Run) -> None:
    options = ("--kind", "bpe", "--vocab-size", "1500", "--special", "eos=</s>", "--control", "<|im_end|>")
    said = run("train", str(corpus / "ja.jsonl"), *options, "--out", str(tmp_path / "a"), "--lang", "ja")
    assert "語彙の大きさ: 1,500" in said and f"保存先: {tmp_path / 'a'}" in said
    tokenizer = Tokenizer.from_folder(tmp_path / "a")
    assert tokenizer.special == {"eos": "</s>"} and tokenizer.encode("<|im_end|>", parse_special=True) == [1]


def test_a_dry_run_leaves_nothing(corpus: Path, tmp_path: Path, run: Run) -> None:
    said = run("train", str(corpus), "--vocab-size", "1000", "--out", str(tmp_path / "a"), "--dry-run")
    assert "dry run" in said and "vocabulary: 1,000" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.weights
def test_expand_gives_a_model_of_sentence_transformers_japanese(corpus: Path, tmp_path: Path, run: Run) -> None:
    from kiban.api import load

    out = tmp_path / "minilm-ja"
    said = json.loads(run("expand", "minilm-l6", str(corpus), "--new", "1500", "--out", str(out), "--json"))
    assert said["new_tokens"] == 1500 and said["vocab_size"] == 30522 + 1500
    assert said["per_token"]["ja"] > 1.1
    model = load(out)
    assert model.embed("日本語の文").shape == (384,)
    # The length that the sentences are cut at, and the way they are pooled, come along.
    assert json.loads((out / "sentence_bert_config.json").read_text("utf-8"))["max_seq_length"] == 256
    assert (out / "1_Pooling" / "config.json").is_file()
    assert model.loaded is not None and model.loaded.config.vocab_size == 32022


def test_expand_of_a_tokenizer_alone_gives_a_tokenizer(corpus: Path, tmp_path: Path, run: Run) -> None:
    english, out = tmp_path / "english", tmp_path / "more"
    run("train", str(corpus / "en.txt"), "--vocab-size", "1000", "--out", str(english))
    run("expand", str(english), str(corpus), "--new", "500", "--out", str(out))
    old, new = Tokenizer.from_folder(english), Tokenizer.from_folder(out)
    assert new.vocab_size == 1500 and not (out / "config.json").exists()
    text = "パッケージを管理する"
    assert len(new.encode(text)) < 0.5 * len(old.encode(text))
    assert new.encode("a package") == old.encode("a package")


@pytest.mark.weights
def test_compare_tells_what_japanese_costs(corpus: Path, tmp_path: Path, run: Run) -> None:
    mine = tmp_path / "mine"
    run("train", str(corpus), "--vocab-size", "4000", "--out", str(mine))
    arguments = ("compare", "minilm-l6", "smollm2-135m-instruct", str(mine))
    rows = {row["tokenizer"]: row for row in json.loads(run(*arguments, "--price-per-million", "2", "--json"))}
    for row in rows.values():
        ja = row["languages"]["ja"]
        assert ja["per_token"] == pytest.approx(ja["characters"] / ja["tokens"])
        assert row["price_per_1000_ja"] == pytest.approx(1000 / ja["per_token"] * 2 / 1e6)
    fit = {name: row["languages"]["ja"] for name, row in rows.items()}
    assert fit["smollm2-135m-instruct"]["per_token"] < 0.9 < fit[str(mine)]["per_token"]
    assert fit["minilm-l6"]["unknown"] > 0.1 > fit[str(mine)]["unknown"] == 0
    assert rows["minilm-l6"]["languages"]["en"]["per_token"] > 3.5
    table = run(*arguments)
    assert "characters/token ja" in table and "price" not in table
    assert f"{fit['smollm2-135m-instruct']['per_token']:.2f}" in table
    assert "価格/1,000字" in run(*arguments, "--price-per-million", "2", "--lang", "ja")


def test_compare_on_the_users_texts(corpus: Path, tmp_path: Path, run: Run) -> None:
    mine = tmp_path / "mine"
    run("train", str(corpus), "--vocab-size", "2000", "--out", str(mine))
    [row] = json.loads(run("compare", str(mine), "--on", str(corpus / "ja.jsonl"), "--json"))
    with (corpus / "ja.jsonl").open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    tokens = sum(len(ids) for ids in Tokenizer.from_folder(mine).encode_batch(texts))
    found = row["languages"]
    assert sum(fit["characters"] for fit in found.values()) == sum(map(len, texts))
    assert sum(fit["tokens"] for fit in found.values()) == tokens
    assert found["ja"]["characters"] > 0.95 * sum(map(len, texts))


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        (("train", "CORPUS"), ConfigError, "--out"),
        (("train", "CORPUS", "--dry-run", "--kind", "bp"), ConfigError, "unigram"),
        (("train", "CORPUS", "--dry-run", "--kind", "wordpiece", "--engine", "juman"), ConfigError, "sudachi"),
        (("train", "CORPUS", "--dry-run", "--kind", "wordpiece", "--digits", "3"), ConfigError, "--digits"),
        (("train", "CORPUS", "--dry-run", "--kind", "unigram", "--digits", "2"), ConfigError, "1 or 3"),
        (("train", "CORPUS", "--dry-run", "--lower"), ConfigError, "--lower"),
        (("train", "CORPUS", "--dry-run", "--special", "end=</s>"), ConfigError, "eos"),
        (("train", "CORPUS", "--dry-run", "--vocab-size", "100"), ConfigError, "256 bytes"),
        (("train", "missing.txt", "--dry-run"), KibanError, "missing.txt"),
        (("expand", "minilm-16", "CORPUS", "--dry-run"), ModelNotFoundError, "minilm-l6"),
        (("expand", "minilm-l6", "CORPUS", "--init", "zero", "--dry-run"), ConfigError, "random"),
        (("compare", "smollm"), ModelNotFoundError, "smollm2"),
    ],
)
def test_what_is_wrong_is_told(
    arguments: tuple[str, ...], error: type[KibanError], word: str, corpus: Path, run: Run
) -> None:
    with pytest.raises(error, match=word):
        run(*(str(corpus) if argument == "CORPUS" else argument for argument in arguments))


def test_a_folder_is_never_overwritten(corpus: Path, run: Run) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        run("train", str(corpus), "--out", str(corpus))


@pytest.mark.parametrize("verb", ["", "train", "expand", "compare"])
def test_help_shows_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        tokenizer_app([*([verb] if verb else []), "--help"])
    said = capsys.readouterr().out
    assert caught.value.code == 0 and "kiban tokenizer" in said and "Example" in said
