"""What `kiban data` shows, in Japanese and English."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiban.cli.console import Console

if TYPE_CHECKING:
    from kiban.data.inspection import Report

WORDS = {
    "kept": ("残した文書", "kept"),
    "quarantined": ("隔離した行", "quarantined"),
    "rows_in": ("入力した行", "rows in"),
    "characters": ("文字数", "characters"),
    "tokens": ("トークン数", "tokens"),
    "shards": ("シャード数", "shards"),
    "vocab_size": ("語彙の大きさ", "vocabulary"),
    "per_token": ("1トークンあたりの文字数", "characters per token"),
    "masked_email": ("伏せたメールアドレス", "e-mail addresses masked"),
    "masked_phone": ("伏せた電話番号", "phone numbers masked"),
    "masked_number": ("伏せた個人番号・カード番号", "personal and card numbers masked"),
    "folder": ("保存先", "Folder"),
    "trial": ("試行のため、何も保存していません。", "A dry run: nothing was kept."),
    "interrupted": (
        "中断しました。同じコマンドで続きから再開します。",
        "Interrupted. The same command goes on from here.",
    ),
    "part": ("{documents:,} 件、{characters:,} 文字", "{documents:,} documents, {characters:,} characters"),
    "whole": (
        "文書 {documents:,} 件、{characters:,} 文字、{megabytes:.1f} MB、隔離 {quarantined:,} 行",
        "{documents:,} documents, {characters:,} characters, {megabytes:.1f} MB, {quarantined:,} rows quarantined",
    ),
    "duplicates": ("完全に同じ文書 (2件目以降): {share:.1%}", "Exact copies, from the second on: {share:.1%}"),
    "repeated": (
        "他の文書にもある行の文字数 (2回目以降): {share:.1%}",
        "Characters in lines that other documents have too, from the second time on: {share:.1%}",
    ),
    "space": ("空白", "space"),
    "control": ("制御文字", "control"),
    "hiragana": ("ひらがな", "hiragana"),
    "katakana": ("カタカナ", "katakana"),
    "kanji": ("漢字", "kanji"),
    "hangul": ("ハングル", "hangul"),
    "latin": ("ラテン文字", "Latin letters"),
    "other": ("その他の文字", "other letters"),
    "digit": ("数字", "digits"),
    "mark": ("句読点・括弧", "punctuation"),
    "symbol": ("記号", "symbols"),
}
RULES = {
    "too_short": ("短すぎる", "too short"),
    "mojibake": ("文字化け", "garbled characters"),
    "language": ("対象外の言語", "other language"),
    "placeholder": ("ダミー文", "placeholder text"),
    "symbols": ("記号が多い", "many symbols"),
    "digits": ("数字が多い", "many digits"),
    "few_letters": ("文字が少ない", "few letters"),
    "runs": ("同じ文字の連続", "runs of one character"),
    "few_hiragana": ("ひらがなが少ない", "little hiragana"),
    "few_stop_words": ("機能語が少ない", "few function words"),
    "word_length": ("単語の長さが不自然", "unusual word length"),
    "few_sentences": ("文末が少ない", "few sentence ends"),
    "ellipses": ("途切れた行が多い", "lines broken off"),
    "bullets": ("箇条書きばかり", "nothing but bullets"),
    "repeated_lines": ("行の繰り返し", "repeated lines"),
    "repeated_passages": ("文章の繰り返し", "repeated passages"),
    "adult": ("成人向け", "adult"),
    "personal_data": ("個人情報", "personal data"),
    "duplicate": ("重複", "copy"),
    "near_duplicate": ("ほぼ重複", "near-copy"),
    "empty": ("空", "empty"),
}
HEADERS = {
    "rows": (("行き先", "行", "割合", "規則"), ("where", "rows", "share", "rule")),
    "languages": (("言語", "文書", "割合", "文字数"), ("language", "documents", "share", "characters")),
    "kinds": (("文字の種類", "割合"), ("characters", "share")),
    "lengths": (("長さの分位", "文字"), ("length quantile", "characters")),
}


def word(console: Console, key: str) -> str:
    """A word or sentence in the console's language."""
    return WORDS[key][console.lang == "en"]


def rule(console: Console, key: str) -> str:
    """What a rule is about."""
    return RULES[key][console.lang == "en"]


def headers(console: Console, key: str) -> tuple[str, ...]:
    """The headers of a table."""
    return HEADERS[key][console.lang == "en"]


def samples(folder: Path, number: int = 3) -> dict[str, list[str]]:
    """The beginnings of some dropped texts by rule."""
    from kiban.data.prepare import DROPPED

    found: dict[str, list[str]] = {}
    if (folder / DROPPED).is_file():
        with (folder / DROPPED).open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                texts = found.setdefault(row["rule"], [])
                if len(texts) < number:
                    texts.append(f"{row['id']}: {' '.join(row['text'].split())[:100]}")
    return found


def show_facts(console: Console, facts: Mapping[str, Any]) -> None:
    """Where the rows went, and what came out."""
    total = max(1, facts["rows_in"])
    rows = [("kept", word(console, "kept"), facts["kept"])]
    rows += [(name, rule(console, name), n) for name, n in sorted(facts["dropped"].items(), key=lambda i: -i[1])]
    rows += [("quarantined", word(console, "quarantined"), facts["quarantined"])] if facts["quarantined"] else []
    console.table(headers(console, "rows"), [(title, f"{n:,}", f"{n / total:.1%}", name) for name, title, n in rows])
    lines = [("rows_in", facts["rows_in"])]
    lines += [(name, facts[name]) for name in ("characters", "tokens", "shards", "vocab_size") if name in facts]
    if "tokens" in facts:
        lines.append(("per_token", facts["characters"] / max(1, facts["tokens"])))
    lines += [(f"masked_{name}", number) for name, number in facts.get("masked", {}).items()]
    for name, number in lines:
        shown = f"{number:,}" if isinstance(number, int) else f"{number:.2f}"
        console.print(f"{word(console, name)}: {shown}")
    for name, part in (facts.get("languages") or facts.get("splits") or {}).items():
        console.print(f"  {name}: " + word(console, "part").format(**part))


def show_report(console: Console, report: Report) -> None:
    whole = report.documents
    console.print(
        word(console, "whole").format(
            documents=whole, characters=report.characters, megabytes=report.bytes / 1e6, quarantined=report.quarantined
        )
    )
    rows = [
        (c, f"{n['documents']:,}", f"{n['documents'] / whole:.1%}", f"{n['characters']:,}")
        for c, n in report.languages.items()
    ]
    console.table(headers(console, "languages"), rows)
    kinds = sorted(((share, name) for name, share in report.kinds.items() if share >= 0.0005), reverse=True)
    console.table(headers(console, "kinds"), [(word(console, name), f"{share:.1%}") for share, name in kinds])
    console.table(headers(console, "lengths"), [(name, f"{n:,.0f}") for name, n in report.quantiles.items()])
    console.print(word(console, "duplicates").format(share=report.duplicates))
    console.print(word(console, "repeated").format(share=report.repeated_lines))
