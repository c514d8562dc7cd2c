"""What is found in a table is there, and what is not there is not found."""

from __future__ import annotations

import datetime
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from kiban.adopt.classes import MAX_CLASSES, MIN_ROWS, Looked
from kiban.adopt.findings import SENTENCES, sentence
from kiban.adopt.noise import doubtful_rows
from kiban.adopt.profile import NOISE_LIMIT, guess_columns, profile
from kiban.adopt.result import Finding
from kiban.data.tables import Table, from_frame, read_table
from kiban.errors import DatasetError

Pairs = list[tuple[Any, Any]]
WORDS = {
    "配送": "荷物 届く 配達 宅配 到着 遅延 住所 不在 追跡 梱包 運送 倉庫".split(),
    "返品": "返金 交換 不良 破損 返送 傷 保証 故障 取消 品質 汚れ 欠品".split(),
    "会員": "登録 退会 暗証 認証 口座 電話 通知 特典 点数 更新 名義 変更".split(),
}
ENGLISH = {
    "配送": "parcel arrives courier delivery delayed address tracking warehouse shipping van".split(),
    "返品": "refund exchange broken damaged return scratched warranty faulty cancel stained".split(),
    "会員": "account password login member points profile email renewal cancelled phone".split(),
}


def pairs(count: int = 90, words: dict[str, list[str]] = WORDS, *, mark: str = "の", seed: int = 0) -> Pairs:
    """Texts of eleven words of their class, all different."""
    rng, names = random.Random(seed), list(words)
    found = []
    for i in range(count):
        name = names[i % len(names)]
        found.append((mark.join(rng.choice(words[name]) for _ in range(11)), name))
    return found


def table_of(rows: Pairs, **more: Any) -> Table:
    records = [{"text": text, "label": label} for text, label in rows]
    facts: dict[str, Any] = {
        "columns": ("text", "label"), "rows": records, "lines": list(range(2, len(rows) + 2)), "source": "表.csv",
        "encoding": "utf-8",
    }  # fmt: skip
    return Table(**{**facts, **more})


def look(rows: Pairs, **more: Any) -> Looked:
    return profile(table_of(rows, **more), "text", "label")


def found_in(looked: Looked) -> dict[str, dict[str, Any]]:
    return {finding.code: finding.values for finding in looked.profile.findings}


def test_clean_data_have_no_findings() -> None:
    for rows in (pairs(), pairs(words=ENGLISH, mark=" ")):
        looked = look(rows)
        assert found_in(looked) == {}
        assert looked.inputs == [text for text, _ in rows] and looked.lines == list(range(2, 92))
        assert looked.labels == sorted(WORDS) and [looked.labels[t] for t in looked.targets] == [n for _, n in rows]
        assert looked.groups == list(range(90))
    assert look(pairs()).profile.language == "ja"
    assert look(pairs(words=ENGLISH, mark=" ")).profile.language == "en"


def test_lengths_and_counts_are_of_the_usable_rows() -> None:
    rows = [("あ" * n, "ab"[n % 2]) for n in range(1, 101)]
    seen = look([*rows, ("", "a"), ("x", None)]).profile
    assert (seen.rows, seen.usable_rows, seen.label_counts) == (102, 100, {"b": 50, "a": 50})
    assert (seen.length_p50, seen.length_p95) == (50, 95)


def near(rows: Pairs) -> Pairs:
    return [*rows, *((text + "！", label) for text, label in rows[:4])]


def told(rows: Pairs) -> Pairs:
    return [(f"{text}（{label}）" if i % 2 else text, label) for i, (text, label) in enumerate(rows)]


def wrong(rows: Pairs) -> Pairs:
    names = list(WORDS)
    return [(text, names[(names.index(n) + 1) % 3] if i % 30 == 0 else n) for i, (text, n) in enumerate(rows)]


CASES: dict[str, tuple[Callable[[Pairs], Pairs], dict[str, Any]]] = {
    "empty_text": (lambda r: [*r, ("", "配送"), (" \u3000\n", "配送"), (None, "返品")], {"rows": 3}),
    "empty_label": (lambda r: [*r, ("どこ", ""), ("いつ", None), ("誰", float("nan"))], {"rows": 3}),
    "rare_classes": (
        lambda r: [*r, ("迷子の猫", "他"), ("迷子の犬", "他"), ("鳥", "鳥")],
        {"classes": ["他", "鳥"], "count": 2, "rows": 3, "least": 3},
    ),
    "mixed_languages": (lambda r: r[:60] + pairs(30, ENGLISH, mark=" "), {"ja": 67, "en": 33, "other": 0}),
    "label_variants": (
        lambda r: [(t, "配送 " if i == 0 else "ＡＢ" if i % 6 == 1 else "ab" if n == "返品" else n)
                   for i, (t, n) in enumerate(r)],
        {"labels": ["ab", "ＡＢ"]},
    ),
    "imbalance": (
        lambda r: r[3:] + [row for row in pairs(900, seed=5) if row[1] == "会員"][:280] + [r[0]],
        {"most": "会員", "most_rows": 309, "least": "返品", "least_rows": 29},
    ),
    "numeric_labels": (
        lambda r: [(t, [-1.5, 2, "3.25"][i % 3] if i < 9 else i % 9) for i, (t, _) in enumerate(r)], {"classes": 11}
    ),
    "exact_duplicates": (lambda r: [*r, *r[:5], (r[0][0].replace("の", " の　"), r[0][1])], {"rows": 6}),
    "near_duplicates": (near, {"rows": 4}),
    "conflicting_labels": (lambda r: [*r, (r[0][0], "返品")], {"groups": 1, "lines": [2, 92]}),
    "long_texts": (lambda r: [*r, ("荷物の話。" * 500, "配送")], {"rows": 1, "longest": 2500}),
    "label_in_text": (told, {"percent": 50}),
}  # fmt: skip


@pytest.mark.parametrize("code", CASES)
def test_each_finding_is_made_by_data_that_have_it(code: str) -> None:
    change, values = CASES[code]
    found = found_in(look(change(pairs())))
    assert found[code] == values
    companions = {"conflicting_labels": {"exact_duplicates"}, "numeric_labels": {"label_noise"}}
    assert set(found) - {code} <= companions.get(code, set())


def test_encoding_and_bad_rows_are_told(tmp_path: Path) -> None:
    lines = ["text,label", *(f"{text},{label}" for text, label in pairs()), "一つだけ"]
    (tmp_path / "表.csv").write_bytes("\r\n".join(lines).encode("cp932"))
    table = read_table(tmp_path / "表.csv", on_bad_row="skip")
    found = found_in(profile(table, "text", "label"))
    assert found == {"encoding": {"encoding": "cp932"}, "bad_rows": {"rows": 1, "line": 92}}


def test_every_finding_has_a_sentence_in_both_languages() -> None:
    extra = {
        "encoding": {"encoding": "cp932"},
        "bad_rows": {"rows": 1, "line": 92},
        "label_noise": {"rows": 3, "percent": 3.0, "examples": [{"line": 5, "label": "甲", "rather": "乙"}]},
        "bad_pictures": {"rows": 1, "name": "a/b.png"},
        **{key: {"rows": 2} for key in ("empty_picture_rows", "exact_picture_copies", "near_picture_copies")},
        "conflicting_pictures": {"groups": 1, "names": ["a/b.png", "c/d.png"]},
        "small_pictures": {"rows": 1, "side": 32},
        "long_pictures": {"rows": 1, "times": 3},
        "class_by_size": {"percent": 97},
    }
    for code in SENTENCES:
        values = extra.get(code) or CASES[code][1]
        for lang in ("ja", "en"):
            text = sentence(Finding(code=code, severity="info", values=values), lang)
            assert len(text) > 15 and "{" not in text and "None" not in text
            assert text.endswith("。" if lang == "ja" else "."), text
    assert set(SENTENCES) == {*CASES, *extra}


def doubted(rows: Pairs, language: str) -> dict[int, str]:
    """Places of the rows whose label is doubted, and the label that they should rather have."""
    names = sorted({name for _, name in rows})
    found = doubtful_rows(
        [text for text, _ in rows], [names.index(name) for _, name in rows], language=language, seed=0
    )
    return {doubt.row: names[doubt.rather] for doubt in found}


@pytest.mark.parametrize("lang", ["ja", "en"])
def test_wrong_labels_are_found_and_right_ones_left_alone(lang: str) -> None:
    clean = pairs(600) if lang == "ja" else pairs(600, ENGLISH, mark=" ")
    assert doubted(clean, lang) == {}
    found = doubted(wrong(clean), lang)
    assert len(found) >= 12 and all(row % 30 == 0 for row in found)
    assert all(clean[row][1] == rather for row, rather in found.items())
    values = found_in(look(wrong(clean)))["label_noise"]
    assert values["rows"] == len(found) and values["percent"] == round(len(found) / 6, 1)
    for example, row in zip(values["examples"], found):
        assert example == {"line": row + 2, "label": wrong(clean)[row][1], "rather": clean[row][1]}


@pytest.mark.parametrize("lang", ["ja", "en"])
def test_planted_noise_in_real_data_is_what_is_pointed_at(lang: str) -> None:
    """Three classes that people confuse at times. Chance would make 3% of what is pointed at planted."""
    table = read_table(Path(__file__).parents[2] / "examples" / "data" / f"debian-{lang}.csv")
    text, label = guess_columns(table)
    names = [name for name, _ in Counter(table.column(label)).most_common(3)]
    rows = [(row[text], row[label]) for row in table.rows if row[label] in names]
    planted = set(random.Random(3).sample(range(len(rows)), round(0.03 * len(rows))))
    found = doubted(
        [(t, names[(names.index(n) + 1) % 3] if i in planted else n) for i, (t, n) in enumerate(rows)], lang
    )
    hits = [row for row in found if row in planted]
    assert len(hits) >= len(planted) / 3
    assert len(hits) >= len(found) / 2
    assert sum(row in planted for row in list(found)[:5]) >= 4, "the worst come first"


def test_noise_is_not_looked_for_in_large_tables() -> None:
    rows = wrong(pairs(NOISE_LIMIT + 3))
    assert "label_noise" not in found_in(look(rows))


def test_texts_without_words_are_looked_at_all_the_same() -> None:
    faces = [("😀" * (1 + i % 7) + "!" * i, "良") if i % 2 else ("😡" * (1 + i % 5) + "?" * i, "悪") for i in range(60)]
    assert look(faces).profile.language == "other"
    assert look([(text + " ok", label) for text, label in faces]).profile.usable_rows == 60


def test_numbers_dates_and_truths_are_texts_and_labels() -> None:
    day = datetime.date(2026, 1, 1)
    rows: Pairs = [(i, True) if i % 2 else (day + datetime.timedelta(days=i), False) for i in range(40)]
    looked = look(rows)
    assert looked.labels == ["False", "True"] and looked.inputs[:2] == ["2026-01-01", "1"]


@pytest.mark.parametrize("column", ["text", "label"])
@pytest.mark.parametrize("value", [["一", "二"], {"ja": "一"}, b"bytes", ("a",)])
def test_a_cell_with_several_values_is_refused_with_its_line(column: str, value: Any) -> None:
    table = table_of(pairs())
    table.rows[40][column] = value
    with pytest.raises(DatasetError, match=rf"表\.csv, line 42, '{column}': is a {type(value).__name__}.*one value"):
        profile(table, "text", "label")


def test_a_list_in_a_jsonl_file_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    lines = [json.dumps({"text": t, "label": n}) for t, n in pairs()] + ['{"text": ["a"], "label": "配送"}']
    path.write_text("\n\n".join(lines), "utf-8")
    with pytest.raises(DatasetError, match=r"line 181, 'text': is a list"):
        profile(read_table(path), "text", "label")


def test_missing_numbers_of_a_parquet_file_are_empty_labels(tmp_path: Path) -> None:
    texts = [text for text, _ in pairs()]
    labels = [float("nan") if i < 5 else None if i < 8 else float(i % 2) for i in range(90)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels}), tmp_path / "t.parquet")
    looked = profile(read_table(tmp_path / "t.parquet"), "text", "label")
    assert looked.labels == ["0.0", "1.0"] and found_in(looked)["empty_label"] == {"rows": 8}


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (pairs(MIN_ROWS - 1), f"only {MIN_ROWS - 1} rows have both"),
        ([*pairs(MIN_ROWS - 1), ("x", "")], f"only {MIN_ROWS - 1} rows have both"),
        ([(text, "一") for text, _ in pairs()], "one value only"),
        ([(text, i) for i, (text, _) in enumerate(pairs())], "90 different values in 90 rows"),
        ([(text, i % (MAX_CLASSES + 1)) for i, (text, _) in enumerate(pairs(900))], "201 different values in 900 rows"),
        ([(t, "一" if i < 88 else "二") for i, (t, _) in enumerate(pairs())], "a single class with enough rows"),
        ([(t, f"c{i // 2}" if i < 30 else "ab"[i % 2]) for i, (t, _) in enumerate(pairs(58))], "only 28 rows have a label"),
    ],
)  # fmt: skip
def test_a_table_that_no_classifier_can_be_made_of_is_refused(rows: Pairs, why: str) -> None:
    with pytest.raises(DatasetError, match=why):
        look(rows)


def columns_of(*names: str, **values: list[Any]) -> Table:
    given = {name: [f"{name}{i}" for i in range(100)] for name in names} | values
    return from_frame([{name: column[i] for name, column in given.items()} for i in range(100)])


TEXTS: list[Any] = [f"お問い合わせの本文です。番号は{i}で、長さは十分にあります。" for i in range(100)]
FEW: list[Any] = ["甲", "乙"] * 50


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (columns_of("id", "本文", "区分"), ("本文", "区分")),
        (columns_of("ID", "Text", "Category", "date"), ("Text", "Category")),
        (columns_of("id", 問い合わせ=TEXTS, 担当=FEW), ("問い合わせ", "担当")),
        (columns_of("id", 問い合わせ=TEXTS, label=FEW, 地域=FEW), ("問い合わせ", "label")),
    ],
)
def test_columns_are_known_by_name_or_by_what_they_hold(table: Table, expected: tuple[str, str]) -> None:
    assert guess_columns(table) == expected


def test_columns_that_are_given_are_taken() -> None:
    table = columns_of("text", "label", "題名", "種別")
    assert guess_columns(table, text="題名", label="種別") == ("題名", "種別")
    assert guess_columns(columns_of("text", "body", "label"), text="body") == ("body", "label")
    assert guess_columns(columns_of("text", "label", "class"), label="class") == ("text", "class")


@pytest.mark.parametrize(
    ("table", "given", "why"),
    [
        (columns_of("text", "body", "label"), {}, "the text column is not clear .*--text one of text, body, label"),
        (columns_of("a", "b", 本文=TEXTS), {}, "the label column is not clear .*--label one of"),
        (columns_of(本文=TEXTS, 甲=FEW, 乙=FEW), {}, "the label column is not clear"),
        (columns_of("本文", "区分"), {"text": "本文a"}, "no such column .*did you mean '本文'"),
        (columns_of("本文", "区分"), {"text": "区分", "label": "区分"}, "both the text and the label"),
    ],
)
def test_columns_that_are_not_clear_are_listed(table: Table, given: dict[str, str], why: str) -> None:
    with pytest.raises(DatasetError, match=why):
        guess_columns(table, **given)
