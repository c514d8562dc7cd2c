"""The published encoder opens here and in sentence-transformers alike, and knows what sentences mean in both languages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kiban
from kiban.files import read_json

FOLDER = Path(__file__).parents[2] / "weights" / "kiban-encoder-ja-en"
# Written for this test.
TRANSLATIONS = [
    (
        "昨日は雨が降っていたので、家で本を読んでいました。",
        "It was raining yesterday, so I stayed home and read a book.",
    ),
    ("このソフトウェアは音楽ファイルを再生します。", "This software plays music files."),
    ("パスワードを忘れた場合は管理者に連絡してください。", "If you forget your password, contact the administrator."),
    ("画像の明るさと色を調整できます。", "You can adjust the brightness and colours of an image."),
    ("サーバーに接続できませんでした。", "Could not connect to the server."),
    ("数学の方程式を解くためのプログラム", "a program that solves mathematical equations"),
    ("メールを送信する前に宛先を確認します。", "Check the recipients before you send the mail."),
    ("猫が窓のそばで眠っている。", "The cat is sleeping by the window."),
    ("データベースのバックアップを毎晩作成する。", "Make a backup of the database every night."),
    ("敵の宇宙船を撃ち落とすゲームです。", "It is a game in which you shoot down enemy spaceships."),
    ("新しい文書を印刷するには、このボタンを押します。", "To print a new document, press this button."),
    ("子供たちは学校で歌を歌った。", "The children sang songs at school."),
]
ODD = ["ﾊﾝｶｸｶﾀｶﾅと ＡＢＣ", "がぎぐげご", "", "鱻", "Ünïcödé 🙂", "長い文章。" * 200]


@pytest.fixture(scope="module")
def model() -> kiban.Model:
    return kiban.load("kiban-encoder-ja-en")


def test_sentence_transformers_gives_the_same_embeddings(model: kiban.Model) -> None:
    from sentence_transformers import SentenceTransformer

    texts = [text for pair in TRANSLATIONS for text in pair] + ODD
    theirs = SentenceTransformer(str(FOLDER), device="cpu").encode(texts)
    ours = model.embed(texts)
    assert np.abs(ours - theirs).max() < 1e-3
    assert np.allclose(np.linalg.norm(theirs, axis=-1), 1, atol=1e-4)


def test_translations_find_each_other(model: kiban.Model) -> None:
    ja, en = (model.embed([pair[side] for pair in TRANSLATIONS]) for side in (0, 1))
    scores = ja @ en.T
    right = np.arange(len(TRANSLATIONS))
    assert (scores.argmax(1) == right).all() and (scores.argmax(0) == right).all()


def test_minilm_does_not_find_them(minilm_folder: Path) -> None:
    """Else the test above would say nothing about the distillation."""
    teacher = kiban.load(minilm_folder)
    ja, en = (teacher.embed([pair[side] for pair in TRANSLATIONS]) for side in (0, 1))
    assert ((ja @ en.T).argmax(1) == np.arange(len(TRANSLATIONS))).mean() < 0.5


def test_english_stayed_where_the_teacher_puts_it(model: kiban.Model, minilm_folder: Path) -> None:
    en = [pair[1] for pair in TRANSLATIONS]
    assert (model.embed(en) * kiban.load(minilm_folder).embed(en)).sum(-1).mean() > 0.9


def test_voicing_marks_tell_words_apart(model: kiban.Model) -> None:
    gaku, kaku, gaku_half = model.embed(["ガクガク", "カクカク", "ｶﾞｸｶﾞｸ"])
    assert gaku @ kaku < 0.99 and gaku @ gaku_half > 0.999


def test_the_files_are_small_safe_and_say_what_they_are() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    assert max(sizes.values()) <= 40_000_000 and not [name for name in sizes if name.endswith((".bin", ".pt", ".pkl"))]
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and "license:" in card and "recall@1" in card and "debian-ja" in card
    assert read_json(FOLDER / "config.json")["vocab_size"] == 23_399
