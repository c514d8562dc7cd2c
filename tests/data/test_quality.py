"""Rules of quality: what each drops, what none may drop, and texts made uniform."""

from __future__ import annotations

import csv
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiban.config import from_dict
from kiban.data.characters import code_points
from kiban.data.personal import is_card, is_my_number, mask, num_adult
from kiban.data.quality import MIN_PASSAGES, RULES, Document, Rules, broken_rule, repeated_share
from kiban.data.tidy import tidy
from kiban.errors import ConfigError

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
JAPANESE = (
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所で"
    "ニャーニャー泣いていた事だけは記憶している。吾輩はここで始めて人間というものを見た。"
)
ENGLISH = (
    "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, a"
    "nd nothing "
    "particular to interest me on shore, I thought I would sail about a little and see the watery part of the world."
)


def rule(text: str, **thresholds: Any) -> str | None:
    return broken_rule(Document(tidy(text)), Rules(**thresholds))


def descriptions(code: str) -> list[str]:
    with (EXAMPLES / f"debian-{code}.csv").open(encoding="utf-8") as file:
        return [row["本文" if code == "ja" else "text"] for row in csv.DictReader(file)]


def long_text(code: str, number: int = 40) -> str:
    return "\n\n".join(descriptions(code)[:number])


# What may not be dropped --------------------------------------------------------------------------------------------

GOOD = {
    "novel": JAPANESE,
    "english novel": ENGLISH,
    "dialogue": "「おはよう」\n「おはようございます。今日は早いですね」\n「うん、電車が空いていたから」\n「そ"
    "れはよかった」\n"
    "「ところで、例の件はどうなりましたか」\n「まだ返事がないんだ」",
    "haiku": "古池や蛙飛びこむ水の音\n閑さや岩にしみ入る蝉の声\n夏草や兵どもが夢の跡\n五月雨を集めて早し最上川",
    "law": "日本国民は、正当に選挙された国会における代表者を通じて行動し、われらとわれらの子孫のために、諸国"
    "民との協和による成果と、"
    "わが国全土にわたつて自由のもたらす恵沢を確保し、政府の行為によつて再び戦争の惨禍が起ることのないやうにす"
    "ることを決意し、"
    "ここに主権が国民に存することを宣言し、この憲法を確定する。",
    "academic": "本稿では，大規模言語モデルの評価方法について述べる．従来の手法は英語を対象としており，日本語"
    "には適さない．"
    "そこで，文字単位の評価を提案する．実験の結果，提案手法は有効であった．",
    "technical": "apt-get install を実行すると、GNU/Linux の パッケージが /usr/share/doc にインストールされます。"
    "設定ファイルは ~/.config/app.conf です。詳しくは man ページを参照してください。",
    "katakana": "ホテルのレストランでディナーのコースを予約しました。メニューはサラダ、スープ、ステーキ、デザ"
    "ートです。"
    "ワインはフランスとイタリアのものがあります。",
    "half-width": "ｺﾉ ﾌﾞﾝｼｮｳﾊ ﾊﾝｶｸｶﾀｶﾅﾃﾞ ｶｶﾚﾃｲﾏｽ｡ この文章は半角カタカナで書かれて"
    "いますが、ふるいシステムではふつうのことでした。",
    "recipe": "1. 玉ねぎを薄切りにします。\n2. フライパンで5分ほど炒めます。\n3. 水200mlを加えて煮ます。\n4. "
    "塩こしょうで味を整えます。\n"
    "できあがりです。お好みでパセリを散らしてください。",
    "excited": "やったー！！！ついに合格しました！！うれしい〜〜(^o^) みんな応援してくれてありがとう！これか"
    "らも頑張ります！",
    "about mojibake": "文字コードを間違えると「縺ゅ→縺ァ」のような文字化けが起きます。これはUTF-8の文章をShif"
    "t_JISとして読んだ場合に見られる"
    "現象で、正しい文字コードを指定すれば直ります。保存するときは必ずUTF-8を選んでください。古いメールソフト"
    "では今でもよく起きます。"
    "受け取った側で文字コードを自動判別に任せず、手で選び直すと読めることがあります。",
    "list with an introduction": "本パッケージには次の機能があります。\n* 画像の閲覧\n* 画像の回転と切り抜き\n"
    "* 色の補正\n* 印刷\n* 共有",
    "years": "1868年に明治維新が始まり、1889年に大日本帝国憲法が公布された。1945年に終戦を迎え、1947年に日本"
    "国憲法が施行された。",
    "plain english": "The mother of the twins bought two apples, and the children ate them at once because th"
    "ey had been hungry since noon.",
}


@pytest.mark.parametrize("name", GOOD)
def test_good_text_breaks_no_rule(name: str) -> None:
    assert rule(GOOD[name]) is None


@pytest.mark.parametrize("code", ["ja", "en"])
def test_of_real_descriptions_nearly_all_stay(code: str) -> None:
    """Short English ones have fewer than 20 words and go; next to nothing else does."""
    found = Counter(map(rule, descriptions(code)))
    total = found.total()
    assert found.pop("too_short", 0) < 0.03 * total
    assert sum(number for name, number in found.items() if name) < 0.003 * total, found


# What is dropped ----------------------------------------------------------------------------------------------------

BAD: dict[str, list[str]] = {
    "too_short": ["", "続きはこちら", "Read the full story here.", JAPANESE[:30]],
    "mojibake": [
        JAPANESE.encode().decode("cp932", "replace"),
        JAPANESE.encode().decode("cp1252", "replace"),
        JAPANESE.encode().decode("latin-1"),
        JAPANESE.encode("euc_jp").decode("cp932", "replace"),
        JAPANESE.encode("cp932").decode("cp1252", "replace"),
        JAPANESE.encode("cp932").decode("utf-8", "replace"),
        ("Überraschung für die Käufer schöner Möbel, größer als je zuvor, und wie schön ist das für alle. ")
        .encode()
        .decode("latin-1"),
    ],
    "placeholder": ["Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor. " * 3],
    "symbols": ["┌──────┬──────┐ 名前と値 │ 一覧の表です │ こちらを見る │ └──────┴──────┘ " * 3],
    "digits": [
        "売上の一覧と前年の比較は次の通りで、単位はすべて円、税込みの値です。"
        + "、".join(f"{month}月 {12_345_678 + 1_111_111 * month:,}" for month in range(1, 13))
    ],
    "few_letters": [
        "これはなんだろうか、なんとも言えない文章のようなものだと思ったのは私だけではないはず" + "！？" * 30
    ],
    "runs": [
        "すごい" + "w" * 60 + "本当にこれは面白いので、みんなに見てほしいと思っています。今日もとても良い日でした。"
    ],
    "few_hiragana": [
        "東京都新宿区 大阪市北区 名古屋市中区 札幌市中央区 福岡市博多区 仙台市青葉区 広島市中区 京都市下京区"
    ],
    "few_stop_words": [
        "Nikon Canon Sony Panasonic Olympus Fujifilm Leica Pentax Ricoh Sigma Tamron Tokina Zeiss Hasselblad Kodak "
        "Polaroid Minolta Yashica Mamiya Bronica Contax cameras lenses cheap discount sale online shop"
    ],
    "word_length": ["the of " + " ".join(f"internalConfigurationProviderFactory{c}" for c in "abcdefghijklmnopqrst")],
    "few_sentences": [
        "\n".join(f"{text[:12].replace('。', '')}の商品一覧はこちらから見られます" for text in descriptions("ja")[:30])
    ],
    "ellipses": [
        "\n".join(text[:60] + "…" for text in descriptions("ja")[:8]),
        "\n".join(text[:80] + " ..." for text in descriptions("en")[:8]),
    ],
    "bullets": ["\n".join(f"・{text[:30]}。" for text in descriptions("ja")[:12])],
    "repeated_lines": ["\n".join([JAPANESE, ENGLISH] * 4)],
    "repeated_passages": [(JAPANESE + "\n") + " ".join([JAPANESE] * 5) + "おわり。"],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_text_breaks_its_rule(name: str) -> None:
    for text in BAD[name]:
        assert rule(text) == name, text[:100]


def test_optional_rules() -> None:
    assert rule(JAPANESE, languages=("en",)) == rule(ENGLISH, languages=("ja",)) == "language"
    assert rule(JAPANESE, languages=("ja", "en")) is None
    adult = JAPANESE + "無修正動画が見放題。素人娘の巨乳を今すぐ見よう。エロ動画サイト。"
    assert rule(adult) is None and rule(adult, adult="drop") == "adult"
    medical = JAPANESE + "乳がんの検診は40歳から受けられます。性感染症の検査は保健所で無料です。"
    assert rule(medical, adult="drop") is None
    contact = JAPANESE + "連絡先は taro.yamada@example.co.jp です。"
    assert rule(contact) is None and rule(contact, personal_data="drop") == "personal_data"


def test_every_rule_is_tried_above() -> None:
    assert {*RULES} == {*BAD, "language", "adult", "personal_data"}


def test_thresholds_move_the_border() -> None:
    text = JAPANESE[:50]
    words = Document(text).words
    assert rule(text, min_words=words) is None and rule(text, min_words=words + 0.5) == "too_short"


@pytest.mark.parametrize(
    "setting",
    [{"min_words": -1}, {"min_words": "x"}, {"max_digits": float("nan")}, {"max_digits": True}, {"adult": "x"},
     {"personal_data": "x"}, {"languages": "ja"}, {"word_length": (1,)}, {"word_length": (1, "x")}, {"min_word": 3}],
)  # fmt: skip
def test_settings_are_checked(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Rules, setting)
    assert next(iter(setting)) in str(caught.value)


# Counts against slow and simple ones --------------------------------------------------------------------------------


@given(st.text("ab", max_size=120), st.integers(2, 6))
def test_repeated_passages_are_those_that_stood_before(text: str, size: int) -> None:
    seen, inside = set[str](), set[int]()
    for i in range(len(text) - size + 1):
        window = text[i : i + size]
        if window in seen:
            inside |= {*range(i, i + size)}
        seen.add(window)
    expected = len(inside) / len(text) if len(text) >= MIN_PASSAGES * size else 0.0
    assert repeated_share(code_points(text), size) == pytest.approx(expected)


def test_an_english_document_of_copies_is_repeated_one_of_sentences_is_not() -> None:
    once, thrice = Document(long_text("en")), Document("\n".join([long_text("en", 8)] * 3))
    assert once.repeated_passages() < 0.02
    assert thrice.repeated_passages() == pytest.approx(2 / 3, abs=0.01)
    assert thrice.repeated_lines() == pytest.approx(2 / 3, abs=0.01)


@given(st.text(st.sampled_from("ab あ漢ー。1Aé한я\n"), max_size=60))
def test_words_are_counted_as_defined(text: str) -> None:
    document = Document(text)
    cjk = sum(c in "あ漢ー" for c in text)
    if not any(c in "한я" for c in text):
        runs = "".join(c if c in "abAé" else " " for c in text).split()
        assert document.words == cjk / 2 + len(runs)
        assert document.counts.latin == sum(map(len, runs))


def test_two_kana_or_kanji_weigh_as_a_word() -> None:
    """The same sentences in both languages are of about the same size, so one threshold serves both."""
    japanese = "日本国民は、恒久の平和を念願し、人間相互の関係を支配する崇高な理想を深く自覚するのであつて"
    english = (
        "We, the Japanese people, desire peace for all time and are deeply conscious of the high ideals contr"
        "olling human "
        "relationship"
    )
    assert Document(japanese).words / Document(english).words == pytest.approx(1, abs=0.15)


def test_runs_of_one_character() -> None:
    assert Document("a" * 9 + "b" * 10 + " " * 30 + "c").in_runs == 10
    assert Document("").in_runs == 0 and Document("ああ").in_runs == 0


# Personal data ------------------------------------------------------------------------------------------------------

MASKED = [
    ("連絡は taro@example.co.jp まで", "連絡は <email> まで"),
    ("Mail: john.o-neil+x@mail.example.com.", "Mail: <email>."),
    ("メールはinfo＠example.jpへ", "メールは<email>へ"),
    ("電話03-1234-5678です", "電話<phone>です"),
    ("携帯：090-1234-5678", "携帯：<phone>"),
    ("携帯 09012345678、", "携帯 <phone>、"),
    ("TEL 03(1234)5678", "TEL <phone>"),
    ("TEL (03) 1234-5678", "TEL <phone>"),
    ("０３－１２３４－５６７８", "<phone>"),
    ("０９０１２３４５６７８", "<phone>"),
    ("+81-90-1234-5678 と +81 3 1234 5678", "<phone> と <phone>"),
    ("フリーダイヤル 0120-123-456", "フリーダイヤル <phone>"),
    ("call (555) 234-5678 or +1 555-234-5678", "call <phone> or <phone>"),
    ("個人番号 1234 5678 9018", "個人番号 <number>"),
    ("個人番号は123456789018。", "個人番号は<number>。"),
    ("card 4111 1111 1111 1111 ok", "card <number> ok"),
]
UNMASKED = [
    "2026-04-01 10:00 に更新", "ISBN978-4-00-310101-8", "価格は1,234,567円", "番号 123456789012 は無効", "平成 31-04-30",
    "バージョン 1.2.3-4", "UUID 0a1b2c3d-1234-5678", "郵便番号 100-0001", "座標 35.681236, 139.767125",
    "5000000000000000000",
    "@kiban をフォロー", "a@b", "IP 192.0.2.1", "会員番号 0012-3456", "2020-2021年度", "4111 1111 1111 1112",
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), MASKED)
def test_personal_data_is_masked(text: str, expected: str) -> None:
    found, counts = mask(text)
    assert found == expected and counts.total() == expected.count("<")


@pytest.mark.parametrize("text", UNMASKED)
def test_what_only_looks_alike_stays(text: str) -> None:
    assert mask(text) == (text, Counter())


def test_check_digits() -> None:
    """By the formulas: a My Number has one valid check digit for every 11 digits; so has a card for every 15."""
    draw = random.Random(0)
    for _ in range(50):
        digits = [draw.randrange(10) for _ in range(11)]
        assert sum(is_my_number([*digits, last]) for last in range(10)) == 1
        card = [4, *(draw.randrange(10) for _ in range(14))]
        assert sum(is_card([*card, last]) for last in range(10)) == 1


@pytest.mark.parametrize("text", ["a" * 300_000, "0" * 300_000, "1 " * 150_000, "a.b-c" * 60_000 + "@", "@" * 300_000,
                                  "090-" * 75_000, "(03)" * 75_000, "\u3000" * 300_000, "a@" + "b." * 150_000])  # fmt: skip
def test_no_text_takes_long(text: str) -> None:
    begun = time.process_time()
    mask(text)
    num_adult(text)
    broken_rule(Document(tidy(text)), Rules(min_words=0, adult="drop", personal_data="drop"))
    assert time.process_time() - begun < 10


# Uniform texts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("か\u3099き\u3099", "がぎ"),
        ("a\r\nb\rc\x0bd\x0ce\u2028f", "a\nb\nc\nd\ne\nf"),
        ("\ufeffa\u200bb\x00c\xadd\u202ee", "abcde"),
        ("a \t\u3000\nb\u3000", "a\nb"),
        ("\n\n a\n\n\n\nb\n", " a\n\nb"),
        ("\u3000段落の字下げは残る。", "\u3000段落の字下げは残る。"),
        ("ｶﾞＡ①㈱", "ｶﾞＡ①㈱"),
        ("👨\u200d👩\u200d👧", "👨\u200d👩\u200d👧"),
        ("か\u200b\u3099", "が"),
    ],
)
def test_texts_are_made_uniform(text: str, expected: str) -> None:
    assert tidy(text) == expected


def test_nfkc_is_a_choice() -> None:
    assert tidy("ｶﾞＡ①㈱", "NFKC") == "ガA1(株)" and tidy("か\u3099", "none") == "か\u3099"


@given(st.text(st.characters(codec="utf-8")), st.sampled_from(["NFC", "NFKC", "none"]))
def test_what_is_uniform_stays_as_it_is(text: str, form: Any) -> None:
    once = tidy(text, form)
    assert tidy(once, form) == once
    assert not any(line != line.rstrip() for line in once.split("\n"))


def test_rules_take_any_text() -> None:
    draw = np.random.default_rng(0)
    for size in (0, 1, 2, 30, 1000):
        for _ in range(20):
            text = "".join(map(chr, draw.integers(0, 0x2FFFF, size).tolist()))
            name = broken_rule(Document(tidy(text.encode("utf-8", "replace").decode())), Rules(min_words=0))
            assert name is None or name in RULES
