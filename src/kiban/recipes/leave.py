"""What a pretraining run leaves: the curve of its loss, a model card, and the model in the layout of Hugging Face."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, Literal

from kiban import zoo
from kiban.recipes.pretrain import Plan, Pretrained

CARD = """---
library_name: transformers
tags: [{family}, pretrained]
---
# {family} {size}

{parameters:,} parameters, vocabulary {vocab_size:,}, trained from random weights with kiban {version} for {steps:,} steps on
{tokens:,} tokens ({epochs:.2f} passes over the {train_tokens:,} tokens of `{data}`) in {minutes:.1f} minutes.

| measured on held-out documents | |
|---|---|
{rows}

It continues text in the manner of its data and knows nothing else: no facts are checked, no instructions are followed. The
licence of the text decides what may be done with it.
"""
WORDS = {
    "loss": {"ja": "学習時の損失 (nat/トークン)", "en": "training loss (nats per token)"},
    "held_out": {"ja": "検証データ (ビット/文字)", "en": "held-out text (bits per character)"},
    "ngram": {"ja": "n-gram (Kneser-Ney, 5次)", "en": "n-gram (Kneser-Ney, order 5)"},
    "tokens": {"ja": "トークン数", "en": "tokens"},
}


def leave(plan: Plan, loaded: zoo.Loaded, result: Pretrained, folder: Path, *, data: str, version: str) -> Path:
    """Write `final/` behind a run; returns it. Nothing is written over."""
    measured = dict(result.metrics)
    if result.ngram_bits_per_character is not None:
        measured["n-gram model of order 5, bits per character"] = result.ngram_bits_per_character
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value:.3f} |" for name, value in measured.items())
    facts = {**result.__dict__, "minutes": result.seconds / 60, "rows": rows, "data": data, "version": version}
    final = folder / "final"
    loaded.module.cpu()
    zoo.save(loaded, final, files={"README.md": CARD.format(**facts)}, manifest={"pretrained": True})
    return final


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def plot(folder: Path, result: Pretrained, *, lang: Literal["ja", "en"]) -> Path:
    """Draw plots/loss.svg: the loss over the tokens, and held-out bits per character beside the n-gram model."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    lines = read_log(folder / "checkpoints" / "metrics.jsonl")
    trained = [line for line in lines if line.get("loss") is not None]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    tokens = [line["tokens"] for line in trained]
    axis.plot(tokens, [line["loss"] for line in trained], color="#9db4c8", linewidth=0.8, label=WORDS["loss"][lang])
    at = {line["step"]: line["tokens"] for line in trained}
    watched = [line for line in lines if "eval_bits_per_character" in line]
    axis.set_xlabel(WORDS["tokens"][lang])
    axis.set_ylabel(WORDS["loss"][lang])
    handles, labels = axis.get_legend_handles_labels()
    if watched:
        right = axis.twinx()
        bits = [line["eval_bits_per_character"] for line in watched]
        right.plot([at[line["step"]] for line in watched], bits, "o-", color="#0b6e99", label=WORDS["held_out"][lang])
        if result.ngram_bits_per_character is not None:
            right.axhline(result.ngram_bits_per_character, color="#b5541c", ls="--", label=WORDS["ngram"][lang])
        right.set_ylabel(WORDS["held_out"][lang])
        more = right.get_legend_handles_labels()
        handles, labels = handles + more[0], labels + more[1]
    axis.legend(handles, labels, loc="upper right")
    path = folder / "plots" / "loss.svg"
    path.parent.mkdir(exist_ok=True)
    # Text stays text, so that a browser draws Japanese with a font that has it; matplotlib's own often has none.
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(path)
    return path
