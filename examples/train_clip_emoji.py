"""Train a small CLIP on emoji with captions in Japanese and English, in half an hour on two cores.

    python examples/get_images.py emoji              # the pictures, once
    python examples/get_text.py parallel ja en       # for the dictionary, once
    python examples/train_clip_emoji.py              # to runs/clip-emoji; started again, it goes on where it was

Measured are concepts that training does not show, a drawing style that it does not show, and both: how often a picture's
own name is the nearest, or among the nearest five, of all names of that part, and a name's picture of all pictures.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from get_text import CACHE, Archives
from kiban import zoo
from kiban.data.pairs import read_pairs
from kiban.recipes.image_text import Settings, name_retrieval, train
from train_encoder_ja_en import dictionary

PARTS = ("new-concepts", "new-style", "new-both")
LONGEST = 40  # characters of a text that the teacher teaches besides captions


def words() -> list[str]:
    """Common words of EDICT and what they mean, in both languages."""
    with tempfile.TemporaryDirectory() as scratch:
        pairs = list(dictionary(Archives(CACHE / "archives", Path(scratch))))
    found = dict.fromkeys(text for pair in pairs for text in (pair.ja, pair.en) if len(text) <= LONGEST)
    return list(found)


def main() -> None:
    """Train, or go on with a run, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/clip-emoji"), help="folder of the run")
    parser.add_argument("--steps", type=int, default=Settings().steps, help="of learning from pictures")
    parser.add_argument("--no-teacher", action="store_true", help="texts are learned from the pictures' captions alone")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = replace(Settings(), steps=arguments.steps, **({"teacher": ""} if arguments.no_teacher else {}))
    parts = {name: list(read_pairs(CACHE / "emoji" / name)) for name in ("train", *PARTS)}
    last = 0.0

    def tell(stage: str, done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last > 10:
            last = time.monotonic()
            print(f"{stage} {done}/{total or '?'}", flush=True)

    def evaluate(model: zoo.Loaded) -> dict[str, float]:
        found = name_retrieval(model, parts["new-concepts"], settings.languages)
        print({name: round(value, 3) for name, value in found.items()}, flush=True)
        return found

    started = time.monotonic()
    texts = words() if settings.teacher else []
    model, result = train(parts["train"], arguments.run, settings, texts=texts, evaluate=evaluate, progress=tell)
    if result.stopped_by == "sigterm":
        return
    facts = {"steps": result.steps, "seconds": round(time.monotonic() - started), "parameters": model.num_parameters}
    found = {name: name_retrieval(model, parts[name], settings.languages) for name in PARTS}
    (arguments.run / "result.json").write_text(json.dumps({**facts, "retrieval": found}, indent=1), encoding="utf-8")
    print(json.dumps({**facts, "retrieval": found}, indent=1))
    zoo.save(model, arguments.run / "final")


if __name__ == "__main__":
    main()
