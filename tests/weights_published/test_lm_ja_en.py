"""The published language model opens here and in transformers alike, and has learned both languages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import kiban
from kiban import zoo
from kiban.evaluate.language import bits_per_character, score_documents
from kiban.files import read_json

FOLDER = Path(__file__).parents[2] / "weights" / "kiban-lm-ja-en"
# Written for this test.
TEXTS = {
    "ja": "このコマンドは、指定したファイルを読み込み、結果を標準出力に表示します。オプションを指定しない場合は、"
    "現在のディレクトリーにあるすべてのファイルが対象になります。"
    "設定を変更するには、設定ファイルを編集してから、プログラムを再起動してください。",
    "en": "The old man sat by the window and looked at the sea. It was a fine morning, and the ships were coming into the "
    "harbour one after another. He had not seen so many of them since he was a boy, and he was glad of it.",
}


@pytest.fixture(scope="module")
def loaded() -> zoo.Loaded:
    return zoo.load("kiban-lm-ja-en")


@torch.no_grad()
def test_transformers_gives_the_same_tokens_and_logits(loaded: zoo.Loaded) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    assert loaded.tokenizer is not None
    for text in TEXTS.values():
        ids = loaded.tokenizer.encode(text, add_special=False)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        tokens = torch.tensor([ids])
        assert (loaded.module(tokens) - theirs.eval()(tokens).logits).abs().max() < 1e-4


@pytest.mark.parametrize(("language", "most"), [("ja", 4.5), ("en", 2.6)])
def test_it_has_learned_the_language(loaded: zoo.Loaded, language: str, most: float) -> None:
    """More than nothing: with random weights a character costs more."""
    tokenizer, text = loaded.tokenizer, TEXTS[language]
    assert tokenizer is not None and tokenizer.eos_id is not None
    rows = [[tokenizer.eos_id, *tokenizer.encode(text, add_special=False)]]

    def bits(module: torch.nn.Module) -> float:
        sums = score_documents(module, rows, context=256, stride=128, batch_size=1, device="cpu")
        return bits_per_character(float(sums.sum()), len(text))

    drawn = zoo.new(zoo.families()["llama"], loaded.config, "drawn", generator=torch.Generator().manual_seed(0))
    assert bits(loaded.module) < most < bits(drawn.module)


def test_it_writes_whole_characters() -> None:
    text = kiban.load("kiban-lm-ja-en").generate("このコマンドは、", max_new_tokens=40, seed=0)
    assert "\ufffd" not in text.rstrip("\ufffd") and any("\u3040" <= character <= "\u30ff" for character in text)


def test_the_files_are_small_and_say_what_they_are() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 40_000_000 and not [name for name in sizes if name.endswith((".bin", ".pt", ".pkl"))]
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and "license:" in card and "bits per character" in card and "{" not in card
    assert read_json(FOLDER / "kiban.json")["pretrained"] is True
