"""Sentence embeddings of real texts: kiban's unpadded encoder beside sentence-transformers, same weights, one run.

pip install -e ".[test]" && python benchmarks/embed.py --save
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch

import kiban.zoo as zoo
from common import arguments, finish, medians, table
from kiban.catalogue.pull import pull
from kiban.engine.encoder import EncoderPlan

NUM_TEXTS = 256
EXAMPLES = Path(__file__).parent.parent / "examples" / "data"


def texts() -> list[str]:
    """Descriptions of mixed length, English then Japanese."""
    found = []
    for name, column in (("debian-en.csv", "text"), ("debian-ja.csv", "本文")):
        with (EXAMPLES / name).open(encoding="utf-8", newline="") as file:
            found += [row[column] for row in list(csv.DictReader(file))[: NUM_TEXTS // 2]]
    return found


def main() -> None:
    """Print sentences per second and ratios."""
    from sentence_transformers import SentenceTransformer

    options, folder, inputs = arguments(__doc__ or ""), pull("minilm-l6"), texts()
    peer = SentenceTransformer(str(folder), device="cpu")
    loaded = zoo.load("minilm-l6")
    plans = {
        "kiban fp32": EncoderPlan(loaded, max_len=peer.max_seq_length),
        "kiban bf16": EncoderPlan(loaded, max_len=peer.max_seq_length, dtype=torch.bfloat16),
    }
    ways = {"sentence-transformers fp32": lambda: peer.encode(inputs, batch_size=32, normalize_embeddings=True)}
    ways |= {name: lambda plan=plan: plan.embed(inputs) for name, plan in plans.items()}  # type: ignore[misc]
    seconds = medians(ways, options.repeats)
    theirs = np.asarray(ways["sentence-transformers fp32"]())
    rows = []
    for name, taken in seconds.items():
        ours = np.asarray(ways[name]())
        rows.append(
            {
                "way": name,
                "sentences_per_s": len(inputs) / taken,
                "ratio": seconds["sentence-transformers fp32"] / taken,
                "max_abs_diff": float(np.abs(ours - theirs).max()),
                "min_cosine": float((ours * theirs).sum(-1).min()),
            }
        )
    print(table(rows))
    finish("embed", {"texts": len(inputs), "rows": rows}, options, ("sentence-transformers", "transformers"))


if __name__ == "__main__":
    main()
