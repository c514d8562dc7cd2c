"""Which language a text is in, and what kinds of characters it has."""

from __future__ import annotations

import csv
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiban.data.characters import Counts, count
from kiban.data.language import UNKNOWN, identify

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
TEXTS = {
    "ja": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "en": "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness.",
    "zh": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão e de consciência.",
    "nl": "Alle mensen worden vrij en gelijk in waardigheid en rechten geboren. Zij zijn begiftigd met verstand en geweten.",
    "da": "Alle mennesker er født frie og lige i værdighed og rettigheder. De er udstyret med fornuft og samvittighed.",
    "pl": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni obdarzeni rozumem.",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью.",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "ar": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق. وقد وهبوا عقلا وضميرا.",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
}


@pytest.mark.parametrize("code", TEXTS)
def test_a_sentence_tells_its_language(code: str) -> None:
    assert identify(TEXTS[code]) == code


@pytest.mark.parametrize("code", ["ja", "en"])
def test_real_descriptions_are_all_recognised(code: str) -> None:
    """They are full of English names in Japanese, and of names that are no English words."""
    with (EXAMPLES / f"debian-{code}.csv").open(encoding="utf-8") as file:
        texts = [row["本文" if code == "ja" else "text"] for row in csv.DictReader(file)]
    found = Counter(identify(text) for text in texts)
    assert found[code] / len(texts) >= 0.999, found


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("xbindkeys 設定用の GTK+ プログラムです。 ~/.xbindkeysrc editor, keyboard shortcut manager", "ja"),
        ("東京都千代田区永田町", "ja"),  # a title of kanji that Japan uses
        ("中华人民共和国", "zh"),
        ("東京都新宿区 大阪市北区 名古屋市中区 札幌市中央区 福岡市博多区 仙台市青葉区", "ja"),
        ("株式会社日立製作所研究開発本部人工知能研究所東京都国分寺市", "ja"),
        ("國破山河在城春草木深感時花濺淚恨別鳥驚心烽火連三月家書抵萬金", "zh"),
        ("人人生而自由，在尊嚴和權利上一律平等。他們賦有理性和良心，並應以兄弟關係的精神相對待。", "zh"),
        ("ｶﾀｶﾅﾃﾞ ｶｶﾚﾀ ﾌﾞﾝｼｮｳ", "ja"),
        ("The word 猫 means cat in Japanese, and it is one of the first words that a learner meets.", "en"),
        ("한국어 문장에 漢字 가 조금 있습니다", "ko"),
        ("", UNKNOWN),
        ("12:30 — 14:00 (+9)", UNKNOWN),
        ("OK", UNKNOWN),
    ],
)
def test_mixed_and_short_texts(text: str, code: str) -> None:
    assert identify(text) == code


def test_the_middle_counts_as_much_as_the_front() -> None:
    menu = "Home | About | Login\n"
    assert identify(menu + TEXTS["de"] * 30) == "de"


def test_every_kind_of_character_is_counted() -> None:
    expected = Counts(
        space=2, control=1, hiragana=2, katakana=4, kanji=4, hangul=1, latin=4, other=2, digit=3, mark=5, symbol=3
    )
    assert count("ひらカタｶｰ漢字々𠮷한aÉＺzяθ1２٣。、・.!+☆🍣\x00 \n") == expected
    assert expected.kana == 6 and expected.cjk == 10 and expected.letters == 17 and expected.visible == 28


@given(st.text())
def test_the_counts_add_up(text: str) -> None:
    assert sum(count(text)) == len(text)
    assert count(text) == Counts(*map(sum, zip(*(count(c) for c in text), strict=True))) if text else True


def test_no_letter_of_any_script_is_taken_for_a_mark() -> None:
    """str.isalpha is true of kanji, but so it is of what datasets of the web are full of; here each has its class."""
    for point in range(0x10000):
        character = chr(point)
        if unicodedata.category(character)[0] == "L":
            assert count(character).letters == 1, hex(point)
