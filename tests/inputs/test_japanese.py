"""Normalisation with places, words, and the language of a text."""

from __future__ import annotations

import csv
import itertools
import sys
import threading
import unicodedata
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiban.inputs.japanese import detect_language, normalise, normalise_aligned, words

ROOT = Path(__file__).parents[2] / "examples" / "data"
# Text in which normalisation has work to do: half-width kana with their marks, ligatures, hangul, combining marks.
HARD = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from(
            "ｶﾊｳﾞﾟかは\u3099\u309a゛゜㍿①ﬁ½Ａ１が\u0301\u0323\u0344\u1100\u1161\u11a8가\uffc2ㅏㄱ\u09c7\u09be🇯👩\u200d\ufe0f"
        ),
    ),
    max_size=12,
)


@settings(max_examples=1000, deadline=None)
@given(HARD)
def test_aligned_normalisation_is_nfkc_and_its_places_are_in_order(text: str) -> None:
    clean, spans = normalise_aligned(text)
    assert clean == unicodedata.normalize("NFKC", text) == normalise(text)
    assert len(spans) == len(clean)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    for (start, end), (later, last) in itertools.pairwise(spans):
        assert (start, end) == (later, last) or end <= later, "places overlap only where they are equal"
    # Each place normalises to the characters that name it.
    for place in dict.fromkeys(spans):
        assert unicodedata.normalize("NFKC", text[slice(*place)]) == "".join(
            c for c, span in zip(clean, spans, strict=True) if span == place
        )


def test_no_pair_of_characters_composes_across_places() -> None:
    pairs = []
    for code in range(sys.maxunicode + 1):
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            pairs.append("".join(chr(int(part, 16)) for part in parts))
    assert len(pairs) > 1000
    for pair in pairs:
        # A letter in front keeps the pair from being the whole text.
        assert normalise_aligned("あ" + pair + "Ａ")[0] == unicodedata.normalize("NFKC", "あ" + pair + "Ａ"), pair


@pytest.mark.parametrize(
    ("text", "clean", "spans"),
    [
        ("ｶﾞｽ", "ガス", [(0, 2), (2, 3)]),
        ("㍿東", "株式会社東", [(0, 1)] * 4 + [(1, 2)]),
        ("①Ａ", "1A", [(0, 1), (1, 2)]),
        ("か\u3099x", "がx", [(0, 2), (2, 3)]),
        ("…", "...", [(0, 1)] * 3),
        ("plain", "plain", [(i, i + 1) for i in range(5)]),
        ("", "", []),
    ],
)
def test_places_of_known_texts(text: str, clean: str, spans: list[tuple[int, int]]) -> None:
    assert normalise_aligned(text) == (clean, spans)


def test_variants_of_dashes_and_tildes_are_unified_on_request() -> None:
    assert normalise("１〜２", variants=True) == normalise("１～２", variants=True)
    assert normalise("a−b‐c–d", variants=True) == "a-b-c-d"
    assert normalise("A〜B") == "A〜B"


@pytest.mark.parametrize("engine", ["mecab", "sudachi"])
@settings(max_examples=200, deadline=None)
@given(text=HARD)
def test_words_cover_all_but_spaces_in_order(engine: Literal["mecab", "sudachi"], text: str) -> None:
    found = words(text, engine=engine)
    covered = set()
    for word in found:
        assert word.surface in normalise(text[word.start : word.end])
        covered.update(range(word.start, word.end))
    assert [word.start for word in found] == sorted(word.start for word in found)
    for i, character in enumerate(text):
        bare = normalise(character).strip().strip("\0")
        assert i in covered or not bare or unicodedata.category(character) in ("Zs", "Cc"), character


@pytest.mark.parametrize("engine", ["mecab", "sudachi"])
def test_words_stand_where_they_are_in_real_text(engine: Literal["mecab", "sudachi"]) -> None:
    with (ROOT / "debian-ja.csv").open(encoding="utf-8") as file:
        texts = [row["本文"] for row in csv.DictReader(file)][:100]
    for text in texts:
        found = words(text, engine=engine)
        assert "".join(normalise("".join(word.surface for word in found)).split()) == "".join(normalise(text).split())
        for word in found:
            source = normalise(text[word.start : word.end])
            assert source == word.surface or (word.surface in source and "…" in text[word.start : word.end])


def test_words_of_half_width_text_have_places_in_it() -> None:
    text = "㈱ﾃｽﾄで ﾃﾞｰﾀを読む"
    places = {word.surface: text[word.start : word.end] for word in words(text)}
    assert places["データ"] == "ﾃﾞｰﾀ" and places["テスト"] == "ﾃｽﾄ" and places["読む"] == "読む"


def test_a_nul_or_half_a_character_hides_no_words() -> None:
    assert [w.surface for w in words("東京\0大阪")] == ["東京", "大阪"]
    assert words("東京\ud800大阪")[-1].start == 3


def test_sudachi_takes_long_texts_and_splits_by_mode() -> None:
    text = "東京特許許可局に行った。" * 5000  # 180 kB, above what Sudachi takes at once
    found = words(text, engine="sudachi")
    assert "".join(word.surface for word in found) == text and found[-1].end == len(text)
    short, long = (words("国家公務員", engine="sudachi", mode=mode) for mode in ("A", "C"))
    assert [w.surface for w in short] == ["国家", "公務", "員"] and [w.surface for w in long] == ["国家公務員"]


def test_words_are_the_same_from_many_threads() -> None:
    texts = [f"東京都の天気は{i}日も晴れでした。" for i in range(40)]
    expected = [words(text) for text in texts]
    results: dict[int, list[object]] = {}

    def work(number: int) -> None:
        results[number] = [words(text) for text in texts]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(results[i] == expected for i in range(4))


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("画面が表示されません", "ja"),
        ("東京", "ja"),
        ("株式会社山田商店", "ja"),
        ("ﾔﾏﾀﾞ ﾀﾛｳ", "ja"),
        ("ChatGPTを使う", "ja"),
        ("Python 3.12をインストールした", "ja"),
        ("ＡＢＣ商事の見積", "ja"),
        ("The screen stays black.", "en"),
        ("Please check the 設定 page again", "en"),
        ("ＡＢＣ", "en"),
        ("OK", "en"),
        ("我们这个周末去北京看长城，然后回上海工作，你觉得怎么样呢？", "other"),
        ("这个产品很好", "other"),
        ("臺灣大學的學生每天早上都要坐捷運去學校上課然後回家吃飯", "other"),
        ("안녕하세요", "other"),
        ("안녕하세요 OK 반갑습니다", "other"),
        ("Привет из Москвы, iPhone", "other"),
        ("12345 !?", "other"),
        ("😀😀", "other"),
        ("", "other"),
    ],
)
def test_the_language_of_a_text(text: str, language: str) -> None:
    assert detect_language(text) == language


def test_the_language_of_the_examples() -> None:
    for name, language in (("debian-ja.csv", "ja"), ("debian-en.csv", "en")):
        with (ROOT / name).open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        text = "本文" if language == "ja" else "text"
        assert sum(detect_language(row[text]) == language for row in rows) > 0.99 * len(rows)
