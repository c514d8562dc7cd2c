"""The model card of kiban-encoder-ja-en, from what its run and its benchmark recorded."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kiban.recipes.parallel_text import Pair

NAMES = {
    "baseline": "TF-IDF",
    "minilm-l6": "MiniLM-L6 (the teacher)",
    "kiban-encoder-ja-en": "**this model**",
    **{f"kiban-encoder-ja-en, fine-tuned {n} epochs": f"**this model**, fine-tuned whole, {n} epochs" for n in (3, 6)},
    "begin": "its start, steps 1 and 2",
}

TEMPLATE = Path(__file__).with_name("encoder_card.md")


def card(
    settings: Any,
    selected: Sequence[Pair],
    pairs: int,
    removed: Mapping[str, int],
    held: Mapping[str, Sequence[str]],
    lines: Sequence[Mapping[str, Any]],
    record: Mapping[str, Any],
    *,
    num_tokens: int,
    hours: float,
) -> str:
    """README.md. pairs: how many of selected were distilled from.

    lines: of metrics.jsonl. record: of benchmarks/encoder_ja_en.py.
    """
    steps = [line for line in lines if "loss" in line]
    kinds = {name: " and ".join([", ".join(names[:-1]), names[-1]]) for name, names in held.items()}
    licences: dict[str, Counter[str]] = {}
    for pair in selected:
        licences.setdefault(pair.licence, Counter())[pair.source] += 1
    left = ", ".join(f"{name} ({count:,})" for name, count in removed.items() if count)
    by_size = sorted(licences.items(), key=lambda item: -sum(item[1].values()))
    return TEMPLATE.read_text(encoding="utf-8").format(
        max_len=settings.max_len,
        share=settings.english_share,
        contrast=settings.contrast,
        lr=settings.lr,
        batch=settings.batch_size,
        tokens=f"{num_tokens:,}",
        steps=steps[-1]["step"],
        tokens_read=steps[-1]["tokens"],
        hours=hours,
        pairs=pairs,
        selected=len(selected),
        texts=steps[-1]["step"] * settings.batch_size,
        removed=left,
        forbidden=removed.get("forbidden", 0),
        retrieval=_retrieval(record),
        classification=_classification(record),
        curve=_curve(lines),
        licences="".join(f"| {name} | {sum(c.values()):,} | {', '.join(sorted(c))} |\n" for name, c in by_size),
        **kinds,
    )


def _curve(lines: Sequence[Mapping[str, Any]]) -> str:
    rows, losses = [], []
    for line in lines:
        if "loss" in line:
            losses.append(line["loss"])
        if "eval_recall@1" in line:
            loss = statistics.mean(losses[-100:])
            rows.append(f"| {line['step']} | {loss:.3f} | {line['eval_cosine']:.3f} | {line['eval_recall@1']:.3f} |\n")
    return "".join(rows)


def _retrieval(record: Mapping[str, Any]) -> str:
    rows = []
    for name, models in record["retrieval"].items():
        for model, scores in models.items():
            keys = [f"{way} recall@{k}" for way in ("ja-en", "en-ja") for k in (1, 10)]
            cells = [f"{scores[key]:.3f} ± {scores[f'{key} ±']:.3f}" for key in keys]
            rows.append(f"| {name} | {record['pairs'][name]:,} | {NAMES.get(model, model)} | {' | '.join(cells)} |\n")
    return "".join(rows)


def _classification(record: Mapping[str, Any]) -> str:
    rows = []
    for name, models in record["classification"].items():
        for model, scores in models.items():
            cells = []
            for metric in ("macro_f1", "accuracy"):
                low, high = scores[f"{metric}_95"]
                cells.append(f"{scores[metric]:.3f} ({low:.3f} to {high:.3f})")
            gain = record["beside_baseline"][name].get(model)
            cells.append(f"{gain['macro_f1_gain']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})" if gain else "")
            rows.append(f"| {name} | {record['test_rows'][name]} | {NAMES.get(model, model)} | {' | '.join(cells)} |\n")
    return "".join(rows)
