"""Words of any text, counted exactly on however little memory, and the merges learned of them."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiban.errors import DatasetError
from kiban.inputs.learn.counts import count_words
from kiban.inputs.learn.merges import learn_merges
from kiban.inputs.learn.words import MAX_RUN, MAX_WORD, as_class, python_word_pattern, word_pattern

ANY = st.text(
    # What Python's Unicode has not assigned, that of Oniguruma may know.
    st.one_of(
        st.sampled_from("あいアイー゙東京、。々ｱﾞ😀ไทยé \n\r\t12'sl"), st.characters(exclude_categories=["Cs", "Cn"])
    ),
    max_size=60,
)


@pytest.mark.parametrize("in_memory", [1, 50, 10**6])
def test_counts_are_exact_however_often_they_go_to_the_disk(in_memory: int, japanese: list[str]) -> None:
    find = python_word_pattern(digits=1).findall
    texts = japanese[:60]
    exact = Counter(word for text in texts for word in find(text))
    seen: list[tuple[str, int, int | None]] = []
    found = count_words(map(find, texts), in_memory=in_memory, progress=lambda *step: seen.append(step))
    assert dict(found) == exact
    assert found == sorted(exact.items(), key=lambda item: (-item[1], item[0]))
    assert count_words(map(find, texts), in_memory=in_memory, keep=10) == found[:10]
    assert seen[-1] == ("count words", exact.total(), None)


def test_texts_without_words_are_refused() -> None:
    with pytest.raises(DatasetError, match="no word"):
        count_words([[], []])


@settings(max_examples=300, deadline=None)
@given(text=ANY, digits=st.integers(1, 3))
def test_both_spellings_of_the_pattern_cut_all_of_a_text_alike(text: str, digits: int) -> None:
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(word_pattern(digits=digits)), behavior="isolated")
    theirs = [word for word, _ in split.pre_tokenize_str(text)]
    ours = python_word_pattern(digits=digits).findall(text)
    assert "".join(ours) == "".join(theirs) == text
    assert ours == theirs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("東京タワーは高い。", ["東京", "タワー", "は", "高", "い", "。"]),
        ("I'll go to 東京 now", ["I", "'ll", " go", " to", " 東京", " now"]),
        ("2026年11月", ["2", "0", "2", "6", "年", "1", "1", "月"]),
        ("人々がか\u3099き", ["人々", "がか\u3099き"]),
        ("a  b\n\n c", ["a", " ", " b", "\n\n", " c"]),
    ],
)
def test_words_are_runs_of_one_script(text: str, words: list[str]) -> None:
    assert python_word_pattern(digits=1).findall(text) == words


def test_no_word_is_long() -> None:
    generator = random.Random(0)
    for character in "あア亜aе１1-—!\n \u3000ー😀":
        words = python_word_pattern(digits=3).findall(character * 5000 + generator.choice("あa1"))
        assert max(map(len, words)) <= max(2 * MAX_RUN, MAX_WORD + 1)


def test_a_class_holds_its_characters_and_no_other() -> None:
    characters = set("あいうえ東京\u3000")
    pattern = re.compile(f"[{as_class(characters)}]")
    assert {chr(code) for code in range(0x10000) if pattern.fullmatch(chr(code))} == characters


def test_merges_follow_the_counts() -> None:
    tokens, merges = learn_merges([("東京都", 5), ("京都", 9), ("東", 1)], vocab_size=10)
    assert merges == [("京", "都"), ("東", "京都")]
    assert set(tokens) == {"東", "京", "都", "京都", "東京都"}
    _, inside = learn_merges([("東京都", 5), ("京都", 9)], vocab_size=20, prefix="##")
    assert inside == [("京", "##都"), ("東", "##京"), ("東京", "##都")]


def test_counts_beyond_what_the_trainer_is_fed_keep_their_proportions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kiban.inputs.learn.merges.MAX_FED", 1000)
    _, merges = learn_merges([("東京", 5 * 10**12), ("京都", 4 * 10**12), ("大阪", 10**9)], vocab_size=100)
    assert merges == [("東", "京"), ("京", "都")], "the third is too rare to be fed at all"
