"""Pretrain kiban-lm-ja-en: a small bilingual Llama from random weights, with the verbs that are there for anyone's text.

    python examples/get_text.py ja en              # the text, once
    python examples/train_lm_ja_en.py              # to runs/lm-ja-en; started again, it goes on where it was
    python examples/train_lm_ja_en.py --gpu        # a larger one than the published
    python examples/train_lm_ja_en.py --publish weights/kiban-lm-ja-en      # after benchmarks/lm_ja_en.py

Japanese text under every licence that `get_text.py --list` calls free or copyleft; English, of which there is more, under
the free ones alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from get_text import CACHE
from kiban import zoo
from texts.sources import use

TEMPLATE = Path(__file__).with_name("lm_card.md")
RECORD = Path(__file__).parent.parent / "benchmarks" / "results" / "lm-ja-en.json"
USED = {"ja": ("free", "copyleft"), "en": ("free",)}
VOCAB_SIZE = 8192  # of both languages together
# With 120M tokens it was best after 72M, and then learned its text by heart.
ON_GPU = ("--size", "11m", "--tokens", "60M", "--set", "recipe.batch_tokens=32768")


def write_text(path: Path) -> None:
    """The documents whose licence allows it, with what the card tells of each."""
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as out:
        for language, allowed in USED.items():
            for source in sorted((CACHE / f"text-{language}").glob("*.jsonl")):
                with source.open(encoding="utf-8") as file:
                    rows = (row for row in map(json.loads, file) if use(row["licence"]) in allowed)
                    out.writelines(json.dumps({**row, "lang": language}, ensure_ascii=False) + "\n" for row in rows)
    if not part.stat().st_size:
        sys.exit("train_lm_ja_en.py: no text; python examples/get_text.py ja en fetches it")
    part.replace(path)


def kiban(*arguments: str | Path) -> None:
    """One verb of the command."""
    done = subprocess.run([sys.executable, "-m", "kiban", *map(str, arguments)], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def train(run: Path, length: Sequence[str]) -> None:
    """Corpus and model below run; what an earlier call finished is not done again."""
    run.mkdir(parents=True, exist_ok=True)
    text, clean, unique, model = (run / name for name in ("text.jsonl", "clean", "unique", "model"))
    if not text.exists():
        write_text(text)
    if not clean.exists():
        kiban("data", "clean", text, "--out", clean, "--languages", "ja,en")
    if not unique.exists():
        kiban("data", "dedup", clean, "--out", unique)
    if model.exists():
        kiban("pretrain", "--resume", model)
    else:
        kiban("pretrain", "llama", "--data", unique, *length, "--vocab-size", str(VOCAB_SIZE), "--out", model)


def card(run: Path) -> str:
    """README.md: what the run, its text and the benchmark's last record say."""
    result = json.loads((run / "model" / "result.json").read_text(encoding="utf-8"))
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    log = (run / "model" / "checkpoints" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    lines: list[dict[str, Any]] = [json.loads(line) for line in log]
    watched = [(line["step"], line["eval_bits_per_character"]) for line in lines if "eval_bits_per_character" in line]
    sources: dict[tuple[str, str], Counter[str]] = {}
    with (run / "text.jsonl").open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            sources.setdefault((row["lang"], row["licence"]), Counter())[row["source"]] += len(row["text"])
    by_size = sorted(sources.items(), key=lambda item: (item[0][0] == "en", -item[1].total()))
    return TEMPLATE.read_text(encoding="utf-8").format(
        **result,
        millions=f"{result['parameters'] / 1e6:.1f}",
        man=round(result["parameters"] / 1e4),
        minutes=round(result["seconds"] / 60),
        config=zoo.load(run / "model" / "final").config,
        bits="".join(
            f"| {found['language']} | {found['model']} | {found['characters']:,} | {found['bits_per_character']:.3f} |\n"
            for found in record["bits"]
        ),
        topics="".join(
            f"| {found['set']} | {found['model']} | {found['macro_f1']:.3f} ({found['low']:.3f} to {found['high']:.3f}) |\n"
            for found in record["topics"]
        ),
        samples="\n\n".join(f"> {text}" for text in record["samples"]),
        curve="".join(
            f"| {step:,} | {bits:.3f} |\n" for step, bits in [*watched[:: -(-len(watched) // 10)], watched[-1]]
        ),
        licences="".join(
            f"| {language} | {licence} | {found.total():,} | {', '.join(sorted(found))} |\n"
            for (language, licence), found in by_size
        ),
    )


def publish(run: Path, folder: Path) -> None:
    """The run's model in float16, with its card; the folder must be new."""
    result = json.loads((run / "model" / "result.json").read_text(encoding="utf-8"))
    facts = {"pretrained": True, **result}
    # Stored in float16, used in float32: half precision is slow on most processors.
    zoo.save(
        zoo.load(run / "model" / "final"), folder, files={"README.md": card(run)}, manifest=facts, stored=torch.float16
    )


def main() -> None:
    """Train, or go on with a run, or publish one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/lm-ja-en"), help="folder of the run")
    parser.add_argument("--gpu", action="store_true", help="a larger one than the published, in minutes on a GPU")
    parser.add_argument("--time", default="75m", help="instead of --gpu: for tokenizer, training and measurement")
    parser.add_argument("--publish", type=Path, help="write a finished run to this folder, with its card; must be new")
    arguments = parser.parse_args()
    if arguments.publish:
        publish(arguments.run, arguments.publish)
    else:
        train(arguments.run, ON_GPU if arguments.gpu else ("--time", arguments.time))


if __name__ == "__main__":
    main()
