"""Training pairs are licensed, single, unseen by every test, and no source of strings drowns the rest."""

from __future__ import annotations

from collections import Counter

from kiban.recipes.parallel_text import Forbidden, Pair, Selection, questions, select, text_key

WORDS = ("赤い花", "青い空", "白い雲", "黒い猫", "緑の森")


def pair(number: int, source: str, **facts: object) -> Pair:
    word = WORDS[number % len(WORDS)]
    ja, en = f"{word}についての文章の{number}番目です。", f"This is sentence number {number} about something."
    return Pair(**{"ja": ja, "en": en, "source": source, "licence": "MIT", **facts})  # type: ignore[arg-type]


def chosen(pairs: list[Pair], forbidden: list[str] | None = None, cap: int = 100) -> Selection:
    held = [pair(900, "dev"), pair(901, "test")]
    return select([*pairs, *held], dev=["dev"], test=["test"], forbidden=Forbidden.of(forbidden or []), cap=cap)


def test_whole_sources_are_held_out_and_what_they_share_with_training_is_removed_from_training() -> None:
    copy = Pair(pair(901, "x").ja, "Another translation of that one.", "manual", "MIT")
    found = chosen([pair(1, "manual"), copy])
    assert [p.source for p in found.dev + found.test] == ["dev", "test"]
    assert found.train == [pair(1, "manual")] and found.removed["in dev or test"] == 1


def test_unlicensed_machine_made_empty_and_double_pairs_are_left_out_and_counted() -> None:
    bad = [
        pair(1, "a", licence="unknown"),
        pair(2, "a", licence="CC-BY-NC-4.0"),
        pair(3, "a", machine=True),
        pair(4, "a", ja="!?"),
        pair(5, "a"),
        pair(5, "b", ja=pair(5, "a").ja.replace("。", " ")),
    ]
    found = chosen(bad)
    assert found.train == [pair(5, "a")]
    assert {k: v for k, v in found.removed.items() if v} == {
        "licence": 2, "machine translation": 1, "no words": 1, "double": 1,
    }  # fmt: skip


def test_a_pair_is_forbidden_by_either_side_whole_or_inside_a_longer_text_and_not_by_short_words() -> None:
    text = "ゲームの説明。" + pair(1, "a").ja + "おわり。"
    english = "A title. " + pair(2, "a").en + " The end."
    pairs = [pair(1, "a"), pair(2, "a"), pair(3, "a"), pair(4, "a", ja="ゲーム", en="a game")]
    assert sorted(p.ja for p in chosen(pairs, [text, english]).train) == sorted([pair(3, "a").ja, "ゲーム"])
    assert chosen(pairs[3:], ["ゲーム！"]).train == []


def test_strings_are_capped_source_by_source_and_running_text_is_not() -> None:
    pairs = [pair(i, source, strings=source != "book") for source in ("po", "mo", "book") for i in range(20)]
    pairs = [pair(i, p.source, strings=p.strings) for i, p in enumerate(pairs)]
    found = chosen(pairs, cap=5)
    assert Counter(p.source for p in found.train) == {"po": 5, "mo": 5, "book": 20}
    assert found.removed["over the cap"] == 30
    assert found.train == chosen(pairs, cap=5).train


def test_questions_have_one_answer() -> None:
    pairs = [pair(1, "a"), pair(2, "a"), pair(2, "b"), pair(3, "a", ja="短い"), pair(4, "a", en="Too short")]
    assert questions(pairs, most=10) == [pair(1, "a")]
    many = [pair(i, "a") for i in range(50)]
    assert len(questions(many, most=7)) == 7 and questions(many, most=7) == questions(many, most=7)


def test_spellings_of_a_text_have_one_key() -> None:
    assert text_key("ＡＢＣ、ｶﾞ！") == text_key("abc ガ") == "abcガ"
