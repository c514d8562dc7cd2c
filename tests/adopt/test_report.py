"""The report says what the result says, in both languages, for every verdict and status; hostile text stays text."""

from __future__ import annotations

import dataclasses
import html.parser
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from kiban.adopt.report import write_report
from kiban.adopt.report.card import model_card
from kiban.adopt.report.formats import Formats, plain
from kiban.adopt.report.names import STRATEGIES
from kiban.adopt.report.svg import Canvas, Labels, clip_middle, overlap, text_width
from kiban.adopt.report.view import View
from kiban.adopt.report.words import TEXT, reason
from kiban.adopt.result import (
    CandidateResult,
    Check,
    ClassScore,
    Comparison,
    CurvePoint,
    Finding,
    Forecast,
    Interval,
    Mistake,
    Profile,
    Recommendation,
    Result,
    Splits,
)
from kiban.errors import FormatError

LABELS = (
    "ゲーム", "システム管理", "デスクトップ", "ネットワーク・Web", "フォント・言語対応", "プログラミング言語",
    "メール・ニュース", "ライブラリ", "文章・組版", "画像", "科学・数学", "音声・動画",
)  # fmt: skip
SIZES = (42, 40, 38, 36, 10, 40, 16, 40, 39, 24, 40, 35)


def interval(value: float, width: float = 0.045) -> Interval:
    return Interval(value=value, low=value - width, high=min(1.0, value + width))


def measured(id: str, f1: float, milliseconds: float, **more: Any) -> CandidateResult:
    """A candidate with everything measured; its confusion matrix has about the quality f1."""
    strategy, _, model = id.partition(":")
    rng = np.random.default_rng(len(id))
    matrix = np.zeros((12, 12), int)
    for i, size in enumerate(SIZES):
        np.add.at(matrix[i], np.where(rng.random(size) < f1, i, rng.integers(0, 12, size)), 1)
    scores = [
        ClassScore(
            label=label,
            precision=float(matrix[i, i] / max(1, matrix[:, i].sum())),
            recall=float(matrix[i, i] / SIZES[i]),
            f1=float(2 * matrix[i, i] / (matrix[:, i].sum() + SIZES[i])),
            support=SIZES[i],
        )
        for i, label in enumerate(LABELS)
    ]
    yen = milliseconds * 1000 / 3.6e6 * 15
    facts: dict[str, Any] = {
        "id": id,
        "strategy": strategy,
        "model": model or None,
        "status": "finished",
        "train_rows": 1198,
        "test_rows": 400,
        "accuracy": interval(f1 + 0.012),
        "macro_f1": interval(f1),
        "p50_ms": milliseconds,
        "p95_ms": milliseconds * 1.31,
        "rows_per_second": 2400 / milliseconds,
        "peak_memory_bytes": 612_000_000,
        "train_seconds": 74.2,
        "model_bytes": 90_900_000,
        "cost_per_1k_yen": yen,
        "cost_per_1k_usd": yen / 150,
        "licence": "MIT",
        "commercial_use": True,
        "per_class": tuple(scores),
        "confusion": tuple(tuple(int(n) for n in row) for row in matrix),
        "curve": tuple(CurvePoint(train_rows=n, macro_f1=f1 - 22 / n) for n in (300, 599, 1198)),
        "checks": (
            Check(requirement="p95<300ms", value=milliseconds * 1.31, ok=milliseconds * 1.31 < 300),
            Check(requirement="cost<50円/1k", value=yen, ok=True),
            Check(requirement="license=commercial", value=None, ok=True),
        ),
    }
    return CandidateResult(**{**facts, **more})


MISTAKES = (
    Mistake(
        row=117,
        text="GNU Emacs 用署名ツール c-sig は GNU Emacs 用の署名挿入ツールです。"
        "署名を対話的に登録、学習機能、動的に署名を展開できます。",
        truth="メール・ニュース",
        predicted="文章・組版",
        confidence=0.97,
    ),
    Mistake(row=1804, text="<script>alert('破')</script>", truth="画像", predicted="音声・動画", confidence=0.91),
    Mistake(row=902, text="長い文" * 400, truth="ライブラリ", predicted="プログラミング言語", confidence=0.884),
)


@pytest.fixture()
def result() -> Result:
    """A run on Japanese package descriptions: 12 classes, 8 candidates of every status."""
    candidates = (
        measured("baseline", 0.737, 1.9, licence="BSD-3-Clause", model_bytes=7_600_000, mistakes=MISTAKES),
        measured("linear_head:minilm-l6", 0.612, 7.4),
        measured("finetune_encoder:minilm-l6", 0.684, 7.9, peak_memory_bytes=640_000_000),
        measured("lora_decoder:smollm2-135m-instruct", 0.571, 171.0, licence="Apache-2.0", model_bytes=269_000_000),
        measured(
            "few_shot:smollm2-135m-instruct", 0.281, 1480.0, licence="Apache-2.0", status="stopped_early", test_rows=96,
            reason="macro_f1=0.241 best=0.655 rung=1 rows=300", curve=(CurvePoint(train_rows=300, macro_f1=0.24),),
        ),
        measured(
            "zero_shot:smollm2-135m-instruct", 0.094, 940.0, licence="Apache-2.0", status="stopped_early", train_rows=0,
            reason="macro_f1=0.081 best=0.655 rung=1 rows=300", curve=(), train_seconds=0.0,
        ),
        CandidateResult(
            id="lora_decoder:broken", strategy="lora_decoder", model="/home/me/models/broken", status="failed",
            reason="model.safetensors, byte 8: the header is cut <b>",
        ),
        CandidateResult(
            id="linear_head:gemma", strategy="linear_head", model="gemma", status="skipped", licence="gemma",
            reason="needs about 3.2 GiB, more than the 2.0 GiB allowed", commercial_use=None,
        ),
    )  # fmt: skip
    return Result(
        kiban_version="0.1.0",
        created="2026-11-24T11:20:00+00:00",
        command="kiban adopt examples/data/debian-ja.csv --text 本文 --label 区分 --time 600s --lang ja",
        source="debian-ja.csv",
        text_column="本文",
        label_column="区分",
        seed=0,
        labels=LABELS,
        profile=Profile(
            rows=1997,
            usable_rows=1997,
            language="ja",
            label_counts=dict(zip(LABELS, SIZES)),
            length_p50=121,
            length_p95=289,
            findings=(Finding(code="exact_duplicates", severity="warning", values={"rows": 46}),),
        ),
        splits=Splits(train=1198, validation=399, test=400, groups=14),
        candidates=candidates,
        comparisons=(
            Comparison(
                a="baseline",
                b="finetune_encoder:minilm-l6",
                test_rows=400,
                accuracy_difference=Interval(value=0.052, low=0.012, high=0.092),
                macro_f1_difference=Interval(value=0.053, low=0.008, high=0.097),
                mcnemar_p=0.0141,
                significant=True,
            ),
            Comparison(
                a="finetune_encoder:minilm-l6",
                b="linear_head:minilm-l6",
                test_rows=400,
                accuracy_difference=Interval(value=0.041, low=-0.002, high=0.084),
                macro_f1_difference=Interval(value=0.072, low=0.021, high=0.121),
                mcnemar_p=0.0714,
                significant=False,
            ),
        ),
        pareto=("baseline",),
        recommendation=Recommendation(
            verdict="decided",
            id="baseline",
            rival="finetune_encoder:minilm-l6",
            reason_ja="要件を満たす候補のうち品質が最も高く、費用も最も安いためです。",
            reason_en="It has the best quality of those that meet the requirements, and the lowest cost.",
        ),
        forecast=Forecast(rows_now=1198, macro_f1_now=0.719, rows_twice=2396, macro_f1_twice=interval(0.751, 0.018)),
        requirements=("p95<300ms", "cost<50円/1k", "license=commercial"),
        yen_per_hour=15.0,
        yen_per_usd=150.0,
        environment={"kiban": "0.1.0", "python": "3.11.9", "processor": "Some <CPU>", "memory_bytes": 8_200_000_000},
        total_seconds=571.3,
    )


def page(result: Result, folder: Path, lang: Any = "ja") -> str:
    result.save(folder / "result.json")
    path = write_report(folder, lang=lang)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


class Words(html.parser.HTMLParser):
    """Checks that tags nest, and collects text and tag names."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(source)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


@pytest.mark.parametrize("lang", ["ja", "en"])
def test_decision_first_and_everything_there(result: Result, tmp_path: Path, lang: Any) -> None:
    source = page(result, tmp_path, lang)
    words = Words(source).text
    headline = {"ja": "「TF-IDF＋線形（基準）」の採用をお勧めします。", "en": "Adopt TF-IDF baseline."}[lang]
    assert headline in words
    order = [
        words.index(TEXT[key][lang == "en"]) for key in ("verdict_decided", "pareto", "comparisons", "curve", "data")
    ]
    assert order == sorted(order)
    assert "0.737" in words and (r"0.692〜0.782" if lang == "ja" else "0.692–0.782") in words
    assert result.command in words
    for c in result.candidates:
        assert STRATEGIES[c.strategy][lang][0] in words
    assert f'<html lang="{lang}">' in source
    assert words.count("✓") == 0 and source.count('<li class="yes">') == 3  # the tick is a style, the word is the text


def test_nothing_from_outside(result: Result, tmp_path: Path) -> None:
    source = page(result, tmp_path)
    assert not re.search(r"""(src|href)\s*=|@import|url\(|<script|<link|<img|on\w+=""", source.split("</style>", 1)[1])
    assert set(re.findall(r"https?://[^\s\"<]+", source)) <= {"http://www.w3.org/2000/svg"}


def test_hostile_text_is_shown_as_text(result: Result, tmp_path: Path) -> None:
    evil = "</td><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}\x00\u202e\ud800"
    labels = (evil, *LABELS[1:])
    first = dataclasses.replace(
        result.candidates[0],
        licence=evil,
        mistakes=(Mistake(row=1, text=evil, truth=evil, predicted=evil, confidence=1.0),),
    )
    second = dataclasses.replace(result.candidates[1], model=evil, strategy=evil, status="failed", reason=evil)
    bad = dataclasses.replace(
        result,
        labels=labels,
        source=evil,
        command=evil,
        candidates=(first, second, *result.candidates[2:]),
        environment={evil: evil},
        requirements=(evil,),
        recommendation=dataclasses.replace(result.recommendation, reason_ja=evil),
    )
    source = page_raw(bad, tmp_path)
    parsed = Words(source)
    assert "script" not in parsed.tags and "img" not in parsed.tags
    assert "{{ 7*7 }}" in parsed.text and "alert(1)" in parsed.text
    for plot in (tmp_path / "plots").glob("*.svg"):
        ElementTree.parse(plot)


def page_raw(result: Result, folder: Path) -> str:
    """As page, for text that cannot be encoded: JSON may hold a lone surrogate as an escape."""
    import json

    (folder / "result.json").write_text(json.dumps(dataclasses.asdict(result)), encoding="utf-8")
    return write_report(folder, lang="ja").read_text(encoding="utf-8")


@pytest.mark.parametrize("lang", ["ja", "en"])
@pytest.mark.parametrize("verdict", ["decided", "undecided", "none_meets_requirements"])
def test_every_verdict(result: Result, tmp_path: Path, lang: Any, verdict: Any) -> None:
    none = verdict == "none_meets_requirements"
    advice = dataclasses.replace(
        result.recommendation,
        verdict=verdict,
        id=None if none else "finetune_encoder:minilm-l6",
        rival="baseline",
        label_more=1350 if verdict == "undecided" else None,
    )
    words = Words(page(dataclasses.replace(result, recommendation=advice), tmp_path, lang)).text
    assert TEXT[f"verdict_{verdict}"][lang == "en"] in words
    assert ("1,350" in words) == (verdict == "undecided")
    if none:  # the details are those of the best, and the requirements tell how many met them
        assert View(dataclasses.replace(result, recommendation=advice), lang).shown.id == "baseline"  # type: ignore[union-attr]
        assert ("6候補のうち4候補" if lang == "ja" else "4 of 6") in words


def test_reasons_are_told_in_the_readers_language(result: Result, tmp_path: Path) -> None:
    words = Words(page(result, tmp_path)).text
    assert "第1段階（学習300件）でmacro-F1が0.241にとどまり、最良の0.655に及びませんでした" in words
    assert "メモリが約3.2 GiB必要で、上限の2.0 GiBを超えます" in words
    assert "the header is cut <b>" in words
    assert reason("something new", "ja") == "something new"
    for status in ("finished", "stopped_early", "failed", "skipped"):
        assert TEXT[f"status_{status}"][0] in words


def test_a_run_where_nothing_was_measured(result: Result, tmp_path: Path) -> None:
    failed = tuple(
        CandidateResult(id=c.id, strategy=c.strategy, model=c.model, status="failed", reason="no memory")
        for c in result.candidates
    )
    advice = Recommendation(
        verdict="none_meets_requirements", id=None, rival=None, reason_ja="計測できませんでした。", reason_en="Nothing."
    )
    empty = dataclasses.replace(
        result, candidates=failed, comparisons=(), pareto=(), recommendation=advice, forecast=None, requirements=()
    )
    page(result, tmp_path)
    assert len(list((tmp_path / "plots").glob("*.svg"))) == 3
    source = page(empty, tmp_path)
    assert TEXT["nothing_measured"][0] in source and "<svg" not in source
    assert not list((tmp_path / "plots").glob("*.svg"))  # plots of the earlier report would contradict this one


def test_measured_in_part(result: Result, tmp_path: Path) -> None:
    """Any single measurement may be missing."""
    for field in dataclasses.fields(CandidateResult):
        if field.default in (None, ()) and field.name not in ("id", "model"):
            part = tuple(dataclasses.replace(c, **{field.name: field.default}) for c in result.candidates)
            Words(page(dataclasses.replace(result, candidates=part), tmp_path))


def test_one_candidate_one_class_scores(result: Result, tmp_path: Path) -> None:
    """Axes of a single point: no division by an empty range."""
    only = measured("baseline", 1.0, 2.0, macro_f1=Interval(value=1.0, low=1.0, high=1.0))
    alone = dataclasses.replace(result, candidates=(only,), comparisons=(), forecast=None)
    source = page(alone, tmp_path, "en")
    for number in re.findall(r'\b(?:cx|cy|x[12]?|y[12]?|width|height)="([^"%]+)"', source.split("</style>")[1]):
        assert math.isfinite(float(number))


@pytest.mark.parametrize(("classes", "drawn"), [(2, True), (30, True), (31, False)])
def test_few_and_many_classes(result: Result, tmp_path: Path, classes: int, drawn: bool) -> None:
    labels = tuple(f"class {i}" for i in range(classes))
    matrix = tuple(tuple(5 if i == j else int(j == 0) for j in range(classes)) for i in range(classes))
    only = dataclasses.replace(result.candidates[0], confusion=matrix, per_class=())
    source = page(dataclasses.replace(result, labels=labels, candidates=(only,), comparisons=()), tmp_path, "en")
    assert (tmp_path / "plots" / "confusion.svg").exists() == drawn
    assert ("because there are 31 classes" in source) == (not drawn)
    assert "“class 1” taken for “class 0”: 1 row" in Words(source).text


def test_model_card_is_named_only_if_it_is_there(result: Result, tmp_path: Path) -> None:
    assert "final/README.md" not in page(result, tmp_path)
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "README.md").write_text("card")
    assert "final/README.md" in page(result, tmp_path)


def test_japanese_data_say_what_is_missing(result: Result, tmp_path: Path) -> None:
    assert TEXT["missing_japanese"][0] in page(result, tmp_path)
    english = dataclasses.replace(result, profile=dataclasses.replace(result.profile, language="en"))
    assert TEXT["missing_japanese"][0] not in page(english, tmp_path)


def test_not_a_result(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(FormatError):
        write_report(tmp_path, lang="en")


def test_both_languages_fill_the_same_gaps() -> None:
    for key, (ja, en) in TEXT.items():
        # The subtitle names the same things in another order; sets, not lists.
        assert set(re.findall(r"{(\w+)}", ja)) == set(re.findall(r"{(\w+)}", en)), key
        assert ja and en


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.004123, 2, "0.0041"), (0.0996, 2, "0.10"), (9.96, 2, "10"), (4120.4, 3, "4,120"), (41.26, 3, "41.3"),
     (0, 2, "0"), (1.0, 2, "1.0"), (0.5, 1, "0.5"), (0.01, 1, "0.01"), (123456.0, 3, "123,000"), (3.0, 1, "3")],
)  # fmt: skip
def test_plain_numbers(value: float, digits: int, text: str) -> None:
    assert plain(value, digits) == text


def test_formats() -> None:
    ja, en = Formats("ja"), Formats("en")
    assert (ja.yen(0.0079), en.usd(0.0079), ja.yen(None)) == ("0.0079円", "$0.0079", "–")
    assert (ja.seconds(74.2), en.seconds(74.2), ja.seconds(7300)) == ("1分14秒", "1 min 14 s", "2時間1分")
    assert ja.seconds(59.7) == "1分00秒"
    assert (ja.bytes(612e6), ja.bytes(2.4e9), ja.bytes(10)) == ("612 MB", "2.40 GB", "10 B")
    assert ja.moment("2026-11-24T11:20:00+00:00") == "2026年11月24日 11:20 UTC"
    assert en.moment("yesterday") == "yesterday"
    assert en.rows(1) == "1 row"


def test_clipped_labels_stay_distinct() -> None:
    labels = [clip_middle(f"問い合わせの区分その{i}", 12, 90) for i in range(10, 40)]
    assert len(set(labels)) == 30 and all(text_width(label, 12) <= 90 for label in labels)
    assert clip_middle("長い", 12, 1) == "長…" and clip_middle("short", 12, 90) == "short"


def test_labels_keep_apart() -> None:
    """Eight labels at nearly one point overlap neither each other nor the edge."""
    labels = Labels((0, 0, 800, 400))
    for i in range(8):
        labels.place(Canvas(800, 400, ""), 400 + i, 200, f"{i} ファインチューニング（minilm-l6）")
    boxes = labels.taken
    assert all(overlap(a, b) < 1 for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(box[0] >= 0 and box[2] <= 800 for box in boxes)


def test_plots_have_words_for_those_who_cannot_see_them(result: Result, tmp_path: Path) -> None:
    page(result, tmp_path)
    for plot in (tmp_path / "plots").glob("*.svg"):
        root = ElementTree.parse(plot).getroot()
        assert root.get("role") == "img" and len(root.get("aria-label") or "") > 20


@pytest.mark.parametrize("lang", ["ja", "en"])
def test_model_card_states_measured_quality_limits_and_how_to_open_it(result: Result, lang: Any) -> None:
    import yaml

    for candidate in result.candidates[:6]:
        card = model_card(result, candidate, lang=lang)
        _, front, body = card.split("---\n", 2)
        facts = yaml.safe_load(front)
        assert (facts["language"], facts["pipeline_tag"]) == (["ja"], "text-classification")
        assert facts["license"] in ("bsd-3-clause", "mit", "apache-2.0")
        assert (
            candidate.macro_f1 and f"{candidate.macro_f1.value:.3f}" in body and f"{candidate.macro_f1.low:.3f}" in body
        )
        assert all(label in body for label in LABELS)
        assert 'kiban.load("final")' in body and result.command in body
        assert facts["library_name"].replace("-", "_") in body or candidate.strategy in ("zero_shot", "few_shot")
        assert "\n\n\n" not in card and "{%" not in card


def test_the_reason_names_candidates_as_people_do(result: Result) -> None:
    advice = dataclasses.replace(
        result.recommendation,
        reason_ja="baseline は linear_head:minilm-l6 より安く済みます。",
        reason_en="baseline is cheaper than linear_head:minilm-l6.",
    )
    told = dataclasses.replace(result, recommendation=advice)
    assert View(told, "ja").reason == "「TF-IDF＋線形（基準）」は「埋め込み＋線形分類（minilm-l6）」より安く済みます。"
    assert View(told, "en").reason == "TF-IDF baseline is cheaper than Embeddings + linear head (minilm-l6)."
