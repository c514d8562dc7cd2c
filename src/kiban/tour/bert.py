"""BERT: four tasks from 500 labels each, after reading without labels. Devlin et al. 2019, sections 3 to 5.

Reading. A small BERT reads the documents of `bert_world`: whole words are hidden, and half of the second passages are from
another document. The next sentence is tested on documents that it has not read.
Tasks. The topic of a sentence, names and their kinds, the answer to a question in a text, and the re-ranking of what BM25
finds; each with 500 labels, tested on others.
Ablations. The same model without reading; reading to the left only; reading without the next sentence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kiban.config import Progress
from kiban.files import read_json, write_text
from kiban.tour.bert_models import ARMS, Arm, Setting, next_sentence_accuracy, pretrain
from kiban.tour.bert_tuning import Tuner
from kiban.tour.exhibit import Estimate, Exhibit, Lang, Requirement, Words

TASKS = ("class", "names", "span", "search")


def measure(settings: Setting, *, seed: int, folder: Path, progress: Progress) -> dict[str, float]:
    """One seed: its own weights, documents and labels. Percent, and differences in points."""
    found: dict[str, float] = {}
    for arm in ARMS:
        found |= _arm(settings, arm, seed, folder / arm, progress)
    gains = {f"gain_{task}": found[f"{task}_bert"] - found[f"{task}_scratch"] for task in TASKS}
    return {**found, **gains, "over_bm25": found["search_bert"] - found["bm25"]}


def _arm(s: Setting, arm: Arm, seed: int, folder: Path, progress: Progress) -> dict[str, float]:
    """What an earlier sitting left of an arm, else what is measured now."""
    path = folder / "measures.json"
    if path.exists():
        return {name: float(value) for name, value in read_json(path).items()}

    def tell(stage: str, done: int, total: int | None) -> None:
        progress(f"{arm} | {stage}", done, total)

    folder.mkdir(parents=True, exist_ok=True)
    module = pretrain(s, arm, seed=seed, folder=folder / "pretraining", progress=tell)
    scores = Tuner(s, arm, module, seed, progress).measure()
    found = {f"{task}_{arm}": scores[task] for task in TASKS}
    if arm in ("bert", "causal"):
        found[f"next_{arm}"] = next_sentence_accuracy(s, module, seed)
    if arm == "bert":
        found["bm25"] = scores["bm25"]
    write_text(path, json.dumps(found))
    return found


WORDS: dict[str, Words] = {
    "task": {"ja": "課題 (%)", "en": "task (%)"},
    "next": {"ja": "次の文か (正答率)", "en": "next sentence (accuracy)"},
    "class": {"ja": "分類 (正答率)", "en": "classification (accuracy)"},
    "names": {"ja": "名前の抽出 (F1)", "en": "names (F1)"},
    "span": {"ja": "答えの範囲 (完全一致)", "en": "answer span (exact)"},
    "search": {"ja": "再順位付け (MRR@10)", "en": "re-ranking (MRR@10)"},
    "bert": {"ja": "BERT", "en": "BERT"},
    "scratch": {"ja": "事前学習なし", "en": "not pretrained"},
    "causal": {"ja": "左だけを見る", "en": "causal mask"},
    "no_nsp": {"ja": "次文予測なし", "en": "no next sentence"},
    "bm25": {"ja": "BM25", "en": "BM25"},
    "percent": {"ja": "%", "en": "%"},
}


def draw(axes: Any, found: Mapping[str, Estimate], lang: Lang) -> None:
    """Bars by task, one for each arm, with intervals; BM25 as a line over re-ranking."""
    width = 0.8 / len(ARMS)
    for number, arm in enumerate(ARMS):
        points = [found[f"{task}_{arm}"] for task in TASKS]
        places = [task + (number - (len(ARMS) - 1) / 2) * width for task in range(len(TASKS))]
        spread = [[p.value - p.low for p in points], [p.high - p.value for p in points]]
        bounded = all(len(p.seeds) > 1 for p in points)
        axes.bar(
            places,
            [p.value for p in points],
            width,
            yerr=spread if bounded else None,
            capsize=2,
            label=WORDS[arm][lang],
        )
    search = TASKS.index("search")
    axes.hlines(
        found["bm25"].value, search - 0.45, search + 0.45, colors="k", linestyles="--", label=WORDS["bm25"][lang]
    )
    axes.set_xticks(range(len(TASKS)), [WORDS[task][lang].replace(" (", "\n(") for task in TASKS])
    axes.set(ylabel=WORDS["percent"][lang], ylim=(0, 100))
    axes.legend()


def _row(task: str) -> tuple[Words, tuple[str | None, ...]]:
    return WORDS[task], (*(f"{task}_{arm}" for arm in ARMS), "bm25" if task == "search" else None)


def _gain(task: str, ja: str, en: str) -> Requirement:
    name: Words = {"ja": f"{ja}: 事前学習なしとの差 (ポイント)", "en": f"{en}: above the model not pretrained (points)"}
    return Requirement(measure=f"gain_{task}", name=name, at_least=10)


EXHIBIT = Exhibit(
    name="bert",
    title={"ja": "BERT: 読んでから、500 個の正解で", "en": "BERT: read first, then 500 labels"},
    shows={
        "ja": "小さな BERT が、同義語・話題・名前・事実のある人工の言語の文書を読み"
        " (単語の穴埋めと次文予測)、4 つの課題を各 500 個の正解で学ぶ。"
        "事前学習なし、左だけを見るマスク、次文予測なしの同じ大きさのモデルと比べる。",
        "en": "A small BERT reads documents of a made-up language with synonyms, topics, names and facts (hidden words and "
        "the next sentence), and learns four tasks from 500 labels each, beside the same model not pretrained, with a "
        "causal mask, and without the next sentence.",
    },
    full=Setting(),
    quick=Setting(
        num_layers=2,
        dim=64,
        num_topics=4,
        num_names=40,
        num_documents=1000,
        steps=150,
        lr=1e-2,
        batch_size=32,
        num_pairs=200,
        num_labels=100,
        num_test=200,
        epochs=3,
    ),
    measure=measure,
    requirements=(
        Requirement(
            measure="next_bert", name={"ja": "次の文か (正答率 %)", "en": "next sentence (accuracy, %)"}, at_least=85
        ),
        _gain("class", "分類", "classification"),
        _gain("names", "名前の抽出", "names"),
        _gain("span", "答えの範囲", "answer span"),
        _gain("search", "再順位付け", "re-ranking"),
        Requirement(
            measure="over_bm25",
            name={"ja": "再順位付け: BM25 との差 (MRR@10、ポイント)", "en": "re-ranking: above BM25 (MRR@10, points)"},
            at_least=5,
        ),
    ),
    columns=(WORDS["task"], *(WORDS[arm] for arm in ARMS), WORDS["bm25"]),
    rows=((WORDS["next"], ("next_bert", None, "next_causal", None, None)), *map(_row, TASKS)),
    draw=draw,
    headline={
        "ja": "500 個の正解で、分類 {class_scratch:.1f} → {class_bert:.1f} %、名前 "
        "{names_scratch:.1f} → {names_bert:.1f} %、答えの範囲 {span_scratch:.1f} → {span_bert:.1f} %、"
        "MRR@10 は BM25 {bm25:.1f} → {search_bert:.1f} %",
        "en": "500 labels, not pretrained to pretrained: classes {class_scratch:.1f} to {class_bert:.1f}%, names "
        "{names_scratch:.1f} to {names_bert:.1f}%, answer spans {span_scratch:.1f} to {span_bert:.1f}%; "
        "MRR@10 {bm25:.1f} (BM25) to {search_bert:.1f}%",
    },
)
