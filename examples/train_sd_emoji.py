"""Train a small Stable Diffusion on emoji with captions in Japanese and English, in about an hour and a half on one core.

    python examples/get_images.py emoji              # the pictures, once
    python examples/train_sd_emoji.py                # to runs/sd-emoji; started again, it goes on where it was
    python benchmarks/emoji.py draw --model runs/sd-emoji/final --save
    python examples/train_sd_emoji.py --publish weights/kiban-sd-emoji

Its text tower is that of kiban-clip-emoji (examples/train_clip_emoji.py). What is measured, and how: benchmarks/emoji.py.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from emoji_card import fill, interval, publish, record, table
from get_text import CACHE
from kiban import zoo
from kiban.data.pairs import read_pairs
from kiban.recipes.latent_diffusion import Settings, train
from telling import teller


def card(run: Path) -> str:
    """README.md, from the run and the benchmark's record."""
    facts, found, c = json.loads((run / "result.json").read_text(encoding="utf-8")), record("emoji-draw"), Settings()
    heads = ("pictures", "guidance", "language", "CLIP-score", "with another name", "group")
    rows = [
        (
            f"{row['pictures']} {row['concepts']}".strip(),
            "" if row["guidance"] is None else f"{row['guidance']:g}",
            row["language"],
            interval(row, "clip_score"),
            interval(row, "with another name"),
            interval(row, "group", percent=True),
        )
        for row in found["drawing"]
    ]
    return fill(
        "sd_emoji_card.md",
        millions=f"{facts['parameters'] / 1e6:.1f}",
        man=f"{facts['parameters'] / 1e4:,.0f}",
        pictures=facts["pictures"],
        concepts=found["concepts"],
        seeds=found["seeds"],
        largest=found["largest_group"],
        drawing=table(heads, rows),
        vae_steps=c.vae_steps,
        vae_batch=c.vae_batch_size,
        steps=facts["steps"],
        batch=c.batch_size,
        min_snr=c.min_snr,
        dropped=1 / c.dropout,
        minutes=round(facts["seconds"] / 60),
    )


def main() -> None:
    """Train, or go on with a run, or publish one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/sd-emoji"), help="folder of the run")
    parser.add_argument(
        "--clip", default="kiban-clip-emoji", help="whose text tower tells what to draw: name or folder"
    )
    parser.add_argument("--steps", type=int, default=Settings().steps, help="of learning to draw")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--publish", type=Path, help="write a finished run to this folder, with its card; must be new")
    arguments = parser.parse_args()
    if arguments.publish:
        publish(arguments.run, arguments.publish, card(arguments.run))
        return
    torch.set_num_threads(arguments.threads)
    pairs = list(read_pairs(CACHE / "emoji" / "train"))
    settings = replace(Settings(), steps=arguments.steps)
    model, result = train(pairs, zoo.load(arguments.clip), arguments.run, settings, progress=teller())
    if result.stopped_by == "sigterm":
        return
    facts = {
        "steps": result.steps,
        "seconds": result.seconds,
        "parameters": model.num_parameters,
        "pictures": len(pairs),
    }
    (arguments.run / "result.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    zoo.save(model, arguments.run / "final")


if __name__ == "__main__":
    main()
