"""Train a small CLIP on emoji with captions in Japanese and English, in about an hour on one core.

    python examples/get_images.py emoji              # the pictures, once
    python examples/get_text.py parallel ja en       # for the dictionary, once
    python examples/train_clip_emoji.py              # to runs/clip-emoji; started again, it goes on where it was
    python benchmarks/emoji.py clip --clip runs/clip-emoji/final --save
    python examples/train_clip_emoji.py --publish weights/kiban-clip-emoji

While it learns it is asked for the names of concepts that it is not shown; what is measured in the end: benchmarks/emoji.py.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from emoji_card import fill, interval, publish, record, table
from get_text import CACHE, Archives
from kiban import zoo
from kiban.data.pairs import read_pairs
from kiban.recipes.image_text import Settings, name_retrieval, train
from telling import teller
from train_encoder_ja_en import dictionary

LONGEST = 40  # characters of a text that the teacher teaches besides captions


def words() -> list[str]:
    """Common words of EDICT and what they mean, in both languages."""
    with tempfile.TemporaryDirectory() as scratch:
        pairs = list(dictionary(Archives(CACHE / "archives", Path(scratch))))
    found = dict.fromkeys(text for pair in pairs for text in (pair.ja, pair.en) if len(text) <= LONGEST)
    return list(found)


def card(run: Path) -> str:
    """README.md, from the run and the benchmark's record."""
    facts, c = json.loads((run / "result.json").read_text(encoding="utf-8")), Settings()
    kept = {(r["part"], r["language"], r["way"], r["k"]): r for r in record("emoji-clip")["retrieval"]}
    rows = [
        (
            part,
            lang,
            way,
            *(f"{interval(kept[part, lang, way, k], 'recall', percent=True)}" for k in (1, 5)),
            *(f"{100 * kept[part, lang, way, k]['chance']:.1f}%" for k in (1, 5)),
        )
        for part, lang, way, k in kept
        if k == 1
    ]
    return fill(
        "clip_emoji_card.md",
        millions=f"{facts['parameters'] / 1e6:.1f}",
        man=f"{facts['parameters'] / 1e4:,.0f}",
        pictures=facts["pictures"],
        retrieval=table(("part", "language", "asked", "recall@1", "recall@5", "chance@1", "chance@5"), rows),
        text_steps=c.text_steps,
        text_batch=c.text_batch_size,
        texts=facts["texts"],
        steps=facts["steps"],
        batch=c.batch_size,
        tokens=c.vocab_size,
        minutes=round(facts["seconds"] / 60),
    )


def main() -> None:
    """Train, or go on with a run, or publish one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/clip-emoji"), help="folder of the run")
    parser.add_argument("--steps", type=int, default=Settings().steps, help="of learning from pictures")
    parser.add_argument("--no-teacher", action="store_true", help="texts are learned from the pictures' captions alone")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--publish", type=Path, help="write a finished run to this folder, with its card; must be new")
    arguments = parser.parse_args()
    if arguments.publish:
        publish(arguments.run, arguments.publish, card(arguments.run))
        return
    torch.set_num_threads(arguments.threads)
    settings = replace(Settings(), steps=arguments.steps, **({"teacher": ""} if arguments.no_teacher else {}))
    pairs, held = (list(read_pairs(CACHE / "emoji" / name)) for name in ("train", "new-concepts"))

    def evaluate(model: zoo.Loaded) -> dict[str, float]:
        found = name_retrieval(model, held, settings.languages)
        print({name: round(value, 3) for name, value in found.items()}, flush=True)
        return found

    texts = words() if settings.teacher else []
    model, result = train(pairs, arguments.run, settings, texts=texts, evaluate=evaluate, progress=teller())
    if result.stopped_by == "sigterm":
        return
    facts = {"steps": result.steps, "seconds": result.seconds, "parameters": model.num_parameters}
    facts |= {"pictures": len(pairs), "texts": len(texts)}
    (arguments.run / "result.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    zoo.save(model, arguments.run / "final")


if __name__ == "__main__":
    main()
