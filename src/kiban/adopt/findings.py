"""What was found in the data, as sentences for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kiban.adopt.result import Finding

Values = dict[str, Any]


def _list(items: list[Any], mark: str) -> str:
    return mark.join(str(item) for item in items)


def _examples_ja(v: Values) -> str:
    parts = [f"{e['line']}行目は「{e['label']}」より「{e['rather']}」らしい" for e in v["examples"]]
    return "、".join(parts)


def _examples_en(v: Values) -> str:
    return "; ".join(f"line {e['line']}: {e['label']!r}, rather {e['rather']!r}" for e in v["examples"])


SENTENCES: dict[str, tuple[Callable[[Values], str], Callable[[Values], str]]] = {
    "empty_text": (
        lambda v: f"本文が空の行が{v['rows']}行あり、除外しました。",
        lambda v: f"{v['rows']} rows have no text and were left out.",
    ),
    "empty_label": (
        lambda v: f"ラベルが空の行が{v['rows']}行あり、除外しました。",
        lambda v: f"{v['rows']} rows have no label and were left out.",
    ),
    "bad_rows": (
        lambda v: f"読めない行が{v['rows']}行あり（最初は{v['line']}行目）、quarantine.jsonl に分けました。",
        lambda v: f"{v['rows']} rows could not be read (the first on line {v['line']}); they are in quarantine.jsonl.",
    ),
    "rare_classes": (
        lambda v: (
            f"{v['least']}件未満のクラスが{v['count']}個（{_list(v['classes'], '、')}）あり、計{v['rows']}件を除外しました。"
        ),
        lambda v: (
            f"{v['count']} classes have fewer than {v['least']} examples ({_list(v['classes'], ', ')}); "
            f"their {v['rows']} examples were left out."
        ),
    ),
    "encoding": (
        lambda v: f"文字コードは{v['encoding']}と判定して読み込みました。",
        lambda v: f"The file was read as {v['encoding']}.",
    ),
    "mixed_languages": (
        lambda v: f"言語が混在しています（日本語{v['ja']}%、英語{v['en']}%、その他{v['other']}%）。",
        lambda v: f"Languages are mixed: {v['ja']}% Japanese, {v['en']}% English, {v['other']}% other.",
    ),
    "label_variants": (
        lambda v: f"表記だけが違うラベルがあります（{_list(v['labels'], '、')}）。統一すると精度が上がる見込みです。",
        lambda v: f"Labels differ in spelling only ({_list(v['labels'], ', ')}); merging them should raise quality.",
    ),
    "imbalance": (
        lambda v: (
            f"クラスの偏りが大きく、「{v['most']}」は{v['most_rows']}件、「{v['least']}」は{v['least_rows']}件です。"
            "少ないクラスも同じ重みで測るため、macro-F1で比べます。"
        ),
        lambda v: (
            f"Classes are uneven: {v['most']!r} has {v['most_rows']} examples, {v['least']!r} has {v['least_rows']}. "
            "Candidates are compared by macro-F1, which weighs them the same."
        ),
    ),
    "numeric_labels": (
        lambda v: f"ラベルが{v['classes']}種類の数値です。分類ではなく数値の予測かもしれません。",
        lambda v: f"The labels are {v['classes']} different numbers; this may be a quantity and not a class.",
    ),
    "exact_duplicates": (
        lambda v: f"同じ本文の行が{v['rows']}行あります。学習側とテスト側に分かれないようにしました。",
        lambda v: f"{v['rows']} rows repeat another row's text; copies were kept on one side of the split.",
    ),
    "near_duplicates": (
        lambda v: f"ほぼ同じ本文の行が{v['rows']}行あります。学習側とテスト側に分かれないようにしました。",
        lambda v: f"{v['rows']} rows nearly repeat another row; they were kept on one side of the split.",
    ),
    "conflicting_labels": (
        lambda v: f"同じ本文に違うラベルが付いた組が{v['groups']}組あります（例: {_list(v['lines'], '・')}行目）。",
        lambda v: f"{v['groups']} groups of like texts carry different labels (e.g. lines {_list(v['lines'], ', ')}).",
    ),
    "long_texts": (
        lambda v: (
            f"2,000字を超える本文が{v['rows']}行あります（最長{v['longest']:,}字）。モデルは先頭部分だけを読みます。"
        ),
        lambda v: (
            f"{v['rows']} texts are over 2,000 characters long (up to {v['longest']:,}); models read their beginning."
        ),
    ),
    "label_in_text": (
        lambda v: (
            f"{v['percent']}%の行で、ラベルの語が本文にそのまま現れます。運用時の本文でも同じか確かめてください。"
        ),
        lambda v: f"In {v['percent']}% of rows the text contains the label itself; check that it will when in use.",
    ),
    "bad_pictures": (
        lambda v: f"読めない画像が{v['rows']}枚あり（最初は {v['name']}）、quarantine.jsonl に分けました。",
        lambda v: f"{v['rows']} pictures could not be read (the first: {v['name']}); they are in quarantine.jsonl.",
    ),
    "empty_picture_rows": (
        lambda v: f"パスかラベルが空の行が{v['rows']}行あり、除外しました。",
        lambda v: f"{v['rows']} rows have no path or no label and were left out.",
    ),
    "exact_picture_copies": (
        lambda v: f"ほかと同じ画像が{v['rows']}枚あります。学習側とテスト側に分かれないようにしました。",
        lambda v: f"{v['rows']} pictures are copies of another; copies were kept on one side of the split.",
    ),
    "near_picture_copies": (
        lambda v: f"ほかとほぼ同じ画像が{v['rows']}枚あります。学習側とテスト側に分かれないようにしました。",
        lambda v: f"{v['rows']} pictures nearly equal another; they were kept on one side of the split.",
    ),
    "conflicting_pictures": (
        lambda v: f"同じ画像に違う区分が付いた組が{v['groups']}組あります（例: {_list(v['names'], '、')}）。",
        lambda v: f"{v['groups']} groups of like pictures carry different classes (e.g. {_list(v['names'], ', ')}).",
    ),
    "small_pictures": (
        lambda v: f"短い辺が{v['side']}ピクセル未満の画像が{v['rows']}枚あります。細部は見分けられません。",
        lambda v: f"{v['rows']} pictures are less than {v['side']} pixels wide or high; details cannot be told.",
    ),
    "long_pictures": (
        lambda v: (
            f"縦横比が{v['times']}倍以上の画像が{v['rows']}枚あります。モデルは中央の正方形だけを見ることがあります。"
        ),
        lambda v: (
            f"{v['rows']} pictures are {v['times']} times as long as wide, or more; some models see the middle only."
        ),
    ),
    "class_by_size": (
        lambda v: (
            f"画像の大きさだけで{v['percent']}%の区分が当たります。区分ごとに集め方が違うと、"
            "モデルがその違いを覚えてしまいます。"
        ),
        lambda v: (
            f"The size alone tells the class of {v['percent']}% of the pictures; if classes were collected differently, "
            "models may learn that instead."
        ),
    ),
    "label_noise": (
        lambda v: f"ラベルの誤りが疑われる行が{v['rows']}行（{v['percent']}%）あります（{_examples_ja(v)}）。",
        lambda v: f"{v['rows']} rows ({v['percent']}%) may carry a wrong label ({_examples_en(v)}).",
    ),
}


def sentence(finding: Finding, lang: str) -> str:
    """The finding in Japanese ("ja") or English."""
    japanese, english = SENTENCES[finding.code]
    return japanese(finding.values) if lang == "ja" else english(finding.values)
