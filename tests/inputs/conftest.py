"""Texts, and small tokenizers made of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "examples" / "data"


def _column(name: str, column: str) -> list[str]:
    with (ROOT / name).open(encoding="utf-8") as file:
        return [row[column] for row in csv.DictReader(file)]


@pytest.fixture(scope="session")
def japanese() -> list[str]:
    """Japanese descriptions of packages."""
    return _column("debian-ja.csv", "本文")


@pytest.fixture(scope="session")
def english() -> list[str]:
    """English ones."""
    return _column("debian-en.csv", "text")


@pytest.fixture(scope="session")
def hard() -> list[str]:
    """Texts in which something can go wrong."""
    return [
        "",
        " ",
        "a",
        "あ",
        " 先頭の空白",
        "末尾の空白 ",
        "二つ  空白",
        "改行\nと\tタブ\r\n",
        "全角　空白",
        "ｶﾞｷﾞｸﾞ ㍿ ① Ａ１",
        "か\u3099き\u3099",
        "😀👨‍👩‍👧🇯🇵🏽",
        "𠮷野家で𩸽",
        "ーーーーー……———",
        "aaaaaaaaa bbbbbbb",
        "안녕하세요 你好 Привет",
        "é e\u0301 ñ ß",
        "<s>これは</s><unk>",
        "[CLS] [MASK] [SEP]",
        "https://例え.jp/パス?q=1#あ",
        "1234567890 ３．１４",
        "\u200b\ufeff\u2028",
    ]


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory, japanese: list[str], english: list[str]) -> Path:
    """A byte-pair model in Llama's manner: identity normalisation, bytes for what is unknown, digits apart."""
    import sentencepiece

    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*japanese[:600], *english[:200]]),
            model_writer=file,
            model_type="bpe",
            vocab_size=3000,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            character_coverage=0.99,
            user_defined_symbols=["<0_0>"],
            num_threads=1,
            minloglevel=2,
        )
    return path


@pytest.fixture(scope="session")
def japanese_bert_vocabulary(japanese: list[str]) -> list[str]:
    """Words, their pieces and characters of the first descriptions; many words of the rest are unknown."""
    from collections import Counter

    from kiban.inputs.japanese import words

    found = Counter(word.surface for text in japanese[:150] for word in words(text))
    characters = sorted({c for word in found for c in word})[:700]
    pieces = sorted({word[i:j] for word, n in found.items() if n < 3 for i in (0, 1) for j in (i + 1, i + 2)} - {""})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [word for word, n in found.items() if n >= 3] + characters + pieces
    tokens += [f"##{c}" for c in characters[::2]] + [f"##{piece}" for piece in pieces[::2]]
    return list(dict.fromkeys(tokens))


@pytest.fixture(scope="session")
def byte_level_folder(tmp_path_factory: pytest.TempPathFactory, japanese: list[str], english: list[str]) -> Path:
    """A byte-level BPE with the control tokens of a chat model, as a Hugging Face folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    folder = tmp_path_factory.mktemp("byte-level")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<｜制御｜>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*japanese[:200], *english[:100]], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", pair="<|endoftext|> $A $B", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    settings = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return folder
