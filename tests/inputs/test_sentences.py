"""Sentences end where a reader says they do, and nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiban.inputs.sentences import sentences


@pytest.mark.parametrize(
    "parts",
    [
        ["吾輩は猫である。", "名前はまだ無い。"],
        ["本当ですか？！", "ええ！", "嘘ではありません…。", "はい"],
        ["彼は「行くよ。すぐ行く。」と言った。", "そして出た。"],
        ["「行くよ。」", "彼は立ち上がった。"],
        ["「はい！」と答え、立つ"],
        ["（注。ここは補足である。）", "本文に戻る。"],
        ["円周率は3.14である。", "バージョン２．０を使う。"],
        ["すごい!", "次も見たい?", "Yahoo!ニュースで読んだ。"],
        ["「閉じない括弧がある。", "それでも文は切れる。"],
        ["半角の句点｡", "次の文｡"],
        ["『「入れ子だ。」と彼。』という題の本。", "続き。"],
        ["結果を示す.", "次に考察する."],
    ],
)
def test_japanese(parts: list[str]) -> None:
    assert sentences("".join(parts)) == parts


@pytest.mark.parametrize(
    "parts",
    [
        ["It rained.", "Nobody came!", "Why?", "See below"],
        ["Dr. Smith met J. K. Rowling in the U.S. Senate.", "They talked."],
        ["Use version 3.14 of Node.js, e.g. Debian's.", "It works."],
        ["See Fig. 3 and No. 7.", "No.", "He said no."],
        ['"Go away!" he said.', '"I will."', "He did."],
        ["(It was late. Too late.)", "We left."],
        ["1. Install it.", "2. Run it."],
        ["So do I.", "Plan B. Smith made."],
        ["Wait... what happened?", "Nothing."],
        ["Smith et al. Later work differs."],
        ["It ends here.", "“Quoted text begins.”", "Done."],
    ],
)
def test_english(parts: list[str]) -> None:
    assert sentences(" ".join(parts)) == parts


def test_a_line_end_ends_a_sentence_and_blank_lines_are_none() -> None:
    assert sentences("見出し\n\n本文。\r\n  a heading\nText. \n") == ["見出し", "本文。", "a heading", "Text."]
    assert sentences("") == sentences(" \n　\n") == []


def test_languages_may_be_mixed() -> None:
    assert sentences("これはペンです。This is a pen. 次の文。OK! 終わり。") == [
        "これはペンです。",
        "This is a pen.",
        "次の文。",
        "OK!",
        "終わり。",
    ]


def test_a_quotation_as_long_as_a_text_is_cut_into_sentences() -> None:
    inside = "これは長い引用の中の一文である。" * 20
    assert len(sentences(f"「{inside}」と彼は言った。")) >= 20
    assert len(sentences(f"「{inside[:64]}」と彼は言った。")) == 1


@given(st.text(st.sampled_from("ab A.!?。！？「」『』（）()\"'、と1\n　")))
def test_nothing_is_lost_and_order_is_kept(text: str) -> None:
    found = sentences(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(part == part.strip() and part for part in found)
